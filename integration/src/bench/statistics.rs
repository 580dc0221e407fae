//! Figures out of samples: percentiles, medians, ratios. No clock, no files.

use serde::Serialize;

/// One run of a load, as it was measured.
#[derive(Clone, Debug)]
pub struct Sample {
    pub operations: u64,
    pub seconds: f64,
    pub bytes: u64,
    /// Of each operation, in no order.
    pub latencies_ns: Vec<u32>,
    /// All processes of the side, and the front-end.
    pub servers_cpu_ns: u64,
    pub front_end_cpu_ns: u64,
    /// Times that a thread of the side's processes went to sleep by itself.
    pub server_sleeps: u64,
}

/// The same in people's units.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figures {
    pub iops: f64,
    pub mb_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    /// A request, at all processes of the side.
    pub cpu_us: f64,
    pub front_end_cpu_us: f64,
    pub sleeps: f64,
}

impl Figures {
    pub fn of(sample: &Sample) -> Figures {
        let mut latencies = sample.latencies_ns.clone();
        latencies.sort_unstable();
        let at = |permille| f64::from(percentile(&latencies, permille)) / 1e3;
        let each = |total: u64| total as f64 / sample.operations.max(1) as f64;
        Figures {
            iops: sample.operations as f64 / sample.seconds,
            mb_s: sample.bytes as f64 / 1e6 / sample.seconds,
            p50_us: at(500),
            p99_us: at(990),
            p999_us: at(999),
            cpu_us: each(sample.servers_cpu_ns) / 1e3,
            front_end_cpu_us: each(sample.front_end_cpu_ns) / 1e3,
            sleeps: each(sample.server_sleeps),
        }
    }

    /// Figure by figure.
    pub fn median(all: &[Figures]) -> Figures {
        let of = |figure: fn(&Figures) -> f64| median(all.iter().map(figure));
        Figures {
            iops: of(|f| f.iops),
            mb_s: of(|f| f.mb_s),
            p50_us: of(|f| f.p50_us),
            p99_us: of(|f| f.p99_us),
            p999_us: of(|f| f.p999_us),
            cpu_us: of(|f| f.cpu_us),
            front_end_cpu_us: of(|f| f.front_end_cpu_us),
            sleeps: of(|f| f.sleeps),
        }
    }
}

/// The least value that so many of a thousand do not exceed; of nothing, 0.
pub fn percentile(sorted: &[u32], permille: usize) -> u32 {
    let index = (sorted.len() * permille).div_ceil(1000).saturating_sub(1);
    sorted.get(index).copied().unwrap_or(0)
}

/// NaN of nothing, which meets no goal.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[odd / 2],
        even => (values[even / 2 - 1] + values[even / 2]) / 2.0,
    }
}

/// A ratio that was taken several times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Ratio {
    /// Of pairs, each pair's ratio first: two runs next to each other share the machine's mood.
    pub fn of(pairs: impl Iterator<Item = (f64, f64)>) -> Ratio {
        let ratios: Vec<f64> = pairs.map(|(ours, other)| ours / other).collect();
        Ratio {
            median: median(ratios.iter().copied()),
            least: ratios.iter().copied().fold(f64::NAN, f64::min),
            most: ratios.iter().copied().fold(f64::NAN, f64::max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<u32> = (1..=1000).collect();
        assert_eq!(percentile(&values, 500), 500);
        assert_eq!(percentile(&values, 990), 990);
        assert_eq!(percentile(&values, 999), 999);
        assert_eq!(percentile(&[7], 999), 7);
        assert_eq!(percentile(&[1, 9], 500), 1);
        assert_eq!(percentile(&[], 500), 0);
    }

    #[test]
    fn a_ratio_is_taken_within_pairs() {
        let ratio = Ratio::of([(1.0, 2.0), (40.0, 20.0), (300.0, 300.0)].into_iter());
        let wanted = Ratio {
            median: 1.0,
            least: 0.5,
            most: 2.0,
        };
        assert_eq!(ratio, wanted);
        assert!(Ratio::of(std::iter::empty()).median.is_nan());
    }

    #[test]
    fn figures_are_per_operation() {
        let figures = Figures::of(&Sample {
            operations: 1000,
            seconds: 0.5,
            bytes: 4_096_000,
            latencies_ns: vec![3_000, 1_000, 2_000],
            servers_cpu_ns: 7_000_000,
            front_end_cpu_ns: 1_000_000,
            server_sleeps: 1500,
        });
        assert_eq!((figures.iops, figures.p50_us), (2000.0, 2.0));
        assert_eq!((figures.cpu_us, figures.front_end_cpu_us), (7.0, 1.0));
        assert_eq!((figures.sleeps, figures.mb_s), (1.5, 8.192));
    }
}
