//! What grows with data and with disks: three programs that run the real store, the real planner and the real placement
//! service with nothing behind them, as tables and as curves.

use std::fmt::Write;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::report::number;

/// How large it gets.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub gib: &'static [u64],
    pub disks: &'static [u64],
}

impl Plan {
    pub const FULL: Plan = Plan {
        gib: &[1, 10, 100],
        disks: &[1_000, 10_000, 100_000],
    };
    /// Less than a minute.
    pub const QUICK: Plan = Plan {
        gib: &[1, 2],
        disks: &[1_000, 2_000],
    };
}

/// A store of some size, as `store_scale` tells it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoreRow {
    gib: u64,
    disks: u64,
    order: String,
    write_ns: f64,
    overwrite_ns: f64,
    read_ns: f64,
    /// Bytes.
    memory: f64,
    open_ms: f64,
    replayed: u64,
}

/// A fleet of some size, as `plan_scale` tells it. Memory in bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlanRow {
    disks: u64,
    maps: String,
    ranges: u64,
    encoded: f64,
    memory: f64,
    planning_memory: f64,
    seconds: f64,
}

/// A placement service with attached disks, as `fleet_scale` tells it. Bytes are of a heartbeat and of its answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FleetRow {
    disks: u64,
    nodes: u64,
    heartbeat_us: f64,
    up: f64,
    down: f64,
    pass_seconds: f64,
    more_us: f64,
    reads: u64,
}

/// All that was measured.
#[derive(Clone, Debug)]
pub struct Growth {
    pub stores: Vec<StoreRow>,
    pub plans: Vec<PlanRow>,
    pub fleets: Vec<FleetRow>,
}

/// Runs all three programs, which cargo builds first. Takes some ten minutes where `plan` is [`Plan::FULL`].
pub fn measure(plan: Plan) -> Result<Growth> {
    eprintln!("stores of {:?} GiB", plan.gib);
    let stores = told("replicator", "store_scale", plan.gib)?;
    eprintln!("plans of {:?} disks", plan.disks);
    let plans = told("placement-service", "plan_scale", plan.disks)?;
    eprintln!("fleets of {:?} attached disks", plan.disks);
    let fleets = told("placement-service", "fleet_scale", plan.disks)?;
    Ok(Growth {
        stores,
        plans,
        fleets,
    })
}

fn told<Row: DeserializeOwned>(package: &str, example: &str, sizes: &[u64]) -> Result<Vec<Row>> {
    let cargo = std::env::var("CARGO").unwrap_or("cargo".into());
    let mut command = Command::new(cargo);
    command
        .args([
            "run",
            "--release",
            "--locked",
            "--quiet",
            "--package",
            package,
        ])
        .args(["--example", example, "--", "--json"])
        .args(sizes.iter().map(u64::to_string))
        .stderr(Stdio::inherit());
    let output = command.output().context("cargo cannot be run")?;
    ensure!(output.status.success(), "{example}: {}", output.status);
    String::from_utf8(output.stdout)?
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("{example}: {line}")))
        .collect()
}

const MIB: f64 = (1 << 20) as f64;

impl Growth {
    /// The tables, in Markdown.
    pub fn tables(&self) -> Result<String> {
        let mut text = String::from(
            "| written | disks | how | CPU a write, us | an overwrite | a read | memory, MiB | bytes a block | frames replayed | opens in |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        for row in &self.stores {
            let blocks = (row.gib << 30) as f64 / 4096.0;
            writeln!(
                text,
                "| {} GiB | {} | {} | {} | {} | {} | {:.1} | {:.1} | {} | {:.0} ms |",
                row.gib,
                row.disks,
                row.order,
                number(row.write_ns / 1000.0),
                number(row.overwrite_ns / 1000.0),
                number(row.read_ns / 1000.0),
                row.memory / MIB,
                row.memory / blocks,
                row.replayed,
                row.open_ms
            )?;
        }
        text.push_str(
            "\n| disks | maps | ranges | as JSON, MiB | in memory, MiB | planning takes, MiB | all plans, s | a plan, us |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        for row in &self.plans {
            writeln!(
                text,
                "| {} | {} | {} | {:.1} | {:.1} | {:.1} | {:.2} | {} |",
                row.disks,
                row.maps,
                row.ranges,
                row.encoded / MIB,
                row.memory / MIB,
                row.planning_memory / MIB,
                row.seconds,
                number(row.seconds * 1e6 / row.disks as f64)
            )?;
        }
        text.push_str(
            "\n| attached disks | nodes | a heartbeat, us | bytes | of its answer | all heartbeats, of one core | a look at all disks, s | one more disk, us | questions to the catalog |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        for row in &self.fleets {
            writeln!(
                text,
                "| {} | {} | {} | {:.0} | {:.0} | {:.1} % | {:.2} | {} | {} |",
                row.disks,
                row.nodes,
                number(row.heartbeat_us),
                row.up,
                row.down,
                row.heartbeat_us * row.nodes as f64 / 1e4,
                row.pass_seconds,
                number(row.more_us),
                row.reads
            )?;
        }
        Ok(text)
    }

    /// `growth.svg`: four pictures of curves.
    pub fn draw(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory)?;
        let file = directory.join("growth.svg");
        self.curves(&file)
            .map_err(|error| anyhow!("{error}"))
            .with_context(|| format!("draw {}", file.display()))
    }

    fn curves<'a>(&self, file: &'a Path) -> Result<(), Box<dyn std::error::Error + 'a>> {
        let root = SVGBackend::new(file, (900, 640)).into_drawing_area();
        root.fill(&WHITE)?;
        let panels = root.split_evenly((2, 2));
        let by_size = |order: &str, figure: fn(&StoreRow) -> f64| -> Vec<(f64, f64)> {
            let one = self.stores.iter().filter(|row| row.disks == 1);
            one.filter(|row| row.order == order)
                .map(|row| (row.gib as f64, figure(row)))
                .collect()
        };
        let by_disks = |maps: &str, figure: fn(&PlanRow) -> f64| -> Vec<(f64, f64)> {
            let rows = self.plans.iter().filter(|row| row.maps == maps);
            rows.map(|row| (row.disks as f64, figure(row))).collect()
        };
        let sizes = "GiB written";
        panel(
            &panels[0],
            ("store: CPU a request, us", sizes),
            &[
                (
                    "overwrite, all over",
                    by_size("all over", |row| row.overwrite_ns / 1e3),
                ),
                (
                    "read, all over",
                    by_size("all over", |row| row.read_ns / 1e3),
                ),
                (
                    "overwrite, in order",
                    by_size("in order", |row| row.overwrite_ns / 1e3),
                ),
            ],
        )?;
        panel(
            &panels[1],
            ("store: memory, MiB; opens in, ms", sizes),
            &[
                (
                    "memory, all over",
                    by_size("all over", |row| row.memory / MIB),
                ),
                (
                    "memory, in order",
                    by_size("in order", |row| row.memory / MIB),
                ),
                ("opens in, all over", by_size("all over", |row| row.open_ms)),
            ],
        )?;
        let [still, pieces, moved] = [
            "never moved",
            "in 64 pieces, some being moved",
            "the same, every VM just moved",
        ];
        panel(
            &panels[2],
            ("maps: memory, MiB", "disks"),
            &[
                ("in 64 pieces", by_disks(pieces, |row| row.memory / MIB)),
                ("never moved", by_disks(still, |row| row.memory / MIB)),
            ],
        )?;
        panel(
            &panels[3],
            ("all plans, s", "disks"),
            &[
                (
                    "every VM just moved",
                    by_disks(moved, |row| row.seconds.max(1e-3)),
                ),
                (
                    "in 64 pieces",
                    by_disks(pieces, |row| row.seconds.max(1e-3)),
                ),
                ("never moved", by_disks(still, |row| row.seconds.max(1e-3))),
            ],
        )?;
        root.present()?;
        Ok(())
    }
}

type Curve = (&'static str, Vec<(f64, f64)>);

const COLOURS: [RGBColor; 3] = [
    RGBColor(190, 60, 50),
    RGBColor(40, 90, 160),
    RGBColor(40, 130, 70),
];

/// Curves over sizes, both axes logarithmic.
fn panel<'a>(
    area: &DrawingArea<SVGBackend<'a>, Shift>,
    (caption, below): (&str, &str),
    curves: &[Curve],
) -> Result<(), Box<dyn std::error::Error + 'a>> {
    let points = || curves.iter().flat_map(|(_, points)| points);
    let [x, y] = [
        around(points().map(|point| point.0)),
        around(points().map(|point| point.1)),
    ];
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption(caption, ("sans-serif", 15))
        .x_label_area_size(32)
        .y_label_area_size(48)
        .build_cartesian_2d(x.log_scale(), y.log_scale())?;
    chart
        .configure_mesh()
        .x_desc(below)
        .x_label_formatter(&|x| number(*x))
        .y_label_formatter(&|y| number(*y))
        .light_line_style(WHITE)
        .draw()?;
    for ((name, points), colour) in curves.iter().zip(COLOURS) {
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour.stroke_width(2));
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
            .label(*name)
            .legend(legend);
        let dots = points.iter().map(|at| Circle::new(*at, 3, colour.filled()));
        chart.draw_series(dots)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 12))
        .draw()?;
    Ok(())
}

/// A range with room at both ends, for a legend above.
fn around(values: impl Iterator<Item = f64> + Clone) -> Range<f64> {
    let least = values.clone().fold(f64::INFINITY, f64::min);
    let most = values.fold(0.0, f64::max);
    least / 1.5..most * 6.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the two programs print it.
    fn growth() -> Growth {
        let store = |gib: u64, order: &str| {
            let line = format!(
                r#"{{"gib":{gib},"disks":1,"order":"{order}","write_ns":900,"overwrite_ns":1500,"read_ns":800,"memory":{},"open_ms":{gib},"replayed":7}}"#,
                gib << 20
            );
            serde_json::from_str(&line).unwrap()
        };
        let plan = |disks: u64, maps: &str| {
            let line = format!(
                r#"{{"disks":{disks},"maps":"{maps}","ranges":{disks},"encoded":9,"memory":1048576,"planning_memory":2097152,"seconds":0.25}}"#
            );
            serde_json::from_str(&line).unwrap()
        };
        let fleet = |disks: u64| {
            let line = format!(
                r#"{{"disks":{disks},"nodes":240,"heartbeat_us":20.0,"up":472,"down":6,"pass_seconds":0.5,"more_us":400.0,"reads":0}}"#
            );
            serde_json::from_str(&line).unwrap()
        };
        let orders = ["in order", "all over"];
        let maps = [
            "never moved",
            "in 64 pieces, some being moved",
            "the same, every VM just moved",
        ];
        Growth {
            stores: [1, 10]
                .iter()
                .flat_map(|gib| orders.map(|order| store(*gib, order)))
                .collect(),
            plans: [1000, 10_000]
                .iter()
                .flat_map(|disks| maps.map(|maps| plan(*disks, maps)))
                .collect(),
            fleets: [1000, 10_000].map(fleet).to_vec(),
        }
    }

    #[test]
    fn tables_have_a_row_for_each_size() {
        let text = growth().tables().unwrap();
        assert!(
            text.contains(
                "| 10 GiB | 1 | all over | 0.90 | 1.50 | 0.80 | 10.0 | 4.0 | 7 | 10 ms |"
            ),
            "{text}"
        );
        assert!(
            text.contains("| 1000 | never moved | 1000 | 0.0 | 1.0 | 2.0 | 0.25 | 250 |"),
            "{text}"
        );
        assert!(
            text.contains("| 10000 | 240 | 20.0 | 472 | 6 | 0.5 % | 0.50 | 400 | 0 |"),
            "{text}"
        );
    }

    #[test]
    fn curves_are_drawn() {
        let dir = tempfile::tempdir().unwrap();
        growth().draw(dir.path()).unwrap();
        let picture = std::fs::read_to_string(dir.path().join("growth.svg")).unwrap();
        for name in [
            "overwrite, all over",
            "opens in, all over",
            "in 64 pieces",
            "every VM just moved",
        ] {
            assert!(picture.contains(name), "{name}");
        }
        // A curve is a line through its points.
        assert!(picture.matches("<polyline").count() >= 11);
    }
}
