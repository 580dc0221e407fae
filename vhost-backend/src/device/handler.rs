//! vhost-user messages, each checked for form and handed to the device.
//!
//! Why not `vhost_user_backend::VhostUserHandler`: docs/vhost-user.md.

use super::config_space::ConfigSpace;
use super::dirty_log::DirtyLog;
use super::features::{self, Features};
use super::inflight::{self, Inflight};
use super::memory::{MAX_REGIONS, NewRegion};
use super::message::{Mailbox, Message, ToRing};
use super::ring::{Addresses, RING_SIZE_MAX};
use super::{Options, Refused, event};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

/// How long a front-end may take to close the pipe of a device state that it says it has sent.
const STATE_SECONDS: i64 = 5;

pub struct Handler {
    mailbox: Mailbox,
    /// Shared with handlers of other connections: what a guest has written stays.
    config: Arc<Mutex<ConfigSpace>>,
    features: Features,
    queues: u16,
    protocol: u64,
    /// The pipe of an incoming device state, until CHECK_DEVICE_STATE.
    state: Option<File>,
}

impl Handler {
    pub fn new(mailbox: Mailbox, config: Arc<Mutex<ConfigSpace>>, options: &Options) -> Handler {
        Handler {
            mailbox,
            config,
            features: features::offered(options.read_only, options.config_wce),
            queues: options.queues,
            protocol: 0,
            state: None,
        }
    }

    fn ask(&self, message: Message) -> Result<u64> {
        self.mailbox.ask(message).map_err(refuse)
    }

    fn ask_ring(&self, index: u32, to_ring: ToRing) -> Result<u64> {
        let index = u16::try_from(index).map_err(|_| Error::InvalidParam)?;
        self.ask(Message::Ring(index, to_ring))
    }

    fn config(&self) -> std::sync::MutexGuard<'_, ConfigSpace> {
        self.config
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn refuse(refused: Refused) -> Error {
    Error::ReqHandlerError(io::Error::other(refused))
}

fn new_region(region: &VhostUserMemoryRegion, file: File) -> NewRegion {
    NewRegion {
        guest_addr: region.guest_phys_addr,
        bytes: region.memory_size,
        user_addr: region.user_addr,
        file_offset: region.mmap_offset,
        file,
    }
}

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        // No longer used (vhost-user.rst); front-ends that send it expect nothing.
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("RESET_DEVICE is not offered"))
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.features.0)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.ask(Message::SetFeatures(Features(features))).map(drop)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(features::offered_protocol())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !features::offered_protocol().bits() != 0 {
            return Err(Error::InvalidParam);
        }
        self.protocol = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.queues.into())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let regions = regions
            .iter()
            .zip(files)
            .map(|(region, file)| new_region(region, file))
            .collect();
        self.ask(Message::SetMemory(regions)).map(|_| None)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        self.ask(Message::AddRegion(new_region(region, file)))
            .map(|_| None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.ask(Message::RemoveRegion {
            guest_addr: region.guest_phys_addr,
            bytes: region.memory_size,
            user_addr: region.user_addr,
        })
        .map(drop)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        self.ask_ring(index, ToRing::Size(size)).map(drop)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let addresses = Addresses {
            descriptors: descriptor,
            available,
            used,
            log: flags
                .contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG)
                .then_some(log),
        };
        self.ask_ring(index, ToRing::Addresses(addresses)).map(drop)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.ask_ring(index, ToRing::Base(base)).map(drop)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.ask_ring(index, ToRing::Stop)?;
        Ok(VhostUserVringState::new(index, base as u32))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let file = file.ok_or(Error::InvalidOperation(
            "rings are not polled without kicks",
        ))?;
        let kick = event::unblocking(file).map_err(refuse)?;
        self.ask_ring(index.into(), ToRing::Kick(Some(kick)))
            .map(drop)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let call = file.map(event::unblocking).transpose().map_err(refuse)?;
        self.ask_ring(index.into(), ToRing::Call(call)).map(drop)
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let error = file.map(event::notifier).transpose().map_err(refuse)?;
        self.ask_ring(index.into(), ToRing::Error(error)).map(drop)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ask_ring(index, ToRing::Enable(enable)).map(drop)
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Ok(self.config().read(offset, size))
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        if !self.features.has(Features::CONFIG_WCE) {
            // cloud-hypervisor passes on whatever a guest writes: not worth its connection.
            return Ok(());
        }
        let written = self.config().write(offset, bytes);
        match written {
            Some(on) => self.ask(Message::SetWriteCache(on)).map(drop),
            None => Ok(()),
        }
    }

    fn get_inflight_fd(&mut self, told: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        if told.num_queues > self.queues || told.queue_size > RING_SIZE_MAX {
            return Err(Error::InvalidParam);
        }
        let (file, told) =
            inflight::create(told.num_queues, told.queue_size).map_err(Error::ReqHandlerError)?;
        Ok((told, file))
    }

    fn set_inflight_fd(&mut self, told: &VhostUserInflight, file: File) -> Result<()> {
        let inflight = Inflight::adopt(file, told).map_err(refuse)?;
        self.ask(Message::SetInflight(inflight)).map(drop)
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let log = DirtyLog::map(file, log.mmap_offset, log.mmap_size).map_err(refuse)?;
        self.ask(Message::SetLog(log)).map(drop)
    }

    /// There is no state beyond the rings: saving writes nothing and closes, loading must find
    /// nothing.
    fn set_device_state_fd(
        &mut self,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        file: File,
    ) -> Result<Option<File>> {
        self.state = match direction {
            VhostTransferStateDirection::SAVE => None,
            VhostTransferStateDirection::LOAD => Some(file),
        };
        Ok(None)
    }

    fn check_device_state(&mut self) -> Result<()> {
        match self.state.take() {
            None => Ok(()),
            Some(pipe) => read_nothing(pipe).map_err(Error::ReqHandlerError),
        }
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("no GPU"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("no shared objects"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("no shared memory regions"))
    }
}

/// The end of an empty stream, awaited for a bounded time.
fn read_nothing(mut pipe: File) -> io::Result<()> {
    rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
    let patience = Timespec {
        tv_sec: STATE_SECONDS,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&patience))?;
    match pipe.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a device state, but this device has none",
        )),
    }
}
