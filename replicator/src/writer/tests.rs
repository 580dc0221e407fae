//! Scripts: the guest does this, store B answers that, and then exactly this follows.

use super::*;
use crate::message::{
    Content, Found, Known, ListedBlock, Reach, ReadBlocks, Refusal, ReplicaState, Reply, Request,
    Sealed, SourceFault,
};
use crate::words::*;
use bytes::Bytes;

mod damage;
mod forgot;
mod moving;
mod stalls;
mod verify;

const G: Generation = Generation(0);
const EXTENT: u64 = 1 << 20;
const A: StoreId = StoreId::from_u128(0xa);
const B: StoreId = StoreId::from_u128(0xb);
const C: StoreId = StoreId::from_u128(0xc);
const D: StoreId = StoreId::from_u128(0xd);

/// A writer, the record as the placement service has it, and what is asked of each store.
struct Script {
    writer: Writer,
    record: DiskRecord,
    now: Now,
    asked: VecDeque<(StoreId, CallId, Request)>,
    swaps: VecDeque<(CallId, Revision, Change)>,
    inspections: Vec<CallId>,
    completed: Vec<(RequestId, Result<(), Failure>)>,
    other: Vec<Effect>,
    last_request: u64,
    /// What each store was told last.
    told: BTreeMap<StoreId, (Epoch, Revision)>,
}

fn owner(n: u64) -> Owner {
    Owner {
        backend: BackendId::from_u128(n.into()),
        life: Life(n),
        host: HostName::new("tokyo-1").unwrap(),
    }
}

fn disk(stores: &[StoreId]) -> DiskRecord {
    let epoch = Epoch::first(G);
    DiskRecord {
        id: DiskId::from_u128(1),
        name: DiskName::new("web1").unwrap(),
        bytes: 4 * EXTENT,
        extent_size: ExtentSize::new(EXTENT).unwrap(),
        copies: 2,
        revision: Revision(0),
        epoch,
        even_below: epoch,
        state: State::Closed {
            last: Version::ZERO,
            successor: None,
        },
        map: vec![MapRange {
            extents: Extents::new(Extent(0), Extent(4)),
            history: History(vec![Entry::whole(epoch, stores.iter().copied())]),
        }],
    }
}

/// The same, after it was open once.
fn used(stores: &[StoreId]) -> DiskRecord {
    let mut record = disk(stores);
    record.state = State::Closed {
        last: Version::new(record.epoch, Seq(1)),
        successor: None,
    };
    record
}

impl Script {
    fn new(record: DiskRecord) -> Script {
        let config = Config {
            near: Some(A),
            ..Config::default()
        };
        Script {
            writer: Writer::new(config, owner(1), record.clone()),
            record,
            now: Now::default(),
            asked: VecDeque::new(),
            swaps: VecDeque::new(),
            inspections: Vec::new(),
            completed: Vec::new(),
            other: Vec::new(),
            last_request: 0,
            told: BTreeMap::new(),
        }
    }

    fn event(&mut self, event: Event) {
        self.writer.handle(self.now, event);
        while let Some(effect) = self.writer.poll() {
            match effect {
                Effect::Connect { store } => {
                    self.writer.handle(self.now, Event::Connected { store });
                }
                Effect::Send {
                    store,
                    call,
                    request,
                    ..
                } => {
                    if self.only_tells(store, &request) {
                        let reply = Reply::Refused(Refusal::Failed);
                        self.writer.handle(self.now, Event::Reply { call, reply });
                    } else {
                        self.asked.push_back((store, call, request));
                    }
                }
                Effect::Swap {
                    call,
                    expected,
                    change,
                } => {
                    self.swaps.push_back((call, expected, change));
                }
                Effect::Inspect { call } => self.inspections.push(call),
                Effect::Complete { id, result } => self.completed.push((id, result)),
                other => self.other.push(other),
            }
        }
    }

    /// A seal that tells a store how the record has become in the epoch that it was shown. What becomes of
    /// it matters to nobody; so it is refused.
    fn only_tells(&mut self, store: StoreId, request: &Request) -> bool {
        let Request::Seal { record, .. } = request else {
            return false;
        };
        let record = DiskRecord::from_kept(record).expect("a seal carries the record");
        assert_eq!(record.epoch, self.writer.record().epoch);
        let now = (record.epoch, record.revision);
        let before = self.told.insert(store, now);
        before.is_some_and(|before| before.0 == now.0 && before.1 < now.1)
    }

    /// Time passes, and the writer's timeouts with it.
    fn wait(&mut self, seconds: u64) {
        self.wait_ms(seconds * 1000);
    }

    fn wait_ms(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while let Some(at) = self.writer.next_timeout().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            self.event(Event::Timeout);
        }
        self.now = end;
    }

    fn guest(&mut self, op: GuestOp) -> RequestId {
        self.last_request += 1;
        let id = RequestId(self.last_request);
        self.event(Event::Guest { id, op });
        id
    }

    fn write(&mut self, offset: u64, len: u64, byte: u8) -> RequestId {
        let data = Bytes::from(vec![byte; len as usize]);
        self.guest(GuestOp::Write {
            span: Span::new(offset, len),
            data,
        })
    }

    fn read(&mut self, offset: u64, len: u64) -> RequestId {
        self.guest(GuestOp::Read {
            span: Span::new(offset, len),
        })
    }

    fn is_done(&self, id: RequestId) -> Option<Result<(), Failure>> {
        self.completed
            .iter()
            .find(|(done, _)| *done == id)
            .map(|(_, result)| *result)
    }

    /// Takes the oldest question to `store`.
    fn asked(&mut self, store: StoreId) -> (CallId, Request) {
        let at = self.asked.iter().position(|(to, ..)| *to == store);
        let (_, call, request) = self.asked.remove(at.expect("the store was asked")).unwrap();
        (call, request)
    }

    fn is_asked(&self, store: StoreId) -> bool {
        self.asked.iter().any(|(to, ..)| *to == store)
    }

    fn answer(&mut self, store: StoreId, reply: Reply) -> Request {
        let (call, request) = self.asked(store);
        self.event(Event::Reply { call, reply });
        request
    }

    /// The placement service does what it is asked.
    fn commit(&mut self) -> Change {
        let (call, expected, change) = self.swaps.pop_front().expect("a swap is asked for");
        let outcome = if expected != self.record.revision {
            SwapOutcome::Conflict(Box::new(self.record.clone()))
        } else {
            match self.record.apply(G, &change) {
                Ok(next) => {
                    self.record = next;
                    SwapOutcome::Done(Box::new(self.record.clone()))
                }
                Err(why) => SwapOutcome::Refused(why),
            }
        };
        self.event(Event::Swapped { call, outcome });
        change
    }

    fn seal(&mut self, store: StoreId, incarnation: u64, from: u64, lost: bool) {
        let replicas = if from == 0 {
            vec![]
        } else {
            let extents = self.record.extents();
            vec![ReplicaState {
                extents,
                from: Epoch::from_u64(from),
                lost,
            }]
        };
        let sealed = Sealed {
            incarnation: Incarnation(incarnation),
            starts: Starts(1),
            watermark: Version::ZERO,
            reach: Reach::UNKNOWN,
            replicas,
        };
        let request = self.answer(store, Reply::Sealed(sealed));
        assert!(matches!(request, Request::Seal { .. }), "{request:?}");
    }

    /// Attached, whole, serving in epoch 2.
    fn open(stores: &[StoreId]) -> Script {
        let mut script = Script::new(disk(stores));
        script.start(TakeOver::Own);
        script.commit();
        for store in stores {
            script.seal(*store, 1, 1, false);
        }
        assert!(script.writer.is_serving());
        script
    }

    /// Of a record that was left open, by order; its epoch is ours, and nobody is sealed yet.
    fn taking_over(record: DiskRecord) -> Script {
        let mut script = Script::new(record);
        script.take_over();
        script
    }

    fn take_over(&mut self) {
        self.start(TakeOver::Ordered);
        let (call, record) = (self.inspections.remove(0), self.record.clone());
        self.event(Event::Inspected {
            call,
            record: Some(Box::new(record)),
        });
        self.commit();
    }

    fn start(&mut self, take_over: TakeOver) {
        self.event(Event::Start { take_over });
    }

    fn orders(&mut self, sets: &[(u32, u32, &[StoreId])], fill: FillOrders) {
        let sets = sets.iter().map(|(first, end, stores)| NewSet {
            extents: Extents::new(Extent(*first), Extent(*end)),
            stores: stores.to_vec(),
        });
        let orders = Orders {
            sets: sets.collect(),
            fill,
            ..Orders::default()
        };
        self.event(Event::Orders(orders));
    }

    fn pause_filling(&mut self) {
        let fill = FillOrders {
            paused: true,
            ..FillOrders::default()
        };
        self.orders(&[], fill);
    }

    fn version(request: &Request) -> (u64, u64) {
        match request {
            Request::Write { asker, seq, .. } => (asker.epoch.as_u64(), seq.0),
            other => panic!("not a write: {other:?}"),
        }
    }
}

fn found(version: (u64, u64), byte: u8) -> ReadBlocks {
    let data = Bytes::from(vec![byte; 4096]);
    let version = Version::new(Epoch::from_u64(version.0), Seq(version.1));
    let sum = crate::message::checksum(&data);
    ReadBlocks {
        found: vec![Found::Data { version, sum }],
        data,
    }
}

fn absent() -> Reply {
    Reply::Read(ReadBlocks {
        found: vec![Found::Absent],
        data: Bytes::new(),
    })
}

#[test]
fn a_write_is_done_when_every_member_holds_it() {
    let mut script = Script::open(&[A, B]);
    let id = script.write(0, 4096, 7);
    script.answer(A, Reply::WRITTEN);
    assert_eq!(script.is_done(id), None);
    script.answer(B, Reply::WRITTEN);
    assert_eq!(script.is_done(id), Some(Ok(())));
}

#[test]
fn a_new_disk_is_joined_before_it_is_served() {
    let mut script = Script::new(disk(&[A, B]));
    script.start(TakeOver::Own);
    script.commit();
    script.seal(A, 1, 0, false);
    script.seal(B, 1, 0, false);
    assert!(!script.writer.is_serving());
    for store in [A, B] {
        let request = script.answer(store, Reply::JOINED);
        assert!(matches!(request, Request::Join { .. }));
    }
    assert!(script.writer.is_serving());
}

#[test]
fn a_tail_lost_after_a_clean_close_was_not_this_disks() {
    let mut script = Script::new(disk(&[A, B]));
    script.start(TakeOver::Own);
    script.commit();
    script.seal(A, 1, 1, true);
    script.seal(B, 1, 1, true);
    for store in [A, B] {
        let request = script.answer(store, Reply::SETTLED);
        assert!(matches!(request, Request::Settle { .. }));
    }
    assert!(script.writer.is_serving());
}

#[test]
fn what_waits_for_the_disk_is_given_back_with_its_front_end() {
    let mut script = Script::open(&[A]);
    let begun = script.write(0, 4096, 1);
    script.event(Event::GiveBack);
    assert_eq!(script.is_done(begun), None, "it is under way");
    assert!(script.writer.has_begun());
    script.answer(A, Reply::WRITTEN);
    assert!(!script.writer.has_begun());

    let mut script = Script::new(disk(&[A]));
    let (write, flush) = (script.write(0, 4096, 2), script.guest(GuestOp::Flush));
    assert!(!script.writer.has_begun());
    let room = script.writer.room();
    script.event(Event::GiveBack);
    for id in [write, flush] {
        assert_eq!(script.is_done(id), Some(Err(Failure::Stopped)));
    }
    assert_eq!(script.writer.room(), room + 4096);
    script.start(TakeOver::Own);
    script.commit();
    script.seal(A, 1, 1, false);
    assert!(script.writer.is_serving());
    assert!(!script.is_asked(A), "nothing of it is done later");
}

#[test]
fn a_member_of_a_used_disk_without_its_replica_has_lost_it_and_does_not_join_anew() {
    let mut record = used(&[A, B]);
    record.revision = Revision(7);
    let mut script = Script::new(record);
    script.start(TakeOver::Own);
    script.commit();
    script.seal(A, 1, 1, false);
    script.seal(B, 1, 0, false);
    let change = script.commit();
    assert!(matches!(change, Change::Eject { stores, .. } if stores == [B]));
}

#[test]
fn overlapping_writes_take_turns() {
    let mut script = Script::open(&[A]);
    let first = script.write(0, 8192, 1);
    let second = script.write(4096, 4096, 2);
    let (call, _) = script.asked(A);
    assert!(!script.is_asked(A), "W2: the second waits");
    script.event(Event::Reply {
        call,
        reply: Reply::WRITTEN,
    });
    assert!(script.is_done(first).is_some());
    let request = script.answer(A, Reply::WRITTEN);
    assert_eq!(Script::version(&request), (2, 2));
    assert!(script.is_done(second).is_some());
}

#[test]
fn a_read_waits_for_the_write_before_it() {
    let mut script = Script::open(&[A]);
    script.write(0, 4096, 1);
    let read = script.read(0, 4096);
    let (call, _) = script.asked(A);
    assert!(!script.is_asked(A));
    script.event(Event::Reply {
        call,
        reply: Reply::WRITTEN,
    });
    script.answer(
        A,
        Reply::Read(ReadBlocks {
            data: Bytes::new(),
            ..found((2, 1), 1)
        }),
    );
    assert_eq!(script.is_done(read), Some(Ok(())));
}

#[test]
fn a_partial_write_is_merged_into_what_is_below() {
    let mut script = Script::open(&[A]);
    let id = script.write(512, 512, 9);
    script.answer(A, Reply::Read(found((1, 5), 3)));
    let request = script.answer(A, Reply::WRITTEN);
    let Request::Write {
        content: Content::Data(payload),
        ..
    } = request
    else {
        panic!("a write of data: {request:?}");
    };
    assert_eq!(payload.data[0], 3);
    assert_eq!(payload.data[512..1024], [9; 512]);
    assert_eq!(payload.data[1024], 3);
    assert!(script.is_done(id).is_some());
}

#[test]
fn a_member_that_missed_a_write_is_out_before_the_write_is_acknowledged() {
    let mut script = Script::open(&[A, B]);
    let id = script.write(0, 4096, 7);
    script.answer(A, Reply::WRITTEN);
    let now = Incarnation(2);
    script.answer(B, Reply::Refused(Refusal::OtherIncarnation { now }));
    assert_eq!(script.is_done(id), None);
    let change = script.commit();
    assert!(matches!(change, Change::Eject { stores, .. } if stores == [B]));
    // W7: what A said in the old epoch does not count.
    assert_eq!(script.is_done(id), None);
    script.seal(A, 1, 1, false);
    let request = script.answer(A, Reply::WRITTEN);
    assert_eq!(Script::version(&request), (3, 1));
    assert_eq!(script.is_done(id), Some(Ok(())));
}

#[test]
fn a_lost_answer_of_an_ejection_is_found_out_by_asking_again() {
    let mut script = Script::open(&[A, B]);
    let id = script.write(0, 4096, 7);
    script.answer(A, Reply::WRITTEN);
    script.answer(B, Reply::Refused(Refusal::Failed));
    let (call, _, change) = script.swaps.pop_front().unwrap();
    script.record = script.record.apply(G, &change).unwrap();
    script.event(Event::Swapped {
        call,
        outcome: SwapOutcome::Unknown,
    });
    assert_eq!(script.writer.stall(), Some(&Stall::PlacementAway));
    script.wait(1);
    script.commit();
    assert_eq!(script.writer.stall(), None);
    script.seal(A, 1, 1, false);
    script.answer(A, Reply::WRITTEN);
    assert_eq!(script.is_done(id), Some(Ok(())));
}

#[test]
fn the_last_member_is_waited_for() {
    let mut script = Script::open(&[A, B]);
    let id = script.write(0, 4096, 7);
    script.wait(60);
    assert_eq!(script.writer.stall(), Some(&Stall::LastMembers(vec![A, B])));
    assert!(script.swaps.is_empty());
    script.answer(A, Reply::WRITTEN);
    // B alone is missing now, and can go when it has had its time: it was as slow as A so far.
    assert!(script.swaps.is_empty());
    script.wait(3);
    script.commit();
    script.seal(A, 1, 1, false);
    script.asked.retain(|(to, ..)| *to == A);
    script.answer(A, Reply::WRITTEN);
    assert_eq!(script.is_done(id), Some(Ok(())));
}

#[test]
fn a_flush_waits_for_the_members_that_it_asked_and_for_none_of_another_incarnation() {
    let mut script = Script::open(&[A, B]);
    let flush = script.guest(GuestOp::Flush);
    script.answer(A, Reply::Synced);
    assert_eq!(script.is_done(flush), None);
    let now = Incarnation(2);
    script.answer(B, Reply::Refused(Refusal::OtherIncarnation { now }));
    script.commit();
    script.seal(A, 1, 1, false);
    assert_eq!(script.is_done(flush), None);
    script.answer(A, Reply::Synced);
    assert_eq!(script.is_done(flush), Some(Ok(())));
}

#[test]
fn a_later_epoch_at_a_store_ends_everything() {
    let mut script = Script::open(&[A, B]);
    let id = script.write(0, 4096, 7);
    script.answer(A, Reply::WRITTEN);
    let shown = Epoch::from_u64(9);
    script.answer(B, Reply::Refused(Refusal::Superseded { shown }));
    assert_eq!(script.is_done(id), Some(Err(Failure::Superseded)));
    let late = script.read(0, 4096);
    assert_eq!(script.is_done(late), Some(Err(Failure::Superseded)));
}

#[test]
fn who_lost_the_attach_does_not_take_over() {
    let mut script = Script::new(disk(&[A]));
    script.start(TakeOver::Ordered);
    let winner = Change::Attach {
        owner: owner(2),
        sets: vec![],
    };
    script.record = script.record.apply(G, &winner).unwrap();
    script.commit();
    assert!(script.swaps.is_empty(), "A1");
    assert!(matches!(
        script.other.last(),
        Some(Effect::NotStarted { .. })
    ));
}

#[test]
fn an_absent_block_is_asked_of_the_older_entry_below_the_newer_one() {
    let mut record = used(&[B]);
    let set = NewSet {
        extents: record.extents(),
        stores: vec![A],
    };
    let attach = Change::Attach {
        owner: owner(2),
        sets: vec![set],
    };
    record = record.apply(G, &attach).unwrap();
    let close = Change::Close {
        by: (owner(2).backend, owner(2).life),
        last: Version::ZERO,
        successor: None,
    };
    let mut script = Script::new(record.apply(G, &close).unwrap());
    script.pause_filling();
    script.start(TakeOver::Own);
    script.commit();
    script.seal(A, 1, 2, false);
    let id = script.read(0, 4096);
    script.answer(A, absent());
    script.seal(B, 1, 1, false);
    // F3: by way of the near store, which is full.
    let (free, needed) = (0, 1);
    let request = script.answer(A, Reply::Refused(Refusal::Full { free, needed }));
    let bounds = (Epoch::from_u64(1), Epoch::from_u64(2));
    assert!(matches!(request, Request::Pull { from, below, .. } if (from, below) == bounds));
    let request = script.answer(B, absent());
    assert!(matches!(request, Request::Read { from, below, .. } if (from, below) == bounds));
    assert_eq!(script.is_done(id), Some(Ok(())));
    assert!(matches!(script.other.last(), Some(Effect::Zero { span, .. }) if span.len == 4096));
}

#[test]
fn a_damaged_block_is_asked_of_another_member() {
    let mut script = Script::open(&[A, B]);
    let id = script.read(0, 3 * 4096);
    let block = Block(1);
    script.answer(A, Reply::Refused(Refusal::Damaged { block }));
    let blocks = |request: Request| match request {
        Request::Read { blocks, .. } => blocks,
        other => panic!("a read: {other:?}"),
    };
    assert_eq!(blocks(script.answer(A, absent())), Blocks::new(Block(0), 1));
    assert_eq!(blocks(script.answer(A, absent())), Blocks::new(Block(2), 1));
    assert_eq!(
        blocks(script.answer(B, Reply::Refused(Refusal::Damaged { block }))),
        Blocks::new(block, 1)
    );
    // Neither can give it to the other.
    for (store, other) in [(A, B), (B, A)] {
        assert_eq!(script.is_done(id), None);
        let useless = Refusal::Source(SourceFault::Useless);
        let request = script.answer(store, Reply::Refused(useless));
        assert!(matches!(request, Request::Heal { source, .. } if source.store == other));
    }
    assert_eq!(script.is_done(id), Some(Err(Failure::Unreadable)));
}

/// A record that writer 2 left open in epoch 2.
fn left_open(stores: &[StoreId]) -> DiskRecord {
    let attach = Change::Attach {
        owner: owner(2),
        sets: vec![],
    };
    disk(stores).apply(G, &attach).unwrap()
}

fn listed(version: (u64, u64)) -> Reply {
    let version = Version::new(Epoch::from_u64(version.0), Seq(version.1));
    let blocks = vec![ListedBlock {
        block: Block(3),
        version,
        zeroes: false,
    }];
    Reply::Listed {
        blocks,
        more: false,
    }
}

#[test]
fn a_take_over_rewrites_what_differs_with_the_newest_content_before_it_serves() {
    let mut script = Script::taking_over(left_open(&[A, B]));
    script.seal(A, 1, 1, false);
    script.seal(B, 1, 1, false);
    script.answer(A, listed((2, 1)));
    script.answer(B, listed((2, 2)));
    script.answer(B, Reply::Read(found((2, 2), 5)));
    for store in [A, B] {
        let request = script.answer(store, Reply::WRITTEN);
        assert_eq!(Script::version(&request), (3, 1));
    }
    for store in [A, B] {
        script.answer(store, Reply::Synced);
    }
    assert!(!script.writer.is_serving());
    let change = script.commit();
    assert!(matches!(change, Change::Settle { drop, .. } if drop.is_empty()));
    assert!(script.writer.is_serving());
    assert_eq!(script.record.even_below, Epoch::from_u64(3));
}

#[test]
fn a_list_of_blocks_that_the_disk_does_not_have_begins_a_take_over_anew() {
    for (block, more) in [(4 * 256, false), (u64::MAX, true)] {
        let mut script = Script::taking_over(left_open(&[A, B]));
        script.seal(A, 1, 1, false);
        script.seal(B, 1, 1, false);
        let blocks = vec![ListedBlock {
            block: Block(block),
            version: Version::new(Epoch::from_u64(2), Seq(1)),
            zeroes: false,
        }];
        script.answer(A, Reply::Listed { blocks, more });
        script.asked.clear();
        script.wait(1);
        assert!(matches!(script.commit(), Change::TakeOver { .. }));
        assert_eq!(script.writer.record().epoch, Epoch::from_u64(4));
    }
}

#[test]
fn a_take_over_drops_who_lost_its_tail_but_waits_for_all_when_all_did() {
    let start = |lost_b| {
        let mut script = Script::taking_over(left_open(&[A, B]));
        script.seal(A, 1, 1, true);
        if let Some(lost) = lost_b {
            script.seal(B, 1, 1, lost);
        }
        script
    };
    let mut one = start(Some(false));
    one.answer(B, Reply::Synced);
    let change = one.commit();
    assert!(matches!(change, Change::Settle { drop, .. } if drop == [A]));
    assert!(one.writer.is_serving());

    let mut waiting = start(None);
    waiting.wait(60);
    assert_eq!(waiting.writer.stall(), Some(&Stall::SettleWaits(vec![B])));
    let mut both = start(Some(true));
    for store in [A, B] {
        both.answer(
            store,
            Reply::Listed {
                blocks: vec![],
                more: false,
            },
        );
    }
    for store in [A, B] {
        both.answer(store, Reply::Synced);
    }
    both.commit();
    for store in [A, B] {
        assert!(matches!(
            both.answer(store, Reply::SETTLED),
            Request::Settle { .. }
        ));
    }
    assert!(both.writer.is_serving());
}

/// A has a replica with a lost tail, B has none. `record` was left open.
fn taken_over_beside_none(record: DiskRecord) -> Script {
    let mut script = Script::taking_over(record);
    script.seal(A, 1, 1, true);
    script.seal(B, 1, 0, false);
    script
}

#[test]
fn a_member_that_has_nothing_any_more_does_not_speak_for_the_others() {
    let attach = Change::Attach {
        owner: owner(2),
        sets: vec![],
    };
    let close = Change::Close {
        by: (owner(2).backend, owner(2).life),
        last: Version::new(Epoch::from_u64(2), Seq(1)),
        successor: None,
    };
    let closed = left_open(&[A, B]).apply(G, &close).unwrap();
    let again = closed.apply(G, &attach).unwrap();
    let mut script = taken_over_beside_none(again);
    script.answer(A, Reply::Synced);
    let change = script.commit();
    assert!(matches!(change, Change::Settle { drop, .. } if drop == [B]));
    script.answer(A, Reply::SETTLED);
    assert!(script.writer.is_serving());
}

#[test]
fn a_member_that_has_not_joined_yet_gets_what_another_has() {
    let mut script = taken_over_beside_none(left_open(&[A, B]));
    assert!(matches!(
        script.answer(B, Reply::JOINED),
        Request::Join { .. }
    ));
    script.answer(A, listed((2, 1)));
    script.answer(
        B,
        Reply::Listed {
            blocks: vec![],
            more: false,
        },
    );
    script.answer(A, Reply::Read(found((2, 1), 5)));
    for store in [A, B] {
        let request = script.answer(store, Reply::WRITTEN);
        assert_eq!(Script::version(&request), (3, 1));
    }
}

#[test]
fn a_stop_drains_syncs_and_closes() {
    let mut script = Script::open(&[A, B]);
    let id = script.write(0, 4096, 7);
    let successor = Some(owner(2).backend);
    script.event(Event::Stop { successor });
    script.answer(A, Reply::WRITTEN);
    script.answer(B, Reply::WRITTEN);
    assert!(script.is_done(id).is_some());
    script.answer(A, Reply::Synced);
    assert!(script.swaps.is_empty());
    script.answer(B, Reply::Synced);
    script.commit();
    assert_eq!(script.other.last(), Some(&Effect::Stopped { clean: true }));
    assert!(matches!(script.record.state, State::Closed { last, .. } if last.seq == Seq(1)));
}

#[test]
fn an_older_record_than_ours_is_no_answer() {
    let mut script = Script::open(&[A, B]);
    let older = DiskRecord {
        epoch: Epoch::first(G),
        revision: Revision(0),
        even_below: Epoch::first(G),
        ..disk(&[A, B])
    };
    let id = script.write(0, 4096, 7);
    script.answer(A, Reply::WRITTEN);
    script.answer(B, Reply::Refused(Refusal::Failed));
    let (call, ..) = script.swaps[0].clone();
    script.event(Event::Swapped {
        call,
        outcome: SwapOutcome::Conflict(Box::new(older)),
    });
    script.swaps.pop_front();
    assert_eq!(script.writer.stall(), Some(&Stall::PlacementAway));
    assert!(
        !script
            .other
            .iter()
            .any(|e| matches!(e, Effect::Superseded { .. }))
    );
    // The catalog is what it was again.
    script.wait(1);
    script.commit();
    script.seal(A, 1, 1, false);
    script.answer(A, Reply::WRITTEN);
    assert_eq!(script.is_done(id), Some(Ok(())));
}

#[test]
fn who_was_to_join_in_an_epoch_that_never_opened_joins_in_the_next() {
    let mut script = Script::new(disk(&[A, B]));
    script.start(TakeOver::Own);
    script.commit();
    script.wait(3);
    script.seal(A, 1, 0, false);
    // B does not answer; the join of A is on its way.
    script.wait(3);
    let change = script.commit();
    assert!(matches!(change, Change::Eject { .. }), "{change:?}");
    script.asked(A);
    script.seal(A, 1, 0, false);
    let request = script.answer(A, Reply::JOINED);
    assert!(matches!(request, Request::Join { .. }), "{request:?}");
    assert!(script.writer.is_serving());
}

#[test]
fn a_stop_does_not_race_an_ejection_of_its_own() {
    let mut script = Script::open(&[A, B]);
    script.event(Event::Stop { successor: None });
    script.answer(A, Reply::Synced);
    // B is late: it is to be ejected, and answers while that is asked for.
    script.wait(6);
    assert!(matches!(script.swaps[0].2, Change::Eject { .. }));
    script.answer(B, Reply::Synced);
    assert_eq!(script.swaps.len(), 1, "the close waits for the ejection");
    script.commit();
    script.seal(A, 1, 1, false);
    script.answer(A, Reply::Synced);
    let change = script.commit();
    assert!(matches!(change, Change::Close { .. }), "{change:?}");
    assert_eq!(script.other.last(), Some(&Effect::Stopped { clean: true }));
}

#[test]
fn a_stop_without_the_placement_service_ends_and_leaves_the_epoch_open() {
    let mut script = Script::open(&[A]);
    script.event(Event::Stop { successor: None });
    script.answer(A, Reply::Synced);
    for _ in 0..100 {
        if let Some((call, ..)) = script.swaps.pop_front() {
            script.event(Event::Swapped {
                call,
                outcome: SwapOutcome::Unknown,
            });
        }
        script.wait(1);
    }
    assert!(script.other.contains(&Effect::Stopped { clean: false }));
    // Our own epoch is still open: the next start takes it over and settles it.
    script.start(TakeOver::Own);
    let (call, record) = (script.inspections.remove(0), script.record.clone());
    script.event(Event::Inspected {
        call,
        record: Some(Box::new(record)),
    });
    assert!(matches!(script.commit(), Change::TakeOver { .. }));
}

#[test]
fn what_waited_before_a_stop_that_is_not_clean_ends_with_it() {
    let mut script = Script::new(used(&[A]));
    script.start(TakeOver::Own);
    let before = script.write(0, 4096, 1);
    script.event(Event::Stop { successor: None });
    let after = script.write(4096, 4096, 2);
    script.wait(100);
    assert!(script.other.contains(&Effect::Stopped { clean: false }));
    assert_eq!(script.is_done(before), Some(Err(Failure::Stopped)));
    assert_eq!(script.is_done(after), None, "it is the next start's");
}

#[test]
fn a_read_that_may_still_land_is_withdrawn_before_the_request_ends() {
    let mut script = Script::open(&[A, B]);
    let read = script.read(0, 4096);
    let (call, _) = script.asked(A);
    script.write(8192, 4096, 1);
    let shown = Epoch::from_u64(9);
    script.answer(B, Reply::Refused(Refusal::Superseded { shown }));
    assert!(script.other.contains(&Effect::Withdraw { call }));
    assert_eq!(script.is_done(read), None);
    script.event(Event::Withdrawn { call });
    assert_eq!(script.is_done(read), Some(Err(Failure::Superseded)));
}

#[test]
fn what_was_not_answered_is_sent_again_in_the_next_session() {
    let mut script = Script::open(&[A, B]);
    let id = script.write(0, 4096, 7);
    script.answer(A, Reply::WRITTEN);
    let (late, _) = script.asked(B);
    script.event(Event::Disconnected { store: B });
    script.event(Event::Reply {
        call: late,
        reply: Reply::WRITTEN,
    });
    assert_eq!(
        script.is_done(id),
        None,
        "an answer of the old session is void"
    );
    script.event(Event::Connected { store: B });
    script.answer(B, Reply::WRITTEN);
    assert_eq!(script.is_done(id), Some(Ok(())));
}

#[test]
fn a_write_across_extents_is_one_request_and_several_versions() {
    let mut record = used(&[A]);
    let set = NewSet {
        extents: Extents::new(Extent(1), Extent(2)),
        stores: vec![C],
    };
    record = record
        .apply(
            G,
            &Change::Attach {
                owner: owner(2),
                sets: vec![set],
            },
        )
        .unwrap();
    let close = Change::Close {
        by: (owner(2).backend, owner(2).life),
        last: Version::ZERO,
        successor: None,
    };
    let mut script = Script::new(record.apply(G, &close).unwrap());
    script.pause_filling();
    script.start(TakeOver::Own);
    script.commit();
    script.seal(A, 1, 1, false);
    script.seal(C, 1, 2, false);
    let id = script.write(EXTENT - 4096, 8192, 1);
    script.answer(A, Reply::WRITTEN);
    assert_eq!(script.is_done(id), None);
    let request = script.answer(C, Reply::WRITTEN);
    assert_eq!(Script::version(&request), (2 + 1, 2));
    assert_eq!(script.is_done(id), Some(Ok(())));
}
