//! What a store costs as it grows: CPU a write and a read, memory, and how long it takes to open after a kill,
//! with 1, 10 and 100 GiB of data, and with 1, 8 and 64 disks.
//!
//! ```sh
//! cargo run --release -p replicator --example store_scale [-- [--json] GIB...]
//! ```
//!
//! With `--json` a line for each row, for `cargo xtask bench --growth`, which draws them.
//!
//! The store is the real one; its media are not: they keep the headers and the index, take no time, and remember of
//! a block's data only that it was there. So what is shown is the store itself, on machines without a large disk too.

use bytes::Bytes;
use replicator::message::{Asker, Content, Payload, Reply, Request};
use replicator::store::media::{Media, MediaFile, Piece, Space};
use replicator::store::{BootId, Handled, Options, Promise, Store};
use replicator::words::{
    BLOCK_BYTES, Block, Blocks, DiskId, Epoch, Extent, ExtentSize, Extents, Seq, StoreId,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const STORE: StoreId = StoreId::from_u128(1);
const EPOCH: Epoch = Epoch::from_u64(1);
const BOOT: BootId = BootId(1);
const BLOCK: usize = BLOCK_BYTES as usize;
/// The node's own look at housekeeping: after so many bytes.
const LOOK_BYTES: u64 = 4 << 20;
/// A guest that flushes now and then.
const SYNC_BYTES: u64 = 64 << 20;
const SAMPLES: u64 = 200_000;

/// The one content of all blocks.
static DATA: LazyLock<Payload> = LazyLock::new(|| {
    let bytes: Vec<u8> = (0..BLOCK).map(|at| (at * 31 % 251) as u8).collect();
    Payload::new(Bytes::from(bytes))
});

fn main() {
    let (flags, asked): (Vec<String>, Vec<String>) = std::env::args()
        .skip(1)
        .partition(|arg| arg.starts_with('-'));
    let json = flags == ["--json"];
    assert!(json || flags.is_empty(), "the only flag is --json");
    let asked: Vec<u64> = asked
        .iter()
        .map(|arg| arg.parse().expect("a number of GiB"))
        .collect();
    let sizes = if asked.is_empty() {
        vec![1, 10, 100]
    } else {
        asked
    };
    let tell = |figures: Figures| match json {
        true => println!("{}", figures.json()),
        false => println!("{figures}"),
    };
    if !json {
        println!("{}", Figures::HEADER);
    }
    for gib in &sizes {
        for order in [Order::Forward, Order::Scattered] {
            tell(measure(*gib, 1, order));
        }
    }
    for disks in [8, 64] {
        tell(measure(sizes[0].max(8), disks, Order::Scattered));
    }
}

#[derive(Clone, Copy)]
enum Order {
    Forward,
    Scattered,
}

struct Figures {
    gib: u64,
    disks: u64,
    order: Order,
    write: Duration,
    overwrite: Duration,
    read: Duration,
    memory: usize,
    open: Duration,
    replayed: u64,
}

impl Figures {
    const HEADER: &str = "  GiB  disks  written    ns/write  ns/overwrite  ns/read  memory MiB  bytes/block  opens in  frames replayed";

    fn json(&self) -> String {
        format!(
            r#"{{"gib":{},"disks":{},"order":"{}","write_ns":{},"overwrite_ns":{},"read_ns":{},"memory":{},"open_ms":{},"replayed":{}}}"#,
            self.gib,
            self.disks,
            self.order,
            self.write.as_nanos(),
            self.overwrite.as_nanos(),
            self.read.as_nanos(),
            self.memory,
            self.open.as_millis(),
            self.replayed
        )
    }
}

impl std::fmt::Display for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Order::Forward => "in order",
            Order::Scattered => "all over",
        })
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let order = self.order;
        let blocks = (self.gib << 30) / BLOCK_BYTES;
        write!(
            f,
            "{:>5}  {:>5}  {order}  {:>10}  {:>12}  {:>7}  {:>10.1}  {:>11.1}  {:>5} ms  {:>15}",
            self.gib,
            self.disks,
            self.write.as_nanos(),
            self.overwrite.as_nanos(),
            self.read.as_nanos(),
            self.memory as f64 / f64::from(1 << 20),
            self.memory as f64 / blocks as f64,
            self.open.as_millis(),
            self.replayed,
        )
    }
}

fn measure(gib: u64, disks: u64, order: Order) -> Figures {
    let before = ALLOCATED.load(Ordering::Relaxed);
    let media = Hollow::default();
    Store::format(&media, STORE, &Options::default()).expect("an empty place");
    let mut scene = Scene::open(&media, disks, (gib << 30) / BLOCK_BYTES);
    scene.join();
    let blocks = scene.blocks;
    // Once: it is no part of what a request costs.
    let step = match order {
        Order::Forward => 1,
        Order::Scattered => step(blocks),
    };
    let scattered = |i: u64| (u128::from(i) * u128::from(step) % u128::from(blocks)) as u64;
    // The last tenth is what counts, with the index as large as it gets.
    let tenth = blocks / 10;
    (0..blocks - tenth).for_each(|i| scene.write(scattered(i)));
    let write = cpu_each(tenth, |i| scene.write(scattered(blocks - tenth + i)));
    let overwrite = cpu_each(SAMPLES, |i| scene.write(scattered(i * 7 + 3)));
    let read = cpu_each(SAMPLES, |i| scene.read(scattered(i * 11 + 5)));
    let memory = ALLOCATED.load(Ordering::Relaxed) - before - media.memory();
    drop(scene);
    let began = Instant::now();
    let scene = Scene::open(&media, disks, blocks);
    let open = began.elapsed();
    let replayed = scene.replayed;
    assert!(!scene.store.has_failed());
    Figures {
        gib,
        disks,
        order,
        write,
        overwrite,
        read,
        memory,
        open,
        replayed,
    }
}

/// What one of `count` calls takes this thread, in CPU time.
fn cpu_each(count: u64, call: impl FnMut(u64)) -> Duration {
    let before = cpu();
    (0..count).for_each(call);
    (cpu() - before) / count as u32
}

fn cpu() -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let first = told.split_whitespace().next();
    Duration::from_nanos(first.and_then(|ns| ns.parse().ok()).expect("a number"))
}

/// Somewhere else each time, and everywhere in the end: what has no divisor in common with `blocks`.
fn step(blocks: u64) -> u64 {
    let golden = (blocks as f64 * 0.618_034) as u64 | 1;
    let divides = |a: u64, mut b: u64| {
        let mut a = a;
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a == 1
    };
    (golden..)
        .find(|step| divides(*step, blocks))
        .expect("1 at worst")
}

/// A store, and the one who writes to it.
struct Scene {
    store: Store<Hollow>,
    disks: u64,
    blocks: u64,
    seq: u64,
    /// Frames that opening it read again.
    replayed: u64,
    looked_at: u64,
    synced_at: u64,
}

impl Scene {
    fn open(media: &Hollow, disks: u64, blocks: u64) -> Scene {
        let (store, recovery) = Store::open(media.clone(), Options::default(), BOOT)
            .expect("a store that was formatted");
        assert!(!recovery.lost_tail && recovery.damage.is_empty());
        Scene {
            store,
            disks,
            blocks,
            seq: 0,
            replayed: recovery.frames,
            looked_at: 0,
            synced_at: 0,
        }
    }

    fn join(&mut self) {
        let size = ExtentSize::new(64 << 20).expect("a size of extents");
        let bytes = self.blocks / self.disks * BLOCK_BYTES;
        for disk in 0..self.disks {
            let sealed = self.ask(Request::seal(id(disk), EPOCH));
            assert!(matches!(sealed, Reply::Sealed(_)), "{sealed:?}");
            let join = Request::Join {
                asker: self.asker(disk),
                extents: Extents::new(Extent(0), Extent(bytes.div_ceil(size.bytes()) as u32)),
                extent_size: size,
                from: EPOCH,
            };
            let joined = self.ask(join);
            assert!(matches!(joined, Reply::Joined(_)), "{joined:?}");
        }
    }

    fn asker(&self, disk: u64) -> Asker {
        Asker {
            disk: id(disk),
            epoch: EPOCH,
            incarnation: self.store.incarnation(),
        }
    }

    /// Which disk, and which of its blocks.
    fn place(&self, block: u64) -> (u64, Blocks) {
        let each = self.blocks / self.disks;
        let disk = (block / each).min(self.disks - 1);
        (disk, Blocks::new(Block(block % each), 1))
    }

    /// A write, and the housekeeping that is due after it.
    fn write(&mut self, block: u64) {
        let (disk, blocks) = self.place(block);
        self.seq += 1;
        let write = Request::Write {
            asker: self.asker(disk),
            seq: Seq(self.seq),
            watermark: Seq(self.seq - 1),
            blocks,
            content: Content::Data(DATA.clone()),
        };
        let replies = self.store.handle_writes([write]);
        let appended = self.store.appended();
        if appended - self.synced_at >= SYNC_BYTES || self.store.wants_sync() {
            self.synced_at = appended;
            self.sync();
        }
        if appended - self.looked_at >= LOOK_BYTES {
            self.looked_at = appended;
            while self.store.housekeep() {}
        }
        assert!(matches!(replies[..], [Reply::Written(_)]), "{replies:?}");
    }

    fn read(&mut self, block: u64) {
        let (disk, blocks) = self.place(block);
        let read = Request::Read {
            asker: self.asker(disk),
            from: EPOCH,
            below: Epoch::MAX,
            blocks,
        };
        let reply = self.ask(read);
        assert!(matches!(&reply, Reply::Read(read) if read.data.len() == BLOCK));
    }

    fn ask(&mut self, request: Request) -> Reply {
        match self.store.handle(request) {
            Handled::Now(reply) => reply,
            Handled::Read(plan) => plan.run().map_or_else(Reply::Refused, Reply::Read),
            Handled::AfterSync(promise) => self.kept(promise),
            _ => unreachable!("nothing else is asked"),
        }
    }

    fn kept(&mut self, promise: Promise) -> Reply {
        while self.store.synced() < promise.point() {
            self.sync();
        }
        self.store.keep(promise)
    }

    fn sync(&mut self) {
        if let Some(job) = self.store.begin_sync() {
            let result = job.run();
            self.store.finish_sync(job, result);
        }
    }
}

fn id(disk: u64) -> DiskId {
    DiskId::from_u128(1 + u128::from(disk))
}

/// A directory that keeps everything but the data of blocks.
#[derive(Clone, Default)]
struct Hollow {
    files: Arc<Mutex<BTreeMap<String, HollowFile>>>,
}

/// Clones are the same file.
#[derive(Clone, Default)]
struct HollowFile(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    len: u64,
    /// What was written, in the order of the file: where, and what.
    marks: Vec<(u64, Mark)>,
    /// The bytes of marks.
    bytes: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Mark {
    /// The content of all blocks.
    Data,
    Bytes {
        at: u32,
        len: u32,
    },
}

impl Mark {
    fn len(self) -> usize {
        match self {
            Mark::Data => BLOCK,
            Mark::Bytes { len, .. } => len as usize,
        }
    }
}

impl Hollow {
    /// What it takes itself.
    fn memory(&self) -> usize {
        let files = self.files.lock().expect("nobody panicked");
        let each = files.values().map(|file| {
            let kept = file.kept();
            kept.marks.capacity() * size_of::<(u64, Mark)>() + kept.bytes.capacity()
        });
        each.sum()
    }
}

impl HollowFile {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("nobody panicked")
    }
}

impl Media for Hollow {
    type File = HollowFile;
    type Lock = ();

    fn name(&self) -> String {
        "media that keep no data".into()
    }

    fn lock(&self) -> io::Result<()> {
        Ok(())
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<HollowFile> {
        let file = HollowFile::default();
        file.kept().len = bytes;
        let mut files = self.files.lock().expect("nobody panicked");
        match files.insert(name.into(), file.clone()) {
            None => Ok(file),
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    fn open(&self, name: &str) -> io::Result<HollowFile> {
        let files = self.files.lock().expect("nobody panicked");
        let file = files.get(name).cloned();
        file.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn open_direct(&self, name: &str) -> io::Result<HollowFile> {
        self.open(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files.lock().expect("nobody panicked");
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.into(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut files = self.files.lock().expect("nobody panicked");
        let file = files.remove(name);
        file.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let files = self.files.lock().expect("nobody panicked");
        Ok(files.keys().cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space {
            capacity: 1 << 50,
            free: 1 << 50,
        })
    }

    /// What is written ahead of its use is not worth anything where nothing is kept.
    fn overwrites_in_place(&self) -> bool {
        false
    }
}

impl MediaFile for HollowFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.kept().len)
    }

    fn write_at(&self, mut offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let mut kept = self.kept();
        for piece in pieces {
            let mark = if **piece == DATA.data[..] {
                Mark::Data
            } else {
                let at = kept.bytes.len() as u32;
                kept.bytes.extend_from_slice(piece);
                Mark::Bytes {
                    at,
                    len: piece.len() as u32,
                }
            };
            let after = kept.marks.last();
            assert!(
                after.is_none_or(|(at, mark)| at + mark.len() as u64 <= offset),
                "a store appends"
            );
            kept.marks.push((offset, mark));
            offset += piece.len() as u64;
        }
        kept.len = kept.len.max(offset);
        Ok(())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        into.fill(0);
        let kept = self.kept();
        let end = offset + into.len() as u64;
        let first = kept
            .marks
            .partition_point(|(at, mark)| at + mark.len() as u64 <= offset);
        for (at, mark) in kept.marks[first..].iter().take_while(|(at, _)| *at < end) {
            let bytes = match *mark {
                Mark::Data => &DATA.data[..],
                Mark::Bytes { at, len } => &kept.bytes[at as usize..][..len as usize],
            };
            let from = offset.max(*at);
            let until = end.min(at + bytes.len() as u64);
            let part = &bytes[(from - at) as usize..(until - at) as usize];
            into[(from - offset) as usize..(until - offset) as usize].copy_from_slice(part);
        }
        Ok(())
    }

    unsafe fn read_pieces(&self, mut offset: u64, pieces: &[Piece], _: bool) -> io::Result<()> {
        for piece in pieces {
            // SAFETY: the caller's promise, and nobody else runs here.
            let into = unsafe { std::slice::from_raw_parts_mut(piece.start, piece.len) };
            self.read_at(offset, into)?;
            offset += piece.len as u64;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        let kept = self.kept();
        let next = kept
            .marks
            .partition_point(|(at, mark)| at + mark.len() as u64 <= offset);
        Ok(kept
            .marks
            .get(next)
            .map_or(kept.len, |(at, _)| offset.max(*at)))
    }
}

/// Bytes that are allocated now.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it is; counting touches no memory of
// the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
