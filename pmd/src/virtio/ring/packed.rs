//! The packed ring (virtio 1.3, 2.8).
//!
//! ```text
//!   ring           [ address 64, length 32, id 16, flags 16 ] …     both sides write here, in turn
//!   driver event   offset 15, wrap 1, flags 16                      when the driver wants to be told
//!   device event   the same of the device
//! ```
//!
//! A descriptor belongs to the side that its two wrap bits say, which change their meaning with every lap.

use std::sync::atomic::{Ordering, fence};

use super::super::registers::{AVAILABLE, NEXT, USED, WRITE};
use super::{Breach, Ledger, Piece};
use crate::memory::DmaSlice;

/// Bytes of a cache line: what the device writes has its own.
const LINE: usize = 64;
/// Flags of an event suppression structure (2.8.14).
const ALWAYS: u32 = 0;
const NEVER: u32 = 1;
const AT_DESCRIPTOR: u32 = 2;
const FLAGS: u32 = 3;
/// The wrap bit of a position in such a structure.
const WRAP: u16 = 1 << 15;

const fn driver_at(size: u16) -> usize {
    (16 * size as usize).next_multiple_of(LINE)
}

/// Bytes of a ring.
pub const fn bytes(size: u16) -> usize {
    driver_at(size) + 2 * LINE
}

/// A place in the ring, and in which kind of lap.
#[derive(Clone, Copy, Debug)]
struct Position {
    slot: u16,
    wrap: bool,
}

impl Position {
    const START: Self = Self { slot: 0, wrap: true };

    #[inline]
    fn advance(&mut self, by: u16, size: u16) {
        self.slot += by;
        if self.slot >= size {
            self.slot -= size;
            self.wrap = !self.wrap;
        }
    }

    /// As an event or a notification names it.
    #[inline]
    fn bits(self) -> u16 {
        self.slot | if self.wrap { WRAP } else { 0 }
    }

    /// Wrap bits of a descriptor that is available from here.
    #[inline]
    fn available(self) -> u16 {
        if self.wrap { AVAILABLE } else { USED }
    }

    /// Whether these are flags of a descriptor that is used here.
    #[inline]
    fn is_used(self, flags: u16) -> bool {
        flags & (AVAILABLE | USED) == if self.wrap { AVAILABLE | USED } else { 0 }
    }
}

/// A packed ring.
#[derive(Debug)]
pub struct Packed {
    memory: DmaSlice,
    size: u16,
    event_idx: bool,
    /// Where the two event suppression structures are, in 32-bit words.
    driver_event: usize,
    device_event: usize,
    /// Where the next descriptor goes.
    next: Position,
    /// Where the next used one is expected.
    next_used: Position,
    /// The first descriptor that is not shown: its number, and the half that has its flags.
    held: Option<(u16, u64)>,
    /// Descriptors that are not shown.
    hidden: u16,
    pub(super) ledger: Ledger,
}

impl Packed {
    pub(super) fn new(memory: DmaSlice, size: u16, event_idx: bool, ledger: Ledger) -> Self {
        Self {
            memory,
            size,
            event_idx,
            driver_event: driver_at(size) / 4,
            device_event: (driver_at(size) + LINE) / 4,
            next: Position::START,
            next_used: Position::START,
            held: None,
            hidden: 0,
            ledger,
        }
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn areas(&self) -> [u64; 3] {
        [0, 4 * self.driver_event, 4 * self.device_event].map(|at| self.memory.iova() + at as u64)
    }

    #[inline]
    pub(super) fn give(&mut self, id: u16, pieces: &[Piece]) {
        for (n, piece) in pieces.iter().enumerate() {
            let slot = self.next.slot;
            let more = if n + 1 < pieces.len() { NEXT } else { 0 };
            let flags = self.next.available() | more | if piece.write { WRITE } else { 0 };
            let half = u64::from(piece.len) | u64::from(id) << 32 | u64::from(flags) << 48;
            self.memory.store(2 * usize::from(slot), piece.iova);
            // The device goes on from the first, and stops there as long as it does not see it.
            if self.held.is_none() {
                self.held = Some((slot, half));
            } else {
                self.memory.store(2 * usize::from(slot) + 1, half);
            }
            self.next.advance(1, self.size);
        }
        self.hidden += pieces.len() as u16;
    }

    #[inline]
    pub(super) fn show(&mut self) -> bool {
        let Some((slot, half)) = self.held.take() else { return false };
        fence(Ordering::Release);
        self.memory.store(2 * usize::from(slot) + 1, half);
        // The device looks at the ring after it asked to be notified, and we the other way round.
        fence(Ordering::SeqCst);
        let hidden = std::mem::take(&mut self.hidden);
        let event = self.memory.load32(self.device_event);
        match event >> 16 & FLAGS {
            NEVER => false,
            AT_DESCRIPTOR if self.event_idx => {
                let (event, wrap) = (event as u16 & !WRAP, event as u16 & WRAP != 0);
                // In numbers that grow over the laps, like those of a split ring.
                let event = if wrap == self.next.wrap { event } else { event.wrapping_sub(self.size) };
                self.next.slot.wrapping_sub(event).wrapping_sub(1) < hidden
            }
            _ => true,
        }
    }

    #[inline]
    pub(super) fn next_offset(&self) -> u16 {
        self.next.bits()
    }

    #[inline]
    pub(super) fn is_used(&self) -> bool {
        let flags = self.memory.load16(8 * usize::from(self.next_used.slot) + 7);
        self.ledger.count > 0 && self.next_used.is_used(flags)
    }

    #[inline]
    pub(super) fn look(&mut self) -> Result<Option<(u32, u32)>, Breach> {
        if !self.is_used() {
            return Ok(None);
        }
        fence(Ordering::Acquire);
        let slot = usize::from(self.next_used.slot);
        Ok(Some((self.memory.load16(8 * slot + 6).into(), self.memory.load32(4 * slot + 2))))
    }

    #[inline]
    pub(super) fn advance(&mut self, descriptors: u16) {
        self.next_used.advance(descriptors, self.size);
    }

    pub(super) fn ask_for_interrupts(&mut self, wanted: bool) {
        let event = match (wanted, self.event_idx) {
            (false, _) => NEVER << 16,
            (true, false) => ALWAYS << 16,
            (true, true) => AT_DESCRIPTOR << 16 | u32::from(self.next_used.bits()),
        };
        self.memory.store32(self.driver_event, event);
    }
}
