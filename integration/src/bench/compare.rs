//! Ours and a peer, by turns, several times.

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use super::job::{Cache, Goal, Job, Metric};
use super::load::Time;
use super::measure::measure;
use super::side::{Kind, Stage};
use super::statistics::{Figures, Ratio, median};
use crate::migration::figures::Bound;

/// One job, as it came out.
pub struct Compared {
    pub name: &'static str,
    pub what: &'static str,
    pub sides: [&'static str; 2],
    /// Of loads; other things have rows only.
    pub pairs: Vec<[Figures; 2]>,
    pub rows: Vec<Row>,
}

/// One figure of both, and the goal if there is one.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub metric: Metric,
    pub ours: f64,
    pub peer: f64,
    pub ratio: Ratio,
    pub goal: Option<Bound>,
    pub met: Option<bool>,
}

pub fn compare(stage: &mut Stage, job: &Job, pairs: usize, time: Time) -> Result<Compared> {
    let kinds = [job.ours, job.peer];
    for kind in kinds {
        stage.verify(kind)?;
    }
    let mut figures = Vec::new();
    for pair in 0..pairs {
        let mut both = Vec::new();
        for kind in kinds {
            match job.cache {
                Cache::Cold => stage.chill(kind)?,
                Cache::Warm if pair == 0 => stage.warm(kind)?,
                Cache::Warm | Cache::Any => {}
            }
            if let Some(first) = &job.first {
                measure(&stage.target(kind)?, first, time, 0)?;
            }
            let sample = measure(&stage.target(kind)?, &job.load, time, pair as u64 + 1)
                .with_context(|| format!("{}, {}", job.name, kind.name()))?;
            both.push(Figures::of(&sample));
        }
        figures.push([both[0], both[1]]);
    }
    for kind in kinds {
        if matches!(kind, Kind::Crowd | Kind::Tight) {
            stage.stop(kind);
        }
    }
    Ok(Compared {
        name: job.name,
        what: job.what,
        sides: kinds.map(Kind::name),
        rows: rows(&figures, job.goals),
        pairs: figures,
    })
}

impl Row {
    /// Of a figure that was taken of both several times.
    pub fn new(metric: Metric, pairs: &[(f64, f64)], goal: Option<Bound>) -> Row {
        let ratio = Ratio::of(pairs.iter().copied());
        Row {
            metric,
            ours: median(pairs.iter().map(|pair| pair.0)),
            peer: median(pairs.iter().map(|pair| pair.1)),
            ratio,
            goal,
            met: goal.map(|goal| goal.holds(ratio.median)),
        }
    }
}

/// A row for each goal; without goals what matters most.
pub fn rows(pairs: &[[Figures; 2]], goals: &[Goal]) -> Vec<Row> {
    let row = |metric: Metric, goal: Option<Bound>| {
        let pairs = pairs
            .iter()
            .map(|[ours, peer]| (metric.of(ours), metric.of(peer)));
        Row::new(metric, &pairs.collect::<Vec<_>>(), goal)
    };
    if goals.is_empty() {
        return [Metric::Iops, Metric::Cpu]
            .map(|metric| row(metric, None))
            .into();
    }
    goals
        .iter()
        .map(|goal| row(goal.metric, Some(goal.bound)))
        .collect()
}

fn medians(pairs: &[[Figures; 2]]) -> [Figures; 2] {
    [0, 1].map(|index| {
        let side: Vec<Figures> = pairs.iter().map(|pair| pair[index]).collect();
        Figures::median(&side)
    })
}

impl Compared {
    pub fn medians(&self) -> [Figures; 2] {
        medians(&self.pairs)
    }

    /// For machines: one for each row.
    pub fn json(&self) -> Vec<Value> {
        let figures = (!self.pairs.is_empty()).then(|| self.medians());
        let line = |row: &Row| {
            json!({
                "job": self.name,
                "metric": row.metric,
                "ours": row.ours,
                "peer": row.peer,
                "ratio": row.ratio.median,
                "least": row.ratio.least,
                "most": row.ratio.most,
                "goal": row.goal,
                "met": row.met,
                "sides": self.sides,
                "figures": figures,
            })
        };
        self.rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(iops: f64, p50_us: f64) -> Figures {
        Figures {
            iops,
            mb_s: 0.0,
            p50_us,
            p99_us: 0.0,
            p999_us: 0.0,
            cpu_us: 1.0,
            front_end_cpu_us: 0.0,
            sleeps: 0.0,
        }
    }

    #[test]
    fn goals_are_met_by_the_median_of_the_ratios() {
        let pairs = [
            [figures(200.0, 5.0), figures(100.0, 10.0)],
            [figures(210.0, 9.0), figures(100.0, 10.0)],
            [figures(90.0, 5.0), figures(100.0, 10.0)],
        ];
        let goals = [
            Goal {
                metric: Metric::Iops,
                bound: Bound::AtLeast(2.0),
            },
            Goal {
                metric: Metric::P50,
                bound: Bound::AtMost(0.4),
            },
        ];
        let [iops, p50] = &rows(&pairs, &goals)[..] else {
            panic!("a row each");
        };
        assert_eq!(
            (iops.ours, iops.ratio.median, iops.met),
            (200.0, 2.0, Some(true))
        );
        assert_eq!((iops.ratio.least, iops.ratio.most), (0.9, 2.1));
        assert_eq!((p50.ratio.median, p50.met), (0.5, Some(false)));
        assert_eq!(rows(&pairs, &[])[0].met, None);
    }
}
