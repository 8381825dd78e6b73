//! A virtqueue, the device's side (virtio 1.3, 2.7 and 2.8): strict about what a driver may write when.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use super::features::{EVENT_IDX, IN_ORDER, RING_PACKED, Taken};
use super::wrong::Wrong;
use crate::bus::Bus;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// No interrupt.
pub const NO_VECTOR: u16 = 0xffff;

/// A run of bytes of the driver's.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Its address.
    pub iova: u64,
    /// Bytes.
    pub len: u32,
    /// For the device to write.
    pub write: bool,
}

/// A buffer that the device has.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Head or buffer id.
    pub id: u16,
    /// What it is made of.
    pub pieces: Vec<Piece>,
    /// Slots of the ring that it takes.
    length: u16,
    /// Those with what stands there that nobody but the device may touch.
    slots: Vec<(u16, [u8; 16])>,
}

impl Chain {
    /// Bytes for the device to write.
    pub fn room(&self) -> u32 {
        self.pieces.iter().filter(|piece| piece.write).map(|piece| piece.len).sum()
    }

    /// Reads all that is there to be read.
    pub fn read(&self, bus: &mut Bus) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in self.pieces.iter().filter(|piece| !piece.write) {
            bytes.extend(bus.dma_get(piece.iova, piece.len as usize));
        }
        bytes
    }

    /// Writes as many bytes as there is room for; how many.
    pub fn write(&self, bus: &mut Bus, mut bytes: &[u8]) -> u32 {
        let whole = bytes.len();
        for piece in self.pieces.iter().filter(|piece| piece.write) {
            let (part, rest) = bytes.split_at(bytes.len().min(piece.len as usize));
            bus.dma_write(piece.iova, part);
            bytes = rest;
        }
        (whole - bytes.len()) as u32
    }
}

/// A queue.
#[derive(Debug, Default)]
pub struct Queue {
    /// Registers of the common configuration.
    pub size: u16,
    pub(super) vector: u16,
    pub(super) areas: [u64; 3],
    pub(super) enabled: bool,
    pub(super) taken: Taken,
    pub(super) wrong: Option<Wrong>,
    pub(super) batches: bool,
    pub(super) polls: bool,
    /// Position of the next available descriptor or entry, and of the next used one.
    next: u16,
    wrap: bool,
    used: u16,
    used_wrap: bool,
    /// Id that must come next, in order.
    expected: u16,
    /// Buffers fetched and not used.
    pub chains: VecDeque<Chain>,
    /// Used and not published: id, length, slots, and whether it was filled.
    pending: Vec<(u16, u32, u16, bool)>,
    /// Slots that the device has.
    owned: u16,
    /// Notifications that were sent.
    pub notified: u64,
}

fn word16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn descriptor(bytes: &[u8; 16]) -> (u64, u32, u16, u16) {
    let mut wide = [0; 8];
    wide.copy_from_slice(&bytes[..8]);
    let len = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    (u64::from_le_bytes(wide), len, word16(bytes, 12), word16(bytes, 14))
}

impl Queue {
    /// A queue after a reset.
    pub fn new(size: u16) -> Self {
        Self { size, vector: NO_VECTOR, wrap: true, used_wrap: true, ..Self::default() }
    }

    fn packed(&self) -> bool {
        self.taken.has(RING_PACKED)
    }

    fn half(&self, bus: &mut Bus, at: u64) -> u16 {
        word16(&bus.dma_get(at, 2), 0)
    }

    fn table(&self, bus: &mut Bus, slot: u16) -> [u8; 16] {
        let mut bytes = [0; 16];
        bus.dma_read(self.areas[0] + 16 * u64::from(slot), &mut bytes);
        bytes
    }

    /// What is wrong with its registers when it is switched on.
    pub fn fault(&self, most: u16) -> Option<String> {
        let aligned = if self.packed() { [16, 4, 4] } else { [16, 2, 4] };
        if self.size == 0 || self.size > most || !self.packed() && !self.size.is_power_of_two() {
            return Some(format!("a ring of {} descriptors", self.size));
        }
        let odd = self.areas.iter().zip(aligned).any(|(area, align)| *area == 0 || area % align != 0);
        odd.then(|| format!("areas at {:x?}", self.areas))
    }

    /// The queue is in use from now on.
    pub fn begin(&mut self, bus: &mut Bus) {
        self.want_notifications(bus);
    }

    fn want_notifications(&self, bus: &mut Bus) {
        let area = self.areas[2];
        match (self.packed(), self.taken.has(EVENT_IDX)) {
            (false, true) => {
                let event = if self.polls { self.next.wrapping_sub(1) } else { self.next };
                bus.dma_write(area + 4 + 8 * u64::from(self.size), &event.to_le_bytes());
            }
            (false, false) => drop(bus.dma_write(area, &u16::from(self.polls).to_le_bytes())),
            (true, event_idx) => {
                let event = self.next | u16::from(self.wrap) << 15;
                let flags: u16 = if self.polls {
                    1
                } else if event_idx {
                    2
                } else {
                    0
                };
                bus.dma_write(area, &(u32::from(flags) << 16 | u32::from(event)).to_le_bytes());
            }
        }
    }

    /// Takes what the driver made available.
    pub fn fetch(&mut self, bus: &mut Bus) {
        while self.fetch_one(bus) {}
        self.want_notifications(bus);
    }

    /// The upper half that a notification must have (4.1.5.2), after all was fetched.
    pub fn position(&self) -> u16 {
        if self.packed() { self.next | u16::from(self.wrap) << 15 } else { self.next }
    }

    fn fetch_one(&mut self, bus: &mut Bus) -> bool {
        let chain = if self.packed() { self.fetch_packed(bus) } else { self.fetch_split(bus) };
        let Some(mut chain) = chain else { return false };
        let slots = chain.slots.len() as u16;
        chain.length = slots;
        if self.taken.has(IN_ORDER) && !self.packed() {
            let straight =
                chain.slots.iter().zip(0..).all(|((slot, _), n)| *slot == (chain.id + n) % self.size);
            if chain.id != self.expected || !straight {
                bus.broken(format!(
                    "descriptor {} is not the next in order, which is {}",
                    chain.id, self.expected
                ));
            }
            self.expected = (chain.id + slots) % self.size;
        }
        if self.chains.iter().any(|other| other.id == chain.id) {
            bus.broken(format!("buffer {} is made available while the device has it", chain.id));
            return false;
        }
        self.owned += slots;
        if self.owned > self.size {
            bus.broken("more descriptors than the ring has");
            return false;
        }
        if chain.pieces.windows(2).any(|two| two[0].write && !two[1].write) {
            bus.broken("a descriptor to read behind one to write");
        }
        if chain.pieces.iter().any(|piece| piece.len == 0) {
            bus.broken("a descriptor of 0 bytes");
        }
        self.chains.push_back(chain);
        true
    }

    fn fetch_split(&mut self, bus: &mut Bus) -> Option<Chain> {
        let index = self.half(bus, self.areas[1] + 2);
        if index == self.next {
            return None;
        }
        if index.wrapping_sub(self.next) > self.size {
            bus.broken(format!("the available index goes from {} to {index}", self.next));
            return None;
        }
        let head = self.half(bus, self.areas[1] + 4 + 2 * u64::from(self.next % self.size));
        self.next = self.next.wrapping_add(1);
        let mut chain = Chain { id: head, pieces: Vec::new(), length: 0, slots: Vec::new() };
        let mut slot = head;
        loop {
            if slot >= self.size || chain.slots.len() >= usize::from(self.size) {
                bus.broken(format!("descriptor {slot} is outside the table, or the chain has no end"));
                return None;
            }
            if self.chains.iter().flat_map(|chain| &chain.slots).any(|(other, _)| *other == slot) {
                bus.broken(format!("descriptor {slot} is used again while the device has it"));
            }
            let bytes = self.table(bus, slot);
            let (iova, len, flags, next) = descriptor(&bytes);
            if flags & !(NEXT | WRITE) != 0 {
                bus.broken(format!("flags {flags:#x} of descriptor {slot}"));
            }
            chain.pieces.push(Piece { iova, len, write: flags & WRITE != 0 });
            chain.slots.push((slot, bytes));
            if flags & NEXT == 0 {
                return Some(chain);
            }
            slot = next;
        }
    }

    fn fetch_packed(&mut self, bus: &mut Bus) -> Option<Chain> {
        let mut chain = Chain { id: 0, pieces: Vec::new(), length: 0, slots: Vec::new() };
        let (mut slot, mut wrap) = (self.next, self.wrap);
        loop {
            let bytes = self.table(bus, slot);
            let (iova, len, id, flags) = descriptor(&bytes);
            let available = flags & (AVAILABLE | USED) == if wrap { AVAILABLE } else { USED };
            if !available {
                if !chain.slots.is_empty() {
                    bus.broken(format!("the chain that begins at {} is not available whole", self.next));
                }
                return None;
            }
            if flags & !(NEXT | WRITE | AVAILABLE | USED) != 0 {
                bus.broken(format!("flags {flags:#x} of descriptor {slot}"));
            }
            chain.pieces.push(Piece { iova, len, write: flags & WRITE != 0 });
            chain.slots.push((slot, bytes));
            slot += 1;
            if slot == self.size {
                (slot, wrap) = (0, !wrap);
            }
            if flags & NEXT == 0 {
                (chain.id, self.next, self.wrap) = (id, slot, wrap);
                if id >= self.size {
                    // Allowed, but not to a driver that wants to be told of an id that it never gave.
                    bus.broken(format!("buffer id {id} in a ring of {}", self.size));
                }
                return Some(chain);
            }
            if chain.slots.len() >= usize::from(self.size) {
                bus.broken("a chain without end");
                return None;
            }
        }
    }

    /// The device is done with a buffer to which it wrote `len` bytes. The driver sees it after [`publish`](Self::publish).
    pub fn done(&mut self, bus: &mut Bus, chain: &Chain, len: u32) {
        for (slot, bytes) in &chain.slots {
            if self.table(bus, *slot) != *bytes {
                bus.broken(format!("descriptor {slot} was changed while the device had it"));
            }
        }
        self.owned -= chain.length;
        let filled = chain.room();
        let mut len = len;
        match self.wrong {
            Some(Wrong::LengthBeyondBuffer) if filled > 1 => len = filled + 4096,
            Some(Wrong::LengthBelowHeader) if filled > 1 => len = 11,
            _ => {}
        }
        self.pending.push((chain.id, len, chain.length, len == filled));
        if self.wrong == Some(Wrong::Repeated) {
            self.pending.push((chain.id, len, chain.length, false));
        }
    }

    /// Shows the driver what came back, and interrupts it if it wants that.
    pub fn publish(&mut self, bus: &mut Bus) {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() || self.wrong == Some(Wrong::NoWriteBack) {
            return;
        }
        // Entries to write: each stands for itself, or in a batch for those before it, all of them filled.
        let mut entries: Vec<(u16, u32, u16, u16)> = Vec::new();
        let mut batch = (0, 0);
        for (n, (id, len, slots, filled)) in pending.iter().enumerate() {
            batch = (batch.0 + slots, batch.1 + 1);
            let more = self.batches && self.taken.has(IN_ORDER) && *filled && n + 1 < pending.len();
            if !more {
                entries.push((*id, *len, batch.0, batch.1));
                batch = (0, 0);
            }
        }
        if self.wrong == Some(Wrong::UnknownId) {
            entries.iter_mut().for_each(|entry| entry.0 = self.size + 7);
        }
        let old = (self.used, self.used_wrap);
        if self.packed() {
            self.publish_packed(bus, &entries)
        } else {
            self.publish_split(bus, &entries)
        }
        self.interrupt(bus, old);
    }

    fn publish_split(&mut self, bus: &mut Bus, entries: &[(u16, u32, u16, u16)]) {
        let area = self.areas[2];
        for (id, len, _, buffers) in entries {
            let entry = u64::from(*len) << 32 | u64::from(*id);
            bus.dma_write(area + 4 + 8 * u64::from(self.used % self.size), &entry.to_le_bytes());
            self.used = self.used.wrapping_add(*buffers);
        }
        let jump = if self.wrong == Some(Wrong::IndexJump) { self.size + 1 } else { 0 };
        bus.dma_write(area + 2, &self.used.wrapping_add(jump).to_le_bytes());
    }

    fn publish_packed(&mut self, bus: &mut Bus, entries: &[(u16, u32, u16, u16)]) {
        let mut first = None;
        for (id, len, slots, _) in entries {
            let at = self.areas[0] + 16 * u64::from(self.used);
            let wrap = self.used_wrap != (self.wrong == Some(Wrong::WrapBit));
            let flags = if wrap { AVAILABLE | USED } else { 0 } | if *len > 0 { WRITE } else { 0 };
            bus.dma_write(at + 8, &len.to_le_bytes());
            bus.dma_write(at + 12, &id.to_le_bytes());
            // A slot with a used descriptor is the driver's to write, whichever buffer was there.
            let used = self.used;
            self.chains.iter_mut().for_each(|chain| chain.slots.retain(|(slot, _)| *slot != used));
            match first {
                None => first = Some((at, flags)),
                Some(_) => drop(bus.dma_write(at + 14, &flags.to_le_bytes())),
            }
            self.used += slots;
            if self.used >= self.size {
                (self.used, self.used_wrap) = (self.used - self.size, !self.used_wrap);
            }
        }
        if let Some((at, flags)) = first {
            bus.dma_write(at + 14, &flags.to_le_bytes());
        }
    }

    fn interrupt(&mut self, bus: &mut Bus, old: (u16, bool)) {
        // A driver that looked before it could see what came back has said by then that it wants to be told.
        fence(Ordering::SeqCst);
        let event_idx = self.taken.has(EVENT_IDX);
        let area = self.areas[1];
        let wanted = if self.packed() {
            let event = bus.dma_get(area, 4);
            let (event, flags) = (word16(&event, 0), word16(&event, 2));
            match flags {
                0 => true,
                2 if event_idx => {
                    // Positions in a lap of twice the ring.
                    let line = u32::from(self.size) * 2;
                    let place =
                        |slot: u16, wrap: bool| u32::from(slot) + if wrap { 0 } else { u32::from(self.size) };
                    let from = place(old.0, old.1);
                    let past = |to: u32| (to + line - from) % line;
                    past(place(event & 0x7fff, event >> 15 != 0)) < past(place(self.used, self.used_wrap))
                }
                1 => false,
                _ => {
                    bus.broken(format!("flags {flags:#x} of the driver's event suppression"));
                    true
                }
            }
        } else if event_idx {
            let event = self.half(bus, area + 4 + 2 * u64::from(self.size));
            if self.half(bus, area) != 0 {
                bus.broken("flags of the available ring with event indices");
            }
            event.wrapping_sub(old.0) < self.used.wrapping_sub(old.0)
        } else {
            self.half(bus, area) & 1 == 0
        };
        if wanted && self.vector != NO_VECTOR && self.wrong != Some(Wrong::NoInterrupt) {
            bus.raise(self.vector);
        }
    }
}
