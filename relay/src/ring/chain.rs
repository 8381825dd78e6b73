//! Descriptors and chains: what a guest may write, and what is wrong when it wrote something else.

use super::buffer::Buffer;
use crate::counters::DropReason;
use crate::guest::iotlb::Permission;

/// `VIRTQ_DESC_F_NEXT`: the chain goes on at `next` (virtio 1.3, 2.7.5).
pub const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`: the buffer is for the device to write.
pub const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`: the buffer is a table of descriptors (2.7.5.3).
pub const INDIRECT: u16 = 4;
/// Size of one descriptor in bytes.
pub const DESCRIPTOR_SIZE: usize = 16;

/// A descriptor, read once from guest memory into a local: nothing in it changes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Length of the buffer in bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor of the chain, where `NEXT` is set.
    pub next: u16,
}

impl Descriptor {
    /// From its two little-endian halves as they lie in memory.
    #[inline]
    pub fn from_halves(addr: u64, rest: u64) -> Self {
        let (addr, rest) = (u64::from_le(addr), u64::from_le(rest));
        Self { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    #[inline]
    pub(super) fn buffer(self) -> Buffer {
        Buffer { addr: self.addr, len: self.len, flags: self.flags }
    }
}

/// What the buffers of a chain are for, seen from the guest's side of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device reads them (transmit queue).
    Read,
    /// The device writes them (receive queue).
    Write,
}

impl Access {
    /// Whether a descriptor with these flags may stand in such a chain.
    #[inline]
    pub fn allows(self, flags: u16) -> bool {
        (flags & WRITE != 0) == (self == Access::Write)
    }

    /// What a translation must permit for it.
    #[inline]
    pub fn permission(self) -> Permission {
        match self {
            Access::Read => Permission::Read,
            Access::Write => Permission::Write,
        }
    }
}

/// Why a chain was not walked to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The chain is malformed; it is completed unused and counted.
    Malformed(DropReason),
    /// The visitor has had enough; nothing is wrong.
    Enough,
    /// An address has no translation yet; it was asked for.
    Unmapped,
}

impl From<DropReason> for Stop {
    fn from(reason: DropReason) -> Self {
        Stop::Malformed(reason)
    }
}
