//! Asynchronous events: what the device says of itself (AENQ; `ena_admin_aenq_*` of ena-com).

use std::sync::atomic::{Ordering, fence};

use super::descriptor;
use super::features::Hints;
use super::mmio::Mmio;
use super::registers::*;
use crate::memory::DmaSlice;

/// Entries of the ring.
const DEPTH: u16 = 16;
/// Bytes of an entry.
const ENTRY: usize = 64;
/// Bytes of the ring.
pub const RING_BYTES: usize = DEPTH as usize * ENTRY;
const WORDS: usize = ENTRY / 4;

/// Groups of events, as they are numbered.
pub mod group {
    /// Link up or down.
    pub const LINK: u16 = 0;
    /// Only a reset helps.
    pub const FATAL: u16 = 1;
    /// Something is not as it should be.
    pub const WARNING: u16 = 2;
    /// Other limits are wanted.
    pub const NOTIFICATION: u16 = 3;
    /// The device lives.
    pub const KEEP_ALIVE: u16 = 4;
    /// The device asks to be reset.
    pub const RESET: u16 = 7;
}

/// The groups that this driver knows, a bit each.
pub const KNOWN: u32 = 1 << group::LINK
    | 1 << group::FATAL
    | 1 << group::WARNING
    | 1 << group::NOTIFICATION
    | 1 << group::KEEP_ALIVE
    | 1 << group::RESET;

/// The syndrome of a notification that brings new limits.
const UPDATE_HINTS: u16 = 2;

/// Something that the device said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The link is up, or down.
    Link(bool),
    /// Only a reset helps.
    Fatal(u16),
    /// Something is not as it should be.
    Warning(u16),
    /// The device wants other time limits.
    Hints(Hints),
    /// The device lives.
    KeepAlive,
    /// The device asks to be reset.
    ResetRequest(u16),
    /// Something that this driver does not know: group and syndrome.
    Other(u16, u16),
}

/// The ring of events.
#[derive(Debug)]
pub struct Events {
    ring: DmaSlice,
    /// Events read since the last reset.
    count: u16,
}

impl Events {
    /// A ring over [`RING_BYTES`] of memory.
    pub fn new(ring: DmaSlice) -> Self {
        Self { ring, count: 0 }
    }

    /// Begins anew after a reset of the device, and tells it where the ring is.
    pub fn restart(&mut self, mmio: &Mmio) {
        self.count = 0;
        for index in 0..RING_BYTES / 4 {
            self.ring.store32(index, 0);
        }
        mmio.write_address(AENQ_BASE_LO, AENQ_BASE_HI, self.ring.iova());
        mmio.write(AENQ_CAPS, ring_caps(DEPTH, ENTRY as u16));
    }

    /// Gives the device all entries.
    pub fn enable(&self, mmio: &Mmio) {
        mmio.write(AENQ_HEAD, u32::from(DEPTH));
    }

    /// The events that have not been read, at most one lap of them.
    pub fn read(&mut self, mmio: &Mmio) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < usize::from(DEPTH) {
            let Some(event) = self.next() else { break };
            events.push(event);
        }
        if !events.is_empty() {
            mmio.write(AENQ_HEAD, u32::from(self.count.wrapping_add(DEPTH)));
        }
        events
    }

    fn next(&mut self) -> Option<Event> {
        let slot = usize::from(self.count % DEPTH) * WORDS;
        let phase = u32::from(descriptor::phase(self.count, DEPTH));
        if self.ring.load32(slot + 1) & 1 != phase {
            return None;
        }
        fence(Ordering::Acquire);
        let word = |n: usize| self.ring.load32(slot + n);
        let (group, syndrome) = (word(0) as u16, (word(0) >> 16) as u16);
        let event = match group {
            group::LINK => Event::Link(word(4) & 1 != 0),
            group::FATAL => Event::Fatal(syndrome),
            group::WARNING => Event::Warning(syndrome),
            group::NOTIFICATION if syndrome == UPDATE_HINTS => {
                Event::Hints(Hints::of([word(4), word(5), word(6)]))
            }
            group::KEEP_ALIVE => Event::KeepAlive,
            group::RESET => Event::ResetRequest(syndrome),
            _ => Event::Other(group, syndrome),
        };
        self.count = self.count.wrapping_add(1);
        Some(event)
    }
}
