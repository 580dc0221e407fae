//! A course as a table of seconds, for a terminal.

use std::fmt::Write;
use std::time::Duration;

use super::Course;
use super::course::{Marks, millis};
use crate::guest::ticks::{Doing, Stamp};

const ROW: Duration = Duration::from_secs(1);
/// Seconds in which nothing new happens are drawn together beyond this.
const MAX_ROWS: u32 = 60;

/// Rows from a few seconds before the move to a few after it; the first column counts from "go".
pub fn table(course: &Course) -> String {
    let Marks {
        begin,
        go,
        dropped,
        end,
        ..
    } = course.marks;
    let margin = Duration::from_secs(3);
    let lead = margin.min(go.since(begin));
    let until = dropped.plus(margin).min(end);
    let first = Stamp(go.0 - lead.as_nanos() as u64);
    let seconds = until.since(first).as_secs() as u32 + 1;
    let row = ROW * seconds.div_ceil(MAX_ROWS);
    let mut text = String::from(
        "     s   writes/s   p50 ms   p99 ms   longest   flush p50   near reads   link MB/s\n",
    );
    let mut from = first;
    while from < until {
        let to = from.plus(row);
        let writes = course.latency(Doing::Write, from..to);
        let flushes = course.latency(Doing::Flush, from..to);
        let crossed = course.crossed_at(to) - course.crossed_at(from);
        let stall = course.longest_stall(from..to);
        let near = course.near_share(from..to);
        let _ = writeln!(
            text,
            "{:>6.0}   {:>8}   {:>6}   {:>6}   {:>7.1}   {:>9}   {:>10}   {:>9.1}{}",
            from.seconds_from(go),
            writes.map_or("-".into(), |w| format!("{:.0}", w.per_second)),
            writes.map_or("-".into(), |w| format!("{:.2}", w.p50_ms)),
            writes.map_or("-".into(), |w| format!("{:.2}", w.p99_ms)),
            millis(stall),
            flushes.map_or("-".into(), |f| format!("{:.2}", f.p50_ms)),
            near.map_or("-".into(), |share| format!("{:.0} %", share * 100.0)),
            crossed as f64 / 1e6 / row.as_secs_f64(),
            events(&course.marks, from, to),
        );
        from = to;
    }
    text
}

fn events(marks: &Marks, from: Stamp, to: Stamp) -> String {
    named(marks)
        .iter()
        .filter(|(at, _)| (from..to).contains(at))
        .map(|(at, what)| format!("  <- {:.2} s {what}", at.seconds_from(marks.go)))
        .collect()
}

pub fn named(marks: &Marks) -> [(Stamp, &'static str); 5] {
    [
        (marks.go, "go"),
        (marks.may_move, "the VM may move"),
        (marks.arrived, "arrived"),
        (marks.settled, "all near"),
        (marks.dropped, "far copies gone"),
    ]
}
