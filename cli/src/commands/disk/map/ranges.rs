//! The ranges of a map with their histories, newest entry first.

use crate::output::{human_bytes, table};
use placement_service::api::{DiskMap, EntryView, RangeView};
use replicator::words::{Extent, StoreId};

/// At most `shown` ranges, and how many more there are.
pub fn list(map: &DiskMap, shown: usize) -> String {
    let rows = map.ranges.iter().take(shown);
    let rows = rows.flat_map(|range| entries(map, range));
    let mut text = table(["EXTENTS", "BYTES", "EPOCHS", "ARE", "ON"], rows);
    if map.ranges.len() > shown {
        let more = map.ranges.len() - shown;
        text += &format!("\nand {more} more ranges: --ranges lists them all");
    }
    text
}

fn entries<'a>(map: &'a DiskMap, range: &'a RangeView) -> impl Iterator<Item = [String; 5]> + 'a {
    let extent = map.extent_size.bytes();
    let at = move |Extent(extents): Extent| human_bytes(u64::from(extents) * extent);
    range.history.iter().enumerate().map(move |(age, entry)| {
        let (extents, bytes) = match age {
            0 => (
                range.extents.to_string(),
                format!("{}..{}", at(range.extents.first), at(range.extents.end)),
            ),
            _ => (String::new(), String::new()),
        };
        let until = entry.until.map_or("now".into(), |until| until.to_string());
        let hosts: Vec<String> = entry.stores.iter().map(|id| host(map, *id)).collect();
        let epochs = format!("{}..{until}", entry.from);
        [
            extents,
            bytes,
            epochs,
            state(entry).into(),
            hosts.join(", "),
        ]
    })
}

fn state(entry: &EntryView) -> &'static str {
    match (entry.until, entry.whole) {
        (None, true) => "whole",
        (None, false) => "being filled",
        (Some(_), true) => "sealed, with all before",
        (Some(_), false) => "sealed",
    }
}

fn host(map: &DiskMap, id: StoreId) -> String {
    let store = map.stores.iter().find(|store| store.id == id);
    match store.and_then(|store| store.host.as_ref()) {
        Some(host) => host.to_string(),
        None => id.to_string(),
    }
}
