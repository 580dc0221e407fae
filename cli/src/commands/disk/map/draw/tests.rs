use super::*;
use placement_service::api::{EntryView, RangeView, RetiredView};
use placement_service::policy::UnixSeconds;
use replicator::words::{
    DiskId, DiskName, Epoch, Extent, ExtentSize, Extents, Generation, HostName,
};

fn store(n: u128) -> StoreId {
    StoreId::from_u128(n << 96)
}

fn extents(first: u32, end: u32) -> Extents {
    Extents::new(Extent(first), Extent(end))
}

fn entry(live: bool, whole: bool, stores: &[u128]) -> EntryView {
    let epoch = Epoch::first(Generation(1));
    EntryView {
        from: epoch,
        until: (!live).then_some(epoch),
        whole,
        stores: stores.iter().map(|n| store(*n)).collect(),
    }
}

/// Half of web1 has moved to osaka, a quarter is on its way; tokyo-2 keeps a stale copy of what has.
fn moving() -> DiskMap {
    let at = |n, host: &str, dc: &str, liveness| MapStore {
        id: store(n),
        host: Some(HostName::new(host).unwrap()),
        datacenter: Some(DatacenterName::new(dc).unwrap()),
        liveness,
        allocated_bytes: Some(3 << 30),
    };
    let range = |first, end, history| RangeView {
        extents: extents(first, end),
        history,
    };
    DiskMap {
        disk: DiskName::new("web1").unwrap(),
        id: DiskId::from_u128(1),
        extent_size: ExtentSize::DEFAULT,
        epoch: Epoch::first(Generation(1)),
        home: DatacenterName::new("osaka").unwrap(),
        ranges: vec![
            range(0, 16, vec![entry(true, true, &[3, 4])]),
            range(
                16,
                24,
                vec![entry(true, false, &[3, 4]), entry(false, true, &[1, 2])],
            ),
            range(24, 32, vec![entry(true, true, &[1, 2])]),
        ],
        retired: vec![RetiredView {
            store: store(2),
            extents: vec![extents(0, 16)],
            since: UnixSeconds(0),
            superseded_by: vec![store(3)],
            dropping: false,
        }],
        stores: vec![
            at(1, "tokyo-1", "tokyo", Liveness::Up),
            at(2, "tokyo-2", "tokyo", Liveness::Silent { for_ms: 9000 }),
            at(3, "osaka-1", "osaka", Liveness::Up),
            at(4, "osaka-2", "osaka", Liveness::Up),
        ],
    }
}

fn plain(columns: usize) -> Pen {
    Pen {
        columns,
        drawn: false,
    }
}

#[test]
fn a_disk_on_its_way() {
    assert_eq!(
        draw(&moving(), &plain(64)),
        "web1: 2 GiB in 32 extents of 64 MiB; a column is one of them; epoch 1.1

osaka, where its VM runs or ran last
  osaka-1  ################++++++++........  3 GiB
  osaka-2  ################++++++++........  3 GiB
tokyo
  tokyo-1  ................oooooooo########  3 GiB
  tokyo-2  ----------------oooooooo########  3 GiB, silent for 9 s
           ^0      ^512 MiB        ^1.5 GiB

# whole, written to   + written to, being filled   o sealed: older writes are read from it   - stale: not needed, deleted in time   . nothing"
    );
}

#[test]
fn columns_of_several_extents_show_what_is_least_complete() {
    let text = draw(&moving(), &plain(5));
    assert!(text.contains("a column is 7 of them"), "{text}");
    assert!(text.contains("osaka-1  ##++.  3 GiB"), "{text}");
    assert!(text.contains("tokyo-1  ..oo#  3 GiB"), "{text}");
    assert!(text.ends_with("a column shows what of its extents is least complete"));
}

#[test]
fn on_a_terminal_it_has_colours() {
    let pen = Pen {
        columns: 64,
        drawn: true,
    };
    let text = draw(&moving(), &pen);
    assert!(text.contains("\x1b[32m████████████████\x1b[0m"), "{text}");
    assert!(text.contains("\x1b[33m▒▒▒▒▒▒▒▒\x1b[0m"), "{text}");
}

#[test]
fn a_disk_that_never_moved_needs_one_symbol() {
    let mut map = moving();
    map.ranges = vec![RangeView {
        extents: extents(0, 32),
        history: vec![entry(true, true, &[1, 2])],
    }];
    map.retired.clear();
    map.stores.truncate(2);
    let text = draw(&map, &plain(64));
    assert!(text.ends_with("\n# whole, written to"), "{text}");
}

#[test]
fn what_the_catalog_does_not_know_is_drawn_too() {
    let mut map = moving();
    map.stores[0].host = None;
    map.stores[0].datacenter = None;
    map.stores[3].host = map.stores[2].host.clone();
    let text = draw(&map, &plain(64));
    assert!(
        text.contains("a place that is not known\n  00000001 "),
        "{text}"
    );
    assert!(text.contains("osaka-1/00000004  ####"), "{text}");
}

#[test]
fn a_map_of_a_tebibyte_fits_a_line() {
    let mut map = moving();
    map.ranges = vec![RangeView {
        extents: extents(0, 1 << 20),
        history: vec![entry(true, true, &[1])],
    }];
    let text = draw(&map, &plain(64));
    assert!(
        text.contains(&format!("tokyo-1  {}  3 GiB", "#".repeat(64))),
        "{text}"
    );
}
