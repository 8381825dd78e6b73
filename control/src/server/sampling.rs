//! Rates: two looks at the counters and the time between them.
//!
//! Each request compares with its own first look, so requests at the same time do not disturb each other.

use std::time::Duration;

use crate::api::{Counters, DirectionStatistics, Rates, RelayStatistics};

/// However long a client wants to wait, it is not longer.
pub(super) const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// Fills in the rates of `now`, which was taken `elapsed` after `before`.
pub(super) fn fill_rates(now: &mut [RelayStatistics], before: &[RelayStatistics], elapsed: Duration) {
    for relay in now {
        if let Some(before) = before.iter().find(|before| before.id == relay.id) {
            fill(&mut relay.vf_to_vm, &before.vf_to_vm, elapsed);
            fill(&mut relay.vm_to_vf, &before.vm_to_vf, elapsed);
        }
    }
}

fn fill<S>(now: &mut DirectionStatistics<S>, before: &DirectionStatistics<S>, elapsed: Duration) {
    now.rates = match (now.counters, before.counters) {
        (Some(now), Some(before)) if !elapsed.is_zero() => Some(rates(&now, &before, elapsed.as_secs_f64())),
        _ => None,
    };
}

fn rates(now: &Counters, before: &Counters, seconds: f64) -> Rates {
    // Counters only grow; f64 is exact enough for a difference of any length that can be.
    let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
    Rates {
        rx_packets: rate(now.rx_packets, before.rx_packets),
        rx_bytes: rate(now.rx_bytes, before.rx_bytes),
        tx_packets: rate(now.tx_packets, before.tx_packets),
        tx_bytes: rate(now.tx_bytes, before.tx_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::DeviceState;

    fn sample(id: u32, packets: Option<u64>) -> RelayStatistics {
        let counters = packets.map(|rx_packets| Counters { rx_packets, ..Counters::default() });
        let vf_to_vm = DirectionStatistics::<DeviceState> { counters, ..Default::default() };
        RelayStatistics { id, vf_to_vm, ..Default::default() }
    }

    #[test]
    fn rates_are_differences_by_time() {
        let before = [sample(0, Some(100)), sample(2, None)];
        let mut now = [sample(0, Some(150)), sample(1, Some(7)), sample(2, Some(9))];
        fill_rates(&mut now, &before, Duration::from_millis(500));
        assert_eq!(now[0].vf_to_vm.rates.unwrap().rx_packets, 100.0);
        assert_eq!(now[0].vm_to_vf.rates, None);
        assert_eq!(now[1].vf_to_vm.rates, None);
        assert_eq!(now[2].vf_to_vm.rates, None);
        fill_rates(&mut now, &before, Duration::ZERO);
        assert_eq!(now[0].vf_to_vm.rates, None);
    }
}
