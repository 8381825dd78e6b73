//! The ends of a relay while no worker has them, and the lanes that are built from them.
//!
//! ```text
//!             guest                                  device
//!   transmit ring ──────── lane vm_to_vf ───────▶ transmit queue
//!   receive ring  ◀─────── lane vf_to_vm ──────── receive queue
//!
//!   with a cable in place of the device:  transmit ring ── lane vm_to_vf ──▶ receive ring
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use pmd::{Receive, Transmit};

use crate::counters::{DirectionCounters, DropReason};
use crate::lane::{Direction, Lane, LaneCounters, LaneKey, Sink, Source, Waiting};
use crate::ring::{ReceiveRing, TransmitRing};

/// A device that holds borrowed frames longer than this, once they are wanted back, has them taken away.
pub const TAKE_BACK_TIME: Duration = Duration::from_millis(100);

/// A transmit queue with the longest frame in bytes that it takes.
pub type DeviceTransmit = (Transmit, u32);

/// What of a relay is at home.
#[derive(Debug, Default)]
pub struct Ends {
    /// The guest's transmit queue.
    pub guest_transmit: Option<TransmitRing>,
    /// The guest's receive queue.
    pub guest_receive: Option<ReceiveRing>,
    /// The device's transmit queue.
    pub device_transmit: Option<DeviceTransmit>,
    /// The device's receive queue, with received frames that have not gone on.
    pub device_receive: Option<(Receive, Box<Waiting>)>,
    /// Whether the device is a cable.
    pub cable: bool,
}

/// Both directions' counters of a relay.
#[derive(Clone, Debug, Default)]
pub struct RelayCounters {
    /// From the device to the guest.
    pub vf_to_vm: Arc<DirectionCounters>,
    /// From the guest to the device.
    pub vm_to_vf: Arc<DirectionCounters>,
}

impl Ends {
    /// Makes the lanes that these ends allow; what is not part of one stays.
    pub fn lanes(&mut self, relay: u32, counters: &RelayCounters) -> Vec<Lane> {
        let mut lanes = Vec::new();
        if let Some(ring) = self.guest_transmit.take() {
            let (sink, sink_counters) = self.far_end(counters);
            lanes.push(Lane {
                key: LaneKey { relay, direction: Direction::VmToVf },
                source: Source::Guest(ring),
                sink,
                waiting: Box::default(),
                counters: LaneCounters { source: Arc::clone(&counters.vm_to_vf), sink: sink_counters },
            });
        }
        if let Some((queue, waiting)) = self.device_receive.take() {
            let nobody = Sink::Nobody(DropReason::VmNotConnected);
            lanes.push(Lane {
                key: LaneKey { relay, direction: Direction::VfToVm },
                source: Source::Device(queue),
                sink: self.guest_receive.take().map_or(nobody, Sink::Guest),
                waiting,
                counters: LaneCounters {
                    source: Arc::clone(&counters.vf_to_vm),
                    sink: Arc::clone(&counters.vf_to_vm),
                },
            });
        }
        lanes
    }

    /// Where the guest's frames go.
    fn far_end(&mut self, counters: &RelayCounters) -> (Sink, Arc<DirectionCounters>) {
        if self.cable {
            let nobody = Sink::Nobody(DropReason::VmNotConnected);
            (self.guest_receive.take().map_or(nobody, Sink::Guest), Arc::clone(&counters.vf_to_vm))
        } else {
            let nobody = Sink::Nobody(DropReason::VfNotConnected);
            let sink = self.device_transmit.take().map_or(nobody, |(queue, max)| Sink::Device(queue, max));
            (sink, Arc::clone(&counters.vm_to_vf))
        }
    }

    /// Takes a lane apart. With borrowed frames outstanding, its two ends must be joined again as they were.
    pub fn take_apart(&mut self, mut lane: Lane) {
        lane.put_back_waiting();
        match lane.source {
            Source::Guest(ring) => self.guest_transmit = Some(ring),
            Source::Device(queue) => self.device_receive = Some((queue, lane.waiting)),
        }
        match lane.sink {
            Sink::Guest(ring) => self.guest_receive = Some(ring),
            Sink::Device(queue, max) => self.device_transmit = Some((queue, max)),
            Sink::Nobody(_) => {}
        }
    }
}

/// Waits until a device has given all borrowed frames back, at most [`TAKE_BACK_TIME`]; then takes the rest from it.
/// Returns `false` when that was needed: the queue is dead then, and its device must be restarted.
pub fn take_back_borrowed(lane: &mut Lane) -> bool {
    let deadline = Instant::now() + TAKE_BACK_TIME;
    while lane.outstanding() > 0 {
        if lane.collect() > 0 {
            continue;
        }
        if Instant::now() >= deadline {
            lane.abort();
            return false;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    true
}
