//! The registers of a ring, and whose its descriptors are.

use std::collections::VecDeque;

use crate::bus::Bus;

/// Bytes of a descriptor.
const SIZE: u64 = 16;
/// RXDCTL, TXDCTL: the queue is on.
const ENABLE: u32 = 1 << 25;
/// RXDCTL, TXDCTL: PTHRESH, HTHRESH, WTHRESH, enable, flush.
const CONTROL_BITS: u32 = 0x1f | 0x1f << 8 | 0x1f << 16 | ENABLE | 1 << 26;

/// How a queue takes being switched on.
#[derive(Clone, Copy, Debug)]
pub struct Switch {
    /// It never is.
    pub never: bool,
    /// With WTHRESH 0, too.
    pub lenient: bool,
}

/// A ring.
#[derive(Debug, Default)]
pub struct Ring {
    base: u64,
    length: u32,
    head: u32,
    tail: u32,
    control: u32,
    /// Descriptors that the device has, as they were when it got them.
    owned: VecDeque<[u64; 2]>,
}

impl Ring {
    /// Whether it is on.
    pub fn is_enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    fn count(&self) -> u32 {
        self.length / SIZE as u32
    }

    /// Descriptors that the device has.
    pub fn owned(&self) -> usize {
        self.owned.len()
    }

    /// A read of register `register`.
    pub fn read(&self, bus: &mut Bus, register: u64) -> u32 {
        match register {
            0x00 => self.base as u32,
            0x04 => (self.base >> 32) as u32,
            0x08 => self.length,
            0x10 => self.head,
            0x18 => self.tail,
            0x28 => self.control,
            _ => {
                bus.broken(format!("register {register:#x} of a ring is read"));
                0
            }
        }
    }

    /// A write to register `register`.
    pub fn write(&mut self, bus: &mut Bus, register: u64, value: u32, switch: Switch) {
        let moved = |bus: &mut Bus, what| bus.broken(format!("{what} is written while its queue is on"));
        match register {
            0x00 | 0x04 | 0x08 | 0x10 if self.is_enabled() => moved(bus, "a ring's place"),
            0x00 if !value.is_multiple_of(128) => bus.broken("a ring's base is not a multiple of 128"),
            0x00 => self.base = self.base & !0xffff_ffff | u64::from(value),
            0x04 => self.base = self.base & 0xffff_ffff | u64::from(value) << 32,
            0x08 if !value.is_multiple_of(128) || value > 32768 => {
                bus.broken(format!("a ring of {value} bytes"))
            }
            0x08 => self.length = value,
            0x10 if value != 0 => bus.broken("a head that is not 0"),
            0x10 => self.head = 0,
            0x18 => self.give(bus, value),
            0x28 => self.set_control(bus, value, switch),
            _ => bus.broken(format!("register {register:#x} of a ring is written")),
        }
    }

    fn set_control(&mut self, bus: &mut Bus, value: u32, switch: Switch) {
        if value & !CONTROL_BITS != 0 {
            bus.broken(format!("reserved bits of RXDCTL or TXDCTL: {value:#x}"));
        }
        if value & ENABLE != 0 {
            let threshold = value >> 16 & 0x1f;
            if threshold != 1 && !(switch.lenient && threshold == 0) {
                bus.broken("WTHRESH of an 82576 VF is not 1 (specification update)");
            }
            if self.base == 0 || self.length == 0 {
                bus.broken("a queue without a ring is switched on");
            }
        } else {
            self.owned.clear();
        }
        self.control = if switch.never { value & !ENABLE } else { value };
    }

    /// The driver gives descriptors up to `tail`.
    fn give(&mut self, bus: &mut Bus, tail: u32) {
        if !self.is_enabled() {
            if tail != 0 {
                bus.broken("a tail is written while its queue is off");
            }
            self.tail = 0;
            return;
        }
        let count = self.count();
        if tail >= count {
            return bus.broken(format!("tail {tail} of a ring of {count}"));
        }
        let more = (tail + count - self.tail) % count;
        if self.owned.len() as u32 + more >= count {
            return bus.broken("descriptors are given that the device has");
        }
        for n in 0..more {
            let words = self.look(bus, (self.tail + n) % count);
            self.owned.push_back(words);
        }
        self.tail = tail;
    }

    fn look(&self, bus: &mut Bus, slot: u32) -> [u64; 2] {
        let mut bytes = [0; 16];
        bus.dma_read(self.base + SIZE * u64::from(slot), &mut bytes);
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        [word(0), word(8)]
    }

    /// The device is done with its oldest descriptor; which slot that was.
    pub fn take(&mut self, bus: &mut Bus) -> Option<(u32, [u64; 2])> {
        let words = self.owned.pop_front()?;
        let slot = self.head;
        if self.look(bus, slot) != words {
            bus.broken(format!("descriptor {slot} was changed while the device had it"));
        }
        self.head = (self.head + 1) % self.count();
        Some((slot, words))
    }

    /// Writes a descriptor back, its status last.
    pub fn write_back(&self, bus: &mut Bus, slot: u32, words: [u64; 2]) {
        let at = self.base + SIZE * u64::from(slot);
        bus.dma_write(at, &words[0].to_le_bytes());
        bus.dma_write(at + 8, &words[1].to_le_bytes());
    }
}
