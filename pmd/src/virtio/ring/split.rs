//! The split ring (virtio 1.3, 2.7).
//!
//! ```text
//!   table   [ descriptor 0 ][ 1 ] …          16 bytes each: address 64, length 32, flags 16, next 16
//!   avail   flags idx [ head ][ head ] …     used_event
//!   used    flags idx [ id len ] …           avail_event
//! ```

use std::sync::atomic::{Ordering, fence};

use super::super::registers::{NEXT, WRITE};
use super::{Breach, Ledger, Piece};
use crate::memory::DmaSlice;

/// Bytes of a cache line: the device's area has its own.
const LINE: usize = 64;
/// "Do not interrupt me", "do not notify me" (2.7.6, 2.7.8).
const NOT_NEEDED: u16 = 1;

const fn used_at(size: u16) -> usize {
    (18 * size as usize + 6).next_multiple_of(LINE)
}

/// Bytes of a ring.
pub const fn bytes(size: u16) -> usize {
    used_at(size) + 8 * size as usize + 6
}

/// A split ring.
#[derive(Debug)]
pub struct Split {
    memory: DmaSlice,
    size: u16,
    event_idx: bool,
    /// Where the areas begin, in 16-bit words.
    avail: usize,
    used: usize,
    /// Index of the next available entry, and what it was when it was last shown.
    next: u16,
    shown: u16,
    /// Index of the next used entry, and the device's as last seen.
    next_used: u16,
    seen: u16,
    pub(super) ledger: Ledger,
}

impl Split {
    pub(super) fn new(memory: DmaSlice, size: u16, event_idx: bool, ledger: Ledger) -> Self {
        Self {
            memory,
            size,
            event_idx,
            avail: 8 * usize::from(size),
            used: used_at(size) / 2,
            next: 0,
            shown: 0,
            next_used: 0,
            seen: 0,
            ledger,
        }
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn areas(&self) -> [u64; 3] {
        [0, 2 * self.avail, 2 * self.used].map(|at| self.memory.iova() + at as u64)
    }

    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    #[inline]
    pub(super) fn give(&mut self, id: u16, pieces: &[Piece]) {
        for (n, piece) in pieces.iter().enumerate() {
            let at = self.slot(id.wrapping_add(n as u16));
            let next = self.slot(id.wrapping_add(n as u16 + 1)) as u64;
            let write = if piece.write { WRITE } else { 0 };
            let (more, next) = if n + 1 < pieces.len() { (NEXT, next) } else { (0, 0) };
            self.memory.store(2 * at, piece.iova);
            self.memory.store(2 * at + 1, u64::from(piece.len) | u64::from(write | more) << 32 | next << 48);
        }
        let slot = self.slot(self.next);
        self.memory.store16(self.avail + 2 + slot, id);
        self.next = self.next.wrapping_add(1);
    }

    #[inline]
    pub(super) fn show(&mut self) -> bool {
        fence(Ordering::Release);
        self.memory.store16(self.avail + 1, self.next);
        // The device looks at the index after it asked to be notified, and we the other way round.
        fence(Ordering::SeqCst);
        let before = std::mem::replace(&mut self.shown, self.next);
        if self.event_idx {
            let event = self.memory.load16(self.used + 2 + 4 * usize::from(self.size));
            // 2.7.10.
            self.next.wrapping_sub(event).wrapping_sub(1) < self.next.wrapping_sub(before)
        } else {
            self.memory.load16(self.used) & NOT_NEEDED == 0
        }
    }

    #[inline]
    pub(super) fn next_offset(&self) -> u16 {
        self.next
    }

    #[inline]
    fn index(&self) -> u16 {
        self.memory.load16(self.used + 1)
    }

    #[inline]
    pub(super) fn is_used(&self) -> bool {
        self.index() != self.next_used
    }

    #[inline]
    pub(super) fn look(&mut self) -> Result<Option<(u32, u32)>, Breach> {
        if self.seen == self.next_used {
            self.seen = self.index();
            if self.seen == self.next_used {
                return Ok(None);
            }
            fence(Ordering::Acquire);
        }
        // Batches are counted like single buffers, and no buffer has less than a descriptor.
        if self.seen.wrapping_sub(self.next_used) > self.ledger.count {
            return Err(Breach::TooMany);
        }
        let entry = self.used / 2 + 1 + 2 * self.slot(self.next_used);
        Ok(Some((self.memory.load32(entry), self.memory.load32(entry + 1))))
    }

    #[inline]
    pub(super) fn advance(&mut self, _descriptors: u16) {
        self.next_used = self.next_used.wrapping_add(1);
    }

    pub(super) fn ask_for_interrupts(&mut self, wanted: bool) {
        if self.event_idx {
            // An index that has just passed is a lap away.
            let event = self.next_used.wrapping_sub(u16::from(!wanted));
            self.memory.store16(self.avail + 2 + usize::from(self.size), event);
        } else {
            self.memory.store16(self.avail, if wanted { 0 } else { NOT_NEEDED });
        }
    }
}
