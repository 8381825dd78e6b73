//! What the device counts: frames, and what its network held up (`ena_admin_get_stats_type` of ena-com).

use super::admin::{AdminError, AdminQueue, Command, Opcode, Reply};
use super::features::Attributes;
use super::mmio::Mmio;
use crate::device::DeviceStatistics;
use crate::memory::DmaSlice;

/// What was held up because an allowance of the instance was exceeded, and what is left of the allowance of tracked
/// connections; `ena_admin_customer_metrics_id` numbers them so.
const ALLOWANCES: [&str; 6] = [
    "bw_in_allowance_exceeded",
    "bw_out_allowance_exceeded",
    "pps_allowance_exceeded",
    "conntrack_allowance_exceeded",
    "linklocal_allowance_exceeded",
    "conntrack_allowance_available",
];
/// The last of them is a level, not a sum.
const LEVEL: usize = 5;
/// Bytes of memory for metrics.
const METRICS_BYTES: usize = ALLOWANCES.len() * 8;

/// Kinds of counters.
mod kind {
    pub const BASIC: u32 = 0;
    pub const ALLOWANCES: u32 = 2;
    pub const METRICS: u32 = 4;
}

/// A counter that starts at 0 when the device is reset.
#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    last: u64,
    sum: u64,
}

impl Counter {
    fn update(&mut self, now: u64) {
        // Nothing that a device counts makes the sum go around.
        self.sum = self.sum.saturating_add(now.checked_sub(self.last).unwrap_or(now));
        self.last = now;
    }
}

/// All counters of a device, since it was opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    /// In the order of `ena_admin_basic_stats`.
    basic: [Counter; 7],
    allowances: [Counter; ALLOWANCES.len()],
}

fn pairs(reply: &Reply) -> impl Iterator<Item = u64> {
    reply[2..].chunks_exact(2).map(|pair| u64::from(pair[0]) | u64::from(pair[1]) << 32)
}

impl Statistics {
    /// The device has been reset: its counters begin at 0 again.
    pub fn restart(&mut self) {
        for counter in self.basic.iter_mut().chain(&mut self.allowances) {
            counter.last = 0;
        }
    }

    /// Asks the device for what it counts; what it does not answer stays as it was.
    pub fn update(&mut self, admin: &mut AdminQueue, mmio: &Mmio) -> Result<(), AdminError> {
        let reply = admin.execute(mmio, Command::new(Opcode::GetStats).word(4, kind::BASIC))?;
        self.basic.iter_mut().zip(pairs(&reply)).for_each(|(counter, now)| counter.update(now));
        Ok(())
    }

    /// Asks for what was held up; `scratch` is for metrics.
    pub fn update_allowances(
        &mut self,
        admin: &mut AdminQueue,
        mmio: &Mmio,
        device: &Attributes,
        scratch: &DmaSlice,
    ) -> Result<(), AdminError> {
        if device.has_metrics() {
            let all = (1 << ALLOWANCES.len()) - 1;
            let ask = Command::new(Opcode::GetStats).word(4, kind::METRICS).word(6, all);
            // Without a buffer it says which it has.
            let has = admin.execute(mmio, ask)?[2] & all;
            let ask = Command::new(Opcode::GetStats)
                .word(1, METRICS_BYTES as u32)
                .address(2, scratch.iova())
                .word(4, kind::METRICS)
                .word(6, has);
            admin.execute(mmio, ask)?;
            let there = (0..ALLOWANCES.len()).filter(|metric| has >> metric & 1 != 0);
            for (place, metric) in there.enumerate() {
                self.allowances[metric].update(scratch.load(place));
            }
        } else if device.counts_allowances() {
            let ask = Command::new(Opcode::GetStats).word(4, kind::ALLOWANCES);
            let reply = admin.execute(mmio, ask)?;
            self.allowances[..LEVEL]
                .iter_mut()
                .zip(pairs(&reply))
                .for_each(|(counter, now)| counter.update(now));
        }
        Ok(())
    }

    /// The sums that all devices have.
    pub fn read(&self) -> DeviceStatistics {
        let [tx_bytes, tx_frames, rx_bytes, rx_frames, rx_drops, tx_drops, rx_overruns] =
            self.basic.map(|counter| counter.sum);
        DeviceStatistics {
            rx_frames,
            rx_bytes,
            // It depends on the generation which of the two counts what finds no buffer.
            rx_missed: rx_drops.saturating_add(rx_overruns),
            rx_errors: 0,
            tx_frames,
            tx_bytes,
            tx_errors: tx_drops,
        }
    }

    /// All others, by name.
    pub fn named(&self) -> Vec<(&'static str, u64)> {
        let [.., rx_drops, tx_drops, rx_overruns] = self.basic.map(|counter| counter.sum);
        let mut named = vec![("rx_drops", rx_drops), ("rx_overruns", rx_overruns), ("tx_drops", tx_drops)];
        named.extend(
            ALLOWANCES
                .iter()
                .zip(&self.allowances)
                .enumerate()
                .map(|(n, (name, counter))| (*name, if n == LEVEL { counter.last } else { counter.sum })),
        );
        named
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_goes_on_over_resets_and_never_goes_around() {
        let mut counter = Counter::default();
        [5, 9, 2, u64::MAX, 0, u64::MAX].into_iter().for_each(|now| counter.update(now));
        assert_eq!(counter.sum, u64::MAX);
        let mut statistics = Statistics::default();
        statistics.basic[3].update(7);
        statistics.restart();
        statistics.basic[3].update(8);
        statistics.basic.iter_mut().skip(4).for_each(|counter| counter.update(u64::MAX));
        assert_eq!((statistics.read().rx_frames, statistics.read().rx_missed), (15, u64::MAX));
    }
}
