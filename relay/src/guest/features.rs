//! What is offered to guests.

use pmd::Capabilities;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_config::{
    VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::net::header;
use crate::ring::receive::ReceiveRules;
use crate::ring::transmit::TransmitRules;

/// Settings of a relay that show in what it offers. They stay the same over restarts: QEMU refuses a back end that
/// lost a feature its guest uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestOptions {
    /// Offer `VIRTIO_NET_F_MRG_RXBUF`: a frame may be spread over several receive buffers.
    pub mergeable: bool,
    /// Largest MTU in bytes that a front end may set for its guest (QEMU's `host_mtu`); `None`: what jumbo frames carry.
    pub mtu: Option<u16>,
    /// Offer segmentation of TCP in both directions (TSO): frames of up to 64 KiB between guest and daemon.
    pub segmentation: bool,
    /// Offer segmentation of UDP (USO). The daemon does not: QEMU (10) clears its bits for every vhost-user back end, so
    /// there is no front end to prove it against.
    pub udp_segmentation: bool,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self { mergeable: true, segmentation: true, udp_segmentation: false, mtu: None }
    }
}

/// Offered to every guest.
///
/// Not `VIRTIO_F_RING_RESET`: a ring can be reset here (`GET_VRING_BASE`, new addresses), but QEMU (10) does not tell
/// vhost-user back ends when a guest does, and the guest's ring would stand still for ever.
const ALWAYS: &[u32] = &[
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_ACCESS_PLATFORM,
    VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
];

/// Offered with [`GuestOptions::segmentation`].
const SEGMENTATION: &[u32] = &[
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
];

/// Offered with [`GuestOptions::udp_segmentation`].
const UDP_SEGMENTATION: &[u32] = &[VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6];

/// Feature bits that a front end negotiated (virtio, with vhost-user's own among them).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// What is offered with these settings.
    pub fn offered(options: &GuestOptions) -> Self {
        let bits = |list: &[u32]| list.iter().fold(0, |bits, bit| bits | 1 << bit);
        let own = VhostUserVirtioFeatures::PROTOCOL_FEATURES | VhostUserVirtioFeatures::LOG_ALL;
        Self(
            bits(ALWAYS)
                | own.bits()
                | if options.mergeable { 1 << VIRTIO_NET_F_MRG_RXBUF } else { 0 }
                | if options.segmentation { bits(SEGMENTATION) } else { 0 }
                | if options.udp_segmentation { bits(UDP_SEGMENTATION) } else { 0 },
        )
    }

    fn has(self, bit: u32) -> bool {
        self.0 & 1 << bit != 0
    }

    /// Whether a frame may be spread over several receive buffers.
    pub fn mergeable(self) -> bool {
        self.has(VIRTIO_NET_F_MRG_RXBUF)
    }

    /// Whether chains may lie in tables of their own.
    pub fn indirect(self) -> bool {
        self.has(VIRTIO_RING_F_INDIRECT_DESC)
    }

    /// Whether kicks and interrupts are asked for by index.
    pub fn event_idx(self) -> bool {
        self.has(VIRTIO_RING_F_EVENT_IDX)
    }

    /// Whether chains come back in the order in which they were made available.
    pub fn in_order(self) -> bool {
        self.has(VIRTIO_F_IN_ORDER)
    }

    /// Whether rings are packed.
    pub fn packed(self) -> bool {
        self.has(VIRTIO_F_RING_PACKED)
    }

    /// Whether descriptors hold addresses of the guest's IOMMU.
    pub fn translated(self) -> bool {
        self.has(VIRTIO_F_ACCESS_PLATFORM)
    }

    /// Whether writes to guest memory are logged.
    pub fn logs(self) -> bool {
        self.0 & VhostUserVirtioFeatures::LOG_ALL.bits() != 0
    }

    /// Whether rings begin disabled, until `SET_VRING_ENABLE`.
    pub fn rings_begin_disabled(self) -> bool {
        self.0 & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0
    }

    /// Bytes of virtio-net header before each frame.
    pub fn header(self) -> u32 {
        let long = self.has(VIRTIO_F_VERSION_1) || self.mergeable();
        if long { header::LENGTH } else { header::LEGACY_LENGTH }
    }

    /// What the guest's receive queues want.
    pub fn receive_rules(self) -> ReceiveRules {
        ReceiveRules {
            header: self.header(),
            mergeable: self.mergeable(),
            offloads: header::left_to_guest(self.0),
        }
    }

    /// What the guest's transmit queues hold.
    pub fn transmit_rules(self) -> TransmitRules {
        let offloads = header::left_to_host(self.0);
        TransmitRules {
            header: self.header(),
            offloads: (offloads != Capabilities::NONE).then_some(offloads),
            in_order: self.in_order(),
        }
    }
}

/// Protocol features that are offered.
pub fn protocol() -> VhostUserProtocolFeatures {
    use VhostUserProtocolFeatures as P;
    P::MQ
        | P::LOG_SHMFD
        | P::RARP
        | P::REPLY_ACK
        | P::MTU
        | P::BACKEND_REQ
        | P::INFLIGHT_SHMFD
        | P::RESET_DEVICE
        | P::CONFIGURE_MEM_SLOTS
        | P::STATUS
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
