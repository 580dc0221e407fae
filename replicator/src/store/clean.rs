//! The cleaner: moves what is live out of mostly dead segments, so that checkpoints can let go of them.
//!
//! A frame moves as it is, with its version, membership and checksum; damage moves with it, stays
//! detectable, and is said to be that, so that no recovery takes it for a torn end. The segment's file is removed by the next checkpoint, when what was moved is synced
//! and nothing on media refers to the old place (rule S5).

use super::Store;
use super::append::{Purpose, Room};
use super::checkpoint::Chore;
use super::frame::{FLAG_DAMAGED, Header, Kind};
use super::holdings::{LoadFault, count_dirty, moved};
use super::index::{Entry, blocks_of, chunk_of, chunks_of};
use super::media::{Media, MediaFile};
use super::place::Place;
use super::stretch::{self, Spot, Stands, Stretch, is_intact};
use crate::message::Refusal;
use crate::words::{BLOCK_BYTES, Block, Blocks, DiskId};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

/// Where the cleaner stands.
#[derive(Debug)]
pub struct Cleaning {
    victim: Option<Victim>,
    /// What was read of the victim, if not all of that is moved yet.
    rest: Option<Read>,
    /// What it may still move where little is gained by it: so much for each byte that others append or
    /// discard. So it comes to an end when nobody else does anything.
    credit: u64,
    /// Of what was appended, so much has brought credit, or was its own.
    reckoned: u64,
    /// Segments with frames that cannot be read: never let go of.
    damaged: BTreeSet<u32>,
    /// Segments that could not be cleaned just now: others go first.
    put_off: BTreeSet<u32>,
}

/// Why a stretch cannot be cleaned. The segment stays in either case: who does not know what refers to
/// it does not let go of it.
enum Hindrance {
    /// No room, or a read that failed: may work later.
    Now(Refusal),
    /// A part of the index is damaged.
    Damage,
}

/// What stands in a stretch, as far as it is moved at once.
struct Found {
    /// The frames to write again, each with where its payload is in the segment.
    moves: Vec<(Header, u64)>,
    /// The frame to go on with.
    next: Spot,
    /// It stands whole in what was read.
    more: bool,
    /// Something was unreadable.
    damaged: bool,
}

#[derive(Clone, Copy, Debug)]
struct Victim {
    segment: u32,
    /// Size of its file.
    bytes: u64,
    /// The frame to go on with.
    next: Spot,
    end: u64,
    damaged: bool,
}

/// What was read of a victim.
#[derive(Clone, Debug)]
pub struct Read {
    start: u64,
    bytes: Bytes,
}

/// A stretch of a victim to be read.
pub struct Scan<M: Media> {
    file: Arc<M::File>,
    start: u64,
    bytes: u64,
    /// Nothing has to be read: there is something left of what was.
    rest: Option<Read>,
}

impl Default for Cleaning {
    fn default() -> Self {
        Cleaning {
            victim: None,
            rest: None,
            // Once everything may be looked through.
            credit: u64::MAX,
            reckoned: 0,
            damaged: BTreeSet::new(),
            put_off: BTreeSet::new(),
        }
    }
}

impl Cleaning {
    /// Somebody has appended or discarded so much.
    pub fn earn(&mut self, bytes: u64) {
        self.credit = self
            .credit
            .saturating_add(bytes.saturating_mul(MOVED_A_BYTE));
    }

    /// What kept segments from being cleaned may be gone.
    pub fn try_damaged_again(&mut self) {
        self.damaged.clear();
    }

    /// So much was appended to keep the store in order.
    pub fn own(&mut self, bytes: u64) {
        self.reckoned += bytes;
    }
}

impl<M: Media> Scan<M> {
    pub fn run(&self) -> io::Result<Read> {
        if let Some(rest) = &self.rest {
            return Ok(rest.clone());
        }
        let mut bytes = vec![0; self.bytes as usize];
        self.file.read_at(self.start, &mut bytes)?;
        Ok(Read {
            start: self.start,
            bytes: bytes.into(),
        })
    }
}

/// How much of a segment is read at once.
const STEP_BYTES: u64 = stretch::LEAST_BYTES;
/// How much of that is moved in one step: a guest's write waits for a step at most. Where memory of the page cache
/// is new to a virtual machine, the copy of a block into it was seen to take 40 us.
const MOVED_AT_ONCE: u64 = 32 << 10;
/// A segment that is live to more than this is not worth moving, in percent.
const MOSTLY_LIVE: u64 = 95;
/// One that is live to less is worth it at any time.
const MOSTLY_DEAD: u64 = 50;
/// One that is live to no more is cheap: it is moved even where nobody needs the space.
const CHEAP: u64 = 25;
/// Free space is much if it is so many times the garbage.
const MUCH_FREE: u64 = 4;
/// Of the others so many bytes may be moved for each that somebody else appends.
const MOVED_A_BYTE: u64 = 16;

impl<M: Media> Store<M> {
    pub(super) fn cleaning_chore(&mut self) -> Option<Chore<M>> {
        // What was live of it may have been overwritten meanwhile: a checkpoint lets go of it, or has.
        let victim = self.cleaning.victim;
        if victim.is_none_or(|victim| self.holdings.live.is_dead(victim.segment)) {
            self.cleaning.rest = None;
            self.cleaning.victim = self.choose_victim();
        }
        let victim = self.cleaning.victim?;
        let start = Stretch::start_for(victim.next.offset);
        match self.log.files.of(victim.segment) {
            Ok(file) => Some(Chore::Scan(Scan {
                file,
                start,
                bytes: STEP_BYTES.min(victim.bytes.saturating_sub(start)),
                rest: self.cleaning.rest.take(),
            })),
            Err(error) => {
                tracing::error!(%error, segment = victim.segment, "cannot open a segment");
                self.put_off(victim);
                None
            }
        }
    }

    /// The segment with the least live in it, if cleaning is called for.
    fn choose_victim(&mut self) -> Option<Victim> {
        let (live, all) = self.holdings.live.closed();
        let garbage = all.saturating_sub(live);
        let much = garbage * 100 > self.options.garbage_percent * all
            && garbage > 2 * self.options.segment_bytes;
        let others = self.log.appended() - self.cleaning.reckoned;
        self.cleaning.own(others);
        self.cleaning.earn(others);
        self.cleaning.credit = self.cleaning.credit.min(2 * all);
        let low = self.wants_cleaning();
        if !much && !low {
            return None;
        }
        // What is overwritten at random dies by itself if one can wait: a segment moved later has less to move.
        let free = self.log.free_segments() * self.options.segment_bytes;
        let may_wait =
            free / MUCH_FREE > garbage && garbage * 100 <= self.options.roomy_garbage_percent * all;
        let before = self.next_replay_segment();
        let candidate = self.holdings.live.emptiest().find(|id| {
            let hindered = self.cleaning.damaged.contains(id) || self.cleaning.put_off.contains(id);
            *id < before && !hindered
        });
        let victim = candidate.and_then(|id| {
            let (segment, live) = (self.log.segments[&id], self.holdings.live.of(id));
            let percent = live * 100 / segment.bytes;
            if percent >= MOSTLY_LIVE || (percent > CHEAP && may_wait && !low) {
                return None;
            }
            if percent >= MOSTLY_DEAD {
                self.cleaning.credit = self.cleaning.credit.checked_sub(live)?;
            }
            Some(Victim {
                segment: id,
                bytes: segment.bytes,
                next: Spot::default(),
                end: segment.end,
                damaged: false,
            })
        });
        if victim.is_none() {
            self.cleaning.put_off.clear();
        }
        victim
    }

    /// Moves what is live of the stretch that was read. False: it could not be done now.
    pub(super) fn finish_scan(&mut self, read: io::Result<Read>) -> bool {
        let Some(mut victim) = self.cleaning.victim else {
            return false;
        };
        if !self.holdings.gone.is_empty() {
            // What still counts there is not found any more: first that, and then this stretch once more.
            return true;
        }
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(%error, segment = victim.segment, "the cleaner cannot read");
                self.give_up(victim);
                return false;
            }
        };
        let step = self.live_frames(victim, &read).and_then(|found| {
            let moved = self.move_frames(&found.moves, &read);
            moved.map(|()| found).map_err(Hindrance::Now)
        });
        let found = match step {
            Ok(found) => found,
            Err(Hindrance::Now(refusal)) => {
                tracing::debug!(%refusal, "the cleaner has to wait");
                self.put_off(victim);
                return false;
            }
            Err(Hindrance::Damage) => {
                self.give_up(victim);
                return false;
            }
        };
        victim.next = found.next;
        victim.damaged |= found.damaged;
        if found.next.offset < victim.end {
            self.cleaning.rest = found.more.then_some(read);
            self.cleaning.victim = Some(victim);
        } else if victim.damaged {
            self.give_up(victim);
        } else {
            self.cleaning.victim = None;
            self.holdings.live.cleaned(victim.segment);
        }
        true
    }

    fn put_off(&mut self, victim: Victim) {
        self.cleaning.put_off.insert(victim.segment);
        self.cleaning.victim = None;
    }

    fn give_up(&mut self, victim: Victim) {
        tracing::error!(
            store = %self.id, segment = victim.segment,
            "a segment is damaged and cannot be cleaned; `ukai store check` says where"
        );
        self.cleaning.damaged.insert(victim.segment);
        self.cleaning.victim = None;
    }

    fn live_frames(&mut self, victim: Victim, read: &Read) -> Result<Found, Hindrance> {
        let stretch = Stretch {
            store: self.id,
            segment: victim.segment,
            start: read.start,
            bytes: &read.bytes,
            more: read.start + (read.bytes.len() as u64) < victim.bytes,
            end: victim.end,
        };
        let mut at = victim.next;
        let mut moves = Vec::new();
        let (mut damaged, mut more) = (false, false);
        let enough = MOVED_AT_ONCE.min(self.options.segment_bytes / 8);
        let before = self.log.appended();
        loop {
            let moving = moves.len() as u64 * BLOCK_BYTES + (self.log.appended() - before);
            match stretch.at(at) {
                Stands::Frame { .. } if moving >= enough => {
                    more = true;
                    break;
                }
                Stands::Frame {
                    header,
                    place,
                    next,
                    ..
                } => {
                    self.note_live(&header, place, &mut moves)?;
                    at = next;
                }
                Stands::Gap { next, .. } => at = next,
                Stands::End => break,
                // Where it was read as far as any frame could reach, nothing here makes sense.
                Stands::Unknown if at != victim.next && stretch.more => break,
                Stands::Unknown | Stands::Nothing => {
                    damaged = true;
                    at = at.skip();
                }
            }
        }
        Ok(Found {
            moves,
            next: at,
            more,
            damaged,
        })
    }

    fn note_live(
        &mut self,
        header: &Header,
        place: Place,
        moves: &mut Vec<(Header, u64)>,
    ) -> Result<(), Hindrance> {
        match header.kind {
            Kind::Data | Kind::Zeroes => {
                let mut parts: Vec<(Blocks, Option<u16>)> = Vec::new();
                for (number, part) in chunks_of(header.blocks()) {
                    self.load_to_clean(header.disk, part)?;
                    let disk = self.holdings.disks.get(&header.disk);
                    let slot = disk.and_then(|disk| disk.chunks.get(&number));
                    let Some(chunk) = slot.and_then(|slot| slot.chunk.as_ref()) else {
                        continue;
                    };
                    for block in part.iter() {
                        let within = (block.0 - blocks_of(number).first.0) as u16;
                        let here = |entry: &Entry| entry.place == place;
                        let Some(Entry { filled, .. }) = chunk.versions(within).find(here) else {
                            continue;
                        };
                        match parts.last_mut() {
                            Some((last, same)) if last.end() == block && *same == filled => {
                                last.count += 1;
                            }
                            _ => parts.push((Blocks::new(block, 1), filled)),
                        }
                    }
                }
                let moving = |(part, filled)| (moved(header, part, filled), place.payload());
                moves.extend(parts.into_iter().map(moving));
            }
            // A part of the index moves by being written anew.
            Kind::Index => {
                let chunk = chunk_of(Block(header.block));
                let refers = self
                    .holdings
                    .disks
                    .get(&header.disk)
                    .and_then(|disk| disk.chunks.get(&chunk))
                    .is_some_and(|slot| slot.blob.contains(&place));
                if refers {
                    self.load_to_clean(header.disk, blocks_of(chunk))?;
                    self.move_chunk(header.disk, chunk)
                        .map_err(Hindrance::Now)?;
                }
            }
            // The checkpoint has what these say.
            _ => {}
        }
        Ok(())
    }

    fn load_to_clean(&mut self, disk: DiskId, blocks: Blocks) -> Result<(), Hindrance> {
        let loaded = self
            .holdings
            .load(&mut self.log.files, self.id, disk, blocks);
        loaded.map_err(|fault| match fault {
            LoadFault::Damaged { place, blocks } => {
                tracing::error!(%disk, %blocks, %place, "the index of these blocks is damaged");
                Hindrance::Damage
            }
            LoadFault::Io(error) => {
                tracing::error!(%disk, %error, "cannot read the index");
                Hindrance::Now(Refusal::Damaged {
                    block: blocks.first,
                })
            }
        })
    }

    fn move_chunk(&mut self, disk: DiskId, chunk: u64) -> Result<(), Refusal> {
        let disk_state = self.holdings.disks.get_mut(&disk).expect("just seen");
        let slot = disk_state.chunks.get_mut(&chunk).expect("just seen");
        slot.dirty = true;
        count_dirty(&mut self.holdings.dirty_bytes, slot);
        self.append_chunk(disk, chunk)
    }

    /// Appends what is to be moved, as one write where that fits into a segment.
    fn move_frames(&mut self, moves: &[(Header, u64)], read: &Read) -> Result<(), Refusal> {
        let before = self.log.appended();
        let moved = moves.iter().try_for_each(|(header, payload)| {
            let mut header = *header;
            let (room, payload) = match header.kind {
                Kind::Data => {
                    let from = (payload - read.start) as usize;
                    let block = read.bytes.slice(from..from + BLOCK_BYTES as usize);
                    (Room::Blocks(1), block)
                }
                _ => (Room::Bytes(header.frame_bytes()), Bytes::new()),
            };
            if !is_intact(&header, &payload) {
                header.flags |= FLAG_DAMAGED;
            }
            self.make_room(room, Purpose::Cleaning)?;
            let places = self.hold(std::iter::once((header, payload)))?;
            self.note(&header, header.blocks(), places[0])
        });
        self.cleaning.own(self.log.appended() - before);
        self.write_out();
        match self.has_failed() {
            true => Err(Refusal::Failed),
            false => moved,
        }
    }
}
