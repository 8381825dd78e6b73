//! Queues as the device keeps them.

use super::settings::Wrong;
use crate::bus::Bus;

/// An interrupt of completion queues, which may share it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// It interrupts when it is unmasked, and masks itself then.
    masked: bool,
    /// Something was written since it interrupted.
    pending: bool,
}

impl Line {
    pub const MASKED: Self = Self { masked: true, pending: false };

    /// A completion was written.
    pub fn happened(&mut self, bus: &mut Bus, vector: u16) {
        self.pending = true;
        self.interrupt(bus, vector);
    }

    /// The driver unmasks it.
    pub fn unmask(&mut self, bus: &mut Bus, vector: u16) {
        self.masked = false;
        self.interrupt(bus, vector);
    }

    fn interrupt(&mut self, bus: &mut Bus, vector: u16) {
        if self.pending && !self.masked {
            (self.masked, self.pending) = (true, false);
            bus.raise(vector);
        }
    }
}

/// A completion ring.
#[derive(Debug)]
pub(super) struct Completions {
    pub base: u64,
    pub depth: u16,
    /// Bytes of an entry.
    pub size: usize,
    pub vector: Option<u16>,
    /// Written so far.
    count: u16,
}

impl Completions {
    pub fn new(base: u64, depth: u16, size: usize, vector: Option<u16>) -> Self {
        Self { base, depth, size, vector, count: 0 }
    }

    /// Writes an entry, whose phase is the bit 24 of its first word, which goes last.
    pub fn write(&mut self, bus: &mut Bus, mut entry: Vec<u8>, wrong: Option<Wrong>) {
        let phase = self.count & self.depth == 0 || wrong == Some(Wrong::Phase);
        entry[3] = entry[3] & !1 | u8::from(phase);
        if wrong == Some(Wrong::ReservedBit) {
            match self.size {
                8 => entry[3] |= 0x40,
                _ => entry[2] |= 0x02,
            }
        }
        let at = self.base + u64::from(self.count & (self.depth - 1)) * self.size as u64;
        if self.size == 8 {
            bus.dma_write(at, &entry);
        } else {
            bus.dma_write(at + 4, &entry[4..]);
            bus.dma_write(at, &entry[..4]);
        }
        self.count = self.count.wrapping_add(1);
    }
}

/// What a device remembers of a meta descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub size: usize,
    pub l2: usize,
    pub l3: usize,
    /// Bytes.
    pub l4: usize,
}

/// A buffer to receive into.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    pub id: u16,
    pub iova: u64,
    pub len: usize,
}

/// A submission ring.
#[derive(Debug)]
pub(super) struct Submissions {
    /// 1 is to the device, 2 from it.
    pub direction: u8,
    pub completions: usize,
    pub base: u64,
    /// Where it is in the memory of the device, if it is there.
    pub area: Option<usize>,
    pub depth: u16,
    /// Entries taken so far.
    pub head: u16,
    /// Ids that the device has.
    pub ids: Vec<bool>,
    pub meta: Option<Meta>,
    /// Buffers that wait for frames, in order.
    pub buffers: std::collections::VecDeque<Buffer>,
}

impl Submissions {
    pub fn new(direction: u8, completions: usize, base: u64, area: Option<usize>, depth: u16) -> Self {
        Self {
            direction,
            completions,
            base,
            area,
            depth,
            head: 0,
            ids: vec![false; depth.into()],
            meta: None,
            buffers: std::collections::VecDeque::new(),
        }
    }

    /// The phase of the entry that is taken next.
    pub fn phase(&self) -> u32 {
        u32::from(self.head & self.depth == 0)
    }

    /// Where that entry is in its ring.
    pub fn slot(&self) -> usize {
        usize::from(self.head & (self.depth - 1))
    }

    /// Takes an id; `false` where it is none, or the device has it already.
    pub fn take_id(&mut self, id: u16) -> bool {
        self.ids.get_mut(usize::from(id)).is_some_and(|has| !std::mem::replace(has, true))
    }

    /// Gives an id back.
    pub fn give_id(&mut self, id: u16) {
        if let Some(has) = self.ids.get_mut(usize::from(id)) {
            *has = false;
        }
    }
}
