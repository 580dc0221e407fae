//! The front-end: messages in the order of QEMU, or in that of cloud-hypervisor.

use super::driver::DriverRing;
use super::ram::{GuestRam, PAGE};
use crate::device::testing::eventually;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{
    Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VringConfigData};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Which front-end's order of messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// BASE before ADDR.
    Qemu,
    /// ADDR before BASE, sizes before the inflight region.
    CloudHypervisor,
}

#[derive(Clone, Copy, Debug)]
pub struct VmmOptions {
    pub order: Order,
    pub queues: u16,
    pub queue_size: u16,
    pub event_idx: bool,
    pub inflight: bool,
    pub without_features: u64,
}

impl Default for VmmOptions {
    fn default() -> Self {
        VmmOptions {
            order: Order::Qemu,
            queues: 1,
            queue_size: 16,
            event_idx: true,
            inflight: true,
            without_features: 0,
        }
    }
}

/// A VM with its memory and rings, and the connection to its disk.
pub struct Vmm {
    pub options: VmmOptions,
    pub ram: Arc<GuestRam>,
    pub rings: Vec<DriverRing>,
    pub features: u64,
    frontend: Option<Frontend>,
    inflight: Option<(VhostUserInflight, File)>,
    log: Option<Log>,
}

/// A dirty log, as this side of it has it.
pub struct Log {
    file: File,
    mapping: MmapRegion,
}

impl Log {
    /// The pages marked since the last call.
    pub fn take_dirty(&self) -> BTreeSet<u64> {
        take_dirty(&self.mapping)
    }
}

const BASE: u64 = 1 << 20;

impl Vmm {
    pub fn new(options: VmmOptions) -> Vmm {
        let a_ring = DriverRing::bytes(options.queue_size);
        let ram = Arc::new(GuestRam::new(
            BASE,
            (a_ring * u64::from(options.queues)) as usize,
        ));
        let rings = (0..options.queues)
            .map(|index| {
                let base = BASE + a_ring * u64::from(index);
                let mut ring = DriverRing::new(Arc::clone(&ram), index, options.queue_size, base);
                ring.event_idx = options.event_idx;
                ring
            })
            .collect();
        Vmm {
            options,
            ram,
            rings,
            features: 0,
            frontend: None,
            inflight: None,
            log: None,
        }
    }

    /// A VM that is connected and whose rings run.
    pub fn started(socket: &Path, options: VmmOptions) -> Vmm {
        let mut vmm = Vmm::new(options);
        vmm.connect(socket);
        vmm.start();
        vmm
    }

    pub fn frontend(&mut self) -> &mut Frontend {
        self.frontend.as_mut().expect("connected")
    }

    pub fn disconnect(&mut self) {
        self.frontend = None;
    }

    /// What happens before the guest's driver is there.
    pub fn connect(&mut self, socket: &Path) {
        eventually("the socket accepts", || {
            self.frontend = Frontend::connect(socket, 256).ok();
            self.frontend.is_some()
        });
        let order = self.options.order;
        let frontend = self.frontend();
        if order == Order::CloudHypervisor {
            frontend.set_owner().expect("owner");
        }
        let offered = frontend.get_features().expect("features");
        let protocol = frontend.get_protocol_features().expect("protocol features");
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::DEVICE_STATE;
        assert!(protocol.contains(wanted), "all that we need is offered");
        frontend
            .set_protocol_features(wanted)
            .expect("protocol features");
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        if order == Order::Qemu {
            frontend.set_owner().expect("owner");
        }
        let queues = frontend.get_queue_num().expect("queues");
        assert!(queues >= u64::from(self.options.queues));

        let mut features =
            offered & !VhostUserVirtioFeatures::LOG_ALL.bits() & !self.options.without_features;
        if !self.options.event_idx {
            features &= !(1 << VIRTIO_RING_F_EVENT_IDX);
        }
        self.features = features;
    }

    /// What happens when the guest's driver is ready; also after a reconnect, and at the end of an
    /// incoming migration.
    pub fn start(&mut self) {
        let features = self.features | self.log_bit();
        let order = self.options.order;
        if order == Order::Qemu {
            self.send_inflight();
        }
        self.frontend().set_features(features).expect("features");
        let region = self.ram.region();
        self.frontend().set_mem_table(&[region]).expect("memory");
        if order == Order::CloudHypervisor {
            for index in 0..self.rings.len() {
                self.send_size(index);
            }
            self.send_inflight();
        }
        for index in 0..self.rings.len() {
            // QEMU restores the index from the used ring after a lost connection; after an orderly
            // stop both are the same.
            let base = self.rings[index].used_idx();
            if order == Order::Qemu {
                self.send_size(index);
                self.frontend().set_vring_base(index, base).expect("base");
                self.send_addresses(index);
            } else {
                self.send_addresses(index);
                self.frontend().set_vring_base(index, base).expect("base");
            }
            let (frontend, ring) = (
                self.frontend.as_mut().expect("connected"),
                &self.rings[index],
            );
            if order == Order::Qemu {
                frontend.set_vring_err(index, &ring.error).expect("err");
                frontend.set_vring_kick(index, &ring.kick).expect("kick");
                frontend.set_vring_call(index, &ring.call).expect("call");
            } else {
                frontend.set_vring_call(index, &ring.call).expect("call");
                frontend.set_vring_kick(index, &ring.kick).expect("kick");
            }
        }
        if self.log.is_some() {
            self.send_log();
        }
        self.enable(true);
    }

    pub fn enable(&mut self, on: bool) {
        for index in 0..self.rings.len() {
            self.frontend().set_vring_enable(index, on).expect("enable");
        }
    }

    /// Stops the rings as QEMU does; answers where each stood.
    pub fn stop(&mut self) -> Vec<u32> {
        self.enable(false);
        (0..self.rings.len())
            .map(|index| self.frontend().get_vring_base(index).expect("base"))
            .collect()
    }

    /// Asks a ring to end, without waiting for the answer.
    pub fn begin_to_stop(&mut self, index: u32) {
        // GET_VRING_BASE of version 1; 8 bytes follow: which ring, and nothing.
        let words: [u32; 5] = [11, 1, 8, index, 0];
        let message: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        // SAFETY: the front-end lives, and has its descriptor, until this function returns.
        let socket = unsafe { BorrowedFd::borrow_raw(self.frontend().as_raw_fd()) };
        let sent = rustix::io::write(socket, &message).expect("a socket with room");
        assert_eq!(sent, message.len());
    }

    fn send_size(&mut self, index: usize) {
        let size = self.options.queue_size;
        self.frontend().set_vring_num(index, size).expect("size");
    }

    fn send_addresses(&mut self, index: usize) {
        let ring = &self.rings[index];
        let logged = self.log.is_some();
        let config = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: u32::from(logged),
            desc_table_addr: self.ram.user_addr(ring.descriptors()),
            used_ring_addr: self.ram.user_addr(ring.used()),
            avail_ring_addr: self.ram.user_addr(ring.available()),
            log_addr: logged.then(|| ring.used()),
        };
        self.frontend()
            .set_vring_addr(index, &config)
            .expect("addresses");
    }

    fn send_inflight(&mut self) {
        if !self.options.inflight {
            return;
        }
        let wanted = VhostUserInflight::new(0, 0, self.options.queues, self.options.queue_size);
        let frontend = self.frontend.as_mut().expect("connected");
        if self.inflight.is_none() {
            self.inflight = Some(frontend.get_inflight_fd(&wanted).expect("inflight"));
        }
        let (told, file) = self.inflight.as_ref().expect("there it is");
        frontend
            .set_inflight_fd(told, file.as_raw_fd())
            .expect("inflight");
    }

    fn log_bit(&self) -> u64 {
        match self.log {
            Some(_) => VhostUserVirtioFeatures::LOG_ALL.bits(),
            None => 0,
        }
    }

    /// Begins a migration on running rings: log, features, addresses.
    pub fn start_logging(&mut self) {
        self.new_log();
        self.send_log();
        let features = self.features | self.log_bit();
        self.frontend().set_features(features).expect("features");
        for index in 0..self.rings.len() {
            self.send_addresses(index);
        }
    }

    /// A fresh log in the middle of it, as cloud-hypervisor sends one each round.
    pub fn replace_log(&mut self) -> BTreeSet<u64> {
        let old = self.log.take().expect("logging");
        self.new_log();
        self.send_log();
        old.take_dirty()
    }

    /// Ends a migration that did not come about; answers the log that is left.
    pub fn stop_logging(&mut self) -> Log {
        let log = self.log.take().expect("logging");
        let features = self.features;
        self.frontend().set_features(features).expect("features");
        for index in 0..self.rings.len() {
            self.send_addresses(index);
        }
        log
    }

    /// The pages marked since the last call.
    pub fn take_log(&self) -> BTreeSet<u64> {
        self.log.as_ref().expect("logging").take_dirty()
    }

    fn new_log(&mut self) {
        let pages = (self.ram.base + self.ram.bytes() as u64).div_ceil(PAGE);
        let bytes = pages.div_ceil(8) as usize;
        let fd = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        let file = File::from(fd);
        file.set_len(bytes as u64).expect("a log");
        let twin = file.try_clone().expect("a descriptor");
        let mapping = MmapRegion::from_file(FileOffset::new(twin, 0), bytes).expect("mapped");
        self.log = Some(Log { file, mapping });
    }

    fn send_log(&mut self) {
        let log = self.log.as_ref().expect("a log");
        let region = VhostUserDirtyLogRegion {
            mmap_size: log.mapping.size() as u64,
            mmap_offset: 0,
            mmap_handle: log.file.as_raw_fd(),
        };
        let frontend = self.frontend.as_mut().expect("connected");
        frontend.set_log_base(0, Some(region)).expect("log");
    }
}

fn take_dirty(mapping: &MmapRegion) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    for byte in 0..mapping.size() {
        let bits = mapping
            .get_atomic_ref::<AtomicU8>(byte)
            .expect("within the log")
            .swap(0, Ordering::SeqCst);
        pages.extend(
            (0..8)
                .filter(|bit| bits & 1 << bit != 0)
                .map(|bit| byte as u64 * 8 + bit),
        );
    }
    pages
}
