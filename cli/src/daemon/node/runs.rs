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
/// Of these, the runs that the placement service was told of and accepted.
const TOLD: &str = "runs.told";
/// So many are kept, and of those before them the ones that were told, as many again. What was never told
/// nobody can ask for; so a node may fail to start however often before the placement service hears of it.
/// Where it could not be noted which were told, a store that starts more often than this without being heard
/// cannot show any more that it is what it was, and is refused.
const MOST: usize = 256;

/// Begins another run of the store in `dir`, which must be open. Newest first; durable when it returns.
pub fn begin(dir: &Path) -> io::Result<Vec<StoreRun>> {
    let mut runs = vec![StoreRun(Uuid::new_v4().as_u64_pair().0)];
    runs.extend(read(dir, FILE)?);
    if let Some(old) = runs.get(MOST..) {
        // They are of no use unless they can be read.
        let told = read(dir, TOLD).unwrap_or_default();
        let old = old.iter().filter(|run| told.contains(run)).take(MOST);
        let old: Vec<StoreRun> = old.copied().collect();
        runs.truncate(MOST);
        runs.extend(old);
    }
    replace(dir, FILE, &runs)?;
    Ok(runs)
}

/// Notes that the placement service has accepted this run of the store in `dir`.
pub fn note_told(dir: &Path, run: StoreRun) -> io::Result<()> {
    let mut told = read(dir, TOLD).unwrap_or_default();
    told.retain(|known| *known != run);
    told.insert(0, run);
    told.truncate(MOST);
    replace(dir, TOLD, &told)
}

/// What stands there, newest first; nothing if it is not there.
fn read(dir: &Path, name: &str) -> io::Result<Vec<StoreRun>> {
    let text = match fs::read_to_string(dir.join(name)) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    // What cannot be read is a run that cannot be shown.
    let known = text
        .lines()
        .filter_map(|line| u64::from_str_radix(line, 16).ok());
    Ok(known.map(StoreRun).collect())
}

fn replace(dir: &Path, name: &str, runs: &[StoreRun]) -> io::Result<()> {
    let text: String = runs.iter().map(|run| format!("{:016x}\n", run.0)).collect();
    let new = dir.join(format!("{name}.tmp"));
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, dir.join(name))?;
    File::open(dir)?.sync_all()
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

    #[test]
    fn however_often_it_starts_unheard_the_run_that_was_told_is_shown() {
        let dir = Scratch::new();
        let first = begin(&dir.0).unwrap()[0];
        note_told(&dir.0, first).unwrap();
        let last = begin(&dir.0).unwrap()[0];
        note_told(&dir.0, last).unwrap();
        let many: String = (0..MOST * 3).map(|run| format!("{run:016x}\n")).collect();
        let before = fs::read_to_string(dir.0.join(FILE)).unwrap();
        fs::write(dir.0.join(FILE), format!("{many}{before}")).unwrap();
        for _ in 0..2 {
            let runs = begin(&dir.0).unwrap();
            assert_eq!(
                runs.len(),
                MOST + 2,
                "untold ones go first, the oldest first"
            );
            assert!(runs.contains(&StoreRun(0)));
            assert_eq!(runs[MOST..], [last, first]);
        }
        fs::remove_file(dir.0.join(TOLD)).unwrap();
        assert_eq!(begin(&dir.0).unwrap().len(), MOST);
    }

    #[test]
    fn no_more_are_kept_than_twice_as_many() {
        let dir = Scratch::new();
        let many: String = (0..MOST * 3).map(|run| format!("{run:016x}\n")).collect();
        fs::write(dir.0.join(FILE), &many).unwrap();
        fs::write(dir.0.join(TOLD), &many).unwrap();
        let runs = begin(&dir.0).unwrap();
        assert_eq!(runs.len(), MOST * 2);
        note_told(&dir.0, runs[0]).unwrap();
        assert_eq!(read(&dir.0, TOLD).unwrap().len(), MOST);
    }
}
