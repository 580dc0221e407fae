//! A store whose directory was put back to an older copy of itself, and who finds out (rule S6).

use crate::message::{Asker, Content, Known, Payload, Reach, Refusal, Reply, Request};
use crate::store::media::sim::SimMedia;
use crate::store::{BootId, Handled, Options, Store};
use crate::words::*;
use bytes::Bytes;

const DISK: DiskId = DiskId::from_u128(7);
const E1: Epoch = Epoch::from_u64(1);

/// A start of the store, which is the run of that number.
fn start(media: &SimMedia, run: u64) -> Store<SimMedia> {
    let options = Options {
        run,
        ..Options::tiny()
    };
    Store::open(media.clone(), options, BootId(1)).unwrap().0
}

fn new_store() -> SimMedia {
    let media = SimMedia::new();
    Store::<SimMedia>::format(&media, StoreId::from_u128(1), &Options::tiny()).unwrap();
    media
}

fn ask(store: &mut Store<SimMedia>, request: Request) -> Reply {
    match store.handle(request) {
        Handled::Now(reply) => reply,
        Handled::AfterSync(promise) => {
            let job = store.begin_sync().expect("something waits for it");
            let result = job.run();
            store.finish_sync(job, result);
            store.keep(promise)
        }
        _ => panic!("nothing is read here"),
    }
}

fn seal(store: &mut Store<SimMedia>, known: Known) -> Result<Known, Refusal> {
    let request = Request::Seal {
        disk: DISK,
        epoch: E1,
        grant: Bytes::new(),
        record: Bytes::new(),
        known,
    };
    match ask(store, request) {
        Reply::Sealed(sealed) => Ok(Known {
            incarnation: sealed.incarnation,
            reach: sealed.reach,
        }),
        Reply::Refused(refusal) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

/// Sealed and joined.
fn opened(media: &SimMedia, run: u64) -> (Store<SimMedia>, Asker) {
    let mut store = start(media, run);
    let known = seal(&mut store, Known::default()).unwrap();
    let asker = Asker {
        disk: DISK,
        epoch: E1,
        incarnation: known.incarnation,
    };
    let join = Request::Join {
        asker,
        extents: Extents::new(Extent(0), Extent(1)),
        extent_size: ExtentSize::new(1 << 20).unwrap(),
        from: E1,
    };
    assert!(matches!(ask(&mut store, join), Reply::Joined(_)));
    (store, asker)
}

fn write(store: &mut Store<SimMedia>, asker: Asker, seq: u64) -> Known {
    let request = Request::Write {
        asker,
        seq: Seq(seq),
        watermark: Seq::ZERO,
        blocks: Blocks::new(Block(seq), 1),
        content: Content::Data(Payload::new(vec![seq as u8; 4096].into())),
    };
    match ask(store, request) {
        Reply::Written(reach) => Known {
            incarnation: asker.incarnation,
            reach,
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn after_a_crash_of_its_process_it_still_has_what_it_answered() {
    let media = new_store();
    let (mut store, asker) = opened(&media, 11);
    let known = write(&mut store, asker, 1);
    assert_eq!(known.reach.run, 11);
    for run in 12..20 {
        drop(store);
        media.kill();
        store = start(&media, run);
        assert!(seal(&mut store, known).is_ok(), "run {run}");
    }
    let later = write(&mut store, asker, 2);
    assert!(later.reach.run == 19 && later.reach.at > known.reach.at);
    assert!(seal(&mut store, known).is_ok());
    assert!(seal(&mut store, later).is_ok());
}

#[test]
fn its_runs_survive_a_checkpoint() {
    let media = new_store();
    let (mut store, asker) = opened(&media, 11);
    let known = write(&mut store, asker, 1);
    for run in 12..15 {
        store.start_checkpoint();
        while store.housekeep() {}
        drop(store);
        media.kill();
        store = start(&media, run);
    }
    assert!(seal(&mut store, known).is_ok());
    let beyond = Known {
        reach: Reach {
            at: u64::MAX,
            ..known.reach
        },
        ..known
    };
    assert_eq!(seal(&mut store, beyond), Err(Refusal::Forgot));
}

#[test]
fn put_back_it_says_that_it_has_forgotten_whatever_it_does_afterwards() {
    let media = new_store();
    let (mut store, asker) = opened(&media, 11);
    let before = write(&mut store, asker, 1);
    let copy = media.fork();
    let after = write(&mut store, asker, 2);

    let mut older = start(&copy, 12);
    assert!(seal(&mut older, before).is_ok(), "that much it has");
    assert_eq!(seal(&mut older, after), Err(Refusal::Forgot));
    for seq in 1..20 {
        write(&mut older, asker, seq);
    }
    assert_eq!(seal(&mut older, after), Err(Refusal::Forgot));
    drop(older);
    copy.kill();
    assert_eq!(seal(&mut start(&copy, 13), after), Err(Refusal::Forgot));
}

#[test]
fn what_another_incarnation_said_is_no_measure() {
    let media = new_store();
    let (mut store, asker) = opened(&media, 11);
    let known = write(&mut store, asker, 1);
    drop(store);
    // Its tail is lost, and its replicas say so: that is enough.
    media.crash(|| false);
    let options = Options {
        run: 12,
        ..Options::tiny()
    };
    let (mut store, recovery) = Store::open(media.clone(), options, BootId(2)).unwrap();
    assert!(recovery.lost_tail);
    let now = seal(&mut store, known).unwrap();
    assert!(now.incarnation > known.incarnation);
}
