//! The figures as pictures: how near to its goal each comparison came, and what a request costs.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

use super::compare::{Compared, Row};
use crate::migration::figures::Bound;

const WIDTH: u32 = 900;
const ROW_HEIGHT: u32 = 22;
const GOOD: RGBColor = RGBColor(40, 130, 70);
const BAD: RGBColor = RGBColor(190, 60, 50);
/// Further than this from its goal, in either direction, a bar ends.
const FURTHEST: f64 = 16.0;

/// `performance-goals.svg`: a bar for each goal, from the least to the most that its ratio was, relative
/// to the goal; right of the line is better.
pub fn draw(directory: &Path, compared: &[Compared]) -> Result<()> {
    let rows: Vec<(String, &Row)> = compared
        .iter()
        .flat_map(|one| one.rows.iter().map(move |row| (one.name, row)))
        .filter(|(_, row)| row.goal.is_some())
        .map(|(name, row)| (format!("{name}: {}", row.metric.name()), row))
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(directory)?;
    let file = directory.join("performance-goals.svg");
    bars(&file, &rows)
        .map_err(|error| anyhow!("{error}"))
        .with_context(|| format!("draw {}", file.display()))
}

type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn bars<'a>(file: &'a Path, rows: &[(String, &Row)]) -> Drawn<'a> {
    let height = ROW_HEIGHT * rows.len() as u32 + 60;
    let root = SVGBackend::new(file, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let count = rows.len() as f64;
    let mut chart = ChartBuilder::on(&root)
        .margin(10)
        .margin_left(250)
        .caption("how many times better than its goal", ("sans-serif", 16))
        .x_label_area_size(25)
        .build_cartesian_2d((1.0 / FURTHEST..FURTHEST).log_scale(), 0.0..count)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .draw()?;
    for (index, (name, row)) in rows.iter().enumerate() {
        let y = count - index as f64 - 0.5;
        let within = |value: f64| value.clamp(1.0 / FURTHEST, FURTHEST);
        let [median, least, most] = [row.ratio.median, row.ratio.least, row.ratio.most]
            .map(|ratio| within(better(row, ratio)));
        let colour = if row.met == Some(true) { GOOD } else { BAD };
        let spread = [(least, y - 0.06), (most, y + 0.06)];
        let bar = [(1.0, y - 0.3), (median, y + 0.3)];
        chart.draw_series([
            Rectangle::new(bar, colour.mix(0.6).filled()),
            Rectangle::new(spread, colour.filled()),
        ])?;
        let at = (10, chart.backend_coord(&(1.0, y)).1 - 6);
        root.draw(&Text::new(name.clone(), at, ("sans-serif", 12)))?;
    }
    chart.draw_series([PathElement::new(
        [(1.0, 0.0), (1.0, count)],
        BLACK.stroke_width(1),
    )])?;
    root.present()
}

/// 1 is just met, 2 is twice as good.
fn better(row: &Row, ratio: f64) -> f64 {
    match row.goal {
        Some(Bound::AtLeast(least)) => ratio / least,
        Some(Bound::AtMost(most)) => most / ratio,
        None => ratio,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::job::Metric;

    #[test]
    fn better_is_more_whichever_way_the_goal_goes() {
        let row = |goal| Row::new(Metric::Iops, &[(4.0, 1.0)], Some(goal));
        assert_eq!(better(&row(Bound::AtLeast(2.0)), 4.0), 2.0);
        assert_eq!(better(&row(Bound::AtMost(2.0)), 4.0), 0.5);
    }
}
