//! The fuzzer's entry: bytes become a guest's memory, its ring included, and the device runs on them.
//!
//! What must hold whatever the bytes are: no panic, no endless loop, no more held than the ring has
//! descriptors, and when nothing is in flight the ring is quiet.

use super::Options;
use super::blk::{Blk, Outcome, Wait};
use super::features::{self, Features};
use super::memory::Memory;
use super::message::{Message, ToRing};
use super::ring::Addresses;
use crate::disk::{Disk, MemDisk};
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use vm_memory::{Bytes, GuestAddress};

/// How much of the input is guest memory.
pub const MEMORY_BYTES: usize = 64 << 10;
const DISK_BYTES: u64 = 1 << 20;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;

/// Runs the device on a guest whose memory is `bytes` from address 0 on: descriptor table at 0,
/// available ring at 0x1000, used ring at 0x2000, and 64 KiB of memory in all. The first byte behind
/// that, or none, picks the ring's size and features.
pub fn fuzz_chain(bytes: &[u8]) {
    let (image, rest) = bytes.split_at(bytes.len().min(MEMORY_BYTES));
    let choice = rest.first().copied().unwrap_or(4);
    let size = 1u16 << (choice & 7);
    let memory = Memory::anonymous(MEMORY_BYTES);
    memory
        .guest()
        .write_slice(image, GuestAddress(0))
        .expect("the image fits");
    // The used ring begins empty: what the device finds there is its own business only.
    memory
        .guest()
        .write_slice(&[0; 4], GuestAddress(USED))
        .expect("the ring fits");

    let mut disk = MemDisk::new("fuzz", DISK_BYTES);
    let options = Options::new("unused");
    let mut blk = Blk::new(&options, &disk);
    blk.replace_memory(memory);
    let mut features = features::offered(false, false).0 & !Features::LOG_ALL.0;
    if choice & 0x80 != 0 {
        features &= !Features::EVENT_IDX.0;
    }
    let addresses = Addresses {
        descriptors: DESCRIPTORS,
        available: AVAILABLE,
        used: USED,
        log: None,
    };
    let messages = [
        Message::SetFeatures(Features(features)),
        Message::Ring(0, ToRing::Size(size)),
        Message::Ring(0, ToRing::Addresses(addresses)),
        Message::Ring(0, ToRing::Base(0)),
        Message::Ring(0, ToRing::Kick(None)),
        Message::Ring(0, ToRing::Enable(true)),
    ];
    for message in messages {
        match blk.apply(message, &mut disk) {
            Outcome::Done(Ok(_)) => {}
            other => panic!("a ring of {size} must start: {other:?}"),
        }
    }

    // A guest that answers nothing can offer each head again and again: a few rounds will do.
    for round in 0..4 {
        blk.kicked(0);
        blk.watch(round % 2 == 1);
        let more = blk.turn(&mut disk);
        assert!(
            blk.in_flight() <= usize::from(size),
            "no more than the ring holds"
        );
        while let Some((id, result)) = completed_now(&mut disk) {
            blk.complete(id, result, &mut disk);
        }
        blk.interrupt();
        if !more {
            break;
        }
    }
    assert_eq!(blk.in_flight(), 0);
    assert!(
        blk.is_over(Wait::Stopped(0)),
        "a ring without requests is quiet"
    );
    blk.conclude(Wait::Stopped(0), &mut disk);
    assert!(blk.disk_is_idle());
}

fn completed_now<D: Disk>(
    disk: &mut D,
) -> Option<(crate::disk::RequestId, Result<(), crate::disk::Failure>)> {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(disk.completed()).poll(&mut context) {
        Poll::Ready(ended) => Some(ended),
        Poll::Pending => None,
    }
}
