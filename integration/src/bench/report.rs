//! The figures, for people.

use std::fmt::Write;

use super::compare::Compared;
use super::statistics::Figures;

/// What was asked for, in a table of Markdown: a line for each goal.
pub fn goals<'a>(all: impl IntoIterator<Item = &'a Compared>) -> String {
    let mut text = String::from(
        "| job | ours | peer | figure | ours | peer | ratio (least to most) | goal | |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for one in all {
        for row in &one.rows {
            let met = match row.met {
                Some(true) => "met",
                Some(false) => "**not met**",
                None => "",
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {:.2} ({:.2} to {:.2}) | {} | {met} |",
                one.what,
                one.sides[0],
                one.sides[1],
                row.metric.name(),
                number(row.ours),
                number(row.peer),
                row.ratio.median,
                row.ratio.least,
                row.ratio.most,
                row.goal.map(|goal| goal.words()).unwrap_or_default(),
            );
        }
    }
    text
}

/// Everything that was measured of each side.
pub fn figures(all: &[Compared]) -> String {
    let mut text = String::from(
        "| job (its name) | side | IOPS | MB/s | p50 | p99 | p99.9 | CPU a request | sleeps a request | front-end |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for one in all {
        if one.pairs.is_empty() {
            continue;
        }
        for (side, figures) in one.sides.iter().zip(one.medians()) {
            let Figures {
                iops,
                mb_s,
                p50_us,
                p99_us,
                p999_us,
                cpu_us,
                front_end_cpu_us,
                sleeps,
            } = figures;
            let _ = writeln!(
                text,
                "| {} (`{}`) | {} | {} | {} | {} us | {} us | {} us | {} us | {sleeps:.2} | {} us |",
                one.what,
                one.name,
                side,
                number(iops),
                number(mb_s),
                number(p50_us),
                number(p99_us),
                number(p999_us),
                number(cpu_us),
                number(front_end_cpu_us),
            );
        }
    }
    text
}

/// Three figures that say something.
pub fn number(value: f64) -> String {
    match value.abs() {
        big if big >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_short() {
        assert_eq!(number(123_456.7), "123457");
        assert_eq!(number(12.34), "12.3");
        assert_eq!(number(1.234), "1.23");
        assert_eq!(number(f64::NAN), "NaN");
    }
}
