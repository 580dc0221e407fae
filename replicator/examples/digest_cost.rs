//! What keeping digests costs a write: 4 KiB writes into a store, by turns to two disks of which one was
//! asked for its digests and the other one never was. CPU time of the thread that writes, medians.
//!
//! `cargo run --release -p replicator --example digest_cost [DIRECTORY]`; best in memory (/dev/shm).

use bytes::Bytes;
use replicator::message::{Asker, Content, Payload, Reply, Request};
use replicator::store::{Options, SharedStore};
use replicator::words::*;
use std::sync::mpsc;

/// 256 MiB of each disk are written, all over.
const BLOCKS: u64 = 1 << 16;
const WRITES: u64 = 4000;
const ROUNDS: usize = 31;

fn main() {
    let parent = std::env::args().nth(1).unwrap_or("/dev/shm".into());
    let dir = tempfile::tempdir_in(parent).expect("a directory to write to");
    SharedStore::format(dir.path(), StoreId::from_u128(1), &Options::default()).expect("formatted");
    let (store, _) = SharedStore::open(dir.path(), Options::default()).expect("opened");
    let mut disks: Vec<Disk> = (1..=2).map(|id| Disk::join(&store, id)).collect();
    for disk in &mut disks {
        disk.write(BLOCKS);
    }
    // From now on the first one's are kept.
    disks[0].ask_for_digests();
    let mut costs = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for which in [round % 2, 1 - round % 2] {
            let began = cpu_ns();
            disks[which].write(WRITES);
            costs[which].push((cpu_ns() - began) as f64 / WRITES as f64 / 1000.0);
        }
    }
    let [kept, not] = costs.map(median);
    println!(
        "us of CPU a 4 KiB write: {kept:.3} with digests kept, {not:.3} without: {:+.1} %",
        (kept / not - 1.0) * 100.0
    );
}

struct Disk {
    store: SharedStore,
    asker: Asker,
    seq: u64,
    data: Payload,
}

impl Disk {
    fn join(store: &SharedStore, id: u128) -> Disk {
        let (disk, epoch) = (DiskId::from_u128(id), Epoch::from_u64(1));
        let asker = Asker {
            disk,
            epoch,
            incarnation: store.incarnation(),
        };
        let size = ExtentSize::new(64 << 20).expect("a size of extents");
        ask(store, Request::seal(disk, epoch));
        ask(
            store,
            Request::Join {
                asker,
                extents: Extents::new(Extent(0), Extent(BLOCKS as u32 / size.blocks())),
                extent_size: size,
                from: epoch,
            },
        );
        Disk {
            store: store.clone(),
            asker,
            seq: 0,
            data: Payload::new(Bytes::from(vec![7; 4096])),
        }
    }

    fn write(&mut self, count: u64) {
        for _ in 0..count {
            self.seq += 1;
            // A walk over all of them that looks like chance.
            let block = self.seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) % BLOCKS;
            let request = Request::Write {
                asker: self.asker,
                seq: Seq(self.seq),
                watermark: Seq(self.seq - 1),
                blocks: Blocks::new(Block(block), 1),
                content: Content::Data(self.data.clone()),
            };
            self.store.submit(request, |reply| {
                assert!(matches!(reply, Reply::Written(_)), "{reply:?}");
            });
        }
    }

    fn ask_for_digests(&self) {
        for extent in 0..4 {
            let request = Request::Digest {
                asker: self.asker,
                from: Epoch::from_u64(1),
                extents: Extents::new(Extent(extent), Extent(extent + 1)),
            };
            assert!(matches!(ask(&self.store, request), Reply::Digested(_)));
        }
    }
}

fn ask(store: &SharedStore, request: Request) -> Reply {
    let (done, answer) = mpsc::channel();
    store.submit(request, move |reply| {
        let _ = done.send(reply);
    });
    answer.recv().expect("an answer")
}

/// CPU time of this thread.
fn cpu_ns() -> u64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let first = told.split_whitespace().next();
    first.and_then(|ns| ns.parse().ok()).expect("a number")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
