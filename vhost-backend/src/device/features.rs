//! What the device offers. Both ends of a live migration must offer the same.

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

/// A set of virtio feature bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features(pub u64);

impl Features {
    pub const FLUSH: Features = Features(1 << VIRTIO_BLK_F_FLUSH);
    pub const CONFIG_WCE: Features = Features(1 << VIRTIO_BLK_F_CONFIG_WCE);
    pub const EVENT_IDX: Features = Features(1 << VIRTIO_RING_F_EVENT_IDX);
    pub const LOG_ALL: Features = Features(VhostUserVirtioFeatures::LOG_ALL.bits());
    pub const PROTOCOL_FEATURES: Features =
        Features(VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits());

    pub fn has(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    pub fn within(self, offered: Features) -> bool {
        self.0 & !offered.0 == 0
    }
}

/// The virtio features of a device.
pub fn offered(read_only: bool, config_wce: bool) -> Features {
    let mut bits = [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_MQ,
        VIRTIO_BLK_F_DISCARD,
        VIRTIO_BLK_F_WRITE_ZEROES,
    ]
    .into_iter()
    .fold(0u64, |bits, bit| bits | 1 << bit);
    bits |= Features::LOG_ALL.0 | Features::PROTOCOL_FEATURES.0;
    if read_only {
        bits |= 1 << VIRTIO_BLK_F_RO;
    }
    if config_wce {
        bits |= Features::CONFIG_WCE.0;
    }
    Features(bits)
}

/// The vhost-user protocol features. DEVICE_STATE has nothing to carry (a drained ring is its own
/// state), but without it cloud-hypervisor does not ask for GET_VRING_BASE when it migrates.
pub fn offered_protocol() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::DEVICE_STATE
}
