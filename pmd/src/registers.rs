//! Registers of a device: 32-bit words at byte offsets.

use std::fmt;

/// What a read gives when nobody answers it: the bridge above fills in ones (PCI Express 2.3.2, completion time-out and
/// unsupported request).
pub const ALL_ONES: u32 = u32::MAX;

/// Registers, wherever they are: in a BAR, or in a model of the device.
///
/// Writes are in order with each other and with writes to memory that a release fence precedes.
pub trait Registers: Send + Sync + fmt::Debug {
    /// Reads the register at byte `offset`; [`ALL_ONES`] where there is none.
    fn read(&self, offset: u32) -> u32;

    /// Writes the register at byte `offset`; nothing happens where there is none.
    fn write(&self, offset: u32, value: u32);
}
