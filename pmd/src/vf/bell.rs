//! What wakes a worker that sleeps for a receive queue.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::device::Armed;
use crate::registers::Registers;

/// A write to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poke {
    /// Of 32 bits: where, and what.
    Word(u32, u32),
    /// Of 8 bits.
    Byte(u32, u8),
}

impl Poke {
    fn make(self, registers: &dyn Registers) {
        match self {
            Self::Word(offset, value) => registers.write(offset, value),
            Self::Byte(offset, value) => registers.write8(offset, value),
        }
    }
}

/// An interrupt that the device lets through once each time it is allowed to, and masks itself then.
#[derive(Debug)]
pub struct Bell {
    /// Becomes readable when the device interrupts.
    pub event: OwnedFd,
    /// The device's.
    pub registers: Arc<dyn Registers>,
    /// Lets the interrupt through. What came while it was masked interrupts at once.
    pub allow: Poke,
    /// Masks it.
    pub mask: Poke,
}

impl Bell {
    /// As [`ReceiveQueue::bell`](crate::ReceiveQueue::bell).
    pub fn fd(bell: Option<&Self>) -> Option<BorrowedFd<'_>> {
        bell.map(|bell| bell.event.as_fd())
    }

    /// As [`ReceiveQueue::arm`](crate::ReceiveQueue::arm), for a queue in which `is_ready` finds something.
    pub fn arm(bell: Option<&Self>, is_ready: impl FnOnce() -> bool) -> Armed {
        let Some(bell) = bell else { return Armed::Silent };
        bell.allow.make(&*bell.registers);
        fence(Ordering::SeqCst);
        if is_ready() { Armed::Ready } else { Armed::Rings }
    }

    /// As [`ReceiveQueue::disarm`](crate::ReceiveQueue::disarm).
    pub fn disarm(bell: Option<&Self>) {
        if let Some(bell) = bell {
            bell.mask.make(&*bell.registers);
        }
    }
}
