//! The control words: how the firmware is told of a change and answers, and what stands in them.
//!
//! ```text
//!   host                                     firmware
//!   words, then CTRL, then UPDATE: which
//!   config queue, write pointer + 1 ───────▶ takes them over
//!   UPDATE is 0, or has the error bit ◀───── says so
//! ```

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::queue_controller::Queue;
use super::registers::*;
use crate::mac::MacAddress;
use crate::registers::{ALL_ONES, Registers};

/// Looks for an answer without sleeping: it usually comes within microseconds.
const BUSY_LOOKS: u32 = 50;
/// Ethernet type of a VLAN tag (IEEE 802.1Q).
const TAG_TYPE: u16 = 0x8100;

/// How long to wait for the firmware.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Time between two looks.
    pub interval: Duration,
    /// Time in which it must have answered.
    pub answer: Duration,
    /// Time in which it must have sent something of what it was given, with a link.
    pub stall: Duration,
}

impl Default for Patience {
    /// The 5 s that Linux's driver gives for both (`NFP_NET_POLL_TIMEOUT`).
    fn default() -> Self {
        let limit = Duration::from_secs(5);
        Self { interval: Duration::from_micros(250), answer: limit, stall: limit }
    }
}

/// Why a change was not made.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ControlError {
    /// It did not answer in time.
    #[error("the firmware does not answer")]
    Silent,
    /// It answered with an error.
    #[error("the firmware refuses (its answer is {0:#x})")]
    Refused(u32),
    /// Registers read as ones.
    #[error("the device does not answer")]
    Gone,
}

/// The control BAR.
#[derive(Clone, Debug)]
pub struct Control {
    registers: Arc<dyn Registers>,
    patience: Patience,
}

impl Control {
    /// The words in these registers.
    pub fn new(registers: Arc<dyn Registers>, patience: Patience) -> Self {
        Self { registers, patience }
    }

    /// How long it waits.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// All words.
    pub fn registers(&self) -> &Arc<dyn Registers> {
        &self.registers
    }

    /// Whether anybody answers.
    pub fn is_present(&self) -> bool {
        self.registers.read(VERSION) != ALL_ONES
    }

    /// Tells the firmware through its config queue that what `update` names was changed, and waits for its answer, at most
    /// for `limit`.
    pub fn update(&self, config: &Queue, update: u32, limit: Duration) -> Result<(), ControlError> {
        self.registers.write(UPDATE, update);
        // What was written before is there when the queue moves.
        if self.registers.read(UPDATE) == ALL_ONES {
            return Err(ControlError::Gone);
        }
        config.advance(1);
        let deadline = Instant::now() + limit;
        let mut looks = 0;
        loop {
            match self.registers.read(UPDATE) {
                0 => return Ok(()),
                ALL_ONES => return Err(ControlError::Gone),
                status if status & UPDATE_ERR != 0 => return Err(ControlError::Refused(status)),
                _ if looks < BUSY_LOOKS => looks += 1,
                _ if Instant::now() < deadline => thread::sleep(self.patience.interval),
                _ => return Err(ControlError::Silent),
            }
        }
    }

    /// The address that stands there.
    pub fn mac(&self) -> MacAddress {
        let [a, b, c, d] = self.registers.read(MACADDR).to_be_bytes();
        let [e, f, ..] = self.registers.read(MACADDR + 4).to_be_bytes();
        MacAddress([a, b, c, d, e, f])
    }

    /// Writes an address, of which the firmware is to be told.
    pub fn write_mac(&self, mac: MacAddress) {
        let MacAddress([a, b, c, d, e, f]) = mac;
        self.registers.write(MACADDR, u32::from_be_bytes([a, b, c, d]));
        self.registers.write16(MACADDR + 6, u16::from_be_bytes([e, f]));
    }

    /// Has frames of a VLAN pass the filter.
    pub fn pass_vlan(&self, config: &Queue, mailbox: u32, vlan: u16) -> Result<(), ControlError> {
        self.registers.write16(mailbox + MBOX_VALUE, vlan);
        self.registers.write16(mailbox + MBOX_VALUE + 2, TAG_TYPE);
        self.registers.write64(mailbox + MBOX_COMMAND, MBOX_CTAG_FILTER_ADD);
        self.update(config, UPDATE_MBOX, self.patience.answer)?;
        match self.registers.read(mailbox + MBOX_ANSWER) {
            0 => Ok(()),
            answer => Err(ControlError::Refused(answer)),
        }
    }
}
