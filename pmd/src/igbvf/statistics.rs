//! The VF's counters: 32 bits that wrap (bytes: every 34 s at 1 Gbit/s), summed up here.

use super::registers::*;
use crate::device::DeviceStatistics;
use crate::registers::{ALL_ONES, Registers};

/// One counter of the device, made 64 bits wide.
#[derive(Clone, Copy, Debug)]
struct Counter {
    offset: u32,
    last: u32,
    sum: u64,
}

impl Counter {
    fn at(offset: u32) -> Self {
        Self { offset, last: 0, sum: 0 }
    }

    fn rebase(&mut self, registers: &dyn Registers) {
        self.last = registers.read(self.offset);
    }

    fn update(&mut self, registers: &dyn Registers) {
        let now = registers.read(self.offset);
        let more = now.wrapping_sub(self.last);
        // No link is so fast that half the range passes between two looks; a reset of the PF starts at 0 again.
        self.sum += u64::from(if more > u32::MAX / 2 { now } else { more });
        self.last = now;
    }
}

/// All counters of a VF. They must be read more often than they wrap.
#[derive(Clone, Copy, Debug)]
pub struct Statistics {
    rx_frames: Counter,
    rx_bytes: Counter,
    tx_frames: Counter,
    tx_bytes: Counter,
    missed: u64,
}

impl Statistics {
    /// Counters that start at 0, whatever the registers hold.
    pub fn new() -> Self {
        Self {
            rx_frames: Counter::at(VFGPRC),
            rx_bytes: Counter::at(VFGORC),
            tx_frames: Counter::at(VFGPTC),
            tx_bytes: Counter::at(VFGOTC),
            missed: 0,
        }
    }

    fn counters(&mut self) -> [&mut Counter; 4] {
        [&mut self.rx_frames, &mut self.rx_bytes, &mut self.tx_frames, &mut self.tx_bytes]
    }

    /// Takes what the registers hold for the new zero: they start anew, or not, when the VF or its PF is reset.
    pub fn rebase(&mut self, registers: &dyn Registers) {
        for counter in self.counters() {
            counter.rebase(registers);
        }
        // Cleared by reading.
        registers.read(RQDPC);
    }

    /// Adds what has happened since the last time. A device that does not answer adds nothing.
    pub fn update(&mut self, registers: &dyn Registers) {
        if registers.read(STATUS) == ALL_ONES {
            return;
        }
        for counter in self.counters() {
            counter.update(registers);
        }
        self.missed += u64::from(registers.read(RQDPC));
    }

    /// The sums; bytes without FCS, as everywhere.
    pub fn read(&self) -> DeviceStatistics {
        let bytes = |bytes: Counter, frames: Counter| bytes.sum.saturating_sub(frames.sum * u64::from(FCS));
        DeviceStatistics {
            rx_frames: self.rx_frames.sum,
            rx_bytes: bytes(self.rx_bytes, self.rx_frames),
            rx_missed: self.missed,
            rx_errors: 0,
            tx_frames: self.tx_frames.sum,
            tx_bytes: bytes(self.tx_bytes, self.tx_frames),
            tx_errors: 0,
        }
    }
}

impl Default for Statistics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::super::double::Double;
    use super::*;

    #[test]
    fn a_counter_that_a_reset_has_cleared_goes_on() {
        let double = Double::new();
        let mut statistics = Statistics::new();
        double.poke(VFGPTC, 100);
        statistics.update(&*double);
        double.poke(VFGPTC, 7);
        statistics.update(&*double);
        assert_eq!(statistics.read().tx_frames, 107);
    }

    #[test]
    fn wrapping_counters_are_summed_from_where_they_started() {
        let double = Double::new();
        double.poke(VFGPRC, u32::MAX - 1);
        double.poke(VFGORC, 1000);
        let mut statistics = Statistics::new();
        statistics.rebase(&*double);
        double.poke(VFGPRC, 1);
        double.poke(VFGORC, 1000 + 3 * 64);
        double.poke(RQDPC, 5);
        statistics.update(&*double);
        let now = statistics.read();
        assert_eq!((now.rx_frames, now.rx_bytes, now.rx_missed), (3, 180, 5));
        double.set(|pf| pf.gone = true);
        statistics.update(&*double);
        assert_eq!(statistics.read(), now);
    }
}
