//! How a command ends: what it says, and the exit code that a script can act on.

use std::fmt;
use std::process::ExitCode;

/// 0 is success; 2 is clap's, for arguments that make no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    /// Something went wrong; the message says what.
    Failed = 1,
    /// Understood, and refused: the state of the cluster does not allow it.
    Refused = 3,
    /// What was named does not exist.
    NotFound = 4,
    /// A service did not answer: trying again later may help.
    Unreachable = 5,
}

/// What every command's `--help` ends with.
pub const CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 refused, 4 not found, 5 unreachable or not there yet.";

/// An error for people: what happened, why, and what to try next.
#[derive(Debug)]
pub struct Failure {
    pub code: Code,
    pub what: String,
    pub why: Option<String>,
    pub next: Option<String>,
}

impl Failure {
    pub fn new(code: Code, what: impl fmt::Display) -> Self {
        Failure {
            code,
            what: what.to_string(),
            why: None,
            next: None,
        }
    }

    pub fn because(mut self, why: impl fmt::Display) -> Self {
        self.why = Some(why.to_string());
        self
    }

    pub fn try_next(mut self, next: impl fmt::Display) -> Self {
        self.next = Some(next.to_string());
        self
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(why) = &self.why {
            write!(f, ": {why}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// Finds the [`Failure`] in an error, or makes a plain one of it with all its causes.
pub fn explain(error: anyhow::Error) -> Failure {
    match error.downcast::<Failure>() {
        Ok(failure) => failure,
        Err(other) => Failure::new(Code::Failed, format!("{other:#}")),
    }
}
