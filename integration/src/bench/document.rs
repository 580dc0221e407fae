//! `docs/performance.md`: what people wrote stays, what was measured is replaced.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::compare::Compared;
use super::machine::Machine;
use super::report;

/// A part of the page that a command writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Goals,
    Figures,
    Growth,
    Profile,
    Guests,
}

impl Part {
    fn marks(self) -> [String; 2] {
        let name = match self {
            Part::Goals => "goals",
            Part::Figures => "figures",
            Part::Growth => "growth",
            Part::Profile => "profile",
            Part::Guests => "guests",
        };
        [
            format!("<!-- {name}: written by a command -->"),
            format!("<!-- end of {name} -->"),
        ]
    }
}

/// The tables of one run.
pub fn write(file: &Path, machine: &Machine, compared: &[Compared]) -> Result<()> {
    let with_goals: Vec<&Compared> = compared
        .iter()
        .filter(|one| one.rows.iter().any(|row| row.goal.is_some()))
        .collect();
    let goals = format!("{}.\n\n{}", machine.text(), report::goals(with_goals));
    put(file, Part::Goals, &goals)?;
    put(file, Part::Figures, &report::figures(compared))
}

/// Replaces one part of the page.
pub fn put(file: &Path, part: Part, text: &str) -> Result<()> {
    let page = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let page = replaced(&page, part, text)
        .with_context(|| format!("{}: no marks of {part:?}", file.display()))?;
    fs::write(file, page).with_context(|| format!("write {}", file.display()))
}

fn replaced(page: &str, part: Part, text: &str) -> Option<String> {
    let [begin, end] = part.marks();
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!(
        "{before}{begin}\n\n{}\n\n{end}{after}",
        text.trim_end()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_stays() {
        let [begin, end] = Part::Goals.marks();
        let page = format!("# Title\n\n{begin}\n\nold\n\n{end}\n\nmore\n");
        let new = replaced(&page, Part::Goals, "new\n").expect("marks");
        assert_eq!(new, format!("# Title\n\n{begin}\n\nnew\n\n{end}\n\nmore\n"));
        assert_eq!(replaced(&new, Part::Goals, "new\n").expect("marks"), new);
        assert!(replaced("no marks", Part::Goals, "new").is_none());
    }

    /// The page of this repository has them all.
    #[test]
    fn the_page_has_its_marks() {
        let page = include_str!("../../../docs/performance.md");
        let parts = [
            Part::Goals,
            Part::Figures,
            Part::Growth,
            Part::Profile,
            Part::Guests,
        ];
        for part in parts {
            assert!(replaced(page, part, "").is_some(), "{part:?}");
        }
    }
}
