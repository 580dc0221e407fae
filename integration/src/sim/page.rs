//! The page of the documentation that says what is simulated: its tables are checked, and one of them is made.

use replicator::plant::Plant;
use std::fmt::Write;

const SOURCE: &str = include_str!("../../../replicator/src/plant.rs");
const BEGIN: &str = "<!-- planted bugs -->\n";
const END: &str = "<!-- end of planted bugs -->\n";

/// What finds a planted bug.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    pub bug: Plant,
    /// A story, by its name, and which way of it.
    pub story: Option<(String, u64)>,
    pub seed: Option<u64>,
}

/// What a planted bug leaves out, as its source says.
fn rule(bug: Plant) -> String {
    let variant = format!("    {bug:?},\n");
    let before = &SOURCE[..SOURCE.find(&variant).expect("it is declared")];
    let lines: Vec<&str> = before.lines().collect();
    let comments = lines.iter().rev();
    let comments = comments.map_while(|line| line.trim_start().strip_prefix("/// "));
    let mut text: Vec<&str> = comments.collect();
    text.reverse();
    text.join(" ")
}

fn table(found: &[Found]) -> String {
    let mut text =
        String::from("\n| bug | rule left out | story | seed |\n| --- | --- | --- | --- |\n");
    for found in found {
        let story = match &found.story {
            Some((name, way)) => format!("{name}, way {way}"),
            None => "-".into(),
        };
        let seed = found.seed.map_or("-".into(), |seed| seed.to_string());
        let (bug, rule) = (found.bug, rule(found.bug));
        writeln!(text, "| {bug:?} | {rule} | {story} | {seed} |").expect("memory is enough");
    }
    text + "\n"
}

/// The page with this table in it. None: it has no place for one.
pub fn with_table(page: &str, found: &[Found]) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{}{END}{after}", table(found)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Show, run, scripts};
    use std::collections::BTreeSet;

    const PAGE: &str = include_str!("../../../docs/simulation.md");

    fn rows(from: &str, to: &str) -> Vec<Vec<String>> {
        let (_, rest) = PAGE.split_once(from).expect("the page has that heading");
        let (part, _) = rest.split_once(to).expect("and that end");
        let rows = part.lines().filter(|line| line.starts_with("| "));
        let cells = |row: &str| -> Vec<String> {
            let row = row.trim_matches('|');
            row.split(" | ")
                .map(|cell| cell.trim().to_owned())
                .collect()
        };
        rows.skip(2).map(cells).collect()
    }

    #[test]
    fn every_scenario_is_a_story() {
        let rows = rows("## Stories\n", "## Planted bugs\n");
        let scenarios: BTreeSet<u64> = rows
            .iter()
            .filter_map(|row| row[0].split(' ').next()?.parse().ok())
            .collect();
        assert_eq!(scenarios, (1..=12).collect());
        let disasters = rows.iter().filter(|row| row[0].starts_with("disaster: "));
        assert_eq!(disasters.count(), 7);
        let told = rows.iter().flat_map(|row| row[1].split("<br>"));
        let told: BTreeSet<&str> = told.collect();
        let known: BTreeSet<&str> = scripts::ALL.iter().map(|script| script.name).collect();
        assert_eq!(told, known);
    }

    #[test]
    fn every_planted_bug_is_found_as_the_page_says() {
        let rows = rows(BEGIN, END);
        let names: Vec<String> = Plant::ALL.iter().map(|bug| format!("{bug:?}")).collect();
        let listed: Vec<&String> = rows.iter().map(|row| &row[0]).collect();
        assert_eq!(listed, names.iter().collect::<Vec<_>>());
        for (bug, row) in Plant::ALL.into_iter().zip(&rows) {
            assert_eq!(row[1], rule(bug));
            assert!(
                row[2] != "-" || row[3] != "-",
                "{bug:?} is found by nothing"
            );
            if let Some((name, way)) = row[2].rsplit_once(", way ") {
                let mut all = scripts::ALL.iter();
                let script = all.find(|script| script.name == name).expect("a story");
                let way = way.parse().expect("a number");
                let told = script.run(way, Some(bug), Show::Nothing);
                assert!(told.violation.is_some(), "{bug:?}: {name}, way {way}");
            }
            if let Ok(seed) = row[3].parse() {
                let outcome = run(seed, Some(bug), Show::Nothing);
                assert!(outcome.violation.is_some(), "{bug:?}: seed {seed}");
            }
        }
    }
}
