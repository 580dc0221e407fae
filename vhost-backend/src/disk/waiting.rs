//! Reads of the near store that have to wait for the media: on a ring of the kernel's, so that many wait at
//! once and none of them takes a thread. They are read into memory of our own: whoever does not wait any longer
//! asks another store, and nothing of the first answer lands in the guest's memory then. A disk has a ring from
//! its first such read on; where the kernel gives none, the store's own threads wait.

use io_uring::{IoUring, opcode, types};
use replicator::message::Reply;
use replicator::store::media::FileMedia;
use replicator::store::{ReadPlan, WaitingRead};
use replicator::writer::CallId;
use std::collections::{HashMap, VecDeque};
use std::os::fd::AsRawFd;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Parts of reads in the kernel's hands at once; as many completions have room twice over.
const ENTRIES: u32 = 128;
/// Memory for reads in the kernel's hands; others wait their turn. A larger read goes alone.
const MOST_BYTES: usize = 32 << 20;
/// How long the end of a disk waits for them.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// The reads of one disk that wait.
pub(super) struct WaitingReads {
    ring: Option<AsyncFd<IoUring>>,
    refused: bool,
    /// Those that have no memory yet.
    plans: VecDeque<(CallId, Box<ReadPlan<FileMedia>>)>,
    /// What the others have.
    bytes: usize,
    /// What the kernel writes to stays here until it has said that it is done.
    reads: HashMap<u64, Waiting>,
    last: u64,
    /// Parts that the kernel does not have yet.
    queued: VecDeque<(u64, usize)>,
    submitted: usize,
    /// The kernel would not have some of those.
    again: bool,
}

struct Waiting {
    call: CallId,
    read: WaitingRead,
    parts_left: usize,
    /// A part was not read whole.
    cut: bool,
}

/// What has become of a read.
pub(super) enum Waited {
    Answered(CallId, Reply),
    /// The kernel did not read all of it, or something else than was written: to be tried in the ordinary way.
    NotSo(CallId, Box<ReadPlan<FileMedia>>),
}

impl WaitingReads {
    pub fn new() -> WaitingReads {
        WaitingReads {
            ring: None,
            refused: false,
            plans: VecDeque::new(),
            bytes: 0,
            reads: HashMap::new(),
            last: 0,
            queued: VecDeque::new(),
            submitted: 0,
            again: false,
        }
    }

    /// Takes a read, or gives it back where there is no ring. It begins with [`WaitingReads::submit`].
    pub fn add(
        &mut self,
        call: CallId,
        plan: Box<ReadPlan<FileMedia>>,
    ) -> Result<(), Box<ReadPlan<FileMedia>>> {
        if self.ring.is_none() && !self.refused {
            let ring = IoUring::new(ENTRIES).inspect_err(|error| {
                tracing::info!(%error, "no io_uring here: threads wait for the media");
            });
            self.ring = ring.ok().and_then(listen);
            self.refused = self.ring.is_none();
        }
        if self.ring.is_none() {
            return Err(plan);
        }
        self.plans.push_back((call, plan));
        Ok(())
    }

    /// Nobody waits for this one any longer. While media hang, reads are given up without end: what the kernel does not
    /// have yet must not pile up.
    pub fn forget(&mut self, call: CallId) {
        self.plans.retain(|(waiting, _)| *waiting != call);
    }

    /// Gives memory to those whose turn it is.
    fn begin(&mut self) {
        while let Some((_, plan)) = self.plans.front() {
            let bytes = plan.memory_bytes();
            if !self.reads.is_empty() && self.bytes + bytes > MOST_BYTES {
                return;
            }
            let (call, plan) = self.plans.pop_front().expect("just seen");
            let read = WaitingRead::new(plan);
            self.last += 1;
            self.bytes += bytes;
            let parts_left = read.parts();
            self.queued
                .extend((0..parts_left).map(|part| (self.last, part)));
            let waiting = Waiting {
                call,
                read,
                parts_left,
                cut: false,
            };
            self.reads.insert(self.last, waiting);
        }
    }

    /// Gives the kernel what it has room for.
    pub fn submit(&mut self) {
        self.begin();
        let Some(ring) = &mut self.ring else { return };
        if self.queued.is_empty() && !self.again {
            return;
        }
        let ring = ring.get_mut();
        while self.submitted < ENTRIES as usize
            && let Some((id, index)) = self.queued.pop_front()
        {
            let part = self.reads[&id].read.part(index);
            let (file, count) = (types::Fd(part.file.as_raw_fd()), part.iovecs.len() as u32);
            let entry = opcode::Readv::new(file, part.iovecs.as_ptr(), count)
                .offset(part.offset)
                .build()
                .user_data(id << 16 | index as u64);
            // SAFETY: iovecs, memory and file stay in `self.reads` until the entry has completed; see `drop`.
            let pushed = unsafe { ring.submission().push(&entry) };
            pushed.expect("no more entries than there is room for");
            self.submitted += 1;
        }
        // What the kernel does not take now stays in the ring.
        self.again = ring.submit().is_err() || !ring.submission().is_empty();
    }

    /// The next read that has ended. Pending: the task is woken when there is one.
    pub fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<Waited> {
        if self.reads.is_empty() {
            return Poll::Pending;
        }
        loop {
            if let Some(ended) = self.ended() {
                self.submit();
                return Poll::Ready(ended);
            }
            let Some(ring) = &self.ring else {
                return Poll::Pending;
            };
            match ready!(ring.poll_read_ready(context)) {
                // What comes from here on wakes anew; what came before is looked for once more.
                Ok(mut guard) => guard.clear_ready(),
                // The runtime that it was made on is gone.
                Err(_) => self.ring = self.ring.take().and_then(|ring| listen(ring.into_inner())),
            }
        }
    }

    fn ended(&mut self) -> Option<Waited> {
        loop {
            let entry = self.ring.as_mut()?.get_mut().completion().next()?;
            self.submitted -= 1;
            let (id, index) = (entry.user_data() >> 16, entry.user_data() as u16);
            let waiting = self.reads.get_mut(&id).expect("it was submitted");
            let wanted = waiting.read.part(usize::from(index)).bytes;
            waiting.cut |= usize::try_from(entry.result()) != Ok(wanted);
            waiting.parts_left -= 1;
            if waiting.parts_left == 0 {
                let Waiting {
                    call, read, cut, ..
                } = self.reads.remove(&id).expect("just seen");
                self.bytes -= read.memory_bytes();
                let finished = match cut {
                    false => read.finish(),
                    true => Err(read.into_plan()),
                };
                return Some(match finished {
                    Ok(reply) => Waited::Answered(call, reply),
                    Err(plan) => Waited::NotSo(call, plan),
                });
            }
        }
    }
}

impl Drop for WaitingReads {
    fn drop(&mut self) {
        let deadline = Instant::now() + LAST_PATIENCE;
        self.queued.clear();
        while self.submitted > 0 && Instant::now() < deadline {
            let Some(ring) = &mut self.ring else { break };
            let taken = ring.get_mut().completion().count();
            self.submitted -= taken;
            if taken == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        if self.submitted > 0 {
            // The kernel may still write there: that memory is never anybody else's again.
            tracing::error!(
                reads = self.submitted,
                "reads of hanging media are abandoned"
            );
            std::mem::forget(std::mem::take(&mut self.reads));
        }
    }
}

fn listen(ring: IoUring) -> Option<AsyncFd<IoUring>> {
    // SAFETY: the ring owns its descriptor, and it is the same as long as the ring lives.
    let listening = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
    listening
        .inspect_err(|error| tracing::error!(%error, "cannot hear of reads that end"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Landing;
    use crate::disk::landed::Aimed;
    use bytes::Bytes;
    use replicator::message::{Asker, Content, Payload, Request};
    use replicator::store::{Options, SharedStore};
    use replicator::words::{
        Block, Blocks, DiskId, Epoch, Extent, ExtentSize, Extents, Seq, Span, StoreId,
    };
    use std::future::poll_fn;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::sync::mpsc;

    const DISK: DiskId = DiskId::from_u128(7);
    const STORE: StoreId = StoreId::from_u128(9);
    const E1: Epoch = Epoch::from_u64(1);
    const PATIENCE: Duration = Duration::from_secs(30);

    fn ask(store: &SharedStore, request: Request) -> Reply {
        let (done, answer) = mpsc::channel();
        store.submit(request, move |reply| done.send(reply).unwrap());
        answer.recv_timeout(PATIENCE).unwrap()
    }

    fn asker(store: &SharedStore) -> Asker {
        Asker {
            disk: DISK,
            epoch: E1,
            incarnation: store.incarnation(),
        }
    }

    /// Every second block of 32, each with its number in all its bytes, so that each is a part of its own.
    fn store(dir: &Path) -> SharedStore {
        SharedStore::format(dir, STORE, &Options::default()).unwrap();
        let (store, _) = SharedStore::open(dir, Options::default()).unwrap();
        assert!(matches!(
            ask(&store, Request::seal(DISK, E1)),
            Reply::Sealed(_)
        ));
        let join = Request::Join {
            asker: asker(&store),
            extents: Extents::new(Extent(0), Extent(1)),
            extent_size: ExtentSize::new(1 << 20).unwrap(),
            from: E1,
        };
        assert!(matches!(ask(&store, join), Reply::Joined(_)));
        for seq in 1..=16 {
            // The last ones first: no two that follow stand behind one another.
            let block = 32 - 2 * seq;
            let data = Bytes::from(vec![block as u8; 4096]);
            let write = Request::Write {
                asker: asker(&store),
                seq: Seq(seq),
                watermark: Seq(0),
                blocks: Blocks::new(Block(block), 1),
                content: Content::Data(Payload::new(data)),
            };
            assert!(matches!(ask(&store, write), Reply::Written(_)));
        }
        store
    }

    fn aimed(span: Span) -> Aimed {
        Aimed {
            store: STORE,
            landing: Landing::owned(span.len as usize),
            span,
            blocks: span.touched(),
        }
    }

    fn read(store: &SharedStore, blocks: Blocks) -> Request {
        Request::Read {
            asker: asker(store),
            from: E1,
            below: Epoch::MAX,
            blocks,
        }
    }

    fn plan(store: &SharedStore, span: Span) -> (Box<ReadPlan<FileMedia>>, Aimed) {
        let aimed = aimed(span);
        let Ok(plan) = store.plan_read(read(store, aimed.blocks)) else {
            panic!("there is a replica");
        };
        (Box::new(plan), aimed)
    }

    async fn ended(reads: &mut WaitingReads) -> Waited {
        reads.submit();
        let ended = poll_fn(|context| reads.poll_ended(context));
        tokio::time::timeout(PATIENCE, ended).await.unwrap()
    }

    #[tokio::test]
    async fn many_wait_at_once_and_each_lands_where_it_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let mut reads = WaitingReads::new();
        let mut landings = HashMap::new();
        // More parts than the kernel takes at once; the ends of each lie within blocks.
        for call in 0..20 {
            let span = Span::new(512 + 4096 * (call % 3), 20 * 4096);
            let (plan, aimed) = plan(&store, span);
            if reads.add(CallId(call), plan).is_err() {
                // Without io_uring threads wait: the store's own tests show that.
                return;
            }
            landings.insert(call, (span, aimed));
        }
        while !landings.is_empty() {
            let Waited::Answered(call, Reply::Read(read)) = ended(&mut reads).await else {
                panic!("nothing is damaged or cut");
            };
            let (span, aimed) = landings.remove(&call.0).expect("answered once");
            assert_eq!(read.found.len(), span.touched().count as usize);
            aimed.copy(&read);
            for (at, byte) in aimed.landing.to_vec().into_iter().enumerate() {
                let block = (span.offset + at as u64) / 4096;
                let written = block.is_multiple_of(2);
                let wanted = if written { block as u8 } else { 0 };
                assert_eq!(byte, wanted, "{span:?} at {at}");
            }
        }
    }

    #[tokio::test]
    async fn a_read_that_the_media_cut_is_given_back_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let mut reads = WaitingReads::new();
        let span = Span::new(0, 4096);
        let (first, _) = plan(&store, span);
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let file = std::fs::File::options().read(true).write(true).open(path);
            let file = file.unwrap();
            if file.metadata().unwrap().len() == Options::default().segment_bytes {
                let mut log = vec![0; 1 << 20];
                file.read_exact_at(&mut log, 0).unwrap();
                file.set_len(512).unwrap();
                segments.push((file, log));
            }
        }
        if reads.add(CallId(1), first).is_err() {
            return;
        }
        let Waited::NotSo(CallId(1), _) = ended(&mut reads).await else {
            panic!("there is nothing to read");
        };
        for (file, mut log) in segments {
            log.iter_mut().for_each(|byte| *byte ^= 1);
            file.write_all_at(&log, 0).unwrap();
        }
        let (second, _) = plan(&store, span);
        assert!(reads.add(CallId(2), second).is_ok());
        let Waited::Answered(CallId(2), Reply::Refused(refusal)) = ended(&mut reads).await else {
            panic!("it is not what was written");
        };
        let named = replicator::message::Refusal::Damaged { block: Block(0) };
        assert_eq!(refusal, named);
    }

    /// As many as the memory allows are in the kernel's hands, whether anybody still waits for them or not; the rest goes.
    #[tokio::test]
    async fn reads_that_are_given_up_do_not_pile_up() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let mut reads = WaitingReads::new();
        let whole = Span::new(0, 32 * 4096);
        let most = (MOST_BYTES / plan(&store, whole).0.data_bytes()) as u64;
        for call in 0..most + 100 {
            if reads.add(CallId(call), plan(&store, whole).0).is_err() {
                return;
            }
        }
        reads.submit();
        assert_eq!((reads.reads.len() as u64, reads.plans.len()), (most, 100));
        assert!(reads.bytes <= MOST_BYTES);
        for call in 0..most + 100 {
            reads.forget(CallId(call));
        }
        assert!(reads.plans.is_empty());
        while !reads.reads.is_empty() {
            assert!(matches!(ended(&mut reads).await, Waited::Answered(..)));
        }
        assert_eq!(reads.bytes, 0);
    }

    /// What is cached of files there can be told: by a kernel that has cachestat(2), of a file system that is known to say.
    fn tells_what_is_cached(dir: &Path) -> bool {
        const CACHESTAT: libc::c_long = 451;
        // SAFETY: it is given no memory to write to.
        let asked = unsafe { libc::syscall(CACHESTAT, -1, 0, 0, 0) };
        let known = [libc::EXT4_SUPER_MAGIC as u64, libc::XFS_SUPER_MAGIC as u64];
        let unknown_call = std::io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS);
        let file_system = rustix::fs::statfs(dir).unwrap().f_type as u64;
        asked == -1 && !unknown_call && known.contains(&file_system)
    }

    /// All of it is on media, and nothing is cached.
    fn chill(store: &SharedStore, dir: &Path) {
        let sync = Request::Sync {
            asker: asker(store),
        };
        assert!(matches!(ask(store, sync), Reply::Synced));
        for entry in std::fs::read_dir(dir).unwrap() {
            let file = std::fs::File::open(entry.unwrap().path()).unwrap();
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
    }

    #[tokio::test]
    async fn a_large_cold_read_goes_past_the_page_cache_and_through_it_when_it_comes_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let mut reads = WaitingReads::new();
        // In two rows of frames, with zeroes between.
        for (seq, first, count) in [(17, 192, 64), (18, 100, 90)] {
            let data: Vec<u8> = (first..first + count)
                .flat_map(|block| [block as u8; 4096])
                .collect();
            let write = Request::Write {
                asker: asker(&store),
                seq: Seq(seq),
                watermark: Seq(0),
                blocks: Blocks::new(Block(first), count as u32),
                content: Content::Data(Payload::new(Bytes::from(data))),
            };
            assert!(matches!(ask(&store, write), Reply::Written(_)));
        }
        if !tells_what_is_cached(dir.path()) || IoUring::new(1).is_err() {
            return;
        }
        let span = Span::new(90 * 4096 + 512, 166 * 4096 - 512);
        let content = |at: u64| match at / 4096 {
            block @ (100..190 | 192..256) => block as u8,
            _ => 0,
        };
        chill(&store, dir.path());
        for time in 0..3 {
            let aimed = aimed(span);
            match store.try_read(read(&store, aimed.blocks), &aimed) {
                Ok(reply) => {
                    assert!(time == 2, "nothing was cached before");
                    assert!(matches!(reply, Reply::Read(_)), "{reply:?}");
                }
                Err(plan) => {
                    let with_headers = plan.memory_bytes() > plan.data_bytes();
                    assert_eq!(with_headers, time == 0, "time {time}");
                    assert!(reads.add(CallId(1), plan).is_ok());
                    let Waited::Answered(_, Reply::Read(read)) = ended(&mut reads).await else {
                        panic!("nothing is damaged or cut");
                    };
                    aimed.copy(&read);
                }
            }
            for (at, byte) in aimed.landing.to_vec().into_iter().enumerate() {
                let at = span.offset + at as u64;
                assert_eq!(byte, content(at), "time {time}: at {at}");
            }
        }
        // What is not what was written goes to somebody who can wait, and names it.
        flip(dir.path(), 0xC8);
        chill(&store, dir.path());
        let aimed = aimed(span);
        let Err(plan) = store.try_read(read(&store, aimed.blocks), &aimed) else {
            panic!("nothing is cached");
        };
        assert!(plan.memory_bytes() > plan.data_bytes());
        assert!(reads.add(CallId(2), plan).is_ok());
        let Waited::NotSo(CallId(2), plan) = ended(&mut reads).await else {
            panic!("it is not what was written");
        };
        let refusal = plan.run().unwrap_err();
        let named = replicator::message::Refusal::Damaged { block: Block(200) };
        assert_eq!(refusal, named);
    }

    /// Changes one byte of the block that is full of `byte`.
    fn flip(dir: &Path, byte: u8) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|number| number.len() != 8) {
                continue;
            }
            let file = std::fs::File::options().read(true).write(true).open(path);
            let file = file.unwrap();
            let mut log = vec![0; file.metadata().unwrap().len().min(2 << 20) as usize];
            file.read_exact_at(&mut log, 0).unwrap();
            let row = vec![byte; 4096];
            if let Some(at) = log.windows(4096).step_by(64).position(|some| some == row) {
                file.write_all_at(&[!byte], at as u64 * 64 + 1000).unwrap();
                return;
            }
        }
        panic!("it was written");
    }

    #[tokio::test]
    async fn who_leaves_waits_for_what_may_still_land() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let mut reads = WaitingReads::new();
        for call in 0..8 {
            let (plan, _) = plan(&store, Span::new(0, 32 * 4096));
            if reads.add(CallId(call), plan).is_err() {
                return;
            }
        }
        reads.submit();
        assert!(reads.submitted > 0);
        drop(reads);
    }
}
