//! One host of the simulation: the real writer in a shell, and a guest that uses the disk.

use super::oracle::Content;
use replicator::message::{Found, ReadBlocks};
use replicator::words::{
    BLOCK_BYTES, BackendId, Blocks, DiskRecord, Life, Owner, SECTOR_BYTES, Span, StoreId,
};
use replicator::writer::{Aim, CallId, Config, GuestOp, Now, Orders, RequestId, Writer};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub struct Host {
    pub number: usize,
    /// Which disk of the world its guest has.
    pub disk: usize,
    /// The machine that it runs on: beside the store of that number, if there is one.
    pub machine: usize,
    /// Counts writers on this host; each is another life of the same backend.
    pub life: u64,
    pub writer: Option<Writer>,
    /// Stores that the writer wants a session with.
    pub wanted: BTreeSet<StoreId>,
    pub requests: BTreeMap<RequestId, Asked>,
    /// Reads that are not answered: of whom, where to, which blocks.
    pub reads: BTreeMap<CallId, (StoreId, Aim, Blocks)>,
    pub withdrawn: BTreeSet<CallId>,
    /// The timeout that an event is scheduled for.
    pub timeout: Option<Now>,
    /// Its guest issues requests.
    pub guest_on: bool,
    pub depth: usize,
    pub stopping: bool,
    pub starting: bool,
    /// Its start was allowed to end another backend's epoch.
    pub ordered: bool,
    /// Its process does nothing before this moment of the world.
    pub paused_until: u64,
    /// A swap of this life took place that it has not heard of yet.
    pub unheard: bool,
    /// How far its clock is ahead of the world's, in microseconds.
    pub clock: u64,
    /// As which its writer asks for epochs.
    pub backend: BackendId,
    /// Its node runs that backend, whether or not a VM uses it.
    pub runs: bool,
    /// Its VM is here.
    pub vm: bool,
    /// It only copies, for nobody.
    pub copies: bool,
    /// Its writer was told to open the disk, and has not ended since.
    pub engaged: bool,
    pub may_take_over: bool,
    /// It is to end when it has closed.
    pub leaves: bool,
    /// Where its VM goes when it has closed.
    pub moves_to: Option<usize>,
    /// The last orders of the placement service.
    pub told: Orders,
    last_request: u64,
}

/// A request of the guest.
pub struct Asked {
    pub span: Span,
    pub kind: Kind,
    /// Where a read lands.
    pub landing: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The oracle's ticket.
    Read(u64),
    /// The write's number.
    Write(u64),
    Flush(u64),
}

impl Host {
    pub fn new(number: usize, disk: usize, machine: usize) -> Host {
        Host {
            number,
            disk,
            machine,
            life: 0,
            writer: None,
            wanted: BTreeSet::new(),
            requests: BTreeMap::new(),
            reads: BTreeMap::new(),
            withdrawn: BTreeSet::new(),
            timeout: None,
            guest_on: false,
            depth: 2,
            stopping: false,
            starting: false,
            ordered: false,
            paused_until: 0,
            unheard: false,
            clock: 0,
            backend: BackendId::from_u128(0xb0 + number as u128),
            runs: false,
            vm: false,
            copies: false,
            engaged: false,
            may_take_over: false,
            leaves: false,
            moves_to: None,
            told: Orders::default(),
            last_request: 0,
        }
    }

    pub fn owner(&self) -> Owner {
        Owner {
            backend: self.backend,
            life: Life(self.life),
            host: super::managed::node_name(self.machine),
        }
    }

    /// A process with a writer that is not started yet.
    pub fn boot(&mut self, record: DiskRecord, near: Option<StoreId>, ejects: bool) {
        self.crash();
        let config = Config {
            near,
            eject_after: ejects.then_some(Duration::from_millis(20)),
            read_patience: Duration::from_millis(5),
            settle_patience: Duration::from_millis(20),
            close_patience: Duration::from_millis(100),
            pause: Duration::from_millis(2),
            ..Config::default()
        };
        self.writer = Some(Writer::new(config, self.owner(), record));
    }

    /// The process is gone. Returns the writes whose end nobody will hear of.
    pub fn crash(&mut self) -> Vec<Kind> {
        self.life += 1;
        self.writer = None;
        self.wanted.clear();
        self.reads.clear();
        self.withdrawn.clear();
        self.timeout = None;
        self.guest_on = false;
        self.stopping = false;
        self.starting = false;
        self.paused_until = 0;
        self.unheard = false;
        self.leaves = false;
        self.engaged = false;
        let requests = std::mem::take(&mut self.requests);
        requests.into_values().map(|asked| asked.kind).collect()
    }

    pub fn next_request(&mut self) -> RequestId {
        self.last_request += 1;
        RequestId(self.last_request)
    }

    /// Puts what a read found into its request's landing, as a shell does. The error is a violation.
    pub fn land(&mut self, call: CallId, answer: &ReadBlocks) -> Result<(), String> {
        let Some((_, Aim::Guest { id, span }, blocks)) = self.reads.get(&call) else {
            return Ok(());
        };
        let Some(asked) = self.requests.get_mut(id) else {
            return Err(format!("a read landed after its request {} ended", id.0));
        };
        let mut data = answer.data.clone();
        for (block, found) in blocks.iter().zip(&answer.found) {
            if !matches!(found, Found::Data { .. }) {
                continue;
            }
            let bytes = data.split_to(BLOCK_BYTES as usize);
            let start = block.0 * BLOCK_BYTES;
            let from = start.max(span.offset);
            let end = (start + BLOCK_BYTES).min(span.end());
            asked.landing[(from - span.offset) as usize..(end - span.offset) as usize]
                .copy_from_slice(&bytes[(from - start) as usize..(end - start) as usize]);
        }
        Ok(())
    }
}

impl Asked {
    /// What the guest finds in a sector of its read.
    pub fn content(&self, sector: u64) -> Content {
        let at = (sector * SECTOR_BYTES - self.span.offset) as usize;
        Content::of(&self.landing[at..at + SECTOR_BYTES as usize], sector)
    }
}

pub fn sectors(span: Span) -> std::ops::Range<u64> {
    span.offset / SECTOR_BYTES..span.end() / SECTOR_BYTES
}

/// The bytes of write `number` over `span`.
pub fn data(number: u64, span: Span) -> bytes::Bytes {
    let all = sectors(span).flat_map(|sector| Content::bytes(number, sector));
    all.collect::<Vec<u8>>().into()
}

/// What traces call a request.
pub fn describe(op: &GuestOp) -> String {
    let range = |span: &Span| {
        let sectors = sectors(*span);
        format!("{}..{}", sectors.start, sectors.end)
    };
    match op {
        GuestOp::Read { span } => format!("read {}", range(span)),
        GuestOp::Write { span, .. } => format!("write {}", range(span)),
        GuestOp::Zero { span } => format!("zero {}", range(span)),
        GuestOp::Flush => "flush".into(),
    }
}
