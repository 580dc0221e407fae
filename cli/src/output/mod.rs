//! The one place that decides how output looks: tables and sentences for people, JSON for programs.

mod units;

pub use units::{
    Bytes, counted, human_bytes, human_rate, human_time, parse_bytes, parse_rate, percent,
};

use crate::exit::Failure;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Where nothing tells how wide the reader's window is.
const USUAL_WIDTH: usize = 100;
/// Narrower than this nothing is drawn well.
const NARROWEST: usize = 40;

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

    /// Shows one of several results as a line of JSON, at once.
    pub fn stream<T: Serialize>(&self, value: &T) {
        print_line(&serde_json::to_string(value).expect("our own types become JSON"));
    }

    /// Says something beside the result, on its way: nothing with `--json`, where only the result counts.
    pub fn say(&self, text: impl std::fmt::Display) {
        if !self.json {
            eprintln!("{text}");
        }
    }

    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether results are read on a terminal: then they may be drawn, and broken to its width.
    pub fn is_terminal(&self) -> bool {
        !self.json && std::io::stdout().is_terminal()
    }

    /// Columns to draw on: the terminal's, or as many as everybody can read.
    pub fn width(&self) -> usize {
        let told = Table::new().width().filter(|_| self.is_terminal());
        told.map_or(USUAL_WIDTH, |width| usize::from(width).max(NARROWEST))
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
    aligned(std::iter::once(header.map(String::from)).chain(rows))
}

/// A line a row, its cells below those of the others.
pub fn aligned<const N: usize>(rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
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

/// A closed pipe (`| head`) ends the output, not the program with a panic.
fn print_line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
}

/// `text` broken into lines of at most `width` columns; `lead` stands before the first one, blanks before the others.
pub fn wrapped(lead: &str, text: &str, width: usize) -> String {
    let indent = lead.chars().count();
    let mut lines = vec![String::from(lead)];
    let mut column = indent;
    for word in text.split_whitespace() {
        let len = word.chars().count();
        if column > indent && column + 1 + len > width {
            lines.push(" ".repeat(indent));
            column = indent;
        }
        let line = lines.last_mut().expect("there is a first line");
        if column > indent {
            line.push(' ');
            column += 1;
        }
        line.push_str(word);
        column += len;
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_broken_between_words() {
        let text = "It is one of the 2 copies.";
        assert_eq!(
            wrapped("why  ", text, 16),
            "why  It is one\n     of the 2\n     copies."
        );
        assert_eq!(wrapped("why  ", text, 80), format!("why  {text}"));
        assert_eq!(
            wrapped("", "incomprehensibilities", 5),
            "incomprehensibilities"
        );
    }
}
