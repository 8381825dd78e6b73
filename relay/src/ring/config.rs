//! Where a ring is and what was negotiated for it, as a front end says it.

use thiserror::Error;

/// Largest ring (virtio 1.3, 2.7).
pub const MAX_SIZE: u16 = 32768;
/// Smallest ring that is of use.
pub const MIN_SIZE: u16 = 2;

/// Where a ring of either layout is, as a front end says it: by user addresses, or behind a virtual IOMMU by addresses
/// that are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingConfig {
    /// Number of descriptors, from 2 to 32768; for a split ring a power of two.
    pub size: u16,
    /// Address of the descriptors.
    pub descriptors: u64,
    /// Address of the available ring, or of a packed ring's event suppression structure that the driver writes.
    pub available: u64,
    /// Address of the used ring, or of the one that the device writes.
    pub used: u64,
    /// Where the ring stands, in the format of `VHOST_USER_SET_VRING_BASE`.
    pub base: u32,
    /// Whether indirect descriptors were negotiated.
    pub indirect: bool,
    /// Whether `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// Whether a packed ring gives back chains a batch at a time. `VIRTIO_F_IN_ORDER` allows that (virtio 1.3, 2.8.9) where
    /// chains are completed in the order in which they were taken, and their driver asks for no length: in transmit queues.
    pub batches: bool,
}

impl RingConfig {
    /// The areas of the ring: address and length in bytes of each.
    pub fn areas(&self, packed: bool) -> [(u64, u64); 3] {
        let entries = u64::from(self.size);
        // Those of a split ring end in the event fields (virtio 1.3, 2.7.2): they are part of it whether negotiated or
        // not. Beside a packed ring are two event suppression structures (2.8.10).
        let (available, used) = if packed { (4, 4) } else { (6 + 2 * entries, 6 + 8 * entries) };
        [(self.descriptors, 16 * entries), (self.available, available), (self.used, used)]
    }
}

/// Why a ring cannot be started.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RingError {
    /// Size of a split ring is no power of two from 2 to 32768.
    #[error("ring size {0} is not a power of two from {MIN_SIZE} to {MAX_SIZE}")]
    Size(u16),
    /// Size of a packed ring is not from 2 to 32768.
    #[error("packed ring size {0} is not from {MIN_SIZE} to {MAX_SIZE}")]
    PackedSize(u16),
    /// The base of a packed ring is outside it.
    #[error("a ring of {size} descriptors cannot go on from base {base:#x}")]
    Base {
        /// As the front end said it.
        base: u32,
        /// Number of descriptors.
        size: u16,
    },
    /// One of the three areas is misaligned.
    #[error("the {area} at {address:#x} is not aligned to {alignment} bytes")]
    Alignment {
        /// Which area.
        area: &'static str,
        /// As the front end said it.
        address: u64,
        /// Bytes.
        alignment: u64,
    },
    /// One of the three areas does not lie within one memory region.
    #[error("the {area} at {address:#x} is not inside a memory region")]
    OutsideMemory {
        /// Which area.
        area: &'static str,
        /// As the front end said it.
        address: u64,
    },
}
