//! The counters of a virtual NIC, 64 bits each, which go on through resets of the driver.

use super::firmware::Counting;
use super::registers::STATS;
use crate::device::DeviceStatistics;
use crate::registers::{ALL_ONES, Registers};

/// Names of the counters, in the order in which they stand there and with which the firmware numbers them from 1 on:
/// those that Linux's driver shows.
pub const NAMES: [&str; 18] = [
    "dev_rx_discards",
    "dev_rx_errors",
    "dev_rx_bytes",
    "dev_rx_uc_bytes",
    "dev_rx_mc_bytes",
    "dev_rx_bc_bytes",
    "dev_rx_pkts",
    "dev_rx_mc_pkts",
    "dev_rx_bc_pkts",
    "dev_tx_discards",
    "dev_tx_errors",
    "dev_tx_bytes",
    "dev_tx_uc_bytes",
    "dev_tx_mc_bytes",
    "dev_tx_bc_bytes",
    "dev_tx_pkts",
    "dev_tx_mc_pkts",
    "dev_tx_bc_pkts",
];

/// Positions among [`NAMES`].
const RX_DISCARDS: usize = 0;
const RX_ERRORS: usize = 1;
const RX_BYTES: usize = 2;
const RX_FRAMES: usize = 6;
const TX_DISCARDS: usize = 9;
const TX_ERRORS: usize = 10;
const TX_BYTES: usize = 11;
const TX_FRAMES: usize = 15;

/// Most counters that a structure is read for.
const MOST_LISTED: u32 = 256;

/// A counter of the firmware.
#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    /// Where it is; `None` where this firmware does not have it.
    at: Option<u32>,
    last: u64,
    sum: u64,
}

/// All counters, since the VF was opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    counters: [Counter; NAMES.len()],
}

impl Statistics {
    /// Finds the counters of a firmware. What they have counted before is not counted; sums go on.
    pub fn rebase(&mut self, control: &dyn Registers, counting: Counting) {
        for counter in &mut self.counters {
            counter.at = None;
        }
        match counting {
            Counting::Fixed => {
                for (at, counter) in (STATS..).step_by(8).zip(&mut self.counters) {
                    counter.at = Some(at);
                }
            }
            Counting::Listed { ids, count } => {
                let values = (ids + 2 * count).next_multiple_of(8);
                for n in 0..count.min(MOST_LISTED) {
                    let number = usize::from(control.read16(ids + 2 * n));
                    if let Some(counter) = number.checked_sub(1).and_then(|n| self.counters.get_mut(n)) {
                        counter.at = Some(values + 8 * n);
                    }
                }
            }
        }
        for counter in &mut self.counters {
            counter.last = counter.at.and_then(|at| read64(control, at)).unwrap_or(0);
        }
    }

    /// Adds what has happened since the last time. A device that does not answer adds nothing.
    pub fn update(&mut self, control: &dyn Registers) {
        for counter in &mut self.counters {
            let Some(now) = counter.at.and_then(|at| read64(control, at)) else { continue };
            // Firmware that was loaded anew counts from 0 on.
            counter.sum += now.checked_sub(counter.last).unwrap_or(now);
            counter.last = now;
        }
    }

    fn sum(&self, counter: usize) -> u64 {
        self.counters.get(counter).map_or(0, |counter| counter.sum)
    }

    /// The sums.
    pub fn read(&self) -> DeviceStatistics {
        DeviceStatistics {
            rx_frames: self.sum(RX_FRAMES),
            rx_bytes: self.sum(RX_BYTES),
            rx_missed: self.sum(RX_DISCARDS),
            rx_errors: self.sum(RX_ERRORS),
            tx_frames: self.sum(TX_FRAMES),
            tx_bytes: self.sum(TX_BYTES),
            tx_errors: self.sum(TX_ERRORS) + self.sum(TX_DISCARDS),
        }
    }

    /// All of them by name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.into_iter().zip(self.counters.map(|counter| counter.sum))
    }
}

/// Reads 64 bits in halves that belong together; `None` where nobody answers.
fn read64(control: &dyn Registers, at: u32) -> Option<u64> {
    let high = control.read(at + 4);
    let low = control.read(at);
    let again = control.read(at + 4);
    // When the upper half has moved, the lower one is small again.
    let low = if high == again { low } else { control.read(at) };
    (again != ALL_ONES).then_some(u64::from(again) << 32 | u64::from(low))
}

#[cfg(test)]
mod tests {
    use super::super::tests::Words;
    use super::*;

    #[test]
    fn counters_are_summed_from_where_they_stood_and_survive_new_firmware() {
        let words = Words::default();
        let poke = |n: u32, value: u64| words.write64(STATS + 8 * n, value);
        poke(6, 1 << 40);
        let mut statistics = Statistics::default();
        statistics.rebase(&words, Counting::Fixed);
        poke(6, (1 << 40) + 5);
        poke(0, 2);
        poke(9, 1);
        poke(10, 1);
        statistics.update(&words);
        let now = statistics.read();
        assert_eq!((now.rx_frames, now.rx_missed, now.tx_errors), (5, 2, 2));
        poke(6, 3);
        statistics.update(&words);
        assert_eq!(statistics.read().rx_frames, 8);
        assert_eq!(statistics.named().nth(6), Some(("dev_rx_pkts", 8)));
        words.set_gone(true);
        statistics.update(&words);
        assert_eq!(statistics.read().rx_frames, 8);
    }

    #[test]
    fn a_list_says_which_counters_there_are() {
        let words = Words::default();
        let ids = 0x2000;
        for (n, id) in [16u16, 7, 500].into_iter().enumerate() {
            words.write16(ids + 2 * n as u32, id);
        }
        let mut statistics = Statistics::default();
        statistics.rebase(&words, Counting::Listed { ids, count: 3 });
        words.write64(ids + 8, 4);
        words.write64(ids + 16, 9);
        words.write64(STATS + 8 * 6, 77);
        statistics.update(&words);
        assert_eq!((statistics.read().tx_frames, statistics.read().rx_frames), (4, 9));
    }
}
