//! `ukai disk map`: a disk's extents and the stores that hold them, drawn in the terminal.

use crate::commands::store::liveness;
use crate::operator::Connection;
use crate::output::{Output, human_bytes, table};
use placement_service::api::{DiskMap, MapStore, RangeView};
use replicator::words::DiskName;

/// Columns of the drawing; a disk with more extents than this shares columns.
const WIDTH: u64 = 64;

pub fn run(name: &DiskName, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let map: DiskMap = connection
        .service()?
        .get(&format!("/v1/disks/{name}/map"))?;
    output.show(&map, draw);
    Ok(())
}

fn draw(map: &DiskMap) -> String {
    let extents = map
        .ranges
        .last()
        .map_or(0, |range| u64::from(range.extents.end.0));
    let columns = extents.clamp(1, WIDTH);
    let per_column = extents.div_ceil(columns).max(1);
    let rows = map.stores.iter().map(|store| {
        let bar = (0..columns)
            .map(|column| mark(map, store, column * per_column))
            .collect::<String>();
        let allocated = store.allocated_bytes.map_or("?".into(), human_bytes);
        [
            host(store),
            bar,
            allocated,
            liveness(store.liveness),
            store.id.to_string(),
        ]
    });
    let drawing = table(["HOST", "EXTENTS", "ALLOCATED", "STATE", "STORE"], rows);
    let ranges = table(
        ["EXTENTS", "FROM EPOCH", "ON"],
        map.ranges.iter().flat_map(|range| entries(map, range)),
    );
    let extent = human_bytes(map.extent_size.bytes());
    format!(
        "{}: {extents} extents of {extent}; a column is {per_column}; # newest entry, + older entry, . none\n{drawing}\n\n{ranges}",
        map.disk
    )
}

fn mark(map: &DiskMap, store: &MapStore, extent: u64) -> char {
    let range = map
        .ranges
        .iter()
        .find(|range| extent < u64::from(range.extents.end.0));
    let place = range.and_then(|range| {
        range
            .history
            .iter()
            .position(|entry| entry.stores.contains(&store.id))
    });
    match place {
        Some(0) => '#',
        Some(_) => '+',
        None => '.',
    }
}

fn entries<'a>(map: &'a DiskMap, range: &'a RangeView) -> impl Iterator<Item = [String; 3]> + 'a {
    range.history.iter().enumerate().map(move |(age, entry)| {
        let hosts: Vec<String> = entry
            .stores
            .iter()
            .map(|id| match map.stores.iter().find(|store| store.id == *id) {
                Some(store) => host(store),
                None => id.to_string(),
            })
            .collect();
        let extents = if age == 0 {
            range.extents.to_string()
        } else {
            "  older".into()
        };
        [extents, entry.from.to_string(), hosts.join(", ")]
    })
}

fn host(store: &MapStore) -> String {
    store
        .host
        .as_ref()
        .map_or("unknown".into(), |host| host.to_string())
}
