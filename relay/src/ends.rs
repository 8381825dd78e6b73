//! The ends of a relay while no worker has them, and the lanes that are built from them.
//!
//! ```text
//!             guest                                  device
//!   transmit rings ─────── lane vm_to_vf ───────▶ transmit queues      ring i to queue i mod their number
//!   receive rings  ◀────── lane vf_to_vm ──────── receive queues       queue i to rings ≡ i, by flow
//!
//!   with a cable in place of the device:  transmit ring i ── lane vm_to_vf ──▶ receive ring i
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use pmd::memory::GuestWindows;
use pmd::{Completions, MacAddress, Receive, Transmit, TransmitQueue};

use crate::announcement::Announcement;
use crate::counters::{DirectionCounters, DropReason};
use crate::lane::{
    DeviceSink, Direction, Lane, LaneCounters, LaneKey, Leftover, MOST_PAIRS, Sink, Source, tell_apart,
};
use crate::path::Path;
use crate::ring::{ReceiveRing, TransmitRing};

/// A device that holds borrowed frames longer than this, once they are wanted back, has them taken away.
pub const TAKE_BACK_TIME: Duration = Duration::from_millis(100);

/// What of a relay is at home.
#[derive(Debug, Default)]
pub struct Ends {
    /// The guest's transmit queues, by queue pair.
    pub guest_transmit: [Option<TransmitRing>; MOST_PAIRS],
    /// The guest's receive queues, by queue pair.
    pub guest_receive: [Option<ReceiveRing>; MOST_PAIRS],
    /// The device's transmit queues, with what they take.
    device_transmit: Vec<DeviceSink>,
    /// The device's receive queues, with received frames that have not gone on.
    device_receive: Vec<(Receive, Leftover)>,
    /// Whether the device is a cable.
    pub cable: bool,
    /// Kept here since a device may have borrowed it.
    announcement: Option<Announcement>,
}

/// Frames that were received and went no further.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// How many.
    pub frames: u64,
    /// Their bytes, without FCS.
    pub bytes: u64,
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
    /// Takes a started device's queues in. Its transmit queues take frames of at most `max_frame` bytes.
    pub fn put_device(&mut self, receive: Vec<Receive>, transmit: Vec<Transmit>, max_frame: u32) {
        self.device_receive = receive.into_iter().map(|queue| (queue, Leftover::new())).collect();
        let sink = |queue: Transmit| DeviceSink { capabilities: queue.capabilities(), queue, max_frame };
        self.device_transmit = transmit.into_iter().map(sink).collect();
    }

    /// Hands the device's queues out, and says how many received frames are lost with them.
    pub fn take_device(&mut self) -> (Vec<Receive>, Vec<Transmit>, Lost) {
        let mut lost = Lost::default();
        let receive = self.device_receive.drain(..).map(|(queue, leftover)| {
            lost.frames += leftover.iter().map(|waiting| waiting.len() as u64).sum::<u64>();
            lost.bytes += leftover.iter().map(|waiting| waiting.frames().bytes()).sum::<u64>();
            queue
        });
        let receive = receive.collect();
        let mut transmit: Vec<_> = self.device_transmit.drain(..).map(|sink| sink.queue).collect();
        // What came of lanes is back, but an announcement may have been sent while there was no lane.
        for queue in &mut transmit {
            while queue.outstanding() > 0 {
                let mut done = Completions::new();
                queue.abort(&mut done);
                if done.is_empty() {
                    break;
                }
            }
        }
        self.announcement = None;
        (receive, transmit, lost)
    }

    /// Lets the device's transmit queues send from these windows, and from nowhere else, without copying.
    pub(crate) fn set_guest_memory(&mut self, windows: &Arc<GuestWindows>) {
        for sink in &mut self.device_transmit {
            sink.queue.set_guest_memory(Arc::clone(windows));
        }
    }

    /// Tells the network behind the device that `mac` is here now (RARP, see [`Announcement`]). `false` when the device
    /// takes nothing at present.
    pub fn announce(&mut self, mac: MacAddress) -> bool {
        let Some(sink) = self.device_transmit.first_mut() else { return false };
        // While the device has the last one, that one is on its way.
        if sink.queue.outstanding() > 0 && self.announcement.is_some() {
            return true;
        }
        self.announcement.insert(Announcement::new(mac)).send(&mut sink.queue)
    }

    /// Makes the lanes that these ends allow; what is not part of one stays.
    pub fn lanes(&mut self, relay: u32, counters: &RelayCounters) -> Vec<Lane> {
        let from_guest = self.guest_lane(relay, counters);
        let from_device = self.device_lane(relay, counters);
        from_guest.into_iter().chain(from_device).collect()
    }

    fn guest_lane(&mut self, relay: u32, counters: &RelayCounters) -> Option<Lane> {
        let rings: Vec<TransmitRing> = self.guest_transmit.iter_mut().filter_map(Option::take).collect();
        if rings.is_empty() {
            return None;
        }
        let (sinks, sink_counters) = if self.cable {
            (self.receive_sinks(), &counters.vf_to_vm)
        } else {
            (self.device_transmit.drain(..).map(Sink::Device).collect(), &counters.vm_to_vf)
        };
        let sinks = or_nobody(
            sinks,
            if self.cable { DropReason::VmNotConnected } else { DropReason::VfNotConnected },
        );
        let path = |(source, ring): (usize, &TransmitRing)| {
            // The receive ring of the same pair, if it runs.
            let twin = |sink: &Sink| matches!(sink, Sink::Guest(other) if other.pair() == ring.pair());
            let sink = sinks.iter().position(twin).unwrap_or(usize::from(ring.pair()) % sinks.len());
            Path::new(source, sink, ring.pair(), ring.may_offload())
        };
        let paths = rings.iter().enumerate().map(path).collect();
        let key = LaneKey { relay, direction: Direction::VmToVf };
        let counters =
            LaneCounters { source: Arc::clone(&counters.vm_to_vf), sink: Arc::clone(sink_counters) };
        Some(Lane::new(key, rings.into_iter().map(Source::Guest).collect(), sinks, paths, counters))
    }

    fn device_lane(&mut self, relay: u32, counters: &RelayCounters) -> Option<Lane> {
        if self.device_receive.is_empty() {
            return None;
        }
        let sinks = or_nobody(self.receive_sinks(), DropReason::VmNotConnected);
        let counters =
            LaneCounters { source: Arc::clone(&counters.vf_to_vm), sink: Arc::clone(&counters.vf_to_vm) };
        let queues = self.device_receive.len();
        let pair = |sink: &Sink| match sink {
            Sink::Guest(ring) => ring.pair(),
            _ => 0,
        };
        let (mut sources, mut paths) = (Vec::with_capacity(queues), Vec::new());
        for (index, (queue, leftover)) in self.device_receive.drain(..).enumerate() {
            // Each ring has one queue that feeds it; where there are fewer rings than queues, they share.
            let feeds = |sink: &usize| {
                sink % queues == index || (sinks.len() <= index && index % sinks.len() == *sink)
            };
            let mut own: Vec<Path> = (0..sinks.len())
                .filter(feeds)
                .map(|sink| Path::new(index, sink, pair(&sinks[sink]), true))
                .collect();
            let mut source = Source::Device(queue);
            take_up(leftover, &mut own, &mut source, &counters);
            sources.push(source);
            paths.extend(own);
        }
        let key = LaneKey { relay, direction: Direction::VfToVm };
        Some(Lane::new(key, sources, sinks, paths, counters))
    }

    fn receive_sinks(&mut self) -> Vec<Sink> {
        self.guest_receive.iter_mut().filter_map(Option::take).map(Sink::Guest).collect()
    }

    /// Takes a lane apart. With borrowed frames outstanding, its two ends must be joined again as they were.
    pub fn take_apart(&mut self, mut lane: Lane) {
        lane.put_back_waiting();
        let mut leftovers: Vec<Leftover> = lane.sources.iter().map(|_| Leftover::new()).collect();
        for path in lane.paths {
            leftovers[path.source].push(path.waiting);
        }
        for (source, leftover) in lane.sources.into_iter().zip(leftovers) {
            match source {
                Source::Guest(ring) => {
                    let pair = usize::from(ring.pair());
                    self.guest_transmit[pair] = Some(ring);
                }
                Source::Device(queue) => self.device_receive.push((queue, leftover)),
            }
        }
        for sink in lane.sinks {
            match sink {
                Sink::Guest(ring) => {
                    let pair = usize::from(ring.pair());
                    self.guest_receive[pair] = Some(ring);
                }
                Sink::Device(sink) => self.device_transmit.push(sink),
                Sink::Nobody(_) => {}
            }
        }
    }
}

fn or_nobody(mut sinks: Vec<Sink>, reason: DropReason) -> Vec<Sink> {
    if sinks.is_empty() {
        sinks.push(Sink::Nobody(reason));
    }
    sinks
}

/// Puts frames that waited on the paths of an earlier lane on those of a new one.
fn take_up(leftover: Leftover, paths: &mut [Path], source: &mut Source, counters: &LaneCounters) {
    if leftover.len() == paths.len() {
        for (path, waiting) in paths.iter_mut().zip(leftover) {
            path.waiting = waiting;
        }
        return;
    }
    for waiting in leftover {
        tell_apart(waiting.frames(), source, paths, counters);
    }
}

/// Waits until devices have given all borrowed frames back, at most [`TAKE_BACK_TIME`]; then takes the rest from them.
/// Returns `false` when that was needed: a queue is dead then, and its device must be restarted.
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
