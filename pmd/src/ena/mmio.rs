//! Register access. A write is one, but a read may be a request: the device writes the value into memory, so that no
//! processor waits for a round trip over the bus.
//!
//! ```text
//!   REG_READ ◀── offset, sequence        memory ◀── sequence, offset, value      (the sequence last)
//! ```

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use super::registers::*;
use crate::memory::DmaSlice;
use crate::registers::{ALL_ONES, Registers};

/// Bytes of memory for answers.
pub const ANSWER: usize = 8;
/// An answer takes some microseconds: so long it is looked for without sleeping.
const BUSY: Duration = Duration::from_micros(50);
/// Sleep between two looks from then on.
const NAP: Duration = Duration::from_micros(100);

/// The device did not say what a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered;

/// The registers of a device.
#[derive(Debug)]
pub struct Mmio {
    registers: Arc<dyn Registers>,
    /// Where answers go.
    answer: DmaSlice,
    direct: bool,
    sequence: u16,
    /// How long an answer may take.
    pub limit: Duration,
}

impl Mmio {
    /// Registers that are read directly, or by way of `answer`, which has [`ANSWER`] bytes.
    pub fn new(registers: Arc<dyn Registers>, answer: DmaSlice, direct: bool, limit: Duration) -> Self {
        Self { registers, answer, direct, sequence: 0, limit }
    }

    /// Tells the device where answers go: it forgets that in a reset.
    pub fn place_answers(&self) {
        self.write_address(ANSWER_LO, ANSWER_HI, self.answer.iova());
    }

    /// Writes a register.
    pub fn write(&self, offset: u32, value: u32) {
        self.registers.write(offset, value);
    }

    /// Writes an address into two registers.
    pub fn write_address(&self, low: u32, high: u32, iova: u64) {
        self.write(low, iova as u32);
        self.write(high, (iova >> 32) as u32);
    }

    /// Reads a register, which takes at most [`limit`](Self::limit).
    pub fn read(&mut self, offset: u32) -> Result<u32, Unanswered> {
        if self.direct {
            return Some(self.registers.read(offset)).filter(|value| *value != ALL_ONES).ok_or(Unanswered);
        }
        self.sequence = self.sequence.wrapping_add(1);
        // Something that is not the answer.
        self.answer.store16(0, !self.sequence);
        fence(Ordering::Release);
        self.write(REG_READ, u32::from(self.sequence) | offset << 16);
        let start = Instant::now();
        while self.answer.load16(0) != self.sequence {
            match start.elapsed() {
                elapsed if elapsed > self.limit => return Err(Unanswered),
                elapsed if elapsed > BUSY => thread::sleep(NAP.min(self.limit)),
                _ => std::hint::spin_loop(),
            }
        }
        fence(Ordering::Acquire);
        let value = self.answer.load32(1);
        let right = u32::from(self.answer.load16(1)) == offset && value != ALL_ONES;
        right.then_some(value).ok_or(Unanswered)
    }
}
