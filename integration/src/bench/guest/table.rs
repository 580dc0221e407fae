//! The figures of guests: a table of Markdown, and a line of JSON for each way.

use std::fmt::Write;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Figures, Measured, local};
use crate::bench::report::number;
use crate::bench::statistics::{Ratio, median};

struct Column {
    title: &'static str,
    key: &'static str,
    of: fn(&Figures) -> f64,
}

const COLUMNS: [Column; 6] = [
    Column {
        title: "Bonnie++ write, MB/s",
        key: "write_mb_s",
        of: |figures| figures.sequential.write_mb_s,
    },
    Column {
        title: "Bonnie++ read, MB/s",
        key: "read_mb_s",
        of: |figures| figures.sequential.read_mb_s,
    },
    Column {
        title: "PostMark transactions/s",
        key: "transactions_s",
        of: |figures| figures.small_files.transactions_s,
    },
    Column {
        title: "PostMark read, MB/s",
        key: "small_read_mb_s",
        of: |figures| figures.small_files.read_mb_s,
    },
    Column {
        title: "PostMark write, MB/s",
        key: "small_write_mb_s",
        of: |figures| figures.small_files.write_mb_s,
    },
    Column {
        title: "CPU of who serves, s",
        key: "cpu_s",
        of: |figures| figures.cpu_s,
    },
];

/// One guest's, while the others are still to come.
pub fn line(figures: &Figures) -> String {
    format!(
        "write {}, read {} MB/s; {} transactions/s, CPU {} s",
        number(figures.sequential.write_mb_s),
        number(figures.sequential.read_mb_s),
        number(figures.small_files.transactions_s),
        number(figures.cpu_s),
    )
}

/// A line for each way: medians of its rounds, and beside them the ratio to the local disk of the same round.
pub fn table(all: &[Measured]) -> Result<String> {
    let local = local(all)?;
    let mut text = String::from("| disk |");
    for column in &COLUMNS {
        let _ = write!(text, " {} |", column.title);
    }
    let _ = writeln!(text, "\n|{}", " --- |".repeat(COLUMNS.len() + 1));
    for Measured { way, rounds } in all {
        let _ = write!(text, "| {} |", way.name());
        match rounds {
            Err(why) => {
                let why = why.lines().next().unwrap_or_default().replace('|', "/");
                let _ = write!(text, " not here: {why} |{}", " |".repeat(COLUMNS.len() - 1));
            }
            Ok(rounds) => {
                for column in &COLUMNS {
                    let _ = write!(text, " {} |", cell(column, rounds, local));
                }
            }
        }
        text.push('\n');
    }
    Ok(text)
}

/// `60.1; 0.50 (0.48 to 0.53)`; the local disk's own is a figure only.
fn cell(column: &Column, rounds: &[Figures], local: &[Figures]) -> String {
    let own = number(median(rounds.iter().map(column.of)));
    if std::ptr::eq(rounds, local) {
        return own;
    }
    let Ratio {
        median,
        least,
        most,
    } = ratio(column, rounds, local);
    match rounds.len() {
        1 => format!("{own}; {median:.2}"),
        _ => format!("{own}; {median:.2} ({least:.2} to {most:.2})"),
    }
}

fn ratio(column: &Column, rounds: &[Figures], local: &[Figures]) -> Ratio {
    Ratio::of(
        rounds
            .iter()
            .map(column.of)
            .zip(local.iter().map(column.of)),
    )
}

/// For machines.
pub fn json(all: &[Measured]) -> Result<Vec<Value>> {
    let local = local(all)?;
    let line = |measured: &Measured| {
        let mut line = json!({ "way": measured.way, "name": measured.way.name() });
        match &measured.rounds {
            Err(why) => line["not_here"] = json!(why),
            Ok(rounds) => {
                for column in &COLUMNS {
                    line[column.key] = json!({
                        "median": median(rounds.iter().map(column.of)),
                        "of_local": ratio(column, rounds, local),
                    });
                }
            }
        }
        line
    };
    Ok(all.iter().map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::super::programs::{Sequential, SmallFiles};
    use super::super::ways::Way;
    use super::*;

    fn figures(all: f64) -> Figures {
        Figures {
            sequential: Sequential {
                write_mb_s: all,
                read_mb_s: all,
            },
            small_files: SmallFiles {
                transactions_s: all,
                read_mb_s: all,
                write_mb_s: all,
            },
            cpu_s: all,
        }
    }

    fn measured() -> Vec<Measured> {
        let rounds = |all: [f64; 3]| Ok(all.map(figures).to_vec());
        let of = |way, rounds| Measured { way, rounds };
        vec![
            of(Way::Local, rounds([100.0, 200.0, 400.0])),
            of(Way::OneCopy, rounds([50.0, 200.0, 100.0])),
            of(Way::Nfs, Err("no server".to_owned())),
        ]
    }

    #[test]
    fn ratios_are_taken_within_rounds() -> Result<()> {
        let table = table(&measured())?;
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[2].starts_with("| local raw file | 200 | 200 |"));
        assert!(lines[3].starts_with("| Ukai, one copy | 100; 0.50 (0.25 to 1.00) |"));
        assert!(lines[4].starts_with("| file on NFS | not here: no server |"));
        for line in &lines {
            assert_eq!(line.matches('|').count(), COLUMNS.len() + 2, "{line}");
        }
        assert!(
            super::table(&measured()[1..]).is_err(),
            "without the local disk"
        );
        Ok(())
    }

    #[test]
    fn lines_for_machines() -> Result<()> {
        let lines = json(&measured())?;
        assert_eq!(lines[1]["write_mb_s"]["median"], 100.0);
        assert_eq!(lines[1]["cpu_s"]["of_local"]["least"], 0.25);
        assert_eq!(lines[2]["not_here"], "no server");
        Ok(())
    }
}
