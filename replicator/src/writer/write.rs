//! One piece of a write: take its blocks, merge what is partial, number it, send it to every member
//! of the newest entry, and be done when all of them hold it (rules W1 to W7).

use super::block_locks::Claim;
use super::calls::Purpose;
use super::read::Target;
use super::requests::PIECE_WEIGHT;
use super::{Aim, Failure, Now, Phase, PieceId, RequestId, Writer};
use crate::message::{Content, Payload, Request};
use crate::plant::{Plant, planted};
use crate::words::{BLOCK_BYTES, Blocks, Epoch, Seq, StoreId};
use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use std::collections::BTreeSet;

pub(super) struct WritePiece {
    owner: WriteOwner,
    /// Within one extent.
    blocks: Blocks,
    draft: Draft,
    /// Its number, once it is sent.
    version: Option<(Epoch, Seq)>,
    /// Who has to hold it.
    members: SmallVec<[StoreId; 4]>,
    /// Who said in this epoch that it does.
    held_by: SmallVec<[StoreId; 4]>,
    /// When the first of them did.
    first_held: Option<Now>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WriteOwner {
    Guest(RequestId),
    /// A guest's, which was told that it failed because it waited too long. It keeps its place: what is
    /// written to its blocks later comes after it.
    Orphan,
    /// A take-over makes the members even.
    Settling,
}

/// What the blocks will hold.
pub(super) enum Draft {
    Whole(Content),
    /// `len` bytes from `at` within the one block become `patch`, or zeroes.
    Merge {
        at: usize,
        len: usize,
        patch: Option<Bytes>,
    },
}

impl Draft {
    /// Whole blocks of data, or of zeroes. The data is checksummed here and never again (rule W1).
    pub fn whole(data: Option<Bytes>) -> Draft {
        Draft::Whole(data.map_or(Content::Zeroes, |data| Content::Data(Payload::new(data))))
    }
}

impl WritePiece {
    pub(super) fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// What it keeps in memory.
    fn weight(&self) -> u64 {
        match &self.draft {
            Draft::Whole(Content::Zeroes) => PIECE_WEIGHT,
            Draft::Whole(Content::Data(_)) | Draft::Merge { .. } => self.blocks.bytes(),
        }
    }
}

impl Writer {
    /// The guest hears no more of these requests' writes.
    pub(super) fn orphan_writes(&mut self, of: &BTreeSet<RequestId>) {
        let mut orphaned = Vec::new();
        for write in self.writes.values_mut() {
            if let WriteOwner::Guest(id) = write.owner
                && of.contains(&id)
            {
                write.owner = WriteOwner::Orphan;
                self.orphan_bytes += write.weight();
                orphaned.push(id);
            }
        }
        for id in orphaned {
            self.piece_ended(id, Some(Failure::TooLate));
        }
    }

    pub(super) fn begin_write(&mut self, owner: WriteOwner, blocks: Blocks, draft: Draft) {
        if let WriteOwner::Guest(id) = owner {
            self.piece_begins(id);
        }
        let piece = self.next_piece();
        let write = WritePiece {
            owner,
            blocks,
            draft,
            version: None,
            members: SmallVec::new(),
            held_by: SmallVec::new(),
            first_held: None,
        };
        self.writes.insert(piece, write);
        self.disturb_look(blocks);
        // Rewrites of a take-over are alone, and each block is rewritten once.
        if owner == WriteOwner::Settling || self.claim(piece, blocks, Claim::Write) {
            self.write_granted(piece);
        }
    }

    /// Its blocks are its own: read what must be merged, or go.
    pub(super) fn write_granted(&mut self, piece: PieceId) {
        let write = &self.writes[&piece];
        match write.draft {
            Draft::Whole(_) => self.write_ready(piece),
            Draft::Merge { .. } => {
                let blocks = write.blocks;
                self.begin_read(Target::Merge(piece), blocks);
            }
        }
    }

    /// The block under a partial write is known: `below`, or zeroes.
    pub(super) fn merge(&mut self, piece: PieceId, below: Option<Bytes>) {
        let write = self.writes.get_mut(&piece).expect("a write that waits");
        let Draft::Merge { at, len, patch } = &write.draft else {
            panic!("W2: a block is merged once");
        };
        let mut block = match below {
            Some(below) => BytesMut::from(&below[..]),
            None => BytesMut::zeroed(BLOCK_BYTES as usize),
        };
        match patch {
            Some(patch) => block[*at..at + len].copy_from_slice(patch),
            None => block[*at..at + len].fill(0),
        }
        write.draft = Draft::whole(Some(block.freeze()));
        self.write_ready(piece);
    }

    /// The block under a partial write cannot be read anywhere.
    pub(super) fn merge_failed(&mut self, piece: PieceId) {
        let write = self.writes.remove(&piece).expect("a write that waits");
        self.release(write.blocks);
        match write.owner {
            WriteOwner::Guest(id) => self.piece_ended(id, Some(Failure::Unreadable)),
            WriteOwner::Orphan => self.orphan_bytes -= write.weight(),
            WriteOwner::Settling => unreachable!("a take-over merges nothing"),
        }
    }

    fn write_ready(&mut self, piece: PieceId) {
        match (self.writes[&piece].owner, &self.phase) {
            (WriteOwner::Settling, _) => self.send_write(piece),
            (_, Phase::Open) if !self.holds_writes() => self.send_write(piece),
            (_, Phase::Ejecting { .. }) if self.goes_on_while_ejecting() => self.send_write(piece),
            _ => self.ready.push_back(piece),
        }
    }

    fn send_write(&mut self, piece: PieceId) {
        let write = &self.writes[&piece];
        let (owner, blocks) = (write.owner, write.blocks);
        let members: SmallVec<[StoreId; 4]> = match owner {
            WriteOwner::Guest(_) | WriteOwner::Orphan => self.members_of(blocks),
            WriteOwner::Settling => self.settling_members(),
        };
        let watermark = match owner {
            WriteOwner::Guest(_) | WriteOwner::Orphan => self.sequencer.watermark(),
            WriteOwner::Settling => Seq::ZERO,
        };
        let seq = self.sequencer.issue(piece);
        if matches!(owner, WriteOwner::Guest(_)) {
            self.warm(blocks, super::heat::WRITTEN);
        }
        let epoch = self.record.epoch;
        let write = self.writes.get_mut(&piece).expect("it was there");
        write.version = Some((epoch, seq));
        write.members = members.clone();
        write.held_by.clear();
        write.first_held = None;
        let Draft::Whole(content) = &write.draft else {
            panic!("W2: a partial block is merged before it is sent");
        };
        let content = content.clone();
        for store in &members {
            let request = Request::Write {
                asker: self.asker(*store),
                seq,
                watermark,
                blocks,
                content: content.clone(),
            };
            self.call(*store, request, Aim::Nowhere, Purpose::Write { piece });
        }
        if planted(Plant::AcknowledgeOnSend) && matches!(owner, WriteOwner::Guest(_)) {
            self.pretend_held(piece, &members);
        }
    }

    /// `store` holds the write where a crash of its process cannot lose it.
    pub(super) fn written(&mut self, piece: PieceId, store: StoreId) {
        let Some(write) = self.writes.get_mut(&piece) else {
            assert!(
                planted(Plant::AcknowledgeOnSend) || planted(Plant::AcknowledgeBeforeEject),
                "W3: a write waits for all its answers"
            );
            return;
        };
        if !write.held_by.contains(&store) {
            write.held_by.push(store);
            write.first_held.get_or_insert(self.now);
        }
        let all = write.members.iter().all(|m| write.held_by.contains(m));
        if all {
            self.write_done(piece);
        }
    }

    /// When the first member said that it holds the write.
    pub(super) fn first_held(&self, piece: PieceId) -> Option<Now> {
        self.writes.get(&piece)?.first_held
    }

    /// Sends what has become ready while an ejection was asked for, if that may be sent.
    pub(super) fn send_ready_while_ejecting(&mut self) {
        if !self.ready.is_empty() && self.goes_on_while_ejecting() {
            for piece in std::mem::take(&mut self.ready) {
                self.send_write(piece);
            }
        }
    }

    fn write_done(&mut self, piece: PieceId) {
        let write = self.writes.remove(&piece).expect("completes once");
        let (epoch, seq) = write.version.expect("it was sent");
        assert_eq!(
            epoch, self.record.epoch,
            "W7: only acknowledgements of the current epoch count"
        );
        self.sequencer.done(seq);
        match write.owner {
            WriteOwner::Guest(_) | WriteOwner::Orphan => {
                assert!(
                    self.members_of(write.blocks)
                        .iter()
                        .all(|store| write.held_by.contains(store)),
                    "W3: every member of the newest entry holds an acknowledged write"
                );
                self.flushes.acknowledged += 1;
                match write.owner {
                    WriteOwner::Guest(id) => self.piece_ended(id, None),
                    _ => self.orphan_bytes -= write.weight(),
                }
                self.release(write.blocks);
            }
            WriteOwner::Settling => self.rewritten(),
        }
    }

    /// A new epoch: what was in flight is reissued in order, before what never was (rule W7).
    pub(super) fn take_back_writes(&mut self) {
        for piece in self.sequencer.begin_epoch().into_iter().rev() {
            let write = self.writes.get_mut(&piece).expect("in flight");
            if write.owner == WriteOwner::Settling {
                self.writes.remove(&piece);
                continue;
            }
            write.version = None;
            self.ready.push_front(piece);
        }
    }

    /// The disk is open in a new epoch: everything that waited for it goes out.
    pub(super) fn send_ready(&mut self) {
        let ready = std::mem::take(&mut self.ready);
        for piece in ready {
            if planted(Plant::NotReissued) && !self.writes[&piece].held_by.is_empty() {
                let members = self.members_of(self.writes[&piece].blocks);
                let seq = self.sequencer.issue(piece);
                let epoch = self.record.epoch;
                let write = self.writes.get_mut(&piece).expect("it was there");
                write.version = Some((epoch, seq));
                self.pretend_held(piece, &members);
            } else {
                self.send_write(piece);
            }
        }
        self.sequencer.end_reissue();
    }

    pub(super) fn fail_writes(&mut self) {
        self.writes.clear();
        self.orphan_bytes = 0;
        self.ready.clear();
        self.locks.clear();
        self.sequencer.forget();
    }

    /// Who has to hold a write of `blocks`.
    pub(super) fn members_of(&self, blocks: Blocks) -> SmallVec<[StoreId; 4]> {
        let range = self.record.range_of(blocks.first).expect("on the disk");
        range.history.members().collect()
    }

    /// For planted bugs only.
    pub(super) fn pretend_held(&mut self, piece: PieceId, members: &[StoreId]) {
        let write = self.writes.get_mut(&piece).expect("it was there");
        write.held_by = SmallVec::from_slice(members);
        self.write_done(piece);
    }

    /// For a planted bug only: completes what all but `out` hold.
    pub(super) fn acknowledge_without(&mut self, out: &[StoreId]) {
        let held: Vec<PieceId> = self
            .writes
            .iter()
            .filter(|(_, write)| {
                let missing = |m: &&StoreId| !write.held_by.contains(m);
                write.version.is_some()
                    && write
                        .members
                        .iter()
                        .filter(missing)
                        .all(|m| out.contains(m))
            })
            .map(|(piece, _)| *piece)
            .collect();
        for piece in held {
            let members = self.writes[&piece].members.clone();
            self.pretend_held(piece, &members);
        }
    }
}
