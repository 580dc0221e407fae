//! Which runs a store's directory has been through: a number drawn at each start, kept in the directory.
//!
//! A copy of the directory carries along the runs up to when it was made, and none after that. So the
//! placement service, which remembers the last run that it saw, can tell a store that was put back to an
//! older copy of itself from one that was only started again, whatever either says of its number of starts.

use placement_service::node_protocol::StoreRun;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use uuid::Uuid;

const FILE: &str = "runs";
const NEW_FILE: &str = "runs.tmp";
/// A store that starts more often than this while the placement service is away cannot show any more
/// that it is what it was, and is refused.
const MOST: usize = 256;

/// Begins another run of the store in `dir`, which must be open. Newest first; durable when it returns.
pub fn begin(dir: &Path) -> io::Result<Vec<StoreRun>> {
    let before = match fs::read_to_string(dir.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let mut runs = vec![StoreRun(Uuid::new_v4().as_u64_pair().0)];
    // What cannot be read is a run that cannot be shown.
    let known = before
        .lines()
        .filter_map(|line| u64::from_str_radix(line, 16).ok());
    runs.extend(known.map(StoreRun).take(MOST - 1));
    let text: String = runs.iter().map(|run| format!("{:016x}\n", run.0)).collect();
    let mut file = File::create(dir.join(NEW_FILE))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(dir.join(NEW_FILE), dir.join(FILE))?;
    File::open(dir)?.sync_all()?;
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Scratch {
            let dir = std::env::temp_dir().join(format!("ukai-runs-{}", Uuid::new_v4()));
            fs::create_dir(&dir).unwrap();
            Scratch(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_copy_knows_the_runs_before_it_only() {
        let dir = Scratch::new();
        let first = begin(&dir.0).unwrap();
        let copy = fs::read(dir.0.join(FILE)).unwrap();
        let second = begin(&dir.0).unwrap();
        assert_eq!(second[1..], first, "newest first");
        fs::write(dir.0.join(FILE), copy).unwrap();
        let forked = begin(&dir.0).unwrap();
        assert_eq!(forked[1..], first);
        assert!(!forked.contains(&second[0]));
    }

    #[test]
    fn the_oldest_are_forgotten_and_nonsense_is_passed_over() {
        let dir = Scratch::new();
        let many: String = (0..MOST * 2).map(|run| format!("{run:016x}\n")).collect();
        fs::write(dir.0.join(FILE), format!("nonsense\n{many}")).unwrap();
        let runs = begin(&dir.0).unwrap();
        assert_eq!(runs.len(), MOST);
        assert_eq!(runs[1], StoreRun(0));
    }
}
