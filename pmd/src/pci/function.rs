//! What a driver asks of the function that it drives, beside registers.

use std::io;
use std::os::fd::OwnedFd;

use crate::memory::DmaMap;

/// A PCI function: one that VFIO gave us, or a model of one.
pub trait PciFunction: DmaMap {
    /// Resets the function by FLR: all its DMA ends, and its registers are as after power-on. An error where it cannot
    /// be reset from outside.
    fn reset(&self) -> io::Result<()>;

    /// Allows or forbids the function to start DMA.
    fn set_bus_master(&self, on: bool) -> io::Result<()>;

    /// Has the first MSI-X interrupt of the function ring an eventfd from now on. An error where it has none.
    fn interrupt(&self) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether another function that is in use reaches what this one reaches.
    fn shares_address_space(&self) -> bool;

    /// Whether its owner has asked for the function back, because it is about to leave the machine.
    fn removal_requested(&self) -> bool;
}
