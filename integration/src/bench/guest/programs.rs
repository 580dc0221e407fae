//! The programs that run in the guest, as Debian ships them: how they are asked, and what they answer.

use std::fmt::Write;

use anyhow::{Context, Result};

/// What Bonnie++ is asked.
#[derive(Clone, Copy, Debug)]
pub struct Bonnie {
    /// What the guest has: the file must be twice that at least, or it would be read from memory.
    pub memory_mib: u32,
    pub file_mib: u32,
}

/// Its figures, in MB (10^6) a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sequential {
    pub write_mb_s: f64,
    pub read_mb_s: f64,
}

/// What PostMark is asked.
#[derive(Clone, Copy, Debug)]
pub struct PostMark {
    pub transactions: u32,
}

/// Its figures. MB of 10^6 bytes; over the whole run, as PostMark counts them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SmallFiles {
    pub transactions_s: f64,
    pub read_mb_s: f64,
    pub write_mb_s: f64,
}

const FILES: u32 = 1000;
const DIRECTORIES: u32 = 100;
/// Some 105 MB in all, more than a guest of 128 MiB can keep. PostMark's own choice, 500 to 10,000 bytes, is
/// 5 MB in all: it would never be read from the disk.
const LEAST_BYTES: u32 = 10_000;
const MOST_BYTES: u32 = 200_000;

impl Bonnie {
    /// Without single characters (-f), without small files (-n 0).
    pub fn command(&self, directory: &str) -> String {
        assert!(self.file_mib >= 2 * self.memory_mib);
        format!(
            "bonnie++ -q -u root -d {directory} -r {} -s {}:8k -n 0 -f -m guest",
            self.memory_mib, self.file_mib
        )
    }
}

impl PostMark {
    /// Reads and appends, makes and removes files: half of each, which is what it does by itself. The same
    /// transactions each time: its seed is always the same.
    pub fn command(&self, directory: &str) -> String {
        let mut settings = format!("set location {directory}\\n");
        for (name, value) in [
            ("number", FILES),
            ("subdirectories", DIRECTORIES),
            ("transactions", self.transactions),
        ] {
            let _ = write!(settings, "set {name} {value}\\n");
        }
        let _ = write!(settings, "set size {LEAST_BYTES} {MOST_BYTES}\\n");
        format!("printf '{settings}run\\nquit\\n' > /tmp/postmark && postmark /tmp/postmark")
    }

    pub fn read(&self, report: &str) -> Result<SmallFiles> {
        let figures = || {
            let seconds = number_before(report, " seconds total")?;
            let busy = number_before(report, " seconds of transactions")?;
            Some(SmallFiles {
                transactions_s: f64::from(self.transactions) / busy,
                read_mb_s: megabytes(report, "read")? / seconds,
                write_mb_s: megabytes(report, "written")? / seconds,
            })
        };
        figures().with_context(|| format!("PostMark's report is another one:\n{report}"))
    }
}

/// Of Bonnie++'s line of values: the 12th is the writing of blocks, the 18th the reading, in KiB a second.
pub fn read_bonnie(output: &str) -> Result<Sequential> {
    let line = output.lines().find(|line| line.starts_with("1.98,"));
    let fields: Vec<&str> = line.unwrap_or_default().split(',').collect();
    let rate = |index: usize| {
        let kib: f64 = fields.get(index)?.parse().ok()?;
        Some(kib * 1024.0 / 1e6)
    };
    let both = rate(11).zip(rate(17));
    let (write_mb_s, read_mb_s) =
        both.with_context(|| format!("Bonnie++ says no such rates:\n{output}"))?;
    Ok(Sequential {
        write_mb_s,
        read_mb_s,
    })
}

fn number_before(report: &str, words: &str) -> Option<f64> {
    let line = report.lines().find(|line| line.contains(words))?;
    line.split(words).next()?.trim().parse().ok()
}

/// `112.09 megabytes read (18.68 megabytes per second)`, of 2^20 bytes each.
fn megabytes(report: &str, done: &str) -> Option<f64> {
    for (unit, bytes) in [
        (" megabytes ", 1024.0 * 1024.0),
        (" kilobytes ", 1024.0),
        (" gigabytes ", 1024.0 * 1024.0 * 1024.0),
    ] {
        if let Some(number) = number_before(report, &format!("{unit}{done}")) {
            return Some(number * bytes / 1e6);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const BONNIE: &str = "\
Version 2.00a       ------Sequential Output------ --Sequential Input- --Random-
Name:Size etc        /sec %CP  /sec %CP  /sec %CP  /sec %CP  /sec %CP  /sec %CP
1.98,2.00a,x,1,1795328934,256M,,8192,5,,,121227,69,96521,72,,,175753,74,2912,335,,,,,,,,,,,,,,,,,,,7148us,8275us,,5099us,384ms,,,,,,
";

    const POSTMARK: &str = "\
PostMark v1.51 : 8/14/01
Reading configuration from file '/tmp/pm'
Performing transactions..........Done
Time:
\t6 seconds total
\t5 seconds of transactions (400 per second)

Files:
\t2007 created (334 per second)
\t\tCreation alone: 1000 files (1000 per second)
\t\tMixed with transactions: 1007 files (201 per second)
\t1005 read (201 per second)
\t995 appended (199 per second)
\t2007 deleted (334 per second)
\t\tDeletion alone: 1014 files (1014 per second)
\t\tMixed with transactions: 993 files (198 per second)

Data:
\t112.09 megabytes read (18.68 megabytes per second)
\t235.76 megabytes written (39.29 megabytes per second)
";

    #[test]
    fn what_bonnie_says() -> Result<()> {
        let both = read_bonnie(BONNIE)?;
        assert!((both.write_mb_s - 124.136).abs() < 0.001);
        assert!((both.read_mb_s - 179.971).abs() < 0.001);
        // So fast that Bonnie++ will not tell.
        let too_fast = BONNIE.replace("121227", "+++++");
        assert!(read_bonnie(&too_fast).is_err() && read_bonnie("").is_err());
        Ok(())
    }

    #[test]
    fn what_postmark_says() -> Result<()> {
        let asked = PostMark { transactions: 2000 };
        let said = asked.read(POSTMARK)?;
        assert_eq!(said.transactions_s, 400.0);
        assert!((said.read_mb_s - 112.09 * 1.048576 / 6.0).abs() < 0.001);
        assert!((said.write_mb_s - 235.76 * 1.048576 / 6.0).abs() < 0.001);
        let less = POSTMARK.replace("112.09 megabytes read", "512.00 kilobytes read");
        assert!((asked.read(&less)?.read_mb_s - 0.524288 / 6.0).abs() < 0.001);
        assert!(asked.read("Time:\n").is_err());
        Ok(())
    }

    #[test]
    fn what_they_are_asked() {
        let bonnie = Bonnie {
            memory_mib: 128,
            file_mib: 256,
        };
        assert!(bonnie.command("/mnt").contains(" -r 128 -s 256:8k "));
        let asked = PostMark { transactions: 7 }.command("/mnt");
        assert!(asked.contains("set transactions 7\\n") && !asked.contains('\n'));
    }
}
