//! What is offered to guests.

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

use crate::net::header;

/// Settings of a relay that show in what it offers. They stay the same over restarts: QEMU refuses a back end that
/// lost a feature its guest uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestOptions {
    /// Offer `VIRTIO_NET_F_MRG_RXBUF`: a frame may be spread over several receive buffers.
    pub mergeable: bool,
    /// Tell the guest the largest IP packet that a frame may carry (`VIRTIO_NET_F_MTU`), in bytes; `None`: say nothing.
    pub mtu: Option<u16>,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self { mergeable: true, mtu: None }
    }
}

/// Feature bits that a front end negotiated (virtio, with vhost-user's own among them).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// What is offered with these settings.
    pub fn offered(options: &GuestOptions) -> Self {
        let mut bits = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC;
        bits |= VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        bits |= u64::from(options.mergeable) << VIRTIO_NET_F_MRG_RXBUF;
        Self(bits)
    }

    /// Whether a frame may be spread over several receive buffers.
    pub fn mergeable(self) -> bool {
        self.0 & 1 << VIRTIO_NET_F_MRG_RXBUF != 0
    }

    /// Whether chains may lie in tables of their own.
    pub fn indirect(self) -> bool {
        self.0 & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0
    }

    /// Whether rings begin disabled, until `SET_VRING_ENABLE`.
    pub fn rings_begin_disabled(self) -> bool {
        self.0 & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0
    }

    /// Bytes of virtio-net header before each frame.
    pub fn header(self) -> u32 {
        let modern = self.0 & 1 << VIRTIO_F_VERSION_1 != 0;
        if modern || self.mergeable() { header::LENGTH } else { header::LEGACY_LENGTH }
    }
}

/// Protocol features that are offered.
pub fn protocol() -> VhostUserProtocolFeatures {
    use VhostUserProtocolFeatures as P;
    P::REPLY_ACK | P::CONFIGURE_MEM_SLOTS | P::RESET_DEVICE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_shorter_only_for_legacy_guests() {
        assert_eq!(Features(0).header(), 10);
        assert_eq!(Features(1 << VIRTIO_NET_F_MRG_RXBUF).header(), 12);
        assert_eq!(Features(1 << VIRTIO_F_VERSION_1).header(), 12);
    }

    #[test]
    fn mergeable_buffers_are_offered_only_when_asked_for() {
        assert!(Features::offered(&GuestOptions { mergeable: true, ..GuestOptions::default() }).mergeable());
        assert!(
            !Features::offered(&GuestOptions { mergeable: false, ..GuestOptions::default() }).mergeable()
        );
    }
}
