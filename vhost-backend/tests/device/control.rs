//! Messages: what they wait for, what they refuse, and what a front-end may do in between.

use crate::{Bench, IOERR, OK, bench, bench_with, pattern};
use std::os::fd::OwnedFd;
use std::time::Duration;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vhost_backend::device::testing::{GuestRam, Order, Ticket, Vmm, VmmOptions, eventually};
use vhost_backend::disk::Behaviour;
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

#[test]
fn the_configuration_space_is_served_in_any_size() {
    let bench = bench();
    let mut vmm = Vmm::new(VmmOptions::default());
    vmm.connect(bench.server.socket());
    for size in [1usize, 57, 60, 200] {
        let (_, bytes) = vmm
            .frontend()
            .get_config(
                0,
                size as u32,
                VhostUserConfigFlags::empty(),
                &vec![0; size],
            )
            .unwrap();
        assert_eq!(bytes.len(), size);
    }
    let (_, capacity) = vmm
        .frontend()
        .get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8])
        .unwrap();
    assert_eq!(capacity, (crate::DISK_BYTES / 512).to_le_bytes());
    // A guest of cloud-hypervisor may write anywhere: nothing happens.
    vmm.frontend()
        .set_config(0, VhostUserConfigFlags::WRITABLE, &[0xff; 40])
        .unwrap();
    assert_eq!(vmm.frontend().get_queue_num().unwrap(), 64);
    assert!(vmm.frontend().get_max_mem_slots().unwrap() >= 32);
    assert!(!bench.server.status().disk_started);
}

#[test]
fn stopping_a_ring_waits_for_its_requests_and_the_last_one_stops_the_disk() {
    let bench = bench();
    let options = VmmOptions {
        queues: 2,
        ..VmmOptions::default()
    };
    let mut vmm = Vmm::started(bench.server.socket(), options);
    bench.disk.behave(Behaviour {
        latency: Duration::from_millis(300),
        ..Behaviour::default()
    });
    let first = vmm.rings[0].begin(VIRTIO_BLK_T_OUT, 0, &pattern(4096, 1), 0);
    let second = vmm.rings[1].begin(VIRTIO_BLK_T_OUT, 8, &pattern(4096, 2), 0);
    eventually("both are taken", || bench.disk.tally().open == 2);
    assert_eq!(bench.server.status().rings_running, 2);
    assert_eq!(vmm.stop(), [1, 1]);
    assert_eq!(bench.disk.tally().open, 0);
    assert_eq!(bench.disk.tally().stops, 1);
    assert_eq!(vmm.rings[0].finish(first).status, OK);
    assert_eq!(vmm.rings[1].finish(second).status, OK);

    // What is offered to a stopped ring stays there; when it starts again it is taken.
    bench.disk.behave(Behaviour::default());
    let later = vmm.rings[0].begin(VIRTIO_BLK_T_IN, 0, &[], 4096);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(vmm.rings[0].open_requests(), 1);
    assert_eq!(bench.disk.tally().reads, 0);
    vmm.start();
    let reply = vmm.rings[0].finish(later);
    assert!(reply.status == OK && reply.data == pattern(4096, 1));
    assert_eq!(bench.disk.tally().starts, 2);
}

/// A disk that ends nothing, and a guest with one write in flight.
fn with_an_open_write(behaviour: Behaviour) -> (Bench, Vmm, Ticket) {
    let bench = bench_with(|options| options.drain_timeout = Duration::from_millis(100));
    let mut vmm = Vmm::started(bench.server.socket(), VmmOptions::default());
    bench.disk.behave(behaviour);
    let ticket = vmm.rings[0].begin(VIRTIO_BLK_T_OUT, 0, &pattern(4096, 1), 0);
    eventually("it is taken", || bench.disk.tally().open == 1);
    (bench, vmm, ticket)
}

#[test]
fn a_ring_does_not_end_before_its_requests_however_long_they_take() {
    let (bench, mut vmm, ticket) = with_an_open_write(Behaviour {
        hold: true,
        ..Behaviour::default()
    });
    let disk = bench.disk.clone();
    let later = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(disk.tally().open, 1);
        disk.behave(Behaviour::default());
    });
    assert_eq!(vmm.frontend().get_vring_base(0).unwrap(), 1);
    later.join().unwrap();
    assert_eq!(vmm.rings[0].finish(ticket).status, OK);
    assert_eq!(bench.disk.tally().stops, 1);
}

#[test]
fn a_front_end_that_is_killed_while_it_waits_keeps_nobody_out() {
    let (bench, mut vmm, ticket) = with_an_open_write(Behaviour {
        hold: true,
        ..Behaviour::default()
    });
    vmm.begin_to_stop(0);
    std::thread::sleep(Duration::from_millis(200));
    vmm.disconnect();
    eventually("it is noticed", || !bench.server.status().connected);
    assert_eq!(bench.disk.tally().stops, 0);
    // The request is open, and the next connection finishes it.
    bench.disk.behave(Behaviour::default());
    vmm.connect(bench.server.socket());
    vmm.start();
    assert_eq!(vmm.rings[0].finish(ticket).status, OK);
}

#[test]
fn what_never_began_is_not_done_for_whoever_comes_later() {
    let not_open = Behaviour {
        not_open: true,
        ..Behaviour::default()
    };
    let (bench, mut vmm, _) = with_an_open_write(not_open.clone());
    // QEMU has gone, or has been told that its disk is not there.
    assert!(vmm.frontend().get_vring_base(0).is_err());
    eventually("the disk is let go", || bench.disk.tally().stops == 1);
    assert_eq!(bench.disk.tally().open, 0);
    bench.disk.behave(Behaviour::default());
    let mut next = Vmm::started(bench.server.socket(), VmmOptions::default());
    assert_eq!(next.rings[0].read(0, 4096).data, vec![0; 4096]);
    assert_eq!(bench.disk.tally().writes, 0);
}

#[test]
fn one_whose_connection_is_lost_asks_again_for_what_never_began() {
    let (bench, mut vmm, ticket) = with_an_open_write(Behaviour {
        not_open: true,
        ..Behaviour::default()
    });
    vmm.disconnect();
    eventually("the disk is let go", || bench.disk.tally().stops == 1);
    bench.disk.behave(Behaviour::default());
    vmm.connect(bench.server.socket());
    vmm.start();
    assert_eq!(vmm.rings[0].finish(ticket).status, OK);
    assert_eq!(bench.disk.tally().writes, 1);
}

#[test]
fn a_backend_whose_disk_is_not_open_ends_without_waiting_for_it() {
    let (bench, _vmm, _) = with_an_open_write(Behaviour {
        not_open: true,
        ..Behaviour::default()
    });
    let disk = bench.disk.clone();
    bench.server.shutdown();
    assert_eq!(disk.tally().stops, 1);
}

#[test]
fn nothing_is_taken_before_a_ring_is_enabled() {
    for order in [Order::Qemu, Order::CloudHypervisor] {
        let bench = bench();
        let options = VmmOptions {
            order,
            ..VmmOptions::default()
        };
        let mut vmm = Vmm::started(bench.server.socket(), options);
        vmm.enable(false);
        let ticket = vmm.rings[0].begin(VIRTIO_BLK_T_IN, 0, &[], 512);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(bench.disk.tally().reads, 0);
        // Paused is not stopped: no other may write the disk meanwhile.
        assert_eq!(bench.disk.tally().stops, 0);
        vmm.enable(true);
        assert_eq!(vmm.rings[0].finish(ticket).status, OK);
    }
}

#[test]
fn a_guest_of_cloud_hypervisor_reboots() {
    // It disables the rings and sets them up anew, without GET_VRING_BASE.
    let bench = bench();
    let options = VmmOptions {
        order: Order::CloudHypervisor,
        ..VmmOptions::default()
    };
    let mut vmm = Vmm::started(bench.server.socket(), options);
    for n in 0..5 {
        assert_eq!(vmm.rings[0].write(n, &pattern(512, n as u8)).status, OK);
    }
    vmm.enable(false);
    let fresh = Vmm::new(options);
    let old = std::mem::replace(&mut vmm.rings, fresh.rings);
    vmm.ram = fresh.ram;
    vmm.start();
    assert_eq!(vmm.rings[0].read(3, 512).data, pattern(512, 3));
    drop(old);
}

#[test]
fn the_next_front_end_is_served_when_the_last_one_has_settled() {
    let bench = bench();
    let mut vmm = Vmm::started(bench.server.socket(), VmmOptions::default());
    bench.disk.behave(Behaviour {
        latency: Duration::from_millis(200),
        ..Behaviour::default()
    });
    vmm.rings[0].begin(VIRTIO_BLK_T_OUT, 0, &pattern(4096, 1), 0);
    eventually("it is taken", || bench.disk.tally().open == 1);
    vmm.disconnect();
    drop(vmm);
    // Another VM, with memory of its own.
    let mut other = Vmm::started(bench.server.socket(), VmmOptions::default());
    assert_eq!(bench.disk.tally().stops, 1);
    assert_eq!(bench.disk.tally().writes, 1);
    assert!(other.rings[0].read(0, 4096).data == pattern(4096, 1));
    let status = bench.server.status();
    assert!(status.connected && status.disk_started && status.rings_running == 1);
    drop(other);
    eventually("it settles", || !bench.server.status().disk_started);
    assert_eq!(bench.disk.tally().stops, 2);
}

#[test]
fn an_orderly_shutdown_answers_what_is_open() {
    let bench = bench();
    let socket = bench.server.socket().to_owned();
    let mut vmm = Vmm::started(&socket, VmmOptions::default());
    bench.disk.behave(Behaviour {
        latency: Duration::from_millis(200),
        ..Behaviour::default()
    });
    let ticket = vmm.rings[0].begin(VIRTIO_BLK_T_OUT, 0, &pattern(4096, 1), 0);
    eventually("it is taken", || bench.disk.tally().open == 1);
    bench.server.shutdown();
    assert_eq!(vmm.rings[0].finish(ticket).status, OK);
    assert_eq!(bench.disk.tally().stops, 1);
    assert!(!socket.exists());
}

#[test]
fn a_shutdown_does_not_wait_for_ever() {
    let bench = bench_with(|options| options.drain_timeout = Duration::from_millis(200));
    let mut vmm = Vmm::started(bench.server.socket(), VmmOptions::default());
    bench.disk.behave(Behaviour {
        hold: true,
        ..Behaviour::default()
    });
    vmm.rings[0].begin(VIRTIO_BLK_T_OUT, 0, &pattern(4096, 1), 0);
    eventually("it is taken", || bench.disk.tally().open == 1);
    bench.server.shutdown();
    assert_eq!(bench.disk.tally().stops, 0);
}

#[test]
fn an_empty_device_state_goes_either_way() {
    let bench = bench();
    let options = VmmOptions {
        order: Order::CloudHypervisor,
        ..VmmOptions::default()
    };
    let mut vmm = Vmm::started(bench.server.socket(), options);
    vmm.stop();
    let stopped = VhostTransferStatePhase::STOPPED;
    let (from, to) = std::io::pipe().unwrap();
    let save = VhostTransferStateDirection::SAVE;
    let reply = vmm
        .frontend()
        .set_device_state_fd(save, stopped, OwnedFd::from(to));
    assert!(reply.unwrap().is_none());
    assert_eq!(std::io::read_to_string(from).unwrap(), "");
    vmm.frontend().check_device_state().unwrap();

    let load = VhostTransferStateDirection::LOAD;
    let (from, to) = std::io::pipe().unwrap();
    vmm.frontend()
        .set_device_state_fd(load, stopped, OwnedFd::from(from))
        .unwrap();
    drop(to);
    vmm.frontend().check_device_state().unwrap();
    // Somebody else's state is not ours.
    let (from, to) = std::io::pipe().unwrap();
    vmm.frontend()
        .set_device_state_fd(load, stopped, OwnedFd::from(from))
        .unwrap();
    std::io::Write::write_all(&mut &to, b"state").unwrap();
    drop(to);
    assert!(vmm.frontend().check_device_state().is_err());
}

type Deed = fn(&mut Vmm) -> bool;

/// Each must be refused, end that connection, and leave the device serving the next one.
#[test]
fn messages_that_make_no_sense() {
    fn region(ram: &GuestRam) -> VhostUserMemoryRegionInfo {
        ram.region()
    }
    let deeds: [(&str, Deed); 16] = [
        ("overlapping regions", |vmm| {
            let one = region(&vmm.ram);
            vmm.frontend().set_mem_table(&[one, one]).is_err()
        }),
        ("a region larger than its file", |vmm| {
            let mut one = region(&vmm.ram);
            one.memory_size *= 2;
            vmm.frontend().set_mem_table(&[one]).is_err()
        }),
        ("a region that wraps", |vmm| {
            let mut one = region(&vmm.ram);
            one.guest_phys_addr = u64::MAX - 4096;
            vmm.frontend().set_mem_table(&[one]).is_err()
        }),
        ("a region at an odd offset", |vmm| {
            let mut one = region(&vmm.ram);
            one.mmap_offset = 17;
            one.memory_size = 4096;
            vmm.frontend().set_mem_table(&[one]).is_err()
        }),
        ("a table without the running ring", |vmm| {
            let other = GuestRam::new(1 << 40, 1 << 20);
            vmm.frontend().set_mem_table(&[region(&other)]).is_err()
        }),
        (
            "a table in which the running ring's region has shrunk",
            |vmm| {
                let mut one = region(&vmm.ram);
                one.memory_size = 4096;
                vmm.frontend().set_mem_table(&[one]).is_err()
            },
        ),
        ("adding what overlaps by a page", |vmm| {
            let mut one = region(&vmm.ram);
            one.guest_phys_addr += one.memory_size - 4096;
            one.userspace_addr += 1 << 40;
            vmm.frontend().add_mem_region(&one).is_err()
        }),
        ("removing what a running ring needs", |vmm| {
            let one = region(&vmm.ram);
            vmm.frontend().remove_mem_region(&one).is_err()
        }),
        ("removing what is not there", |vmm| {
            let mut one = region(&vmm.ram);
            one.guest_phys_addr += 1 << 30;
            vmm.frontend().remove_mem_region(&one).is_err()
        }),
        ("adding what is there", |vmm| {
            let one = region(&vmm.ram);
            vmm.frontend().add_mem_region(&one).is_err()
        }),
        ("a ring that does not exist", |vmm| {
            vmm.frontend().set_vring_num(99, 16).is_err()
        }),
        ("a ring of 17", |vmm| {
            vmm.frontend().set_vring_num(5, 17).is_err()
        }),
        ("a base for a running ring", |vmm| {
            vmm.frontend().set_vring_base(0, 3).is_err()
        }),
        ("another size for a running ring", |vmm| {
            vmm.frontend().set_vring_num(0, 32).is_err()
        }),
        ("features that nobody offered", |vmm| {
            vmm.frontend().set_features(u64::MAX).is_err()
        }),
        ("an inflight region for thousands of rings", |vmm| {
            let wish = VhostUserInflight::new(0, 0, 5000, 1024);
            vmm.frontend().get_inflight_fd(&wish).is_err()
        }),
    ];
    let bench = bench();
    for (what, deed) in deeds {
        let mut vmm = Vmm::started(bench.server.socket(), VmmOptions::default());
        assert!(deed(&mut vmm), "{what} must be refused");
        drop(vmm);
        let mut vmm = Vmm::started(bench.server.socket(), VmmOptions::default());
        assert_eq!(vmm.rings[0].read(0, 512).status, OK, "after {what}");
    }
}

#[test]
fn memory_that_comes_and_goes() {
    let bench = bench();
    let mut vmm = Vmm::started(bench.server.socket(), VmmOptions::default());
    let extra = GuestRam::new(1 << 32, 1 << 20);
    vmm.frontend().add_mem_region(&extra.region()).unwrap();
    // A read into the new region, still in flight when it is taken away: it must stay mapped.
    bench.disk.fill(0, &pattern(4096, 9));
    bench.disk.behave(Behaviour {
        hold: true,
        ..Behaviour::default()
    });
    let ring = &mut vmm.rings[0];
    let ticket = ring.prepare(VIRTIO_BLK_T_IN, 0, &[], 4096);
    // Its data descriptor is the second.
    ring.descriptor(
        ring.descriptors(),
        ticket.head + 1,
        extra.base,
        4096,
        3,
        ticket.head + 2,
    );
    let first = ring.descriptors() + 16 * u64::from(ticket.head);
    assert_eq!(vmm.ram.read(first + 14, 2), (ticket.head + 1).to_le_bytes());
    vmm.rings[0].offer(ticket.head);
    vmm.rings[0].publish();
    eventually("it is taken", || bench.disk.tally().open == 1);
    vmm.frontend().remove_mem_region(&extra.region()).unwrap();
    bench.disk.behave(Behaviour::default());
    assert_eq!(vmm.rings[0].finish(ticket).status, OK);
    assert!(extra.read(extra.base, 4096) == pattern(4096, 9));
    // From now on it is nowhere.
    let ring = &mut vmm.rings[0];
    let ticket = ring.prepare(VIRTIO_BLK_T_IN, 0, &[], 4096);
    ring.descriptor(
        ring.descriptors(),
        ticket.head + 1,
        extra.base,
        4096,
        3,
        ticket.head + 2,
    );
    ring.offer(ticket.head);
    ring.publish();
    assert_eq!(ring.finish(ticket).status, IOERR);
}

/// A read of 4 KiB into `at`, published.
fn read_into(vmm: &mut Vmm, at: u64) -> Ticket {
    let ring = &mut vmm.rings[0];
    let ticket = ring.prepare(VIRTIO_BLK_T_IN, 0, &[], 4096);
    // Its data descriptor is the second.
    let (second, third) = (ticket.head + 1, ticket.head + 2);
    ring.descriptor(ring.descriptors(), second, at, 4096, 3, third);
    ring.offer(ticket.head);
    ring.publish();
    ticket
}

#[test]
fn memory_that_shrinks_under_a_request() {
    let bench = bench();
    let mut vmm = Vmm::started(bench.server.socket(), VmmOptions::default());
    let extra = GuestRam::new(1 << 32, 1 << 20);
    let (ram, whole) = (vmm.ram.region(), extra.region());
    let mut half = whole;
    half.memory_size /= 2;
    let upper = extra.base + half.memory_size;
    vmm.frontend().set_mem_table(&[ram, whole]).unwrap();
    bench.disk.fill(0, &pattern(4096, 7));
    bench.disk.behave(Behaviour {
        hold: true,
        ..Behaviour::default()
    });
    let held = read_into(&mut vmm, upper);
    eventually("it is taken", || bench.disk.tally().open == 1);
    // A table that cannot be leaves the one that is in force; one that can holds for what comes.
    vmm.frontend().set_mem_table(&[ram, half]).unwrap();
    bench.disk.behave(Behaviour::default());
    assert_eq!(vmm.rings[0].finish(held).status, OK);
    assert!(extra.read(upper, 4096) == pattern(4096, 7));
    let gone = read_into(&mut vmm, upper);
    assert_eq!(vmm.rings[0].finish(gone).status, IOERR);
    // Half of it here, half of it nowhere.
    let across = read_into(&mut vmm, upper - 2048);
    assert_eq!(vmm.rings[0].finish(across).status, IOERR);
    let there = read_into(&mut vmm, extra.base);
    assert_eq!(vmm.rings[0].finish(there).status, OK);
}

#[test]
fn a_table_that_cannot_be_under_a_request_ends_the_connection_and_nothing_else() {
    let bench = bench();
    let mut vmm = Vmm::started(bench.server.socket(), VmmOptions::default());
    bench.disk.behave(Behaviour {
        hold: true,
        ..Behaviour::default()
    });
    vmm.rings[0].begin(VIRTIO_BLK_T_OUT, 0, &pattern(4096, 3), 0);
    eventually("it is taken", || bench.disk.tally().open == 1);
    let one = vmm.ram.region();
    assert!(vmm.frontend().set_mem_table(&[one, one]).is_err());
    drop(vmm);
    bench.disk.behave(Behaviour::default());
    let mut vmm = Vmm::started(bench.server.socket(), VmmOptions::default());
    assert_eq!(vmm.rings[0].read(0, 512).status, OK);
}

#[test]
fn the_file_behind_memory_cannot_be_cut_off_where_it_can_be_sealed() {
    let bench = bench();
    let mut vmm = Vmm::started(bench.server.socket(), VmmOptions::default());
    let sealable = rustix::fs::memfd_create(
        "ram",
        rustix::fs::MemfdFlags::ALLOW_SEALING | rustix::fs::MemfdFlags::CLOEXEC,
    )
    .unwrap();
    rustix::fs::ftruncate(&sealable, 1 << 20).unwrap();
    let mut region = vmm.ram.region();
    region.guest_phys_addr = 1 << 32;
    region.userspace_addr = 1 << 45;
    region.mmap_offset = 0;
    region.memory_size = 1 << 20;
    region.mmap_handle = std::os::fd::AsRawFd::as_raw_fd(&sealable);
    vmm.frontend().add_mem_region(&region).unwrap();
    assert_eq!(
        rustix::fs::ftruncate(&sealable, 4096),
        Err(rustix::io::Errno::PERM),
        "touching what is gone would be a SIGBUS, for all disks"
    );
}

#[test]
fn a_front_end_without_acknowledgements_or_protocol_features() {
    let bench = bench();
    let mut vmm = Vmm::new(VmmOptions {
        inflight: false,
        ..VmmOptions::default()
    });
    let plain = Frontend::connect(bench.server.socket(), 1).unwrap();
    let features = plain.get_features().unwrap() & !(1 << 30) & !(1 << 26);
    plain.set_owner().unwrap();
    plain.set_features(features).unwrap();
    plain.set_mem_table(&[vmm.ram.region()]).unwrap();
    let ring = &vmm.rings[0];
    let user = |addr| vmm.ram.user_addr(addr);
    plain.set_vring_num(0, ring.size).unwrap();
    plain
        .set_vring_addr(
            0,
            &vhost::VringConfigData {
                queue_max_size: ring.size,
                queue_size: ring.size,
                flags: 0,
                desc_table_addr: user(ring.descriptors()),
                used_ring_addr: user(ring.used()),
                avail_ring_addr: user(ring.available()),
                log_addr: None,
            },
        )
        .unwrap();
    plain.set_vring_base(0, 0).unwrap();
    plain.set_vring_call(0, &ring.call).unwrap();
    plain.set_vring_kick(0, &ring.kick).unwrap();
    assert_eq!(vmm.rings[0].write(5, &pattern(512, 5)).status, OK);
    assert_eq!(plain.get_vring_base(0).unwrap(), 1);
}
