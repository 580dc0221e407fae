//! Ours and mirror's, side by side: medians over the runs of one invocation, ratios, and their goals.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::Course;
use super::course::{Latency, millis};
use crate::guest::ticks::{Doing, Stamp};

/// One run of one way, as numbers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figures {
    pub until_may_move_s: f64,
    pub whole_s: f64,
    pub downtime_ms: f64,
    /// The longest single operation of the guest between "go" and the end of the move.
    pub longest_stall_ms: f64,
    pub write_p50_before_ms: f64,
    /// In the second after the destination's first answer.
    pub write_p50_on_arrival_ms: f64,
    /// When all is near.
    pub write_p50_after_ms: f64,
    /// Writes a second from the arrival until all is near, and before the copy began, of those before the
    /// move.
    pub throughput_after_arrival: Option<f64>,
    pub throughput_before_departure: f64,
    pub crossed_bytes: f64,
    /// Crossed, of what was allocated at the start and what the guest read from afar.
    pub crossed_ratio: f64,
}

impl Figures {
    pub fn of(course: &Course) -> Figures {
        let marks = &course.marks;
        let resumed = course.resumed();
        let second = resumed.plus(Duration::from_secs(1));
        let write = |from: Stamp, to: Stamp| course.latency(Doing::Write, from..to);
        let p50 = |latency: Option<Latency>| latency.map_or(f64::NAN, |latency| latency.p50_ms);
        let needed = course.allocated_bytes + course.read_far_bytes;
        let crossed = course.crossed_bytes() as f64;
        // Without anything left to follow, there is no time of following.
        let follows = marks.settled > second;
        Figures {
            until_may_move_s: course.until_may_move().as_secs_f64(),
            whole_s: course.whole().as_secs_f64(),
            downtime_ms: millis(course.downtime()),
            longest_stall_ms: millis(course.longest_stall(marks.go..marks.settled)),
            write_p50_before_ms: p50(write(marks.begin, marks.go)),
            write_p50_on_arrival_ms: p50(write(resumed, second)),
            write_p50_after_ms: p50(write(marks.dropped.plus(Duration::from_secs(1)), marks.end)),
            throughput_after_arrival: follows.then(|| course.throughput(resumed..marks.settled)),
            throughput_before_departure: course.throughput(marks.go..marks.may_move),
            crossed_bytes: crossed,
            crossed_ratio: crossed / needed as f64,
        }
    }

    /// Of each number the median by itself.
    fn median(runs: &[Figures]) -> Figures {
        assert!(!runs.is_empty(), "a median of nothing");
        let of = |number: fn(&Figures) -> f64| median(runs.iter().map(number));
        Figures {
            until_may_move_s: of(|f| f.until_may_move_s),
            whole_s: of(|f| f.whole_s),
            downtime_ms: of(|f| f.downtime_ms),
            longest_stall_ms: of(|f| f.longest_stall_ms),
            write_p50_before_ms: of(|f| f.write_p50_before_ms),
            write_p50_on_arrival_ms: of(|f| f.write_p50_on_arrival_ms),
            write_p50_after_ms: of(|f| f.write_p50_after_ms),
            throughput_after_arrival: {
                let given = runs.iter().filter_map(|f| f.throughput_after_arrival);
                let given: Vec<f64> = given.collect();
                (!given.is_empty()).then(|| median(given.into_iter()))
            },
            throughput_before_departure: of(|f| f.throughput_before_departure),
            crossed_bytes: of(|f| f.crossed_bytes),
            crossed_ratio: of(|f| f.crossed_ratio),
        }
    }
}

fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let (low, high) = ((sorted.len() - 1) / 2, sorted.len() / 2);
    (sorted[low] + sorted[high]) / 2.0
}

#[derive(Serialize)]
pub struct Comparison {
    pub ours: Figures,
    pub mirror: Figures,
    pub goals: Vec<Goal>,
    pub runs: Vec<[Figures; 2]>,
}

#[derive(Serialize)]
pub struct Goal {
    pub what: &'static str,
    pub ratio: f64,
    pub goal: Bound,
    pub met: bool,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    pub fn holds(self, ratio: f64) -> bool {
        match self {
            Bound::AtMost(most) => ratio <= most,
            Bound::AtLeast(least) => ratio >= least,
        }
    }

    pub fn words(self) -> String {
        match self {
            Bound::AtMost(most) => format!("at most {most}"),
            Bound::AtLeast(least) => format!("at least {least}"),
        }
    }
}

/// One figure of a way to move, as a table shows it.
type Shown = fn(&Figures) -> String;

impl Comparison {
    /// Each pair: one run of ours and one of mirror's, one after the other.
    pub fn of(pairs: Vec<[Figures; 2]>) -> Comparison {
        let of = |index: usize| {
            let runs: Vec<Figures> = pairs.iter().map(|pair| pair[index]).collect();
            Figures::median(&runs)
        };
        let (ours, mirror) = (of(0), of(1));
        // Ratios within a pair first: two runs next to each other share the machine's mood.
        let ratio = |of: fn(&[Figures; 2]) -> f64| median(pairs.iter().map(of));
        let goal = |what, ratio: f64, goal: Bound| Goal {
            what,
            ratio,
            goal,
            met: goal.holds(ratio),
        };
        let goals = vec![
            goal(
                "time from \"go\" until the VM may move, of mirror's",
                ratio(|[ours, mirror]| ours.until_may_move_s / mirror.until_may_move_s),
                Bound::AtMost(0.1),
            ),
            goal(
                "write p50 in the second after arrival, of that when all is near",
                ratio(|[ours, _]| ours.write_p50_on_arrival_ms / ours.write_p50_after_ms),
                Bound::AtMost(1.5),
            ),
            goal(
                "bytes of the whole move, of those allocated and those read before they were near",
                ours.crossed_ratio,
                Bound::AtMost(1.02),
            ),
            goal(
                "longest stall in the whole move, of mirror's",
                ratio(|[ours, mirror]| ours.longest_stall_ms / mirror.longest_stall_ms),
                Bound::AtMost(1.0),
            ),
            goal(
                "throughput while the blocks follow, of undisturbed",
                ours.throughput_after_arrival.unwrap_or(1.0),
                Bound::AtLeast(0.7),
            ),
        ];
        Comparison {
            ours,
            mirror,
            goals,
            runs: pairs,
        }
    }

    /// Two tables in Markdown: what was measured, and the goals.
    pub fn tables(&self) -> String {
        let mut text = String::from("| median | Ukai | mirror |\n| --- | --- | --- |\n");
        let share = |share: f64| format!("{:.0} %", share * 100.0);
        let rows: [(&str, Shown); 7] = [
            ("from \"go\" until the VM may move", |f| {
                format!("{:.2} s", f.until_may_move_s)
            }),
            ("from \"go\" until everything is near", |f| {
                format!("{:.1} s", f.whole_s)
            }),
            ("no answer at the switch-over", |f| {
                format!("{:.0} ms", f.downtime_ms)
            }),
            ("longest stall of the guest in the whole move", |f| {
                format!("{:.0} ms", f.longest_stall_ms)
            }),
            ("write p50: before, on arrival, when all is near", |f| {
                format!(
                    "{:.2}, {:.2}, {:.2} ms",
                    f.write_p50_before_ms, f.write_p50_on_arrival_ms, f.write_p50_after_ms
                )
            }),
            ("bytes of the disk on the link, both ways", |f| {
                format!("{:.1} MB", f.crossed_bytes / 1e6)
            }),
            ("of the bytes that had to cross", |f| {
                format!("{:.3}", f.crossed_ratio)
            }),
        ];
        for (what, value) in rows {
            let _ = writeln!(
                text,
                "| {what} | {} | {} |",
                value(&self.ours),
                value(&self.mirror)
            );
        }
        let _ = writeln!(
            text,
            "| writes a second while the disk is copied, of undisturbed | {} | {} |\n",
            self.ours.throughput_after_arrival.map_or("-".into(), share),
            share(self.mirror.throughput_before_departure),
        );
        text += "| ratio | is | goal | |\n| --- | --- | --- | --- |\n";
        for goal in &self.goals {
            let met = if goal.met { "met" } else { "**not met**" };
            let _ = writeln!(
                text,
                "| {} | {:.3} | {} | {met} |",
                goal.what,
                goal.ratio,
                goal.goal.words()
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{Bound, median};

    #[test]
    fn medians_and_bounds() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0].into_iter()), 2.5);
        assert!(Bound::AtMost(0.1).holds(0.1) && !Bound::AtMost(0.1).holds(0.11));
        assert!(
            !Bound::AtMost(0.1).holds(f64::NAN),
            "no figure meets nothing"
        );
    }
}
