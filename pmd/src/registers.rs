//! Registers of a device: words at byte offsets, little-endian as PCI is.

use std::fmt;

/// What a read gives when nobody answers it: the bridge above fills in ones (PCI Express 2.3.2, completion time-out and
/// unsupported request).
pub const ALL_ONES: u32 = u32::MAX;

/// How the processor reaches registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Caching {
    /// Each store goes out on its own, in order.
    #[default]
    Uncached,
    /// Stores are gathered into bursts, and may go out in another order than they were made (device memory only).
    WriteCombining,
}

/// Registers, wherever they are: in a BAR, or in a model of the device.
///
/// Writes are in order with each other and with writes to memory that a release fence precedes. Offsets are multiples of
/// the access's size.
pub trait Registers: Send + Sync + fmt::Debug {
    /// Reads the 32-bit register at byte `offset`; [`ALL_ONES`] where there is none.
    fn read(&self, offset: u32) -> u32;

    /// Writes the 32-bit register at byte `offset`; nothing happens where there is none.
    fn write(&self, offset: u32, value: u32);

    /// Reads 8 bits; ones where there is no such register, as for every device that has only 32-bit ones.
    fn read8(&self, _offset: u32) -> u8 {
        u8::MAX
    }

    /// Reads 16 bits.
    fn read16(&self, _offset: u32) -> u16 {
        u16::MAX
    }

    /// Writes 8 bits.
    fn write8(&self, _offset: u32, _value: u8) {}

    /// Writes 16 bits.
    fn write16(&self, _offset: u32, _value: u16) {}

    /// Writes 64 bits at once, on processors that can; a device sees two halves, the lower first, from others.
    fn write64(&self, offset: u32, value: u64) {
        self.write(offset, value as u32);
        self.write(offset + 4, (value >> 32) as u32);
    }

    /// Writes consecutive 64-bit words from `offset` on and sees to it that they are on their way to the device, in
    /// front of every write that follows: for descriptors that are pushed into device memory.
    fn push(&self, offset: u32, words: &[u64]) {
        for (at, word) in (offset..).step_by(size_of::<u64>()).zip(words) {
            self.write64(at, *word);
        }
    }

    /// How they are mapped.
    fn caching(&self) -> Caching {
        Caching::Uncached
    }
}
