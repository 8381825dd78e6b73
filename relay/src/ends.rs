//! The ends of a relay while no worker has them, and the lanes that are built from them.
//!
//! ```text
//!             guest                                  device
//!   transmit rings ─────── lane vm_to_vf ───────▶ transmit queues      ring i to queue i mod their number
//!   receive rings  ◀────── lane vf_to_vm ──────── receive queues       queue i to rings ≡ i, by flow
//!
//!   with a cable in place of the device:  transmit ring i ── a lane ──▶ receive ring i
//!     loopback      from the guest to itself, lane vm_to_vf
//!     another VM    from the guest to the far one, lane vm_to_vf; from the far one to the guest, lane vf_to_vm
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
use crate::ring::{ReceiveRing, Ring, TransmitRing};

/// A device that holds borrowed frames longer than this, once they are wanted back, has them taken away.
pub const TAKE_BACK_TIME: Duration = Duration::from_millis(100);

/// Which of the guests that a relay may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The relay's own.
    Near,
    /// The one at the other end of a cable.
    Far,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Near => Self::Far,
            Self::Far => Self::Near,
        }
    }
}

/// The rings of one guest.
#[derive(Debug, Default)]
pub struct GuestRings {
    /// Transmit queues, by queue pair.
    pub transmit: [Option<TransmitRing>; MOST_PAIRS],
    /// Receive queues, by queue pair.
    pub receive: [Option<ReceiveRing>; MOST_PAIRS],
}

impl GuestRings {
    /// A ring by the index of its virtqueue.
    pub fn ring(&mut self, index: usize) -> Option<&mut Ring> {
        let pair = index / 2;
        if index.is_multiple_of(2) {
            self.receive.get_mut(pair)?.as_mut().map(ReceiveRing::ring)
        } else {
            self.transmit.get_mut(pair)?.as_mut().map(TransmitRing::ring)
        }
    }

    /// All rings.
    pub fn rings(&mut self) -> impl Iterator<Item = &mut Ring> {
        let receive = self.receive.iter_mut().flatten().map(ReceiveRing::ring);
        receive.chain(self.transmit.iter_mut().flatten().map(TransmitRing::ring))
    }

    /// Stops a ring, by the index of its virtqueue; where it stands.
    pub fn finish(&mut self, index: usize) -> Option<u32> {
        let pair = index / 2;
        if index.is_multiple_of(2) {
            self.receive.get_mut(pair)?.take().map(|mut ring| ring.ring().finish())
        } else {
            self.transmit.get_mut(pair)?.take().map(|mut ring| ring.ring().finish())
        }
    }

    fn sources(&mut self) -> Vec<TransmitRing> {
        self.transmit.iter_mut().filter_map(Option::take).collect()
    }

    fn sinks(&mut self) -> Vec<Sink> {
        self.receive.iter_mut().filter_map(Option::take).map(Sink::Guest).collect()
    }

    fn put_transmit(&mut self, ring: TransmitRing) {
        let pair = usize::from(ring.pair());
        self.transmit[pair] = Some(ring);
    }

    fn put_receive(&mut self, ring: ReceiveRing) {
        let pair = usize::from(ring.pair());
        self.receive[pair] = Some(ring);
    }
}

/// What a relay may have in the place of a device.
#[derive(Debug)]
pub enum Cable {
    /// What the guest sends comes back to it.
    Loopback,
    /// Another guest, with its rings.
    Guest(Box<GuestRings>),
}

/// What of a relay is at home.
#[derive(Debug, Default)]
pub struct Ends {
    /// The guest's rings.
    pub near: GuestRings,
    /// The device's transmit queues, with what they take.
    device_transmit: Vec<DeviceSink>,
    /// The device's receive queues, with received frames that have not gone on.
    device_receive: Vec<(Receive, Leftover)>,
    /// In the place of the device.
    pub cable: Option<Cable>,
    /// A device is on its way: what the guest sends waits for it in the guest's rings.
    pub device_awaited: bool,
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
        self.device_awaited = false;
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

    /// The rings of a guest; `None` where there is no place for it.
    pub fn guest(&mut self, side: Side) -> Option<&mut GuestRings> {
        match (side, &mut self.cable) {
            (Side::Near, _) => Some(&mut self.near),
            (Side::Far, Some(Cable::Guest(far))) => Some(far),
            (Side::Far, _) => None,
        }
    }

    /// Tells the network behind the device, or the guest at the other end of the cable, that `mac` is here now (RARP, see
    /// [`Announcement`]). `from` is the guest that has the address. `false` when nobody takes anything at present.
    pub fn announce(&mut self, from: Side, mac: MacAddress, counters: &RelayCounters) -> bool {
        if let Some(Cable::Guest(_)) = self.cable {
            return self.announce_to_guest(from, mac, counters);
        }
        let Some(sink) = self.device_transmit.first_mut() else { return false };
        // While the device has the last one, that one is on its way.
        if sink.queue.outstanding() > 0 && self.announcement.is_some() {
            return true;
        }
        self.announcement.insert(Announcement::new(mac)).send(&mut sink.queue)
    }

    /// A guest that runs and has no room loses the announcement, as it would lose any frame.
    fn announce_to_guest(&mut self, from: Side, mac: MacAddress, counters: &RelayCounters) -> bool {
        let Some(rings) = self.guest(from.other()) else { return false };
        let Some(ring) = rings.receive.iter_mut().flatten().next() else { return false };
        let counters = match from {
            Side::Near => &counters.vm_to_vf,
            Side::Far => &counters.vf_to_vm,
        };
        Announcement::new(mac).deliver(ring, counters);
        true
    }

    /// Makes the lanes that these ends allow; what is not part of one stays.
    pub fn lanes(&mut self, relay: u32, counters: &RelayCounters) -> Vec<Lane> {
        let (from_guest, to_guest) = match &mut self.cable {
            None => (self.lane_to_device(relay, counters), self.lane_from_device(relay, counters)),
            Some(Cable::Loopback) => (loopback(&mut self.near, relay, counters), None),
            Some(Cable::Guest(far)) => (
                cable(&mut self.near, far, relay, counters, Side::Near),
                cable(far, &mut self.near, relay, counters, Side::Far),
            ),
        };
        from_guest.into_iter().chain(to_guest).collect()
    }

    fn lane_to_device(&mut self, relay: u32, counters: &RelayCounters) -> Option<Lane> {
        if self.device_awaited && self.device_transmit.is_empty() {
            return None;
        }
        let rings = self.near.sources();
        if rings.is_empty() {
            return None;
        }
        let sinks = self.device_transmit.drain(..).map(Sink::Device).collect();
        let key = LaneKey { relay, direction: Direction::VmToVf };
        let counters = LaneCounters::of_one(&counters.vm_to_vf);
        Some(guest_lane(key, rings, or_nobody(sinks, DropReason::VfNotConnected), counters))
    }

    fn lane_from_device(&mut self, relay: u32, counters: &RelayCounters) -> Option<Lane> {
        if self.device_receive.is_empty() {
            return None;
        }
        let sinks = or_nobody(self.near.sinks(), DropReason::VmNotConnected);
        let counters = LaneCounters::of_one(&counters.vf_to_vm);
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

    /// Takes a lane apart. With borrowed frames outstanding, its two ends must be joined again as they were.
    pub fn take_apart(&mut self, mut lane: Lane) {
        lane.put_back_waiting();
        let mut leftovers: Vec<Leftover> = lane.sources.iter().map(|_| Leftover::new()).collect();
        for path in lane.paths {
            leftovers[path.source].push(path.waiting);
        }
        for (source, leftover) in lane.sources.into_iter().zip(leftovers) {
            match source {
                Source::Guest(ring) => match (lane.key.direction, &mut self.cable) {
                    (Direction::VfToVm, Some(Cable::Guest(far))) => far.put_transmit(ring),
                    _ => self.near.put_transmit(ring),
                },
                Source::Device(queue) => self.device_receive.push((queue, leftover)),
            }
        }
        for sink in lane.sinks {
            match sink {
                Sink::Guest(ring) => match (lane.key.direction, &mut self.cable) {
                    (Direction::VmToVf, Some(Cable::Guest(far))) => far.put_receive(ring),
                    _ => self.near.put_receive(ring),
                },
                Sink::Device(sink) => self.device_transmit.push(sink),
                Sink::Nobody(_) => {}
            }
        }
    }
}

/// From a guest's transmit queues to its own receive queues.
fn loopback(guest: &mut GuestRings, relay: u32, counters: &RelayCounters) -> Option<Lane> {
    let rings = guest.sources();
    if rings.is_empty() {
        return None;
    }
    let sinks = or_nobody(guest.sinks(), DropReason::VmNotConnected);
    let key = LaneKey { relay, direction: Direction::VmToVf };
    let counters =
        LaneCounters { source: Arc::clone(&counters.vm_to_vf), sink: Arc::clone(&counters.vf_to_vm) };
    Some(guest_lane(key, rings, sinks, counters))
}

/// From one guest's transmit queues to another's receive queues. `from` says which of the two the first one is.
fn cable(
    source: &mut GuestRings,
    sink: &mut GuestRings,
    relay: u32,
    counters: &RelayCounters,
    from: Side,
) -> Option<Lane> {
    let rings = source.sources();
    if rings.is_empty() {
        return None;
    }
    let (direction, counters, nobody) = match from {
        Side::Near => (Direction::VmToVf, &counters.vm_to_vf, DropReason::VfNotConnected),
        Side::Far => (Direction::VfToVm, &counters.vf_to_vm, DropReason::VmNotConnected),
    };
    let sinks = or_nobody(sink.sinks(), nobody);
    Some(guest_lane(LaneKey { relay, direction }, rings, sinks, LaneCounters::of_one(counters)))
}

/// A lane from transmit queues, each with one sink: the receive queue of its pair if that runs, else by its number.
fn guest_lane(key: LaneKey, rings: Vec<TransmitRing>, sinks: Vec<Sink>, counters: LaneCounters) -> Lane {
    let path = |(source, ring): (usize, &TransmitRing)| {
        let twin = |sink: &Sink| matches!(sink, Sink::Guest(other) if other.pair() == ring.pair());
        let sink = sinks.iter().position(twin).unwrap_or(usize::from(ring.pair()) % sinks.len());
        Path::new(source, sink, ring.pair(), ring.may_offload())
    };
    let paths = rings.iter().enumerate().map(path).collect();
    Lane::new(key, rings.into_iter().map(Source::Guest).collect(), sinks, paths, counters)
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
