//! The drawing: a row a store, by datacenter; a column some extents.
//!
//! ```text
//! web1: 20 GiB, 320 extents of 64 MiB; a column is 4 of them
//!
//! osaka, where its VM runs
//!   osaka-1  ████▒▒▒▒▒▒  1.2 GiB
//! tokyo
//!   tokyo-1  ░░░░░░░░░░  3.1 GiB
//!            0   5 GiB
//!
//! █ whole  ▒ being filled  ░ sealed: ...
//! ```

use super::what::{Columns, Copy};
use crate::commands::store::liveness;
use crate::output::{Output, counted, human_bytes};
use placement_service::api::{DiskMap, Liveness, MapStore};
use replicator::words::{DatacenterName, StoreId};
use std::collections::BTreeMap;

/// What stands beside a row: its name, what it occupies, and that its store is not there.
const BESIDE: usize = 36;
const WIDEST: usize = 128;

/// What a drawing is made of.
pub struct Pen {
    pub columns: usize,
    /// Blocks and colours; otherwise letters that every reader has.
    pub drawn: bool,
}

impl Pen {
    pub fn for_output(output: Output) -> Pen {
        let drawn = output.is_terminal();
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|said| !said.is_empty());
        Pen {
            columns: output.width().saturating_sub(BESIDE).clamp(16, WIDEST),
            drawn: drawn && !unwanted,
        }
    }

    fn symbol(&self, copy: Copy) -> char {
        match (copy, self.drawn) {
            (Copy::None, true) => '·',
            (Copy::Whole, true) => '█',
            (Copy::Filling, true) => '▒',
            (Copy::Sealed, true) => '░',
            (Copy::Stale, true) => '─',
            (Copy::None, false) => '.',
            (Copy::Whole, false) => '#',
            (Copy::Filling, false) => '+',
            (Copy::Sealed, false) => 'o',
            (Copy::Stale, false) => '-',
        }
    }

    /// The symbols with a colour a run.
    fn line(&self, row: &[Copy]) -> String {
        let runs = row.chunk_by(|a, b| a == b);
        runs.map(|run| {
            let text: String = run.iter().map(|copy| self.symbol(*copy)).collect();
            self.coloured(run[0], text)
        })
        .collect()
    }

    fn coloured(&self, copy: Copy, text: String) -> String {
        let colour = match copy {
            Copy::Whole => "32",
            Copy::Filling => "33",
            Copy::Sealed => "36",
            Copy::None | Copy::Stale => "2",
        };
        match self.drawn {
            true => format!("\x1b[{colour}m{text}\x1b[0m"),
            false => text,
        }
    }
}

pub fn draw(map: &DiskMap, pen: &Pen) -> String {
    let columns = Columns::new(map, pen.columns);
    let rows: Vec<(&MapStore, Vec<Copy>)> = map
        .stores
        .iter()
        .map(|store| (store, columns.row(store.id)))
        .collect();
    let names = Names::of(map);
    let mut lines = vec![headline(map, &columns), String::new()];
    let mut places: Vec<Option<&DatacenterName>> = map
        .stores
        .iter()
        .map(|store| store.datacenter.as_ref())
        .collect();
    // Where the VM runs comes first.
    places.sort_by_key(|place| (*place != Some(&map.home), place.is_none(), *place));
    places.dedup();
    for place in places {
        lines.push(match place {
            Some(place) if *place == map.home => format!("{place}, where its VM runs or ran last"),
            Some(place) => place.to_string(),
            None => "a place that is not known".into(),
        });
        let here = rows
            .iter()
            .filter(|(store, _)| store.datacenter.as_ref() == place);
        lines.extend(here.map(|(store, row)| {
            let name = names.padded(store.id);
            format!("  {name}  {}  {}", pen.line(row), beside(store))
        }));
    }
    lines.push(format!(
        "  {}  {}",
        " ".repeat(names.width),
        scale(map, &columns)
    ));
    lines.push(String::new());
    lines.push(legend(&rows, &columns, pen));
    lines.join("\n")
}

fn headline(map: &DiskMap, columns: &Columns) -> String {
    let extent = map.extent_size.bytes();
    let size = human_bytes(u64::from(columns.extents) * extent);
    format!(
        "{}: {size} in {} of {}; a column is {}; epoch {}",
        map.disk,
        counted(columns.extents.into(), "extent"),
        human_bytes(extent),
        match columns.per_column {
            1 => "one of them".into(),
            n => format!("{n} of them"),
        },
        map.epoch
    )
}

fn beside(store: &MapStore) -> String {
    let occupied = store
        .allocated_bytes
        .map_or("says nothing yet".into(), human_bytes);
    match store.liveness {
        Liveness::Up => occupied,
        other => format!("{occupied}, {}", liveness(other)),
    }
}

/// Bytes below the columns: the start, about every quarter, never two over one another.
fn scale(map: &DiskMap, columns: &Columns) -> String {
    let per_column = u64::from(columns.per_column) * map.extent_size.bytes();
    let count = columns.count();
    let step = count.div_ceil(4).max(1);
    let mut text = String::new();
    for column in (0..count).step_by(step as usize) {
        let mark = match column {
            0 => "^0".into(),
            column => format!("^{}", human_bytes(u64::from(column) * per_column)),
        };
        let at = column as usize;
        if text.chars().count() < at || column == 0 {
            text += &" ".repeat(at - text.chars().count());
            text += &mark;
        }
    }
    text
}

/// What the symbols mean that are in the drawing.
fn legend(rows: &[(&MapStore, Vec<Copy>)], columns: &Columns, pen: &Pen) -> String {
    let meanings = [
        (Copy::Whole, "whole, written to"),
        (Copy::Filling, "written to, being filled"),
        (Copy::Sealed, "sealed: older writes are read from it"),
        (Copy::Stale, "stale: not needed, deleted in time"),
        (Copy::None, "nothing"),
    ];
    let there = |copy| rows.iter().any(|(_, row)| row.contains(&copy));
    let meanings = meanings
        .into_iter()
        .filter(|(copy, _)| there(*copy))
        .map(|(copy, means)| format!("{} {means}", pen.line(&[copy])));
    let mut text = meanings.collect::<Vec<_>>().join("   ");
    if columns.per_column > 1 {
        text += "\na column shows what of its extents is least complete";
    }
    text
}

/// Stores by their hosts, with the start of the id where a host has several.
struct Names {
    names: BTreeMap<StoreId, String>,
    width: usize,
}

impl Names {
    fn of(map: &DiskMap) -> Names {
        let name = |store: &MapStore| match &store.host {
            None => store.id.to_string()[..8].to_owned(),
            Some(host) => {
                let twins = map.stores.iter().filter(|other| other.host == store.host);
                match twins.count() {
                    1 => host.to_string(),
                    _ => format!("{host}/{}", &store.id.to_string()[..8]),
                }
            }
        };
        let names: BTreeMap<StoreId, String> = map
            .stores
            .iter()
            .map(|store| (store.id, name(store)))
            .collect();
        let width = names.values().map(String::len).max().unwrap_or(0);
        Names { names, width }
    }

    fn padded(&self, store: StoreId) -> String {
        format!("{:width$}", self.names[&store], width = self.width)
    }
}

#[cfg(test)]
mod tests;
