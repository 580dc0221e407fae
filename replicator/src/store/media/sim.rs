//! Simulated media: files in memory that crash as badly as a disk may.
//!
//! The fault model:
//! - A power loss keeps everything that was synced. Of each file's sectors (512 bytes) written since
//!   its last successful sync, any subset survives, each with what was last written there; the
//!   caller of [`SimMedia::crash`] chooses which. Names created, renamed or removed since the last
//!   [`Media::sync_dir`] survive one by one, in order, as the caller chooses.
//! - A crash of only the process keeps everything ([`SimMedia::kill`]): it just frees the lock.
//! - A sync can be made to fail. As on Linux, what it should have written counts as clean afterwards:
//!   no later sync writes it, cached reads still show it, and only [`Media::open_direct`] shows what
//!   the media really has.
//! - Space can run out, bits can flip, a write can tear in the middle.
//!
//! Nothing here is random: choices come from the caller.

use super::{Media, MediaFile, Piece, SECTOR, Space};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::sync::Arc;

/// A page of a sparse file.
const PAGE: usize = 4096;

#[derive(Clone)]
pub struct SimMedia {
    state: Arc<Mutex<State>>,
}

/// What a crash may keep or lose, one question after another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unsynced {
    /// A sector of the file that has (or last had) this name.
    Sector { file: String, sector: u64 },
    /// A change of the directory.
    Name(String),
}

/// Counts of what was done, for tests about cost.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Work {
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub writes: u64,
    pub syncs: u64,
}

#[derive(Default)]
struct State {
    /// Files by number, as a file system has them.
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    pending: Vec<NameChange>,
    next_inode: u64,
    locked_by: u64,
    boots: u64,
    capacity: Option<u64>,
    fail_syncs: bool,
    fail_reads: bool,
    fail_direct_reads: bool,
    /// Cut the write after this many more bytes, and fail everything behind it.
    tear_after: Option<u64>,
    /// Copies taken before each sync, if anybody wants them.
    moments: Option<Vec<SimMedia>>,
    work: Work,
}

#[derive(Clone)]
enum NameChange {
    Create(String, u64),
    Rename(String, String),
    Remove(String),
}

#[derive(Clone, Default)]
struct Inode {
    name: String,
    /// What the running process sees.
    now: Bytes,
    /// What the media has.
    synced: Bytes,
    /// Sectors written since the last sync.
    dirty: BTreeSet<u64>,
    /// Sectors that a sync failed to write; the cache claims to have them.
    refused: BTreeSet<u64>,
    reserved: u64,
    /// Counts the open files.
    handles: Arc<()>,
}

/// Sparse bytes.
#[derive(Clone, Default, PartialEq)]
struct Bytes {
    len: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Default for SimMedia {
    fn default() -> Self {
        Self::new()
    }
}

impl SimMedia {
    pub fn new() -> SimMedia {
        SimMedia {
            state: Arc::new(Mutex::new(State {
                boots: 1,
                ..State::default()
            })),
        }
    }

    /// Everything that a crash may keep or lose now, in the order in which [`SimMedia::crash`] asks.
    pub fn unsynced(&self) -> Vec<Unsynced> {
        let state = self.state.lock();
        let mut all: Vec<Unsynced> = Vec::new();
        for inode in state.inodes.values() {
            all.extend(
                inode
                    .dirty
                    .union(&inode.refused)
                    .map(|sector| Unsynced::Sector {
                        file: inode.name.clone(),
                        sector: *sector,
                    }),
            );
        }
        all.extend(state.pending.iter().map(|change| {
            Unsynced::Name(match change {
                NameChange::Create(name, _) | NameChange::Remove(name) => name.clone(),
                NameChange::Rename(_, to) => to.clone(),
            })
        }));
        all
    }

    /// Power loss: of everything unsynced, what `survives` says (asked once for each, in order).
    pub fn crash(&self, mut survives: impl FnMut() -> bool) {
        let mut state = self.state.lock();
        let state = &mut *state;
        for inode in state.inodes.values_mut() {
            let mut dirty = std::mem::take(&mut inode.dirty);
            dirty.append(&mut inode.refused);
            for sector in dirty {
                if survives() {
                    inode.synced.copy_sector(&inode.now, sector);
                }
            }
            inode.synced.len = inode.now.len;
            inode.now = inode.synced.clone();
        }
        let mut names = std::mem::take(&mut state.durable_names);
        for change in std::mem::take(&mut state.pending) {
            if survives() {
                change.apply(&mut names);
            }
        }
        state.names = names.clone();
        state.durable_names = names;
        state.boots += 1;
        state.unlock();
        state.fail_syncs = false;
        state.fail_reads = false;
        state.tear_after = None;
        state.collect();
    }

    /// The process dies, the machine does not: the kernel keeps every byte.
    pub fn kill(&self) {
        let mut state = self.state.lock();
        state.unlock();
        state.tear_after = None;
    }

    /// Which boot of the host this is: changes at each crash.
    pub fn boot(&self) -> u128 {
        u128::from(self.state.lock().boots)
    }

    /// An independent copy of everything, unsynced state included; its lock is free.
    pub fn fork(&self) -> SimMedia {
        self.state.lock().fork()
    }

    /// From now on keeps a copy of everything as it is before each sync.
    pub fn watch_syncs(&self) {
        self.state.lock().moments = Some(Vec::new());
    }

    /// The copies since [`SimMedia::watch_syncs`], which ends.
    pub fn moments(&self) -> Vec<SimMedia> {
        self.state.lock().moments.take().unwrap_or_default()
    }

    /// At most so many bytes in all files; None: no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// Every sync from now on fails (or no longer does).
    pub fn fail_syncs(&self, fail: bool) {
        self.state.lock().fail_syncs = fail;
    }

    pub fn is_failing_syncs(&self) -> bool {
        self.state.lock().fail_syncs
    }

    /// Every read of a file from now on fails (or no longer does).
    pub fn fail_reads(&self, fail: bool) {
        self.state.lock().fail_reads = fail;
    }

    /// Reads past the cache fail from now on (or no longer do).
    pub fn fail_direct_reads(&self, fail: bool) {
        self.state.lock().fail_direct_reads = fail;
    }

    /// The process dies in the middle of a write: after `bytes` more bytes nothing is written.
    pub fn tear_after(&self, bytes: u64) {
        self.state.lock().tear_after = Some(bytes);
    }

    /// Flips one bit, on the media and in the cache.
    pub fn flip(&self, name: &str, offset: u64, bit: u8) {
        self.change(name, offset, |byte| byte ^ (1 << bit));
    }

    /// Changes one byte, on the media and in the cache.
    pub fn change(&self, name: &str, offset: u64, change: impl Fn(u8) -> u8) {
        let mut state = self.state.lock();
        let number = state.names[name];
        let inode = state.inodes.get_mut(&number).expect("a named file exists");
        for bytes in [&mut inode.now, &mut inode.synced] {
            let mut byte = [0];
            bytes.read(offset, &mut byte);
            bytes.write(offset, &[change(byte[0])]);
        }
    }

    /// Makes a file with this content, synced; for tests that bring their own bytes.
    pub fn plant(&self, name: &str, content: &[u8]) {
        let mut state = self.state.lock();
        let number = state.next_inode;
        state.next_inode += 1;
        let mut inode = Inode {
            name: name.into(),
            ..Inode::default()
        };
        inode.now.len = content.len() as u64;
        inode.now.write(0, content);
        inode.synced = inode.now.clone();
        state.inodes.insert(number, inode);
        state.names.insert(name.into(), number);
        state.durable_names.insert(name.into(), number);
    }

    /// The whole content of a file as the process sees it.
    pub fn content(&self, name: &str) -> Vec<u8> {
        let state = self.state.lock();
        let inode = &state.inodes[&state.names[name]];
        let mut content = vec![0; inode.now.len as usize];
        inode.now.read(0, &mut content);
        content
    }

    pub fn work(&self) -> Work {
        self.state.lock().work
    }
}

impl State {
    fn used(&self) -> u64 {
        self.names
            .values()
            .map(|number| &self.inodes[number])
            .map(|inode| inode.reserved.max(inode.now.len))
            .sum()
    }

    /// Odd numbers are held, even ones free.
    fn unlock(&mut self) {
        self.locked_by += self.locked_by % 2;
    }

    /// Forgets closed files that no name leads to any more, now or after a crash.
    fn collect(&mut self) {
        let used: BTreeSet<u64> = self
            .names
            .values()
            .chain(self.durable_names.values())
            .copied()
            .collect();
        self.inodes
            .retain(|number, inode| used.contains(number) || Arc::strong_count(&inode.handles) > 1);
    }

    fn fork(&self) -> SimMedia {
        let inodes = self.inodes.iter().map(|(number, inode)| {
            let handles = Arc::new(());
            let inode = Inode {
                handles,
                ..inode.clone()
            };
            (*number, inode)
        });
        let state = State {
            inodes: inodes.collect(),
            names: self.names.clone(),
            durable_names: self.durable_names.clone(),
            pending: self.pending.clone(),
            next_inode: self.next_inode,
            boots: self.boots,
            capacity: self.capacity,
            fail_syncs: self.fail_syncs,
            ..State::default()
        };
        SimMedia {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn note_moment(&mut self) {
        if self.moments.is_some() {
            let now = self.fork();
            self.moments.get_or_insert_default().push(now);
        }
    }

    fn change_name(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.pending.push(change);
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            NameChange::Create(name, number) => {
                names.insert(name.clone(), *number);
            }
            NameChange::Rename(from, to) => {
                if let Some(number) = names.remove(from) {
                    names.insert(to.clone(), number);
                }
            }
            NameChange::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

impl Inode {
    /// Puts what the media has where the cache claims otherwise.
    fn overlay_refused(&self, offset: u64, into: &mut [u8]) {
        let size = SECTOR as u64;
        let end = offset + into.len() as u64;
        for sector in self.refused.range(offset / size..end.div_ceil(size)) {
            let from = (sector * size).max(offset);
            let to = ((sector + 1) * size).min(end);
            self.synced.read(
                from,
                &mut into[(from - offset) as usize..(to - offset) as usize],
            );
        }
    }
}

impl Bytes {
    fn read(&self, mut offset: u64, mut into: &mut [u8]) {
        while !into.is_empty() {
            let (page, skip) = (offset / PAGE as u64, (offset % PAGE as u64) as usize);
            let count = into.len().min(PAGE - skip);
            let (now, rest) = into.split_at_mut(count);
            match self.pages.get(&page) {
                Some(bytes) => now.copy_from_slice(&bytes[skip..skip + count]),
                None => now.fill(0),
            }
            into = rest;
            offset += count as u64;
        }
    }

    fn write(&mut self, mut offset: u64, mut from: &[u8]) {
        self.len = self.len.max(offset + from.len() as u64);
        while !from.is_empty() {
            let (page, skip) = (offset / PAGE as u64, (offset % PAGE as u64) as usize);
            let count = from.len().min(PAGE - skip);
            let (now, rest) = from.split_at(count);
            let bytes = self
                .pages
                .entry(page)
                .or_insert_with(|| vec![0; PAGE].into());
            bytes[skip..skip + count].copy_from_slice(now);
            from = rest;
            offset += count as u64;
        }
    }

    fn copy_sector(&mut self, from: &Bytes, sector: u64) {
        let mut content = [0; SECTOR];
        let offset = sector * SECTOR as u64;
        from.read(offset, &mut content);
        let len = self.len;
        self.write(offset, &content);
        self.len = len;
    }
}

/// Frees the lock when dropped, unless the process "died" meanwhile.
pub struct SimLock {
    state: Arc<Mutex<State>>,
    mine: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.locked_by == self.mine {
            state.unlock();
        }
    }
}

impl Media for SimMedia {
    type File = SimFile;
    type Lock = SimLock;

    fn name(&self) -> String {
        "simulated media".into()
    }

    fn lock(&self) -> io::Result<SimLock> {
        let mut state = self.state.lock();
        if state.locked_by % 2 == 1 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.locked_by += 1;
        Ok(SimLock {
            state: self.state.clone(),
            mine: state.locked_by,
        })
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<SimFile> {
        let mut state = self.state.lock();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if let Some(capacity) = state.capacity
            && state.used() + bytes > capacity
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let number = state.next_inode;
        state.next_inode += 1;
        let sparse = Bytes {
            len: bytes,
            ..Bytes::default()
        };
        let inode = Inode {
            name: name.into(),
            now: sparse.clone(),
            synced: sparse,
            reserved: bytes,
            ..Inode::default()
        };
        state.inodes.insert(number, inode);
        state.change_name(NameChange::Create(name.into(), number));
        Ok(self.file(&state, number, false))
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let state = self.state.lock();
        let number = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(&state, number, false))
    }

    fn open_direct(&self, name: &str) -> io::Result<SimFile> {
        let state = self.state.lock();
        let number = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(&state, number, true))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        if !state.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let number = state.names[from];
        state.change_name(NameChange::Rename(from.into(), to.into()));
        state.inodes.get_mut(&number).expect("exists").name = to.into();
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        if !state.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_name(NameChange::Remove(name.into()));
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state.lock().names.keys().cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.note_moment();
        if state.fail_syncs {
            return Err(io::Error::other("simulated failure of a directory's sync"));
        }
        state.pending.clear();
        state.durable_names = state.names.clone();
        state.work.syncs += 1;
        state.collect();
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let state = self.state.lock();
        let capacity = state.capacity.unwrap_or(1 << 40);
        Ok(Space {
            capacity,
            free: capacity.saturating_sub(state.used()),
        })
    }

    fn overwrites_in_place(&self) -> bool {
        true
    }
}

impl SimMedia {
    fn file(&self, state: &State, number: u64, direct: bool) -> SimFile {
        SimFile {
            state: self.state.clone(),
            number,
            direct,
            _handle: state.inodes[&number].handles.clone(),
        }
    }
}

/// An open file of a [`SimMedia`].
pub struct SimFile {
    state: Arc<Mutex<State>>,
    number: u64,
    direct: bool,
    _handle: Arc<()>,
}

impl MediaFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        self.with(|inode, _| inode.now.len)
    }

    fn write_at(&self, mut offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let inode = state.inodes.get_mut(&self.number).ok_or_else(gone)?;
        state.work.writes += 1;
        for piece in pieces {
            let mut piece: &[u8] = piece;
            let mut torn = false;
            if let Some(left) = &mut state.tear_after {
                torn = (piece.len() as u64) > *left;
                piece = &piece[..piece.len().min(*left as usize)];
                *left -= piece.len() as u64;
            }
            if !piece.is_empty() {
                let end = offset + piece.len() as u64;
                inode.now.write(offset, piece);
                for sector in offset / SECTOR as u64..end.div_ceil(SECTOR as u64) {
                    inode.dirty.insert(sector);
                    inode.refused.remove(&sector);
                }
                state.work.bytes_written += piece.len() as u64;
                offset = end;
            }
            if torn {
                return Err(io::Error::other("the simulated process died here"));
            }
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock();
        let fails = state.fail_reads || (state.fail_direct_reads && self.direct);
        drop(state);
        if fails {
            return Err(io::Error::other("simulated failure of a read"));
        }
        self.with(|inode, work| {
            inode.now.read(offset, into);
            if self.direct {
                inode.overlay_refused(offset, into);
            }
            work.bytes_read += into.len() as u64;
        })
    }

    unsafe fn read_pieces(&self, mut offset: u64, pieces: &[Piece], _now: bool) -> io::Result<()> {
        for piece in pieces {
            let mut bytes = vec![0; piece.len];
            self.read_at(offset, &mut bytes)?;
            // SAFETY: the caller promises that the piece is writable.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), piece.start, piece.len) };
            offset += piece.len as u64;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.note_moment();
        let inode = state.inodes.get_mut(&self.number).ok_or_else(gone)?;
        if state.fail_syncs {
            let mut dirty = std::mem::take(&mut inode.dirty);
            inode.refused.append(&mut dirty);
            return Err(io::Error::other("simulated failure of a sync"));
        }
        for sector in std::mem::take(&mut inode.dirty) {
            inode.synced.copy_sector(&inode.now, sector);
        }
        inode.synced.len = inode.now.len;
        state.work.syncs += 1;
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        self.with(|inode, _| {
            let page = PAGE as u64;
            let next = inode.now.pages.range(offset / page..).next();
            next.map_or(inode.now.len, |(number, _)| offset.max(number * page))
        })
    }
}

impl SimFile {
    fn with<T>(&self, read: impl FnOnce(&Inode, &mut Work) -> T) -> io::Result<T> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let inode = state.inodes.get(&self.number).ok_or_else(gone)?;
        Ok(read(inode, &mut state.work))
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the simulated file is gone")
}
