//! Counters of a device, made 64 bits wide.

use crate::registers::{ALL_ONES, Registers};

/// A register that counts and wraps. It must be looked at more often than it passes half its range.
#[derive(Clone, Copy, Debug)]
pub struct Counter {
    low: u32,
    /// The register with the upper 4 bits of 36, where there is one.
    high: Option<u32>,
    last: u64,
    sum: u64,
}

/// Bits of a counter that is spread over two registers (82599 data sheet, VFGORC_MSB).
const WIDE: u32 = 36;

impl Counter {
    /// The 32-bit register at `offset`.
    pub fn at(offset: u32) -> Self {
        Self { low: offset, high: None, last: 0, sum: 0 }
    }

    /// The 36 bits at `low` and `high`; reading the low half latches the high one.
    pub fn wide(low: u32, high: u32) -> Self {
        Self { high: Some(high), ..Self::at(low) }
    }

    fn read(&self, registers: &dyn Registers) -> u64 {
        let low = u64::from(registers.read(self.low));
        self.high.map_or(low, |high| u64::from(registers.read(high) & 0xf) << 32 | low)
    }

    fn bits(&self) -> u32 {
        if self.high.is_some() { WIDE } else { u32::BITS }
    }

    /// Takes what the register holds for the new zero.
    pub fn rebase(&mut self, registers: &dyn Registers) {
        self.last = self.read(registers);
    }

    /// Adds what has happened since the last time.
    pub fn update(&mut self, registers: &dyn Registers) {
        let now = self.read(registers);
        let range = 1u64 << self.bits();
        let more = now.wrapping_sub(self.last) & (range - 1);
        // No link is so fast that half the range passes between two looks; a reset of the PF starts at 0 again.
        self.sum += if more > range / 2 { now } else { more };
        self.last = now;
    }

    /// The sum since it was made.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

/// Whether the device is there to be asked: `register` never reads as ones otherwise.
pub fn answers(registers: &dyn Registers, register: u32) -> bool {
    registers.read(register) != ALL_ONES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::igbvf::double::Double;

    #[test]
    fn a_wide_counter_wraps_at_36_bits() {
        let double = Double::new();
        let mut counter = Counter::wide(0x1020, 0x1024);
        double.poke(0x1020, u32::MAX);
        double.poke(0x1024, 0xf);
        counter.rebase(&*double);
        double.poke(0x1020, 4);
        double.poke(0x1024, 0);
        counter.update(&*double);
        assert_eq!(counter.sum(), 5);
        double.poke(0x1024, 3);
        counter.update(&*double);
        assert_eq!(counter.sum(), 5 + (3 << 32));
    }
}
