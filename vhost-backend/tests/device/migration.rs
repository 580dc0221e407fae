//! The dirty log: every byte of guest memory that the device has changed is marked.

use crate::{OK, bench, pattern};
use std::collections::BTreeSet;
use std::time::Duration;
use vhost_backend::device::testing::{GuestRam, Vmm, VmmOptions, eventually};
use vhost_backend::disk::Behaviour;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

const PAGE: u64 = 4096;

/// The other side of a migration: a copy of memory, page by page as pages are found dirty.
struct Destination {
    base: u64,
    memory: Vec<u8>,
}

impl Destination {
    fn begin(ram: &GuestRam) -> Destination {
        ram.take_written();
        Destination {
            base: ram.base,
            memory: ram.read(ram.base, ram.bytes()),
        }
    }

    fn receive(&mut self, ram: &GuestRam, pages: &BTreeSet<u64>) {
        for page in pages.iter().chain(&ram.take_written()) {
            let at = (page * PAGE - self.base) as usize;
            self.memory[at..at + PAGE as usize]
                .copy_from_slice(&ram.read(page * PAGE, PAGE as usize));
        }
    }

    fn differing_pages(&self, ram: &GuestRam) -> Vec<u64> {
        let now = ram.read(ram.base, ram.bytes());
        let pages = now
            .chunks(PAGE as usize)
            .zip(self.memory.chunks(PAGE as usize));
        pages
            .enumerate()
            .filter(|(_, (here, there))| here != there)
            .map(|(page, _)| page as u64 + self.base / PAGE)
            .collect()
    }
}

#[test]
fn what_the_device_changes_is_marked_and_nothing_else() {
    for event_idx in [false, true] {
        let bench = bench();
        bench.disk.fill(0, &pattern(1 << 20, 3));
        let options = VmmOptions {
            event_idx,
            ..VmmOptions::default()
        };
        let mut vmm = Vmm::started(bench.server.socket(), options);
        vmm.start_logging();
        assert!(bench.disk.tally().syncing_continuously);
        let mut destination = Destination::begin(&vmm.ram);

        // One read of two pages: its data, its status, the used ring. Nothing more.
        let reply = vmm.rings[0].read(0, 8192);
        assert_eq!(reply.status, OK);
        let slot = vmm.rings[0].slot(reply.head) / PAGE;
        let marked = vmm.take_log();
        let used = vmm.rings[0].used() / PAGE;
        assert_eq!(marked, BTreeSet::from([slot, slot + 1, slot + 2, used]));
        destination.receive(&vmm.ram, &marked);

        // A write changes the status and the used ring only.
        let reply = vmm.rings[0].write(64, &pattern(8192, 1));
        let slot = vmm.rings[0].slot(reply.head) / PAGE;
        let marked = vmm.take_log();
        assert_eq!(marked, BTreeSet::from([slot, used]));
        destination.receive(&vmm.ram, &marked);
        let reply = vmm.rings[0].serial();
        let slot = vmm.rings[0].slot(reply.head) / PAGE;
        let marked = vmm.take_log();
        assert_eq!(marked, BTreeSet::from([slot, slot + 1, used]));
        destination.receive(&vmm.ram, &marked);
        // However much room there is for the name.
        let ticket = vmm.rings[0].begin(VIRTIO_BLK_T_GET_ID, 0, &[], 65536);
        let reply = vmm.rings[0].finish(ticket);
        assert_eq!((reply.status, reply.written), (OK, 21));
        let slot = vmm.rings[0].slot(reply.head) / PAGE;
        let marked = vmm.take_log();
        assert_eq!(marked, BTreeSet::from([slot, slot + 1, used]));
        destination.receive(&vmm.ram, &marked);
        vmm.stop();
        let last = vmm.take_log();
        destination.receive(&vmm.ram, &last);
        assert_eq!(destination.differing_pages(&vmm.ram), [0; 0]);
    }
}

#[test]
fn memory_arrives_whole_however_the_log_is_taken() {
    for event_idx in [false, true] {
        let bench = bench();
        bench.disk.fill(0, &pattern(1 << 20, 5));
        let options = VmmOptions {
            queues: 2,
            event_idx,
            ..VmmOptions::default()
        };
        let mut vmm = Vmm::started(bench.server.socket(), options);
        bench.disk.behave(Behaviour {
            latency: Duration::from_micros(300),
            newest_first: true,
            ..Behaviour::default()
        });
        // Popped before logging begins, ended after: they count too.
        for ring in &mut vmm.rings {
            ring.indirect = true;
            ring.begin(VIRTIO_BLK_T_IN, 8, &[], 65536);
        }
        vmm.start_logging();
        let mut destination = Destination::begin(&vmm.ram);
        for round in 0..60u64 {
            for ring in &mut vmm.rings {
                while ring.open_requests() < 12 {
                    let sector = (round * 5 + u64::from(ring.index)) % 1000;
                    if round % 3 == 0 {
                        ring.begin(VIRTIO_BLK_T_OUT, sector, &pattern(4096, round as u8), 0);
                    } else {
                        ring.begin(VIRTIO_BLK_T_IN, sector, &[], 20 * 1024);
                    }
                }
            }
            // In the middle of things: the log is taken, or replaced, or the table sent again.
            let pages = match round % 10 {
                4 => vmm.replace_log(),
                7 => {
                    let region = vmm.ram.region();
                    vhost::VhostBackend::set_mem_table(vmm.frontend(), &[region]).unwrap();
                    vmm.take_log()
                }
                _ => vmm.take_log(),
            };
            destination.receive(&vmm.ram, &pages);
            for ring in &mut vmm.rings {
                ring.wait();
            }
        }
        let bases = vmm.stop();
        let pages = vmm.take_log();
        destination.receive(&vmm.ram, &pages);
        assert_eq!(destination.differing_pages(&vmm.ram), [0; 0]);
        // All that had been taken is answered; what had not stays for the destination.
        for (ring, base) in vmm.rings.iter().zip(bases) {
            assert_eq!(u32::from(ring.used_idx()), base);
        }
    }
}

#[test]
fn a_cancelled_migration_ends_the_log() {
    let bench = bench();
    let mut vmm = Vmm::started(bench.server.socket(), VmmOptions::default());
    vmm.start_logging();
    vmm.rings[0].read(0, 512);
    assert!(!vmm.take_log().is_empty());
    // The log stays mapped here, to see that the device leaves it alone.
    let log = vmm.stop_logging();
    assert!(!bench.disk.tally().syncing_continuously);
    assert_eq!(vmm.rings[0].read(0, 4096).status, OK);
    assert!(log.take_dirty().is_empty());
    // And another one may begin.
    vmm.start_logging();
    assert_eq!(vmm.rings[0].read(0, 4096).status, OK);
    assert!(!vmm.take_log().is_empty());
}

#[test]
fn a_guest_moves_with_requests_that_nobody_has_taken() {
    // Source and destination serve the same disk, as they do in a migration.
    let source = bench();
    let mut vmm = Vmm::started(source.server.socket(), VmmOptions::default());
    for n in 0..5 {
        assert_eq!(vmm.rings[0].write(n, &pattern(512, n as u8)).status, OK);
    }
    assert_eq!(vmm.stop(), [5]);
    let waiting = vmm.rings[0].begin(VIRTIO_BLK_T_IN, 3, &[], 512);
    vmm.disconnect();
    eventually("the source has settled", || {
        !source.server.status().connected
    });

    let destination = bench();
    destination.disk.fill(
        0,
        &source.disk.bytes(replicator::words::Span::new(0, 1 << 20)),
    );
    vmm.connect(destination.server.socket());
    vmm.start();
    assert_eq!(vmm.rings[0].finish(waiting).data, pattern(512, 3));
    assert_eq!(
        (source.disk.tally().stops, destination.disk.tally().starts),
        (1, 1)
    );
}
