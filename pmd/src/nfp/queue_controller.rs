//! The queue controller: a read and a write pointer for every ring, which live in the device.
//!
//! A doorbell adds to the write pointer. Reading a pointer is a trip over the bus, a microsecond, so that it is done rarely.

use std::sync::Arc;

use super::registers::*;
use crate::device::DeviceError;
use crate::pci::PciFunction;
use crate::registers::{ALL_ONES, Caching, Registers};

/// One queue.
#[derive(Clone, Debug)]
pub struct Queue {
    registers: Arc<dyn Registers>,
    /// Its first byte.
    at: u32,
}

impl Queue {
    /// The queue at byte `at`.
    pub(super) fn new(registers: Arc<dyn Registers>, at: u32) -> Self {
        Self { registers, at }
    }

    /// Adds to the write pointer.
    #[inline]
    pub fn advance(&self, count: u32) {
        self.registers.write(self.at + ADD_WPTR, count);
    }

    /// The read pointer; `None` where nobody answers.
    #[inline]
    pub fn read_pointer(&self) -> Option<u32> {
        self.pointer(STS_LO)
    }

    /// The write pointer; `None` where nobody answers.
    pub fn write_pointer(&self) -> Option<u32> {
        self.pointer(STS_HI)
    }

    #[inline]
    fn pointer(&self, offset: u32) -> Option<u32> {
        match self.registers.read(self.at + offset) {
            ALL_ONES => None,
            value => Some(value & POINTER),
        }
    }
}

/// The queues of one VF.
#[derive(Debug)]
pub struct QueueController {
    registers: Arc<dyn Registers>,
    /// Offsets of the first transmit and the first receive ring's queues.
    tx: u32,
    rx: u32,
}

impl QueueController {
    /// Maps the queues of `rings` rings each way, the first of which have the numbers `tx` and `rx`.
    pub fn map(function: &Arc<dyn PciFunction>, tx: u32, rx: u32, rings: u32) -> Result<Self, DeviceError> {
        let first = tx.min(rx);
        let queues = tx.abs_diff(rx) + (rings - 1) * STRIDE + CONFIG_QUEUE + 1;
        let registers = Arc::clone(function).bar(
            QUEUE_BAR,
            u64::from(first) * u64::from(QUEUE_SIZE),
            (queues * QUEUE_SIZE) as usize,
            Caching::Uncached,
        )?;
        Ok(Self { registers, tx: (tx - first) * QUEUE_SIZE, rx: (rx - first) * QUEUE_SIZE })
    }

    fn queue(&self, at: u32) -> Queue {
        Queue::new(Arc::clone(&self.registers), at)
    }

    /// The queue of transmit ring `n`.
    pub fn transmit(&self, n: u32) -> Queue {
        self.queue(self.tx + n * STRIDE * QUEUE_SIZE)
    }

    /// The free list of receive ring `n`.
    pub fn free_list(&self, n: u32) -> Queue {
        self.queue(self.rx + n * STRIDE * QUEUE_SIZE)
    }

    /// The queue that tells the firmware of a change.
    pub fn config(&self) -> Queue {
        self.queue(self.tx + CONFIG_QUEUE * QUEUE_SIZE)
    }
}
