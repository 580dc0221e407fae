//! Killed in the middle: no request is lost, none is answered twice.

use crate::{Bench, OK, bench, pattern};
use replicator::words::Span;
use std::time::Duration;
use vhost_backend::device::testing::{Order, Server, Vmm, VmmOptions, eventually};
use vhost_backend::disk::Behaviour;
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_T_OUT;

fn restarted(bench: Bench) -> Bench {
    let Bench {
        disk,
        server,
        options,
        _dir,
    } = bench;
    server.kill();
    disk.crash();
    Bench {
        server: Server::start(disk.clone(), options.clone()),
        disk,
        options,
        _dir,
    }
}

#[test]
fn a_killed_backend_leaves_its_requests_to_the_next() {
    for order in [Order::Qemu, Order::CloudHypervisor] {
        let mut bench = bench();
        let options = VmmOptions {
            order,
            queues: 2,
            queue_size: 32,
            ..VmmOptions::default()
        };
        let mut vmm = Vmm::started(bench.server.socket(), options);
        for round in 0..12u64 {
            bench.disk.behave(Behaviour {
                latency: Duration::from_micros(500 * (round % 4)),
                newest_first: true,
                ..Behaviour::default()
            });
            let mut open = Vec::new();
            for ring in &mut vmm.rings {
                ring.indirect = true;
                for n in 0..30u64 {
                    let sector = (u64::from(ring.index) * 30 + n) * 8;
                    let data = pattern(4096, (round * 7 + sector) as u8);
                    let ticket = ring.begin(VIRTIO_BLK_T_OUT, sector, &data, 0);
                    open.push((ring.index, sector, ticket, data));
                }
            }
            // Some have been answered, some are with the disk, some still in the ring.
            std::thread::sleep(Duration::from_micros(200 * round));
            bench = restarted(bench);
            vmm.connect(bench.server.socket());
            vmm.start();
            for ring in &mut vmm.rings {
                for _ in 0..30 {
                    // Panics where a head is answered that is not open: twice, that is.
                    ring.wait();
                }
                assert_eq!(ring.open_requests(), 0);
                // And the ring goes on from where it is.
                assert_eq!(ring.read(0, 512).status, OK);
            }
            assert_eq!(bench.server.status().rings_broken, 0);
            for (ring, sector, ticket, data) in open {
                assert_eq!(vmm.rings[usize::from(ring)].reply(ticket, 1).status, OK);
                assert!(bench.disk.bytes(Span::new(sector * 512, 4096)) == data);
            }
        }
        vmm.stop();
    }
}

#[test]
fn requests_are_submitted_again_in_the_order_in_which_they_were_taken() {
    let bench = bench();
    let mut vmm = Vmm::started(bench.server.socket(), VmmOptions::default());
    vmm.rings[0].indirect = true;
    bench.disk.behave(Behaviour {
        hold: true,
        ..Behaviour::default()
    });
    // All to one place: the last one must win, though its head is the lowest.
    for n in 0..10 {
        vmm.rings[0].begin(VIRTIO_BLK_T_OUT, 0, &pattern(4096, n), 0);
    }
    eventually("all are taken", || bench.disk.tally().open == 10);
    let bench = restarted(bench);
    bench.disk.behave(Behaviour::default());
    vmm.connect(bench.server.socket());
    vmm.start();
    for _ in 0..10 {
        vmm.rings[0].wait();
    }
    assert!(bench.disk.bytes(Span::new(0, 4096)) == pattern(4096, 9));
    assert_eq!(bench.disk.tally().writes, 10);
}

#[test]
fn a_front_end_that_reconnects_to_a_living_backend_loses_nothing() {
    let bench = bench();
    let mut vmm = Vmm::started(bench.server.socket(), VmmOptions::default());
    vmm.rings[0].indirect = true;
    for round in 0..8 {
        bench.disk.behave(Behaviour {
            latency: Duration::from_millis(3),
            newest_first: true,
            ..Behaviour::default()
        });
        let mut open = Vec::new();
        for n in 0..16u64 {
            let data = pattern(4096, (round * 3 + n) as u8);
            open.push((
                n,
                vmm.rings[0].begin(VIRTIO_BLK_T_OUT, n * 8, &data, 0),
                data,
            ));
        }
        std::thread::sleep(Duration::from_millis(round / 2));
        vmm.disconnect();
        vmm.connect(bench.server.socket());
        vmm.start();
        for _ in 0..16 {
            vmm.rings[0].wait();
        }
        for (n, ticket, data) in open {
            assert_eq!(vmm.rings[0].reply(ticket, 1).status, OK);
            assert!(bench.disk.bytes(Span::new(n * 4096, 4096)) == data);
        }
    }
}

/// As where the media of a near store hang in a write: the thread cannot be ended, and comes back when all is over.
#[test]
fn a_device_whose_thread_stands_still_leaves_its_requests_to_the_next() {
    let bench = bench();
    let mut vmm = Vmm::started(bench.server.socket(), VmmOptions::default());
    vmm.rings[0].indirect = true;
    bench.disk.behave(Behaviour {
        hold: true,
        ..Behaviour::default()
    });
    let mut open = Vec::new();
    for n in 0..10u64 {
        let data = pattern(4096, n as u8);
        let ticket = vmm.rings[0].begin(VIRTIO_BLK_T_OUT, n * 8, &data, 0);
        open.push((n, ticket, data));
    }
    eventually("all are taken", || bench.disk.tally().open == 10);
    let (let_go, held) = std::sync::mpsc::channel();
    bench.disk.hang(held);
    let data = pattern(4096, 10);
    open.push((10, vmm.rings[0].begin(VIRTIO_BLK_T_OUT, 80, &data, 0), data));
    bench.server.give_up();
    bench.disk.crash();
    bench.disk.behave(Behaviour::default());
    let next = Server::start(bench.disk.clone(), bench.options.clone());
    vmm.connect(next.socket());
    vmm.start();
    for _ in 0..11 {
        vmm.rings[0].wait();
    }
    for (n, ticket, data) in open {
        assert_eq!(vmm.rings[0].reply(ticket, 1).status, OK);
        assert!(bench.disk.bytes(Span::new(n * 4096, 4096)) == data);
    }
    let used = vmm.rings[0].used_idx();
    let written = bench.disk.tally().writes;
    let_go.send(()).unwrap();
    let Bench {
        server, disk, _dir, ..
    } = bench;
    // Ends its threads, now that they can.
    drop(server);
    assert_eq!(vmm.rings[0].used_idx(), used, "it has answered nothing");
    assert_eq!(disk.tally().writes, written, "nor submitted anything");
    assert_eq!(next.status().rings_broken, 0);
    assert_eq!(vmm.rings[0].read(0, 512).status, OK);
    assert!(next.socket().exists(), "it has not taken its socket along");
    vmm.stop();
}
