//! The VF's counters, summed up: frames have 32 bits, bytes 36 (they wrap every 55 s at 10 Gbit/s).

use super::registers::*;
use crate::device::DeviceStatistics;
use crate::intel::counter::{Counter, answers};
use crate::intel::family::FCS;
use crate::registers::Registers;

/// All counters of a VF. They must be read more often than they wrap. Frames that found no descriptor are counted by the PF
/// alone.
#[derive(Clone, Copy, Debug)]
pub struct Statistics {
    counters: [(&'static str, Counter); 5],
}

impl Statistics {
    /// Counters that start at 0, whatever the registers hold.
    pub fn new() -> Self {
        Self {
            counters: [
                ("vfgprc", Counter::at(VFGPRC)),
                ("vfgorc", Counter::wide(VFGORC_LSB, VFGORC_MSB)),
                ("vfgptc", Counter::at(VFGPTC)),
                ("vfgotc", Counter::wide(VFGOTC_LSB, VFGOTC_MSB)),
                ("vfmprc", Counter::at(VFMPRC)),
            ],
        }
    }

    /// Takes what the registers hold for the new zero.
    pub fn rebase(&mut self, registers: &dyn Registers) {
        for (_, counter) in &mut self.counters {
            counter.rebase(registers);
        }
    }

    /// Adds what has happened since the last time. A device that does not answer adds nothing.
    pub fn update(&mut self, registers: &dyn Registers) {
        if answers(registers, VFSTATUS) {
            for (_, counter) in &mut self.counters {
                counter.update(registers);
            }
        }
    }

    /// The sums; bytes without FCS, as everywhere.
    pub fn read(&self) -> DeviceStatistics {
        let [rx_frames, rx_bytes, tx_frames, tx_bytes, _] = self.counters.map(|(_, counter)| counter.sum());
        let without_fcs = |bytes: u64, frames: u64| bytes.saturating_sub(frames * u64::from(FCS));
        DeviceStatistics {
            rx_frames,
            rx_bytes: without_fcs(rx_bytes, rx_frames),
            tx_frames,
            tx_bytes: without_fcs(tx_bytes, tx_frames),
            ..DeviceStatistics::default()
        }
    }

    /// All sums as of the last update, by the names of the registers.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters.iter().map(|(name, counter)| (*name, counter.sum())).collect()
    }
}
