//! The admin queue: commands to the device, and what it answers (`ena_admin_defs.h` of ena-com).
//!
//! ```text
//!   AQ   [command][command] …   ──▶ device      both rings tell by a phase bit, which changes with every lap,
//!   ACQ  [reply  ][reply  ] …   ◀──             which entries are new
//! ```
//!
//! One command is on its way at a time. A device that keeps one waiting for too long, or answers another, is not asked
//! again until it is reset.

use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::descriptor;
use super::mmio::Mmio;
use super::registers::*;
use crate::memory::DmaSlice;

/// Entries of each ring.
pub const DEPTH: u16 = 32;
/// Bytes of a command and of a reply.
pub const ENTRY: usize = 64;
/// Bytes of each ring.
pub const RING_BYTES: usize = DEPTH as usize * ENTRY;
const WORDS: usize = ENTRY / 4;
/// The highest bits of a command's number are reserved.
const ID_MASK: u32 = 0xfff;
/// So long an answer is looked for without sleeping, and then with naps that grow to the longest.
const BUSY: Duration = Duration::from_micros(20);
const SHORTEST_NAP: Duration = Duration::from_micros(20);
const LONGEST_NAP: Duration = Duration::from_millis(5);

/// What a command is to do (`ena_admin_aq_opcode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Creates a submission queue.
    CreateSq = 1,
    /// Destroys it.
    DestroySq = 2,
    /// Creates a completion queue.
    CreateCq = 3,
    /// Destroys it.
    DestroyCq = 4,
    /// Asks for a feature.
    GetFeature = 8,
    /// Sets one.
    SetFeature = 9,
    /// Asks for counters.
    GetStats = 11,
}

/// A command: 16 words, the first of which the queue fills in.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    opcode: Opcode,
    words: [u32; WORDS],
}

impl Command {
    /// A command with nothing in it.
    pub fn new(opcode: Opcode) -> Self {
        Self { opcode, words: [0; WORDS] }
    }

    /// With `value` in word `index`.
    pub fn word(mut self, index: usize, value: u32) -> Self {
        if let Some(word) = self.words.get_mut(index) {
            *word = value;
        }
        self
    }

    /// With an address in word `index` and the lower half of the next.
    pub fn address(self, index: usize, iova: u64) -> Self {
        self.word(index, iova as u32).word(index + 1, (iova >> 32) as u32)
    }

    /// With a buffer that the device reads or writes besides.
    pub fn buffer(self, buffer: &DmaSlice, len: usize) -> Self {
        // What ena-com sets although the address is that of the buffer itself: `ctrl_data_indirect`.
        let flags = 1u32 << 2;
        self.word(0, flags << 24).word(1, len as u32).address(2, buffer.iova())
    }
}

/// What the device answered: 16 words, of which the first two are about the command.
pub type Reply = [u32; WORDS];

/// Why there is no answer, or not the one that was asked for.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AdminError {
    /// The device did not answer in time, or had not before.
    #[error("its admin queue does not answer")]
    Silent,
    /// It answered something that it was not asked.
    #[error("its admin queue answers what it was not asked")]
    Garbled,
    /// It would not.
    #[error("it refuses an admin command with status {status} ({}), extended status {extended}", meaning(*status))]
    Refused {
        /// `ena_admin_aq_completion_status`.
        status: u8,
        /// Details that only the device knows.
        extended: u16,
    },
}

fn meaning(status: u8) -> &'static str {
    match status {
        1 => "no resources",
        2 => "bad opcode",
        3 => "unsupported",
        4 => "malformed request",
        5 => "illegal parameter",
        7 => "busy",
        _ => "unknown error",
    }
}

/// The admin queue.
#[derive(Debug)]
pub struct AdminQueue {
    commands: DmaSlice,
    replies: DmaSlice,
    /// Commands submitted, and answered, since the last reset.
    count: u16,
    /// How long an answer may take.
    pub limit: Duration,
    broken: bool,
}

impl AdminQueue {
    /// A queue over two pieces of memory of [`RING_BYTES`] each.
    pub fn new(commands: DmaSlice, replies: DmaSlice) -> Self {
        Self { commands, replies, count: 0, limit: Duration::from_secs(3), broken: true }
    }

    /// Begins anew after a reset of the device, and tells it where the rings are.
    pub fn restart(&mut self, mmio: &Mmio) {
        (self.count, self.broken) = (0, false);
        for index in 0..RING_BYTES / 4 {
            self.commands.store32(index, 0);
            self.replies.store32(index, 0);
        }
        mmio.write_address(AQ_BASE_LO, AQ_BASE_HI, self.commands.iova());
        mmio.write_address(ACQ_BASE_LO, ACQ_BASE_HI, self.replies.iova());
        mmio.write(AQ_CAPS, ring_caps(DEPTH, ENTRY as u16));
        mmio.write(ACQ_CAPS, ring_caps(DEPTH, ENTRY as u16));
    }

    /// Whether it has to be reset before it is of use again.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Asks nothing more until the next [`restart`](Self::restart).
    pub fn close(&mut self) {
        self.broken = true;
    }

    /// Has the device do something, which takes at most [`limit`](Self::limit).
    pub fn execute(&mut self, mmio: &Mmio, command: Command) -> Result<Reply, AdminError> {
        if self.broken {
            return Err(AdminError::Silent);
        }
        let slot = usize::from(self.count % DEPTH) * WORDS;
        let phase = u32::from(descriptor::phase(self.count, DEPTH));
        let id = u32::from(self.count) & ID_MASK;
        for (at, word) in command.words.iter().enumerate().skip(1) {
            self.commands.store32(slot + at, *word);
        }
        let flags = command.words[0] | phase << 24;
        self.commands.store32(slot, id | u32::from(command.opcode as u8) << 16 | flags);
        self.count = self.count.wrapping_add(1);
        fence(Ordering::Release);
        mmio.write(AQ_DOORBELL, u32::from(self.count));
        let reply = self.reply(slot, phase, id);
        self.broken = matches!(reply, Err(AdminError::Silent | AdminError::Garbled));
        reply
    }

    fn reply(&self, slot: usize, phase: u32, id: u32) -> Result<Reply, AdminError> {
        let start = Instant::now();
        let mut nap = SHORTEST_NAP;
        while self.replies.load32(slot) >> 24 & 1 != phase {
            match start.elapsed() {
                elapsed if elapsed > self.limit => return Err(AdminError::Silent),
                elapsed if elapsed > BUSY => {
                    thread::sleep(nap);
                    nap = (nap * 2).min(LONGEST_NAP);
                }
                _ => std::hint::spin_loop(),
            }
        }
        fence(Ordering::Acquire);
        let mut reply = [0; WORDS];
        for (at, word) in reply.iter_mut().enumerate() {
            *word = self.replies.load32(slot + at);
        }
        if reply[0] & ID_MASK != id {
            return Err(AdminError::Garbled);
        }
        match (reply[0] >> 16) as u8 {
            0 => Ok(reply),
            status => Err(AdminError::Refused { status, extended: reply[1] as u16 }),
        }
    }
}
