//! What receive and transmit queues have in common: a ring of 16-byte descriptors, where it is, and who has which part of
//! it (82599 data sheet, chapters 7.1.9 and 7.2.3).

use std::collections::VecDeque;

use super::registers::*;
use crate::bus::Bus;

/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;
/// Descriptors at most that a ring may have.
const MOST: u32 = 4096;

/// Whether a queue works. What a driver switches, it has to wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It does nothing.
    #[default]
    Off,
    /// It is off until the driver has looked so many times.
    Starting(u8),
    /// It works.
    On,
    /// It works until the driver has looked so many times.
    Stopping(u8),
}

/// A descriptor that the driver has given to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Its slot.
    pub slot: u32,
    /// What it says.
    pub words: [u64; 2],
}

/// A ring.
#[derive(Debug, Default)]
pub struct Ring {
    /// For messages: `transmit queue 1`.
    pub name: String,
    base: u64,
    length: u32,
    head: u32,
    tail: u32,
    pub control: u32,
    pub dca: u32,
    pub state: State,
    /// With the device, the oldest first.
    pub given: VecDeque<Given>,
}

impl Ring {
    pub fn new(name: String, dca: u32) -> Self {
        Self { name, dca, ..Self::default() }
    }

    /// As after a reset.
    pub fn reset(&mut self, dca: u32) {
        *self = Self::new(std::mem::take(&mut self.name), dca);
    }

    fn slots(&self) -> u32 {
        self.length / DESCRIPTOR as u32
    }

    pub fn works(&self) -> bool {
        matches!(self.state, State::On | State::Stopping(_))
    }

    /// Reads one of the registers that both kinds have; `None` for others.
    pub fn read(&mut self, register: u32) -> Option<u32> {
        Some(match register {
            BASE_LOW => self.base as u32,
            BASE_HIGH => (self.base >> 32) as u32,
            LENGTH => self.length,
            HEAD => self.head,
            TAIL => self.tail,
            DCA => self.dca,
            DCTL => self.look(),
            _ => return None,
        })
    }

    /// The driver looks whether it is on: that is how it finds out that time has passed.
    fn look(&mut self) -> u32 {
        self.state = match self.state {
            State::Starting(0) => State::On,
            State::Starting(n) => State::Starting(n - 1),
            State::Stopping(0) => State::Off,
            State::Stopping(n) => State::Stopping(n - 1),
            state => state,
        };
        if self.state == State::Off {
            self.given.clear();
        }
        self.control & !ENABLE | if self.works() { ENABLE } else { 0 }
    }

    /// Writes one of the registers that both kinds have but for the tail and DCTL; whether there is such a one.
    pub fn write(&mut self, bus: &mut Bus, register: u32, value: u32) -> bool {
        let moves = matches!(register, BASE_LOW | BASE_HIGH | LENGTH | HEAD | DCA);
        if moves && self.state != State::Off {
            bus.broken(format!("{}: register {register:#x} is written while it is enabled", self.name));
        }
        match register {
            BASE_LOW => {
                if value & 127 != 0 {
                    bus.broken(format!("{}: its base {value:#x} is not on a 128-byte boundary", self.name));
                }
                self.base = self.base >> 32 << 32 | u64::from(value);
            }
            BASE_HIGH => self.base = self.base & 0xffff_ffff | u64::from(value) << 32,
            LENGTH => {
                if value & 127 != 0 || value / DESCRIPTOR as u32 > MOST {
                    bus.broken(format!("{}: {value} bytes are no length of a ring", self.name));
                }
                self.length = value;
            }
            HEAD => self.head = value,
            DCA => self.dca = value,
            _ => return false,
        }
        true
    }

    /// Switched on: what must be right then.
    pub fn start(&mut self, bus: &mut Bus) {
        if self.state == State::Off {
            if self.slots() == 0 {
                bus.broken(format!("{} is enabled without a ring", self.name));
            }
            if self.head != 0 || self.tail != 0 {
                bus.broken(format!(
                    "{} is enabled with head {} and tail {}; both must be 0",
                    self.name, self.head, self.tail
                ));
            }
            self.state = State::Starting(1);
        }
    }

    /// Takes what the driver gives by moving the tail.
    pub fn give(&mut self, bus: &mut Bus, tail: u32) {
        if self.state == State::Off && tail == 0 {
            self.tail = 0;
            return;
        }
        if !self.works() {
            return bus.broken(format!("{}: its tail is moved to {tail} before it is enabled", self.name));
        }
        let slots = self.slots();
        if tail >= slots {
            return bus.broken(format!("{}: tail {tail} is outside its {slots} descriptors", self.name));
        }
        let new = (tail + slots - self.tail) % slots;
        if self.given.len() as u32 + new >= slots {
            return bus.broken(format!("{}: tail {tail} passes the head {}", self.name, self.head));
        }
        for n in 0..new {
            let slot = (self.tail + n) % slots;
            let words = self.words(bus, slot);
            self.given.push_back(Given { slot, words });
        }
        self.tail = tail;
    }

    fn words(&self, bus: &mut Bus, slot: u32) -> [u64; 2] {
        let bytes = bus.dma_get(self.base + u64::from(slot) * DESCRIPTOR, DESCRIPTOR as usize);
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        [word(0), word(8)]
    }

    /// The oldest descriptor that the device has, which its driver must not have touched since.
    pub fn take(&mut self, bus: &mut Bus) -> Option<Given> {
        let given = self.given.pop_front()?;
        let now = self.words(bus, given.slot);
        if now != given.words {
            bus.broken(format!(
                "{}: descriptor {} was changed from {:x?} to {now:x?} while the device owned it",
                self.name, given.slot, given.words
            ));
        }
        self.head = (given.slot + 1) % self.slots().max(1);
        Some(given)
    }

    /// Gives a descriptor back to the driver: the word that says so comes last.
    pub fn write_back(&self, bus: &mut Bus, slot: u32, words: [u64; 2]) {
        let at = self.base + u64::from(slot) * DESCRIPTOR;
        bus.dma_write(at, &words[0].to_le_bytes());
        bus.dma_write(at + 8, &words[1].to_le_bytes());
    }
}
