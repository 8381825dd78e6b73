//! The VF's counters: 32 bits that wrap (bytes: every 34 s at 1 Gbit/s), summed up here.

use super::registers::*;
use crate::device::DeviceStatistics;
use crate::intel::Family;
use crate::intel::counter::{Counter, answers};
use crate::intel::family::FCS;
use crate::registers::Registers;

/// Counters by their names in the data sheet. The first four are [`DeviceStatistics`], too.
const NAMES: [(&str, u32); 9] = [
    ("vfgprc", VFGPRC),
    ("vfgorc", VFGORC),
    ("vfgptc", VFGPTC),
    ("vfgotc", VFGOTC),
    ("vfmprc", VFMPRC),
    ("vfgprlbc", VFGPRLBC),
    ("vfgptlbc", VFGPTLBC),
    ("vfgorlbc", VFGORLBC),
    ("vfgotlbc", VFGOTLBC),
];
/// The same of frames that found no descriptor, by queue.
const MISSED: [&str; 2] = ["rqdpc_0", "rqdpc_1"];

/// All counters of a VF. They must be read more often than they wrap.
#[derive(Clone, Debug)]
pub struct Statistics {
    family: &'static Family,
    counters: [Counter; NAMES.len()],
    /// A queue each.
    missed: Vec<u64>,
}

impl Statistics {
    /// Counters of a VF with so many queues, which start at 0, whatever the registers hold.
    pub fn new(family: &'static Family, queues: u16) -> Self {
        let counters = NAMES.map(|(_, offset)| Counter::at(offset));
        Self { family, counters, missed: vec![0; usize::from(queues).min(MISSED.len())] }
    }

    /// Takes what the registers hold for the new zero: they start anew, or not, when the VF or its PF is reset.
    pub fn rebase(&mut self, registers: &dyn Registers) {
        for counter in &mut self.counters {
            counter.rebase(registers);
        }
        // Cleared by reading.
        for queue in (0..).take(self.missed.len()) {
            registers.read(self.family.receive_at(queue, RQDPC));
        }
    }

    /// Adds what has happened since the last time. A device that does not answer adds nothing.
    pub fn update(&mut self, registers: &dyn Registers) {
        if !answers(registers, STATUS) {
            return;
        }
        for counter in &mut self.counters {
            counter.update(registers);
        }
        for (queue, missed) in (0..).zip(&mut self.missed) {
            *missed += u64::from(registers.read(self.family.receive_at(queue, RQDPC)));
        }
    }

    /// The sums; bytes without FCS, as everywhere.
    pub fn read(&self) -> DeviceStatistics {
        let [rx_frames, rx_bytes, tx_frames, tx_bytes, ..] = self.counters.map(|counter| counter.sum());
        let without_fcs = |bytes: u64, frames: u64| bytes.saturating_sub(frames * u64::from(FCS));
        DeviceStatistics {
            rx_frames,
            rx_bytes: without_fcs(rx_bytes, rx_frames),
            rx_missed: self.missed.iter().sum(),
            rx_errors: 0,
            tx_frames,
            tx_bytes: without_fcs(tx_bytes, tx_frames),
            tx_errors: 0,
        }
    }

    /// All sums as of the last update, by the names of the registers.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let counted = NAMES.iter().zip(&self.counters).map(|((name, _), counter)| (*name, counter.sum()));
        counted.chain(MISSED.into_iter().zip(self.missed.iter().copied())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::double::Double;
    use super::*;

    const RQDPC_0: u32 = RINGS.receive_at(0, RQDPC);

    #[test]
    fn a_counter_that_a_reset_has_cleared_goes_on() {
        let double = Double::new();
        let mut statistics = Statistics::new(&RINGS_82576, 2);
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
        let mut statistics = Statistics::new(&RINGS_82576, 2);
        statistics.rebase(&*double);
        double.poke(VFGPRC, 1);
        double.poke(VFGORC, 1000 + 3 * 64);
        double.poke(RQDPC_0, 5);
        statistics.update(&*double);
        let now = statistics.read();
        assert_eq!((now.rx_frames, now.rx_bytes, now.rx_missed), (3, 180, 5));
        double.set(|pf| pf.gone = true);
        statistics.update(&*double);
        assert_eq!(statistics.read(), now);
    }

    #[test]
    fn every_register_is_told_by_its_name() {
        let double = Double::new();
        double.poke(VFGOTLBC, 7);
        let mut statistics = Statistics::new(&RINGS_I350, 1);
        statistics.update(&*double);
        let counters = statistics.counters();
        assert_eq!((counters.len(), counters[8], counters[9]), (10, ("vfgotlbc", 7), ("rqdpc_0", 0)));
    }
}
