//! `/metrics`: the counters as OpenMetrics text.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use relay::Relay;
use relay::counters::{Counter, DirectionCounters, DropReason};
use relay::lane::MOST_PAIRS;
use relay::relay::GuestState;

use crate::worker::{Figures, Heartbeat};

/// Metrics of these relays, and of workers by their CPUs, as they are now.
pub fn text(relays: &[Arc<Relay>], workers: &[(usize, Arc<Heartbeat>)]) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("virtio_forwarder");
    registry.register_collector(Box::new(Relays(relays.to_vec())));
    let figures =
        workers.iter().map(|(cpu, heartbeat)| (OneWorker { cpu: *cpu as u64 }, heartbeat.figures()));
    registry.register_collector(Box::new(Workers(figures.collect())));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Relays(Vec<Arc<Relay>>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lane {
    relay: u32,
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Dropped {
    relay: u32,
    direction: &'static str,
    queue: u32,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct One {
    relay: u32,
}

type Pick = fn(&DirectionCounters) -> &Counter;

const LANE_COUNTERS: &[(&str, &str, Pick)] = &[
    ("rx_frames", "Frames taken from the source of a direction", |c| &c.rx_frames),
    ("rx_bytes", "Bytes of those frames, without FCS", |c| &c.rx_bytes),
    ("tx_frames", "Frames given to the sink of a direction", |c| &c.tx_frames),
    ("tx_bytes", "Bytes of those frames, without FCS", |c| &c.tx_bytes),
    ("interrupts", "Times the guest was interrupted", |c| &c.interrupts),
    ("bad_available_index", "Times a ring was taken as empty since its index was out of reach", |c| {
        &c.bad_available_index
    }),
];

impl Relays {
    /// Every direction of every relay that has a device, a guest, or a past.
    fn lanes(&self) -> impl Iterator<Item = (Lane, &DirectionCounters)> {
        self.0.iter().flat_map(|relay| {
            let lane = |direction| Lane { relay: relay.id(), direction };
            let counters = relay.counters();
            [(lane("vf_to_vm"), &*counters.vf_to_vm), (lane("vm_to_vf"), &*counters.vm_to_vf)]
        })
    }
}

impl Collector for Relays {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for (name, help, pick) in LANE_COUNTERS {
            let counter = ConstCounter::new(0u64);
            let mut family = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            for (lane, counters) in self.lanes() {
                ConstCounter::new(pick(counters).get()).encode(family.encode_family(&lane)?)?;
            }
        }
        let counter = ConstCounter::new(0u64);
        let help = "Frames dropped, by reason";
        let mut family = encoder.encode_descriptor("dropped_frames", help, None, counter.metric_type())?;
        for (Lane { relay, direction }, counters) in self.lanes() {
            for reason in DropReason::ALL {
                for queue in 0..MOST_PAIRS as u8 {
                    let dropped = counters.dropped_at(queue, *reason);
                    // Of most queues and reasons there is nothing to say; the first stands for all of them.
                    if queue == 0 || dropped > 0 {
                        let labels = Dropped { relay, direction, queue: queue.into(), reason: reason.name() };
                        ConstCounter::new(dropped).encode(family.encode_family(&labels)?)?;
                    }
                }
            }
        }
        let missed = |relay: &Relay| Some(relay.status().device?.statistics.rx_missed);
        let help = "Frames that the device dropped because no receive descriptor was free";
        let mut family =
            encoder.encode_descriptor("device_rx_missed_frames", help, None, counter.metric_type())?;
        for relay in &self.0 {
            if let Some(missed) = missed(relay) {
                ConstCounter::new(missed).encode(family.encode_family(&One { relay: relay.id() })?)?;
            }
        }
        let help = "What the device itself counts, by its own names";
        let mut family = encoder.encode_descriptor("device_events", help, None, counter.metric_type())?;
        for relay in &self.0 {
            for (name, count) in relay.status().device.into_iter().flat_map(|device| device.counters) {
                let labels = OfDevice { relay: relay.id(), name: name.to_owned() };
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        let gauge = ConstGauge::new(0i64);
        let help = "Whether a VM is connected and its rings run";
        let mut family = encoder.encode_descriptor("guest_ready", help, None, gauge.metric_type())?;
        for relay in &self.0 {
            let ready = relay.status().guest_state == GuestState::Ready;
            ConstGauge::new(i64::from(ready)).encode(family.encode_family(&One { relay: relay.id() })?)?;
        }
        let help = "Whether a VM is connected at the other end of a cable and its rings run";
        let mut family = encoder.encode_descriptor("far_guest_ready", help, None, gauge.metric_type())?;
        for relay in &self.0 {
            let Some(far) = relay.status().far else { continue };
            let ready = far.state == GuestState::Ready;
            ConstGauge::new(i64::from(ready)).encode(family.encode_family(&One { relay: relay.id() })?)?;
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDevice {
    relay: u32,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OneWorker {
    cpu: u64,
}

#[derive(Debug)]
struct Workers(Vec<(OneWorker, Figures)>);

type PickFigure = fn(&Figures) -> u64;

const WORKER_COUNTERS: &[(&str, &str, PickFigure)] = &[
    ("worker_cycles", "Cycles of the time stamp counter since a worker started", |f| f.ticks),
    ("worker_busy_cycles", "Those that were spent on work, and not on polling in vain", |f| f.busy_ticks),
    ("worker_frames", "Frames that a worker took from VMs and devices", |f| f.frames),
    ("worker_polls", "Rounds of a worker over its relays", |f| f.passes),
    ("worker_empty_polls", "Those that found no work", |f| f.empty_passes),
    ("worker_sleeps", "Times that a worker slept", |f| f.sleeps),
];

impl Collector for Workers {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for (name, help, pick) in WORKER_COUNTERS {
            let counter = ConstCounter::new(0u64);
            let mut family = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            for (worker, figures) in &self.0 {
                ConstCounter::new(pick(figures)).encode(family.encode_family(worker)?)?;
            }
        }
        Ok(())
    }
}
