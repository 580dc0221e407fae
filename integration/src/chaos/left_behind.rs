//! A VM whose host is cut off: it is given up for lost, its disk is taken over, and it runs on.
//!
//! Nothing may be acknowledged to it from the take-over on, however the network heals, and it must notice: its
//! requests wait, or fail.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::tenant::{Lost, Tenant};
use crate::guest::ticks::{Doing, Stamp, Ticks};

/// What the guest's writer says of a request that failed: EIO.
const IO_ERROR: &str = "os error 5";

pub struct LeftBehind {
    tenant: Tenant,
    /// Its own: whoever runs elsewhere is heard by another ear.
    ticks: Ticks,
    /// When its disk had been taken over, and what it had been promised until then.
    fenced: Option<(Stamp, Lost)>,
}

/// How a VM noticed that its disk is another one's now.
#[derive(Clone, Copy, Debug)]
pub enum Noticed {
    /// Its requests wait.
    Waits,
    /// They failed, the first one after so long.
    Errors(Duration),
}

impl LeftBehind {
    pub fn new(tenant: Tenant, ticks: Ticks) -> LeftBehind {
        LeftBehind {
            tenant,
            ticks,
            fenced: None,
        }
    }

    /// Its disk has been taken over. Returns what whoever has it now must find.
    pub fn is_fenced(&mut self) -> Lost {
        let now = Stamp::now();
        let promised = self.tenant.promised();
        self.fenced = Some((now, promised.clone()));
        promised
    }

    /// Ends it. An error if it noticed nothing, or if anything was acknowledged to it that was not to be.
    pub fn end(mut self) -> Result<Noticed> {
        let (fenced, promised) = self.fenced.context("its disk was not taken over")?;
        let operations = self.ticks.operations()?;
        let writes = operations.iter().filter(|one| one.doing != Doing::Read);
        let late = writes.filter(|one| one.ended > fenced).count();
        ensure!(
            late == 0,
            "{late} writes and flushes were acknowledged to the old VM after the take-over"
        );
        let said = self.tenant.promised().flushed;
        ensure!(
            said == promised.flushed,
            "the old VM had flushed {:?}, and says {said:?} after the take-over",
            promised.flushed
        );
        let waiting = self.ticks.waiting_since()?;
        let noticed = match self.tenant.writer_ended() {
            Some(said) => Noticed::Errors(failed_after(said)?),
            None => {
                let waits = waiting.is_some_and(|since| since <= fenced);
                ensure!(waits, "the old VM noticed nothing of the take-over");
                Noticed::Waits
            }
        };
        self.tenant.lose();
        Ok(noticed)
    }
}

/// `FAILED write of /dev/vda at 4096: Input/output error (os error 5) (after 9000 ms)`
fn failed_after(said: &str) -> Result<Duration> {
    let last = said.lines().next_back().unwrap_or_default();
    let time = last
        .contains(IO_ERROR)
        .then(|| last.rsplit_once("(after ")?.1.strip_suffix(" ms)"))
        .flatten();
    let ms = time.and_then(|time| time.parse().ok());
    let ms = ms.with_context(|| format!("the old VM ended by no I/O error: {last}"))?;
    Ok(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_error_is_told_from_a_wrong_block() {
        let said = "flushed thread=0 seq=16\nFAILED flush of /dev/vda at 0: Input/output error (os error 5) (after 9000 ms)\n";
        assert_eq!(failed_after(said).unwrap(), Duration::from_secs(9));
        assert!(failed_after("FAILED block 7 holds write 3, not 4").is_err());
    }
}
