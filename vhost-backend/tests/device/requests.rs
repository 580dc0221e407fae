//! What a guest can ask for, through every kind of ring.

use crate::{DISK_BYTES, IOERR, OK, UNSUPP, bench, bench_with, pattern};
use replicator::words::Span;
use std::time::{Duration, Instant};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost_backend::device::testing::{Order, Vmm, VmmOptions};
use vhost_backend::disk::{Behaviour, Failure};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

fn every_kind_of_ring(test: impl Fn(&mut Vmm, &crate::Bench)) {
    for order in [Order::Qemu, Order::CloudHypervisor] {
        for event_idx in [false, true] {
            for indirect in [false, true] {
                for pieces in [1, 5] {
                    let bench = bench();
                    let options = VmmOptions {
                        order,
                        event_idx,
                        ..VmmOptions::default()
                    };
                    let mut vmm = Vmm::started(bench.server.socket(), options);
                    vmm.rings[0].indirect = indirect;
                    vmm.rings[0].pieces = pieces;
                    test(&mut vmm, &bench);
                    vmm.stop();
                    assert_eq!(bench.disk.tally().starts, 1);
                    assert_eq!(bench.disk.tally().stops, 1);
                }
            }
        }
    }
}

#[test]
fn writes_reads_flushes_and_the_serial_number() {
    every_kind_of_ring(|vmm, bench| {
        let ring = &mut vmm.rings[0];
        for (sector, len) in [(0, 4096), (8, 65536), (3, 512), (1000, 1536), (16383, 512)] {
            let data = pattern(len, sector as u8);
            let reply = ring.write(sector, &data);
            assert_eq!((reply.status, reply.written), (OK, 1));
            assert_eq!(bench.disk.bytes(Span::new(sector * 512, len as u64)), data);
            let reply = ring.read(sector, len);
            assert_eq!((reply.status, reply.written), (OK, len as u32 + 1));
            assert!(reply.data == data);
        }
        assert_eq!(ring.flush().status, OK);
        assert_eq!(bench.disk.tally().flushes, 1);
        let serial = ring.serial();
        assert_eq!((serial.status, serial.written), (OK, 21));
        assert_eq!(&serial.data[..5], b"web1\0");
    });
}

/// Quick guests are watched instead of kicking, so each pause around the length of a watch may hit the moment in
/// which it ends: a request that is neither seen then nor announced would wait for ever.
#[test]
fn whatever_pauses_a_guest_makes_each_request_is_seen() {
    for event_idx in [false, true] {
        let bench = bench();
        let options = VmmOptions {
            event_idx,
            ..VmmOptions::default()
        };
        let mut vmm = Vmm::started(bench.server.socket(), options);
        let ring = &mut vmm.rings[0];
        for round in 0..6000u64 {
            // A spell of haste, then pauses of 0 to 128 us.
            if round % 3 == 0 {
                let until = Instant::now() + Duration::from_nanos(round * 0x9e37_79b9 % 128_000);
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
            }
            assert_eq!(ring.read(round % 1000, 512).status, OK);
        }
        vmm.stop();
    }
}

#[test]
fn discard_and_write_zeroes() {
    every_kind_of_ring(|vmm, bench| {
        let ring = &mut vmm.rings[0];
        bench.disk.fill(0, &vec![7; 1 << 20]);
        assert_eq!(ring.discard(&[(8, 8, 0)]).status, OK);
        assert_eq!(ring.write_zeroes(&[(100, 1, 0), (200, 3, 1)]).status, OK);
        for (sector, sectors) in [(8, 8), (100, 1), (200, 3)] {
            let zeroed = bench.disk.bytes(Span::new(sector * 512, sectors * 512));
            assert!(zeroed.iter().all(|&byte| byte == 0));
        }
        assert_eq!(bench.disk.tally().zeroes, 3);
        assert_eq!(bench.disk.bytes(Span::new(99 * 512, 512)), [7; 512]);
        assert_eq!(bench.disk.bytes(Span::new(101 * 512, 512)), [7; 512]);
        // Flags that these requests do not have, a segment too large, none, one beyond the end.
        assert_eq!(ring.discard(&[(8, 8, 1)]).status, UNSUPP);
        assert_eq!(ring.write_zeroes(&[(8, 8, 2)]).status, UNSUPP);
        assert_eq!(ring.discard(&[(0, 1 << 30, 0)]).status, IOERR);
        assert_eq!(ring.discard(&[]).status, IOERR);
        assert_eq!(
            ring.discard(&[(8, 8, 0), (DISK_BYTES / 512, 1, 0)]).status,
            IOERR
        );
        assert_eq!(ring.discard(&[(0, 8, 0); 33]).status, IOERR);
        assert_eq!(ring.discard(&[(0, 0, 0)]).status, OK);
        assert_eq!(bench.disk.tally().zeroes, 3);
    });
}

#[test]
fn what_cannot_be_is_refused() {
    every_kind_of_ring(|vmm, bench| {
        let ring = &mut vmm.rings[0];
        let end = DISK_BYTES / 512;
        assert_eq!(ring.read(end, 512).status, IOERR);
        assert_eq!(ring.read(end - 1, 1024).status, IOERR);
        assert_eq!(ring.read(u64::MAX, 512).status, IOERR);
        assert_eq!(ring.read(u64::MAX / 512, 512).status, IOERR);
        assert_eq!(ring.read(0, 513).status, IOERR);
        assert_eq!(ring.write(0, &[1; 100]).status, IOERR);
        assert_eq!(ring.write(end, &[1; 512]).status, IOERR);
        assert_eq!(ring.read(0, 0).status, OK);
        let ticket = ring.begin(77, 0, &[], 0);
        assert_eq!(ring.finish(ticket).status, UNSUPP);
        assert_eq!(bench.disk.tally().reads + bench.disk.tally().writes, 0);
        bench.disk.behave(Behaviour {
            fail: Some(Failure::Unreadable),
            ..Behaviour::default()
        });
        let reply = ring.read(0, 4096);
        assert_eq!((reply.status, reply.written), (IOERR, 1));
        bench.disk.behave(Behaviour::default());
        assert_eq!(ring.read(0, 4096).status, OK);
    });
}

#[test]
fn a_read_only_disk_is_not_written() {
    let bench = bench_with(|options| options.read_only = true);
    let mut vmm = Vmm::started(bench.server.socket(), VmmOptions::default());
    assert_eq!(vmm.features & 1 << 5, 1 << 5);
    assert_eq!(vmm.rings[0].write(0, &[1; 512]).status, IOERR);
    assert_eq!(vmm.rings[0].discard(&[(0, 1, 0)]).status, IOERR);
    assert_eq!(vmm.rings[0].read(0, 512).status, OK);
}

#[test]
fn many_queues_full_of_requests_that_end_out_of_order() {
    for event_idx in [false, true] {
        let bench = bench();
        let options = VmmOptions {
            queues: 4,
            queue_size: 64,
            event_idx,
            ..VmmOptions::default()
        };
        let mut vmm = Vmm::started(bench.server.socket(), options);
        bench.disk.behave(Behaviour {
            latency: Duration::from_micros(200),
            newest_first: true,
            ..Behaviour::default()
        });
        for round in 0..10u64 {
            let mut open = Vec::new();
            for (index, ring) in vmm.rings.iter_mut().enumerate() {
                ring.indirect = true;
                for n in 0..60 {
                    let sector = ((index as u64 * 60) + n) * 8;
                    let data = pattern(4096, (round + sector) as u8);
                    let ticket = ring.begin(VIRTIO_BLK_T_OUT, sector, &data, 0);
                    open.push((index, sector, ticket, data));
                }
            }
            for ring in &mut vmm.rings {
                for _ in 0..60 {
                    ring.wait();
                }
            }
            for (index, sector, ticket, data) in open {
                assert_eq!(vmm.rings[index].reply(ticket, 1).status, OK);
                assert!(bench.disk.bytes(Span::new(sector * 512, 4096)) == data);
            }
        }
        assert_eq!(bench.disk.tally().writes, 2400);
    }
}

#[test]
fn a_full_disk_leaves_requests_in_the_ring() {
    let bench = bench();
    bench.disk.behave(Behaviour {
        latency: Duration::from_millis(1),
        room: 10_000,
        ..Behaviour::default()
    });
    let options = VmmOptions {
        queue_size: 64,
        ..VmmOptions::default()
    };
    let mut vmm = Vmm::started(bench.server.socket(), options);
    let ring = &mut vmm.rings[0];
    ring.indirect = true;
    let tickets: Vec<_> = (0..50)
        .map(|n| ring.begin(VIRTIO_BLK_T_OUT, n * 8, &pattern(4096, n as u8), 0))
        .collect();
    // One larger than all the room goes alone.
    let large = ring.begin(VIRTIO_BLK_T_OUT, 4096, &pattern(65536, 1), 0);
    for _ in 0..51 {
        ring.wait();
    }
    for ticket in tickets.into_iter().chain([large]) {
        assert_eq!(ring.reply(ticket, 1).status, OK);
    }
    assert_eq!(bench.disk.tally().writes, 51);
    assert_eq!(bench.disk.tally().most_open, 2);
}

#[test]
fn interrupts_are_saved_where_the_driver_does_not_want_them() {
    let bench = bench();
    let mut vmm = Vmm::started(bench.server.socket(), VmmOptions::default());
    // Answers of one batch share an interrupt: hold them all back, then let them go.
    bench.disk.behave(Behaviour {
        hold: true,
        ..Behaviour::default()
    });
    let ring = &mut vmm.rings[0];
    ring.indirect = true;
    ring.poll();
    let _ = ring.call.read();
    for n in 0..16 {
        ring.begin(VIRTIO_BLK_T_IN, n, &[], 512);
    }
    vhost_backend::device::testing::eventually("all are taken", || bench.disk.tally().open == 16);
    bench.disk.behave(Behaviour::default());
    ring.until_answered(16);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(ring.call.read().unwrap(), 1);
}

#[test]
fn without_a_write_cache_a_write_is_durable_when_it_is_answered() {
    // A driver that does not know of flushes relies on each write.
    let bench = bench();
    let options = VmmOptions {
        without_features: 1 << VIRTIO_BLK_F_FLUSH,
        ..VmmOptions::default()
    };
    let mut vmm = Vmm::started(bench.server.socket(), options);
    assert_eq!(vmm.rings[0].write(0, &[1; 512]).status, OK);
    assert_eq!(bench.disk.tally().flushes, 1);
    drop(vmm);

    // So does one that has switched the cache off.
    let bench = crate::bench_with(|options| options.config_wce = true);
    let mut vmm = Vmm::started(bench.server.socket(), VmmOptions::default());
    assert_ne!(vmm.features & 1 << VIRTIO_BLK_F_CONFIG_WCE, 0);
    assert_eq!(vmm.rings[0].write(0, &[1; 512]).status, OK);
    assert_eq!(bench.disk.tally().flushes, 0);
    for (wce, flushes) in [(0u8, 2), (1, 2)] {
        vmm.frontend()
            .set_config(32, VhostUserConfigFlags::WRITABLE, &[wce])
            .unwrap();
        let (_, read) = vmm
            .frontend()
            .get_config(32, 1, VhostUserConfigFlags::WRITABLE, &[0])
            .unwrap();
        assert_eq!(read, [wce]);
        assert_eq!(vmm.rings[0].write(0, &[1; 512]).status, OK);
        assert_eq!(vmm.rings[0].discard(&[(0, 1, 0)]).status, OK);
        assert_eq!(bench.disk.tally().flushes, flushes);
    }
}
