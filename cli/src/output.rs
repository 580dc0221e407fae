//! The one place that decides how output looks: tables and sentences for people, JSON for programs.

use crate::exit::Failure;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Where a command's results go.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Output { json }
    }

    /// Shows one result: `value` as JSON, or what `people` makes of it.
    pub fn show<T: Serialize>(&self, value: &T, people: impl FnOnce(&T) -> String) {
        let text = if self.json {
            serde_json::to_string_pretty(value).expect("our own types become JSON")
        } else {
            people(value)
        };
        print_line(text.trim_end());
    }

    pub fn fail(&self, failure: &Failure) {
        if self.json {
            let value = serde_json::json!({ "error": failure.what, "why": failure.why, "try": failure.next });
            eprintln!("{value}");
            return;
        }
        eprintln!("error: {failure}");
        if let Some(next) = &failure.next {
            eprintln!("  try: {next}");
        }
    }

    /// A bar for work of `bytes` bytes: drawn on a terminal, a line now and then elsewhere, nothing with `--json`.
    pub fn progress(&self, bytes: u64, what: &'static str) -> ProgressBar {
        if self.json || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
        let style = ProgressStyle::with_template(template).expect("the template is well formed");
        let bar = ProgressBar::new(bytes).with_style(style).with_message(what);
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}

/// A plain table: a header line, then a line a row.
pub fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_string())
        .collect();
    lines.join("\n")
}

/// Bytes as people say them: `20 GiB`, `1.5 MiB`, `512 B`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let text = format!("{value:.1}");
    format!("{} {}", text.trim_end_matches(".0"), UNITS[unit])
}

/// Parses `20G`, `512MiB`, `4096`: powers of 1024, as QEMU's tools have it.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.len()
        - text
            .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
            .len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit
        .trim()
        .to_ascii_lowercase()
        .trim_end_matches("ib")
        .trim_end_matches('b')
    {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => {
            return Err(format!(
                "{unit:?} is not a unit; use K, M, G, T or P (powers of 1024)"
            ));
        }
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("{text:?} is not a size; try 20G or 512M"))?;
    let bytes = number * (1u64 << shift) as f64;
    if !(bytes.is_finite() && bytes < (1u64 << 60) as f64) {
        return Err(format!("{text} is too large"));
    }
    Ok(bytes as u64)
}

/// A closed pipe (`| head`) ends the output, not the program with a panic.
fn print_line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_said_alike() {
        for (text, bytes) in [
            ("20G", 20 << 30),
            ("1.5M", 3 << 19),
            ("4096", 4096),
            ("2 TiB", 2 << 40),
            ("7kb", 7168),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        assert_eq!(human_bytes(3 << 19), "1.5 MiB");
        assert_eq!(human_bytes(20 << 30), "20 GiB");
        assert_eq!(human_bytes(512), "512 B");
        for bad in ["", "G", "20X", "1e400", "-1", "9999999P"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
