//! Media that lie, as an operator meets them: bytes of running nodes' stores are changed under them, and what
//! `ukai` says and does about it. (One read at a time: `replicated_disk::damage`; many at once, with guests:
//! `cargo xtask chaos --only store-damaged`.)

use anyhow::{Context, Result, ensure};
use integration::bench::front_end::{FrontEnd, Request};
use integration::bench::side::forget_cached;
use integration::chaos::hanging::Hanging;
use integration::chaos::room::Room;
use integration::cluster::{self, Cluster, NodeSpec};
use integration::processes::{Answer, Lifetime, Scratch, ask, scenario};
use placement_service::api::Store;
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
const BLOCKS: usize = 1024;
const BOUND: Duration = Duration::from_secs(60);
const AT_ONCE: usize = 8;
/// How often a store is put back to what it was before it is given up.
const PUT_BACK: u64 = 5;
/// Enough to know how long one takes.
const FLUSHES: usize = 400;
const HANG_AFTER: Duration = Duration::from_millis(500);
const HELD_UP: Duration = Duration::from_secs(10);
/// Between two looks at whether a disk is served anew.
const LOOK: Duration = Duration::from_millis(50);
/// How long the disks beside one are asked: longer than it takes to serve them anew.
const LOOKED_ON: Duration = Duration::from_secs(12);
/// As many as there are threads, and one more.
const BESIDE: [&str; 3] = ["web2", "web3", "web4"];
const HOSTS: [NodeSpec; 2] = [
    NodeSpec {
        host: "tokyo-1",
        datacenter: "tokyo",
        rack: "t1",
    },
    NodeSpec {
        host: "tokyo-2",
        datacenter: "tokyo",
        rack: "t2",
    },
];

#[test]
fn media_that_lie_are_found_healed_and_named() {
    scenario("media", |scratch| {
        let mut cluster = Cluster::start(scratch, &HOSTS, Lifetime::Ours)?;
        // What is to be found there must not have been passed before it was spoilt: the scrub goes on where it stood.
        cluster.scrub_at("tokyo-1", "off")?;
        cluster.create_disk("web1", "64M", 2, "tokyo-1")?;
        import(&cluster, scratch, "web1", 1)?;
        reads_are_right_and_damage_is_healed(&cluster, scratch)?;
        the_scrub_finds_what_nobody_reads(&mut cluster)?;
        copies_that_differ_are_named(&mut cluster, scratch)
    });
}

/// The guest's own host cannot read any more: its reads and writes go on with the other copy, and all is repaired once
/// the media go on. Disks beside it that have nothing there do not notice, whichever thread they share. How long each
/// request took is printed: look with `--nocapture`.
#[test]
fn media_that_hang_hold_up_no_read_that_another_copy_can_answer() {
    scenario("hanging", |scratch| {
        Room::keep_mounts_to_ourselves()?;
        let near = HOSTS[0].host;
        let mut hanging = Hanging::new(scratch, "media", &scratch.path(near), 1 << 30)?;
        let cluster = with_disks_beside(scratch, 2)?;
        let gone_on_without = goes_on_without(&cluster, &mut hanging);
        // Before the nodes end: who waits for such media cannot be killed.
        hanging.go_on();
        gone_on_without
    });
}

/// The guest's own host cannot even begin a write any more, so that the thread which serves it stands still: it is served
/// anew by another one, and so are the disks beside it that have nothing there. None of them waits until the media go on.
#[test]
fn media_that_freeze_under_a_write_hold_up_nobody_for_long() {
    scenario("frozen", |scratch| {
        Room::keep_mounts_to_ourselves()?;
        let near = HOSTS[0].host;
        let room = Room::new(&scratch.path("media.raw"), &scratch.path(near), 1 << 30)?;
        let cluster = with_disks_beside(scratch, 2)?;
        let gone_on = goes_on_frozen(&cluster, &room);
        // Before the nodes end: who stands still there cannot be killed.
        room.thaw()?;
        let mut guest = gone_on?;
        is_well(&cluster)?;
        guest.read(72, 1)?;
        guest.read(64, 2)
    });
}

/// The guest's own host, which has the only copy, hangs while the guest writes and flushes in turn, so that the thread which
/// serves it may be the one that waits for the media. It has to wait, but nobody else has: the disks beside it have nothing there.
#[test]
fn media_that_hang_under_a_flush_hold_up_nobody_else_for_long() {
    scenario("flushing", |scratch| {
        Room::keep_mounts_to_ourselves()?;
        let near = HOSTS[0].host;
        let mut hanging = Hanging::new(scratch, "media", &scratch.path(near), 1 << 30)?;
        let cluster = with_disks_beside(scratch, 1)?;
        let gone_on = others_go_on(&cluster, &mut hanging);
        // Before the nodes end: who waits for such media cannot be killed.
        hanging.go_on();
        gone_on?;
        is_well(&cluster)
    });
}

fn others_go_on(cluster: &Cluster, hanging: &mut Hanging) -> Result<()> {
    let mut guest = Blocks::of(cluster, "web1")?;
    let others = BESIDE.map(|name| Blocks::of(cluster, name));
    let mut others = others.into_iter().collect::<Result<Vec<_>>>()?;
    // Until it is known how long a sync takes.
    for _ in 0..FLUSHES {
        guest.write(64)?;
    }
    let went_on = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let began = Instant::now();
            while began.elapsed() < HANG_AFTER + LOOKED_ON {
                guest.write(64)?;
            }
            guest.read(72, 1)?;
            guest.read(64, 2)
        });
        std::thread::sleep(HANG_AFTER);
        hanging.hang();
        // Whoever is about to wait does, before the thread is wanted for others.
        std::thread::sleep(LOOK);
        let went_on = looked_on(&mut others);
        hanging.go_on();
        writing.join().expect("no panic").and(went_on)
    });
    went_on?;
    let longest = others.iter().map(|other| other.longest).max();
    println!(
        "the media hang under a flush: the longest request of the disks beside it took {:?}; it waited {:?}, served anew: {}",
        longest.unwrap_or_default(),
        guest.longest,
        guest.reconnected,
    );
    ensure!(guest.longest > LOOKED_ON, "it has no other copy");
    ensure!(longest < Some(HELD_UP), "{longest:?} beside it");
    Ok(())
}

/// The disks beside are asked for a while, all at once.
fn looked_on(others: &mut [Blocks]) -> Result<()> {
    std::thread::scope(|scope| {
        let asking = others.iter_mut().map(|other| {
            scope.spawn(|| {
                let began = Instant::now();
                while began.elapsed() < LOOKED_ON {
                    other.read(128, 1)?;
                    other.write(64)?;
                }
                anyhow::Ok(())
            })
        });
        let asking = asking.collect::<Vec<_>>();
        let mut answers = asking
            .into_iter()
            .map(|other| other.join().expect("no panic"));
        answers.try_for_each(|answer| answer)
    })
}

/// A disk of the first host with so many copies, and others beside it that are attached there and have nothing there.
fn with_disks_beside(scratch: &Scratch, copies: u8) -> Result<Cluster> {
    let [near, far] = HOSTS.map(|node| node.host);
    let cluster = Cluster::start(scratch, &HOSTS, Lifetime::Ours)?;
    cluster.create_disk("web1", "64M", copies, near)?;
    for name in BESIDE {
        cluster.create_disk(name, "64M", 1, far)?;
    }
    for name in BESIDE.into_iter().chain(["web1"]) {
        import(&cluster, scratch, name, 1)?;
    }
    Ok(cluster)
}

fn goes_on_frozen(cluster: &Cluster, room: &Room) -> Result<Blocks> {
    let mut guest = Blocks::of(cluster, "web1")?;
    let others = BESIDE.map(|name| Blocks::of(cluster, name));
    let mut others = others.into_iter().collect::<Result<Vec<_>>>()?;
    guest.write(0)?;
    room.freeze()?;
    let written = std::thread::scope(|scope| {
        let looking_on = scope.spawn(|| looked_on(&mut others));
        let written = guest.write(64).and_then(|()| guest.read(64, 2));
        looking_on.join().expect("no panic").and(written)
    });
    written?;
    let longest = others.iter().map(|other| other.longest).max();
    println!(
        "while the media are frozen: the longest request of the disk took {:?}, of the disks beside it {:?}",
        guest.longest,
        longest.unwrap_or_default()
    );
    ensure!(guest.reconnected > 0, "it was served by another thread");
    Ok(guest)
}

fn goes_on_without(cluster: &Cluster, hanging: &mut Hanging) -> Result<()> {
    let near = HOSTS[0].host;
    let mut guest = Blocks::of(cluster, "web1")?;
    let others = BESIDE.map(|name| Blocks::of(cluster, name));
    let mut others = others.into_iter().collect::<Result<Vec<_>>>()?;
    guest.read(0, 1)?;
    forget_cached(&cluster.store_dir(near))?;
    hanging.hang();
    for first in (0..64).step_by(AT_ONCE) {
        guest.read(first, 1)?;
        for other in &mut others {
            other.read(first, 1)?;
        }
    }
    guest.write(64)?;
    for other in &mut others {
        other.write(64)?;
    }
    guest.read(64, 2)?;
    let longest = others.iter().map(|other| other.longest).max();
    println!(
        "while the media hang: the longest request of the disk took {:?}, of the disks beside it {:?}",
        guest.longest,
        longest.unwrap_or_default()
    );
    // What a guest's own driver waits for is 30 s and more.
    ensure!(guest.longest < HELD_UP, "{:?}", guest.longest);
    ensure!(longest < Some(HELD_UP), "{longest:?} beside it");
    hanging.go_on();
    is_well(cluster)?;
    guest.read(72, 1)?;
    guest.read(64, 2)
}

fn is_well(cluster: &Cluster) -> Result<()> {
    cluster::wait_for("two good copies of everything", BOUND, || {
        let status = cluster.ukai(&["status"])?;
        let well = status["disks_short"] == 0
            && status["problems"] == Value::Array(Vec::new())
            && status["moving"] == Value::Array(Vec::new());
        Ok(well.then_some(()))
    })
}

/// A guest that asks for some blocks at once, and notes how long it waited. It connects again when its disk is served
/// anew, as VMMs do, and asks again for what was not answered.
struct Blocks {
    guest: FrontEnd,
    socket: PathBuf,
    /// The socket's, to tell it from the next one of that name.
    inode: u64,
    reconnected: u32,
    longest: Duration,
}

impl Blocks {
    fn of(cluster: &Cluster, disk: &str) -> Result<Blocks> {
        let socket = cluster.attach(disk, HOSTS[0].host)?;
        Ok(Blocks {
            guest: Blocks::connect(&socket)?,
            inode: fs::metadata(&socket)?.ino(),
            socket,
            reconnected: 0,
            longest: Duration::ZERO,
        })
    }

    fn connect(socket: &Path) -> Result<FrontEnd> {
        FrontEnd::connect(socket, 1, AT_ONCE as u16, BLOCK)
    }

    fn read(&mut self, first: usize, import: u64) -> Result<()> {
        let found = self.ask(places(first).map(|block| Request::Read {
            offset: (block * BLOCK) as u64,
        }))?;
        for (block, found) in places(first).into_iter().zip(found) {
            ensure!(found == content(block, import), "block {block} is wrong");
        }
        Ok(())
    }

    /// As of import 2, and flushed.
    fn write(&mut self, first: usize) -> Result<()> {
        self.ask(places(first).map(|block| Request::Write {
            offset: (block * BLOCK) as u64,
        }))?;
        self.ask([Request::Flush; AT_ONCE]).map(drop)
    }

    fn ask(&mut self, requests: [Request; AT_ONCE]) -> Result<Vec<Vec<u8>>> {
        let began = Instant::now();
        while !self.try_ask(requests, began + BOUND)? {
            self.guest = Blocks::connect(&self.socket)?;
            self.inode = fs::metadata(&self.socket)?.ino();
            self.reconnected += 1;
        }
        self.longest = self.longest.max(began.elapsed());
        let queue = &mut self.guest.queues()[0];
        Ok((0..AT_ONCE)
            .map(|slot| queue.buffer(slot as u16).to_vec())
            .collect())
    }

    /// Whether all are answered, by who has the socket.
    fn try_ask(&mut self, requests: [Request; AT_ONCE], until: Instant) -> Result<bool> {
        let queue = &mut self.guest.queues()[0];
        for (slot, request) in requests.into_iter().enumerate() {
            if let Request::Write { offset } = request {
                let block = offset as usize / BLOCK;
                queue
                    .buffer(slot as u16)
                    .copy_from_slice(&content(block, 2));
            }
            queue.submit(slot as u16, request)?;
        }
        queue.announce()?;
        let (mut done, mut left) = (Vec::new(), requests.len());
        while left > 0 {
            queue.wait_until(&mut done, Some(Instant::now() + LOOK))?;
            left -= done.len();
            let another = fs::metadata(&self.socket).is_ok_and(|now| now.ino() != self.inode);
            if left > 0 && another {
                return Ok(false);
            }
            ensure!(
                Instant::now() < until,
                "{left} of {requests:?} are not answered"
            );
        }
        Ok(true)
    }
}

/// Blocks that are far from each other.
fn places(first: usize) -> [usize; AT_ONCE] {
    std::array::from_fn(|i| (first + i) * 13 % BLOCKS)
}

fn reads_are_right_and_damage_is_healed(cluster: &Cluster, scratch: &Scratch) -> Result<()> {
    // Half of it on one store, half on the other: each block has one copy left.
    for block in 0..32 {
        let host = HOSTS[usize::from(block >= 16)].host;
        spoil(&cluster.store_dir(host), &content(block, 1))?;
    }
    let file = scratch.path("out.raw");
    cluster.ukai(&["disk", "export", "web1", text(&file)?])?;
    let read = fs::read(&file)?;
    for block in 0..BLOCKS {
        let got = &read[block * BLOCK..][..BLOCK];
        ensure!(got == content(block, 1), "block {block} is read wrong");
    }
    let (code, verdict) = verify(cluster, true)?;
    ensure!(code == 0 && verdict["good"] == true, "{verdict}");
    ensure!(
        verdict["damaged_blocks"] == verdict["healed_blocks"],
        "{verdict}"
    );
    let (code, verdict) = verify(cluster, true)?;
    ensure!(
        code == 0 && verdict["damaged_blocks"] == 0,
        "second look: {code} {verdict}"
    );
    ensure!(
        verdict["blocks_read"].as_u64() >= Some(2 * BLOCKS as u64),
        "{verdict}"
    );
    let healed = |media: &[Value]| sum(media, "healed_blocks") >= 32;
    wait_for(cluster, healed)
}

fn the_scrub_finds_what_nobody_reads(cluster: &mut Cluster) -> Result<()> {
    spoil(&cluster.store_dir("tokyo-1"), &content(200, 1))?;
    ensure!(
        sum(&medias(cluster)?, "damaged_blocks") == 0,
        "nobody has seen it yet"
    );
    cluster.scrub_at("tokyo-1", "64MiB/s")?;
    wait_for(cluster, |media| sum(media, "damaged_blocks") == 1)?;
    let list = cluster.table(&["store", "list"])?;
    ensure!(list.contains("1 block damaged"), "{list}");
    // No data is read: the store says what it knows to be damaged.
    let (code, verdict) = verify(cluster, false)?;
    ensure!(code == 0 && verdict["good"] == true, "{code} {verdict}");
    ensure!(verdict["healed_blocks"] == 1, "{verdict}");
    wait_for(cluster, |media| sum(media, "damaged_blocks") == 0)
}

/// The only way to make copies differ that we know of: while the disk is closed, a store's directory is put
/// back to a copy of it that was made while its process ran, before a heartbeat has said how far its log went since.
/// Where one has, the store is refused, which is another story: then once more.
fn copies_that_differ_are_named(cluster: &mut Cluster, scratch: &Scratch) -> Result<()> {
    let (dir, kept) = (cluster.store_dir("tokyo-2"), scratch.path("kept"));
    let copy = scratch.path("copy");
    let mut accepted = false;
    for number in 2..2 + PUT_BACK {
        let before = store_at(cluster, "tokyo-2")?.starts;
        let copied = Command::new("cp").arg("-a").args([&dir, &copy]).status()?;
        ensure!(copied.success(), "the directory is copied");
        import(cluster, scratch, "web1", number)?;
        cluster.kill_node_9("tokyo-2")?;
        fs::rename(&dir, &kept)?;
        fs::rename(&copy, &dir)?;
        cluster.start_node("tokyo-2")?;
        accepted = is_accepted(cluster, "tokyo-2", before)?;
        if accepted {
            break;
        }
        cluster.kill_node_9("tokyo-2")?;
        fs::remove_dir_all(&dir)?;
        fs::rename(&kept, &dir)?;
        cluster.start_node("tokyo-2")?;
        cluster.wait_up()?;
    }
    ensure!(accepted, "each time a heartbeat was faster");
    cluster.wait_up()?;
    let (code, verdict) = verify(cluster, false)?;
    ensure!(code == 1 && verdict["good"] == false, "{code} {verdict}");
    // The image, and the zeroes behind it.
    ensure!(
        verdict["differing_blocks"].as_u64() >= Some(BLOCKS as u64),
        "{verdict}"
    );
    let first = &verdict["differing"][0];
    ensure!(first["block"] == 0, "{verdict}");
    let copies = first["copies"].as_array().context("a list")?;
    ensure!(
        copies.len() == 2 && copies[0]["version"] != copies[1]["version"],
        "{verdict}"
    );
    Ok(())
}

/// Whether a store that has just been started again is taken for what it was, or refused.
fn is_accepted(cluster: &Cluster, host: &str, starts_before: u64) -> Result<bool> {
    cluster::wait_for("word of the store", BOUND, || {
        let store = store_at(cluster, host)?;
        let (refused, started) = (store.refused.is_some(), store.starts > starts_before);
        Ok((refused || started).then_some(!refused))
    })
}

fn store_at(cluster: &Cluster, host: &str) -> Result<Store> {
    let stores: Vec<Store> = serde_json::from_value(cluster.ukai(&["store", "list"])?)?;
    let store = stores.into_iter().find(|store| store.host.as_str() == host);
    store.context("the store is known")
}

/// What a block holds after that import: found nowhere else.
fn content(block: usize, import: u64) -> Vec<u8> {
    let mut word = (block as u64 + 1) << 8 | import;
    let words = (0..BLOCK / 8).flat_map(|_| {
        word = word
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        word.to_le_bytes()
    });
    words.collect()
}

fn import(cluster: &Cluster, scratch: &Scratch, disk: &str, number: u64) -> Result<()> {
    let file = scratch.path("in.raw");
    let image: Vec<u8> = (0..BLOCKS).flat_map(|b| content(b, number)).collect();
    fs::write(&file, image)?;
    let mut arguments = vec!["disk", "import", disk, text(&file)?];
    arguments.extend((number > 1).then_some("--overwrite"));
    cluster.ukai(&arguments).map(drop)
}

/// Changes a byte of the block with this content, wherever it stands in the store's segments.
fn spoil(store: &Path, content: &[u8]) -> Result<()> {
    let mut spoilt = 0;
    for entry in fs::read_dir(store)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with("segment.") {
            continue;
        }
        let bytes = fs::read(&path)?;
        for at in (0..bytes.len()).step_by(64) {
            if bytes[at..].starts_with(content) {
                let file = File::options().write(true).open(&path)?;
                let middle = at + BLOCK / 2;
                file.write_all_at(&[!bytes[middle]], middle as u64)?;
                file.sync_all()?;
                spoilt += 1;
            }
        }
    }
    ensure!(spoilt > 0, "the block is in {}", store.display());
    Ok(())
}

/// The exit code, and the verdict.
fn verify(cluster: &Cluster, deep: bool) -> Result<(i32, Value)> {
    let mut command = Command::new(cluster.program());
    command.envs(cluster.environment());
    command.args(["disk", "verify", "web1", "--json"]);
    command.args(deep.then_some("--deep"));
    let Answer { status, out, err } = ask("ukai disk verify", command, BOUND)?;
    let verdict = serde_json::from_str(&out).with_context(|| format!("{status} {out}{err}"))?;
    Ok((status.code().context("it ends by itself")?, verdict))
}

/// What the stores say of their media, as the placement service heard last.
fn medias(cluster: &Cluster) -> Result<Vec<Value>> {
    let stores = cluster.ukai(&["store", "list"])?;
    let stores = stores.as_array().context("a list of stores")?;
    Ok(stores.iter().map(|store| store["media"].clone()).collect())
}

fn sum(media: &[Value], what: &str) -> u64 {
    media.iter().filter_map(|media| media[what].as_u64()).sum()
}

fn wait_for(cluster: &Cluster, wanted: impl Fn(&[Value]) -> bool) -> Result<()> {
    let began = Instant::now();
    loop {
        let media = medias(cluster)?;
        if wanted(&media) {
            return Ok(());
        }
        ensure!(began.elapsed() < BOUND, "{media:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of text")
}
