//! A guest that breaks the rules: it hurts itself, and nobody else.

use crate::{IOERR, OK, bench};
use proptest::prelude::*;
use vhost_backend::device::fuzz::{MEMORY_BYTES, fuzz_chain};
use vhost_backend::device::testing::{DriverRing, Vmm, VmmOptions, eventually};
use vhost_backend::disk::Behaviour;
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn two_rings() -> VmmOptions {
    VmmOptions {
        queues: 2,
        ..VmmOptions::default()
    }
}

/// Ring 0 does something evil; its queue, or only its request, is lost, and ring 1 works on.
fn evil(what: &str, breaks_the_ring: bool, deed: impl FnOnce(&mut DriverRing)) {
    let bench = bench();
    let mut vmm = Vmm::started(bench.server.socket(), two_rings());
    deed(&mut vmm.rings[0]);
    if breaks_the_ring {
        eventually(what, || bench.server.status().rings_broken == 1);
        assert!(
            vmm.rings[0].error.read().is_ok(),
            "the front-end hears of it"
        );
    } else {
        vmm.rings[0].wait();
        assert_eq!(vmm.rings[0].read(0, 512).status, OK, "after {what}");
    }
    assert_eq!(vmm.rings[1].read(0, 512).status, OK, "beside {what}");
    // It can still be stopped, and serve again.
    vmm.stop();
    assert_eq!(bench.disk.tally().stops, 1, "{what}");
}

#[test]
fn broken_rings() {
    evil("an available index that jumps", true, |ring| ring.jump(17));
    evil("a head beyond the ring", true, |ring| {
        ring.offer(16);
        ring.publish();
    });
    let bench = bench();
    bench.disk.behave(Behaviour {
        hold: true,
        ..Behaviour::default()
    });
    let mut vmm = Vmm::started(bench.server.socket(), two_rings());
    let ticket = vmm.rings[0].begin(VIRTIO_BLK_T_IN, 0, &[], 512);
    vmm.rings[0].offer(ticket.head);
    vmm.rings[0].publish();
    eventually("the same head twice", || {
        bench.server.status().rings_broken == 1
    });
    bench.disk.behave(Behaviour::default());
    // What was in flight has its answer all the same.
    assert_eq!(vmm.rings[0].finish(ticket).status, OK);
}

#[test]
fn broken_chains() {
    let begin = |ring: &mut DriverRing, change: &dyn Fn(&DriverRing, u64, u16)| {
        let ticket = ring.prepare(VIRTIO_BLK_T_IN, 0, &[], 512);
        change(ring, ring.descriptors(), ticket.head);
        ring.offer(ticket.head);
        ring.publish();
    };
    let slot = |ring: &DriverRing, head| ring.slot(head);
    evil("a circle", false, |ring| {
        begin(ring, &|ring, table, head| {
            ring.descriptor(table, head, slot(ring, head), 16, NEXT, head)
        });
    });
    evil("a next beyond the table", false, |ring| {
        begin(ring, &|ring, table, head| {
            ring.descriptor(table, head, slot(ring, head), 16, NEXT, 999)
        });
    });
    evil("a header that is nowhere", false, |ring| {
        begin(ring, &|ring, table, head| {
            ring.descriptor(table, head, u64::MAX - 8, 16, NEXT, head + 1)
        });
    });
    evil("nothing but a header", false, |ring| {
        begin(ring, &|ring, table, head| {
            ring.descriptor(table, head, slot(ring, head), 16, 0, 0)
        });
    });
    evil("an indirect table with a next", false, |ring| {
        begin(ring, &|ring, table, head| {
            ring.descriptor(table, head, slot(ring, head), 32, INDIRECT | NEXT, 1);
        });
    });
    evil("an indirect table of an odd size", false, |ring| {
        begin(ring, &|ring, table, head| {
            ring.descriptor(table, head, slot(ring, head), 33, INDIRECT, 0)
        });
    });
    evil("an indirect table of 4 GiB", false, |ring| {
        begin(ring, &|ring, table, head| {
            ring.descriptor(table, head, slot(ring, head), u32::MAX - 15, INDIRECT, 0);
        });
    });
    evil("an indirect table that names itself", false, |ring| {
        begin(ring, &|ring, table, head| {
            let at = slot(ring, head);
            ring.descriptor(at, 0, at, 16, INDIRECT, 0);
            ring.descriptor(table, head, at, 16, INDIRECT, 0);
        });
    });
    evil("an indirect table that is nowhere", false, |ring| {
        begin(ring, &|ring, table, head| {
            ring.descriptor(table, head, 1 << 60, 160, INDIRECT, 0)
        });
    });
    evil("an empty indirect table", false, |ring| {
        begin(ring, &|ring, table, head| {
            ring.descriptor(table, head, slot(ring, head), 0, INDIRECT, 0)
        });
    });
}

#[test]
fn requests_whose_parts_are_not_where_they_should_be() {
    let bench = bench();
    let mut vmm = Vmm::started(bench.server.socket(), two_rings());
    let ring = &mut vmm.rings[0];
    // (data address, length, flags) of an IN and an OUT, and what comes of it.
    let end = ring.slot(16) + (16 << 20);
    for (kind, addr, len, flags) in [
        (VIRTIO_BLK_T_IN, end, 512, NEXT | WRITE),
        (VIRTIO_BLK_T_OUT, end, 512, NEXT),
        (VIRTIO_BLK_T_IN, u64::MAX - 100, 512, NEXT | WRITE),
        (VIRTIO_BLK_T_OUT, u64::MAX, 4096, NEXT),
        (VIRTIO_BLK_T_IN, 0, !511, NEXT | WRITE),
        (VIRTIO_BLK_T_OUT, 0, !511, NEXT),
    ] {
        let data = if kind == VIRTIO_BLK_T_IN {
            (&[][..], 512)
        } else {
            (&[1; 512][..], 0)
        };
        let ticket = ring.prepare(kind, 0, data.0, data.1);
        let next = ticket.head + 1;
        ring.descriptor(ring.descriptors(), next, addr, len, flags, next + 1);
        ring.offer(ticket.head);
        ring.publish();
        let (head, written) = ring.wait();
        assert_eq!((head, written), (ticket.head, 1));
        assert_eq!(ring.reply(ticket, written).status, IOERR);
    }
    // A readable piece behind a writable one.
    let ticket = ring.prepare(VIRTIO_BLK_T_IN, 0, &[], 512);
    let table = ring.descriptors();
    ring.descriptor(
        table,
        ticket.head,
        ticket.data,
        16,
        NEXT | WRITE,
        ticket.head + 1,
    );
    ring.descriptor(
        table,
        ticket.head + 1,
        ticket.data,
        16,
        NEXT,
        ticket.head + 2,
    );
    ring.offer(ticket.head);
    ring.publish();
    assert_eq!(ring.finish(ticket).status, IOERR);
    // A status byte nowhere: the answer comes, with nothing written.
    let ticket = ring.prepare(VIRTIO_BLK_T_IN, 0, &[], 512);
    ring.descriptor(table, ticket.head + 2, u64::MAX, 1, WRITE, 0);
    ring.offer(ticket.head);
    ring.publish();
    assert_eq!(ring.wait(), (ticket.head, 0));
    assert_eq!(ring.read(0, 512).status, OK);
}

/// A ring and some memory that look nearly right: what the fuzzer would need long to find.
fn nearly_right() -> impl Strategy<Value = Vec<u8>> {
    let addr = prop_oneof![
        4 => 0x3000u64..0x10000,
        1 => any::<u64>(),
        1 => 0xff00u64..0x10100,
    ];
    let len = prop_oneof![
        Just(16u32),
        Just(1),
        Just(512),
        Just(513),
        Just(4096),
        Just(0),
        Just(32),
        any::<u32>()
    ];
    let descriptor = (
        addr,
        len,
        0u16..8,
        prop_oneof![4 => 0u16..16, 1 => any::<u16>()],
    );
    let header = (
        prop_oneof![8 => 0u32..16, 1 => any::<u32>()],
        prop_oneof![8 => 0u64..3000, 1 => any::<u64>()],
    );
    (
        proptest::collection::vec(descriptor, 128),
        proptest::collection::vec(prop_oneof![8 => 0u16..16, 1 => any::<u16>()], 64),
        prop_oneof![8 => 0u16..20, 1 => any::<u16>()],
        proptest::collection::vec(header, 64),
        any::<u8>(),
    )
        .prop_map(|(descriptors, heads, available, headers, choice)| {
            let mut bytes = vec![0; MEMORY_BYTES + 1];
            for (index, (addr, len, flags, next)) in descriptors.into_iter().enumerate() {
                let at = 16 * index;
                bytes[at..at + 8].copy_from_slice(&addr.to_le_bytes());
                bytes[at + 8..at + 12].copy_from_slice(&len.to_le_bytes());
                bytes[at + 12..at + 14].copy_from_slice(&flags.to_le_bytes());
                bytes[at + 14..at + 16].copy_from_slice(&next.to_le_bytes());
            }
            bytes[0x1002..0x1004].copy_from_slice(&available.to_le_bytes());
            for (index, head) in heads.into_iter().enumerate() {
                let at = 0x1004 + 2 * index;
                bytes[at..at + 2].copy_from_slice(&head.to_le_bytes());
            }
            for at in (0x3000..MEMORY_BYTES).step_by(16) {
                let (kind, sector) = headers[at / 16 % headers.len()];
                bytes[at..at + 4].copy_from_slice(&kind.to_le_bytes());
                bytes[at + 8..at + 16].copy_from_slice(&sector.to_le_bytes());
            }
            bytes[MEMORY_BYTES] = choice;
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn guests_that_are_nearly_right(bytes in nearly_right()) {
        fuzz_chain(&bytes);
    }

    #[test]
    fn guests_that_are_noise(bytes in proptest::collection::vec(any::<u8>(), 0..20_000)) {
        fuzz_chain(&bytes);
    }
}
