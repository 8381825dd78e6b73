//! The front end of the built-in guest, the part that QEMU plays: what is negotiated, and where memory and rings are.

use std::io;
use std::os::fd::AsRawFd;

use thiserror::Error;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use virtio_bindings::virtio_config::{
    VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::memory::GuestRam;
use super::queue::DriverQueue;

/// Why the card could not be brought up.
#[derive(Debug, Error)]
pub enum NicError {
    /// The vhost-user conversation failed.
    #[error("vhost-user: {0}")]
    Protocol(#[from] vhost::Error),
    /// The connection could not be made.
    #[error("vhost-user connection: {0}")]
    Connection(#[from] vhost::vhost_user::Error),
    /// Memory or an eventfd could not be had.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other side does not offer something that was asked for.
    #[error("the device offers features {offered:#x}, which lack {missing:#x}")]
    Features {
        /// Bits that the device offers.
        offered: u64,
        /// Bits that were asked for and are not offered.
        missing: u64,
    },
}

/// What kind of driver to play.
#[derive(Clone, Copy, Debug)]
pub struct NicOptions {
    /// Descriptors in each ring; a power of two unless `packed`.
    pub queue_size: u16,
    /// Size of every buffer in bytes, header included.
    pub buffer: u32,
    /// Size of receive buffers, where it is another.
    pub receive_buffer: Option<u32>,
    /// Queue pairs, 1 to 32.
    pub queue_pairs: u16,
    /// Negotiate packed rings.
    pub packed: bool,
    /// Negotiate that chains come back in order.
    pub in_order: bool,
    /// Negotiate event indices.
    pub event_idx: bool,
    /// Negotiate mergeable receive buffers.
    pub mergeable: bool,
    /// Send through indirect tables.
    pub indirect: bool,
    /// Put the header into a buffer of its own, as drivers without `ANY_LAYOUT` do.
    pub separate_header: bool,
    /// Cut header and frame where no driver would: in the middle of the header, and after some bytes of the frame.
    pub pieces: bool,
    /// Feature bits of offloads to negotiate: [`SENDER_OFFLOADS`], [`RECEIVER_OFFLOADS`], or some of them.
    pub offloads: u64,
    /// Announce memory by `ADD_MEM_REG` instead of `SET_MEM_TABLE`.
    pub memory_slots: bool,
}

impl Default for NicOptions {
    fn default() -> Self {
        Self {
            queue_size: 256,
            buffer: 2048,
            receive_buffer: None,
            queue_pairs: 1,
            packed: false,
            in_order: false,
            event_idx: false,
            mergeable: false,
            indirect: false,
            separate_header: false,
            pieces: false,
            offloads: 0,
            memory_slots: false,
        }
    }
}

/// All that a driver may leave to the device: `VIRTIO_NET_F_CSUM`, `HOST_TSO4`, `HOST_TSO6`, `HOST_ECN`, `HOST_USO`.
pub const SENDER_OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_HOST_USO;
/// The same for what a device may leave to the driver: `VIRTIO_NET_F_GUEST_*`.
pub const RECEIVER_OFFLOADS: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_USO4
    | 1 << VIRTIO_NET_F_GUEST_USO6;

impl NicOptions {
    fn features(&self) -> u64 {
        let own = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | 1 << VIRTIO_F_VERSION_1 | self.offloads;
        let chosen = [
            (self.packed, VIRTIO_F_RING_PACKED),
            (self.in_order, VIRTIO_F_IN_ORDER),
            (self.event_idx, VIRTIO_RING_F_EVENT_IDX),
            (self.mergeable, VIRTIO_NET_F_MRG_RXBUF),
            (self.indirect, VIRTIO_RING_F_INDIRECT_DESC),
            (self.queue_pairs > 1, VIRTIO_NET_F_MQ),
        ];
        chosen.iter().fold(own, |bits, (wanted, bit)| bits | u64::from(*wanted) << bit)
    }
}

/// A front end, with the front-end half of the `vhost` crate inside.
pub(super) struct Link(pub(super) Frontend);

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Frontend")
    }
}

impl Link {
    /// Negotiates what `options` ask for.
    pub(super) fn negotiate(&mut self, options: &NicOptions) -> Result<(), NicError> {
        let frontend = &mut self.0;
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        let wanted = options.features();
        if wanted & !offered != 0 {
            return Err(NicError::Features { offered, missing: wanted & !offered });
        }
        let protocol = VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::RESET_DEVICE;
        let protocol = frontend.get_protocol_features()? & protocol;
        frontend.set_protocol_features(protocol)?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        // Costs nothing, and a ring can be reset then.
        frontend.set_features(wanted | offered & 1 << VIRTIO_F_RING_RESET)?;
        Ok(())
    }

    /// Shares all of `ram`.
    pub(super) fn share(&mut self, ram: &GuestRam, as_slot: bool) -> Result<(), NicError> {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: ram.gpa(),
            memory_size: ram.size(),
            userspace_addr: ram.user(),
            mmap_offset: 0,
            mmap_handle: ram.file().as_raw_fd(),
        };
        if as_slot {
            self.0.add_mem_region(&region)?;
        } else {
            self.0.set_mem_table(&[region])?;
        }
        Ok(())
    }

    /// Starts virtqueue `index` where it stands.
    pub(super) fn start(
        &mut self,
        index: usize,
        queue: &DriverQueue,
        ram: &GuestRam,
    ) -> Result<(), NicError> {
        self.start_at(index, queue, ram, queue.base())
    }

    /// Starts virtqueue `index` at a base of the caller's choice.
    pub(super) fn start_at(
        &mut self,
        index: usize,
        queue: &DriverQueue,
        ram: &GuestRam,
        base: u16,
    ) -> Result<(), NicError> {
        let frontend = &mut self.0;
        frontend.set_vring_num(index, queue.size())?;
        frontend.set_vring_addr(index, &queue.addresses(ram))?;
        frontend.set_vring_base(index, base)?;
        frontend.set_vring_call(index, &queue.call)?;
        frontend.set_vring_kick(index, &queue.kick)?;
        frontend.set_vring_enable(index, true)?;
        Ok(())
    }
}
