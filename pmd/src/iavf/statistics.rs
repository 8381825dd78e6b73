//! What the PF counts for the VF, summed up over its resets, which start the PF's counters anew.

use super::virtchnl::COUNTERS;
use crate::device::DeviceStatistics;

/// The sums.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    last: [u64; COUNTERS.len()],
    sum: [u64; COUNTERS.len()],
}

impl Statistics {
    /// Takes what the PF says for the new zero.
    pub fn rebase(&mut self, now: [u64; COUNTERS.len()]) {
        self.last = now;
    }

    /// Adds what has happened since the last time.
    pub fn update(&mut self, now: [u64; COUNTERS.len()]) {
        for ((sum, last), now) in self.sum.iter_mut().zip(&mut self.last).zip(now) {
            // What goes back has been started anew.
            *sum = sum.wrapping_add(now.checked_sub(*last).unwrap_or(now));
            *last = now;
        }
    }

    /// The sums in what all devices have; bytes as the PF counts them.
    pub fn read(&self) -> DeviceStatistics {
        let [rx_bytes, a, b, c, rx_missed, _, tx_bytes, d, e, f, discards, errors] = self.sum;
        let all = |parts: [u64; 3]| parts.into_iter().fold(0, u64::wrapping_add);
        DeviceStatistics {
            rx_frames: all([a, b, c]),
            rx_bytes,
            rx_missed,
            rx_errors: 0,
            tx_frames: all([d, e, f]),
            tx_bytes,
            tx_errors: discards.wrapping_add(errors),
        }
    }

    /// The sums by their names.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        COUNTERS.into_iter().zip(self.sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_go_on_over_a_reset_and_start_at_0() {
        let mut statistics = Statistics::default();
        statistics.rebase([100; 12]);
        statistics.update([107; 12]);
        statistics.update([3; 12]);
        let read = statistics.read();
        assert_eq!((read.rx_bytes, read.rx_frames, read.rx_missed), (10, 30, 10));
        assert_eq!((read.tx_frames, read.tx_errors), (30, 20));
        assert!(statistics.counters().any(|counter| counter == ("rx_discards", 10)));
        statistics.update([u64::MAX; 12]);
        statistics.update([0; 12]);
        statistics.read();
    }
}
