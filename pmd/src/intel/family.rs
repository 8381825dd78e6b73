//! In what the rings of two families differ.

/// Where a family of VFs keeps the registers of its rings, and what it wants to be told. Numbers are byte offsets in BAR 0
/// and bits of registers and descriptors.
#[derive(Debug)]
pub struct Family {
    /// The registers of receive queue 0. The order is the same in both families: RDBAL, RDBAH, RDLEN, and so on.
    pub receive: u32,
    /// The registers of transmit queue 0: TDBAL, TDBAH, TDLEN, and so on.
    pub transmit: u32,
    /// Bytes from the registers of one queue to those of the next.
    pub stride: u32,
    /// Registers of a receive queue that are set before it is switched on, counted from its first, and their values: SRRCTL
    /// with one buffer a descriptor and its size, and that frames without a descriptor are dropped.
    pub receive_settings: &'static [(u32, u32)],
    /// The same of a transmit queue.
    pub transmit_settings: &'static [(u32, u32)],
    /// RXDCTL without the bit that enables the queue.
    pub rxdctl: u32,
    /// TXDCTL without the bit that enables the queue.
    pub txdctl: u32,
    /// Extended interrupt mask set.
    pub eims: u32,
    /// Extended interrupt mask clear.
    pub eimc: u32,
    /// Vectors whose cause is cleared when they have interrupted.
    pub eiac: u32,
    /// Vectors that are masked when they have interrupted.
    pub eiam: u32,
    /// The vectors of queues 0 and 1: a byte each for receive queue 0, transmit queue 0, receive queue 1, transmit queue 1.
    /// Those of further queues follow.
    pub ivar: u32,
    /// The vector of receive queue 0; those of further queues follow.
    pub first_vector: u16,
    /// Bits of a received descriptor's status and errors that say that the frame is damaged.
    pub damaged: u32,
    /// Bits that say that a checksum is wrong: the frame is delivered as it came.
    pub wrong_checksum: u32,
    /// The bit that says that a VLAN tag was taken off a frame and stands in the descriptor; 0 where none ever is.
    pub tag_taken: u32,
    /// The VLAN tag that was taken from a frame which another function of the same port sent has its bytes swapped (I350;
    /// DPDK's `IGB_RXQ_FLAG_LB_BSWAP_VLAN`).
    pub swaps_looped_tags: bool,
    /// Longest frame of the port in bytes, with FCS.
    pub longest_frame: u32,
    /// Most bytes that one transmit descriptor points to.
    pub longest_buffer: u32,
    /// Every data descriptor names a context that must have been written before, and asks for it to be checked (CC).
    pub always_context: bool,
}

/// Registers of a ring, counted from its first.
pub mod ring {
    /// RDBAL, TDBAL: base address, low half.
    pub const BASE_LOW: u32 = 0x00;
    /// RDBAH, TDBAH: base address, high half.
    pub const BASE_HIGH: u32 = 0x04;
    /// RDLEN, TDLEN: bytes of the ring.
    pub const LENGTH: u32 = 0x08;
    /// RDH, TDH: head, the device's.
    pub const HEAD: u32 = 0x10;
    /// RDT, TDT: tail, ours.
    pub const TAIL: u32 = 0x18;
    /// RXDCTL, TXDCTL: enable and thresholds.
    pub const CONTROL: u32 = 0x28;
}

/// RXDCTL and TXDCTL: the queue is on.
pub const ENABLE: u32 = 1 << 25;

/// Descriptors of each ring; RDLEN and TDLEN take multiples of 128 bytes, up to 32768 at least.
pub const RING: u16 = 1024;

/// Vectors that a VF has.
pub const VECTORS: u16 = 3;

/// IVAR: this queue has a vector.
pub const IVAR_VALID: u32 = 1 << 7;

/// Bytes of the FCS, which the device adds and takes away.
pub const FCS: u32 = 4;

impl Family {
    /// Register `register` (of [`ring`]) of receive queue `queue`.
    #[inline]
    pub const fn receive_at(&self, queue: u16, register: u32) -> u32 {
        self.receive + queue as u32 * self.stride + register
    }

    /// Register `register` of transmit queue `queue`.
    #[inline]
    pub const fn transmit_at(&self, queue: u16, register: u32) -> u32 {
        self.transmit + queue as u32 * self.stride + register
    }

    /// Longest frame in bytes, without FCS.
    pub const fn max_frame(&self) -> u32 {
        self.longest_frame - FCS
    }
}
