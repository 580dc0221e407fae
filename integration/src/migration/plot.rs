//! Courses as a picture: the latency of every write over time, and what crossed the link.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::Course;
use super::course::{Marks, millis};
use super::timeline::named;
use crate::guest::ticks::{Doing, Stamp};

const SIZE: (u32, u32) = (1000, 320);
/// In each of these slots of time the median write is drawn, and the longest.
const SLOTS: f64 = 800.0;
const LEAST_MS: f64 = 0.1;

/// One panel a course, one below the other, on the same axes.
pub fn draw(courses: &[&Course], file: &Path) -> Result<()> {
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let height = SIZE.1 * courses.len() as u32;
    let root = SVGBackend::new(file, (SIZE.0, height)).into_drawing_area();
    let panels = root.split_evenly((courses.len(), 1));
    let seconds = courses
        .iter()
        .map(|course| course.marks.end.seconds_from(course.marks.go))
        .fold(1.0, f64::max);
    root.fill(&WHITE)
        .and_then(|()| {
            let mut panels = panels.iter().zip(courses);
            panels.try_for_each(|(panel, course)| panel_of(panel, course, seconds))
        })
        .and_then(|()| root.present())
        .map_err(|error| anyhow!("{error}"))
        .with_context(|| format!("draw {}", file.display()))
}

type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn panel_of<'a>(
    panel: &DrawingArea<SVGBackend<'a>, Shift>,
    course: &Course,
    seconds: f64,
) -> Drawn<'a> {
    let marks = &course.marks;
    let from = marks.begin.seconds_from(marks.go);
    let most = course.crossed_at(marks.end) as f64 / 1e6;
    let mut chart = ChartBuilder::on(panel)
        .margin(10)
        .caption(course.name, ("sans-serif", 16))
        .x_label_area_size(30)
        .y_label_area_size(55)
        .right_y_label_area_size(55)
        .build_cartesian_2d(from..seconds, (LEAST_MS..2000.0).log_scale())?
        .set_secondary_coord(from..seconds, 0.0..most.max(1.0) * 1.05);
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("seconds from \"go\"")
        .y_desc("write latency, ms: median, longest")
        .draw()?;
    chart
        .configure_secondary_axes()
        .y_desc("disk bytes on the link, MB")
        .draw()?;
    let crossed = course
        .crossed
        .iter()
        .map(|(at, bytes)| (at.seconds_from(marks.go), *bytes as f64 / 1e6));
    chart.draw_secondary_series(LineSeries::new(crossed, RGBColor(200, 120, 0)))?;
    let (medians, longest) = dots(course);
    for (dots, colour) in [
        (longest, RGBColor(150, 180, 230)),
        (medians, RGBColor(20, 60, 160)),
    ] {
        let circle = |place| Circle::new(place, 1, colour.filled());
        chart.draw_series(dots.into_iter().map(circle))?;
    }
    for (index, (at, what)) in named(marks).into_iter().enumerate() {
        let x = at.seconds_from(marks.go);
        let line = [(x, LEAST_MS), (x, 2000.0)];
        chart.draw_series(std::iter::once(PathElement::new(line, BLACK.mix(0.5))))?;
        // Marks may be close together: each label has a height of its own.
        let y = 1400.0 / 1.9_f64.powi(index as i32);
        let label = Text::new(what, (x + seconds / 200.0, y), ("sans-serif", 12));
        chart.draw_series(std::iter::once(label))?;
    }
    Ok(())
}

type Dots = Vec<(f64, f64)>;

/// When a write ended and how long it took: of each slot the median, and the longest if it is another.
fn dots(course: &Course) -> (Dots, Dots) {
    let Marks { begin, go, end, .. } = course.marks;
    let slot = end.since(begin).div_f64(SLOTS);
    let mut slots: Vec<Vec<(Stamp, f64)>> = vec![Vec::new(); SLOTS as usize];
    for operation in &course.operations {
        let index = operation.ended.since(begin).div_duration_f64(slot) as usize;
        if operation.doing == Doing::Write
            && operation.ended >= begin
            && let Some(slot) = slots.get_mut(index)
        {
            slot.push((operation.ended, millis(operation.took())));
        }
    }
    let place = |(at, ms): (Stamp, f64)| (at.seconds_from(go), ms.max(LEAST_MS));
    let (mut medians, mut longest) = (Vec::new(), Vec::new());
    for writes in slots.iter_mut().filter(|slot| !slot.is_empty()) {
        writes.sort_by(|a, b| a.1.total_cmp(&b.1));
        medians.push(place(writes[(writes.len() - 1) / 2]));
        longest.extend(writes[1..].last().copied().map(place));
    }
    (medians, longest)
}
