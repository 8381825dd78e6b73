//! What a driver asks of the function that it drives.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::device::DeviceError;
use crate::memory::DmaMap;
use crate::registers::{Caching, Registers};

/// A PCI function: one that VFIO gave us, or a model of one.
pub trait PciFunction: DmaMap {
    /// Resets the function by FLR: all its DMA ends, and its registers are as after power-on. An error where it cannot
    /// be reset from outside.
    fn reset(&self) -> io::Result<()>;

    /// Allows or forbids the function to start DMA.
    fn set_bus_master(&self, on: bool) -> io::Result<()>;

    /// Reads `bytes.len()` bytes of the configuration space from `offset` on.
    fn read_config(&self, _offset: u16, _bytes: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Maps `len` bytes of BAR `index` (0 to 5) from `start` on, both as the device's specification gives them. Keeps the
    /// function open. `caching` is a wish: [`Registers::caching`] says what became of it. It is only granted to a BAR of which
    /// nothing was mapped uncached before.
    fn bar(
        self: Arc<Self>,
        index: u8,
        start: u64,
        len: usize,
        caching: Caching,
    ) -> Result<Arc<dyn Registers>, DeviceError>;

    /// How many bits addresses have that the function's DMA reaches. Memory that is mapped from now on lies there; 40 bits
    /// until this is told, which is what an NFP's older descriptors hold.
    fn set_dma_bits(&self, _bits: u32) {}

    /// Has the first `count` MSI-X interrupts of the function ring an eventfd each from now on, in place of those that it
    /// rang before, and the others none; 0 switches all off. An error that says what there is where it has none, or fewer.
    fn interrupts(&self, _count: usize) -> io::Result<Vec<OwnedFd>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether another function that is in use reaches what this one reaches.
    fn shares_address_space(&self) -> bool;

    /// Whether its owner has asked for the function back, because it is about to leave the machine.
    fn removal_requested(&self) -> bool;
}
