//! The way of frames from one source to one sink: what waits on it, and how it is handed over.

use std::time::{Duration, Instant};

use pmd::frame::MIN_FRAME;
use pmd::{Accepted, Burst, Capabilities, Frame, Frames, ReceiveQueue, Segment, TransmitQueue};

use crate::counters::{DirectionCounters, DropReason};
use crate::lane::{LaneCounters, MOST_PAIRS, Sink, Source, complete};
use crate::net::segment::{Emitted, Headers, Work};
use crate::ring::queue::Chain;

/// Frames wait this long for a guest without free buffers; then they are dropped, as a NIC would.
pub const GUEST_PATIENCE: Duration = Duration::from_millis(1);
/// Frames wait this long for a device that takes nothing. The guest's own queue holds back meanwhile, so this is only
/// about devices that stand still; it is far below the 5 s after which a Linux guest resets its NIC.
pub const DEVICE_PATIENCE: Duration = Duration::from_millis(100);
/// Frames wait this long for the address of a guest's buffer, which its front end is asked for.
pub const TRANSLATION_PATIENCE: Duration = Duration::from_millis(100);
/// Bursts of frames that are cut in software in one pass, so that one guest's long frames do not hold up the others.
const CUTS_AT_ONCE: usize = 2;

/// Frames that were received and have not gone on.
#[derive(Debug, Default)]
pub struct Waiting {
    pub(crate) burst: Burst,
    /// Frames of the burst that are dealt with.
    done: usize,
    /// When the sink last took one; `None` while nothing waits.
    since: Option<Instant>,
}

impl Waiting {
    /// Number of frames.
    pub fn len(&self) -> usize {
        self.burst.len() - self.done
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those that wait.
    pub fn frames(&self) -> Frames<'_> {
        self.burst.frames().skip(self.done)
    }

    pub(crate) fn clear(&mut self) {
        self.burst.clear();
        self.done = 0;
        self.since = None;
    }

    /// Adds a frame behind the others; `false` when there is no room.
    pub(crate) fn push(&mut self, frame: &Frame, segments: &[Segment]) -> bool {
        if self.is_empty() {
            self.clear();
        } else if self.done > 0 && self.burst.room() == 0 {
            self.burst.discard(self.done);
            self.done = 0;
        }
        self.burst.push_frame(frame, segments)
    }
}

/// The way from a source to a sink.
#[derive(Debug)]
pub struct Path {
    /// Index of the source in its lane.
    pub(crate) source: usize,
    /// Index of the sink in its lane.
    pub(crate) sink: usize,
    /// The guest's queue pair at one of its ends, which drops are counted for.
    pub(crate) pair: u8,
    pub(crate) waiting: Box<Waiting>,
    /// For a source whose frames may leave something to do.
    cutter: Option<Box<Cutter>>,
}

/// What became of frames that were handed to a sink.
enum Handed {
    Copied(usize),
    Borrowed(usize),
    Dropped(usize, DropReason),
}

impl Path {
    /// A path on which nothing waits; `cuts` where frames may leave something to do.
    pub(crate) fn new(source: usize, sink: usize, pair: u8, cuts: bool) -> Self {
        Self { source, sink, pair, waiting: Box::default(), cutter: cuts.then(Box::default) }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn has_lent(&self) -> bool {
        self.cutter.as_ref().is_some_and(|cutter| cutter.lent > 0)
    }

    /// Hands waiting frames to the sink; returns whether any was dealt with.
    pub(crate) fn forward(
        &mut self,
        source: &mut Source,
        sink: &mut Sink,
        counters: &LaneCounters,
        now: Instant,
    ) -> bool {
        let mut moved = false;
        let mut cuts = 0;
        while !self.waiting.is_empty() {
            let progress = match &self.cutter {
                Some(cutter) if cutter.work.is_some() => {
                    cuts += 1;
                    cuts <= CUTS_AT_ONCE && self.cut(source, sink, counters)
                }
                _ => self.hand_over(source, sink, counters),
            };
            if !progress {
                break;
            }
            moved = true;
            self.waiting.since = Some(now);
            // A guest's ring is asked once a pass: it stops early when its descriptors take too long.
            if matches!(sink, Sink::Guest(_)) {
                break;
            }
        }
        if !self.waiting.is_empty() {
            moved |= self.lose_patience(source, sink, counters, now);
        }
        moved
    }

    /// Hands over frames as they are; returns whether any was dealt with, or prepared for being cut.
    #[inline]
    fn hand_over(&mut self, source: &mut Source, sink: &mut Sink, counters: &LaneCounters) -> bool {
        let frames = self.waiting.frames();
        let mut ready = frames;
        if let Some(cutter) = &mut self.cutter {
            let capabilities = sink.capabilities();
            let as_is = |(frame, _): &(&Frame, _)| capabilities.take_as_is(frame.offload(), frame.len());
            ready = frames.take(frames.iter().take_while(as_is).count());
            if ready.is_empty() && capabilities.by_header {
                ready = cutter.look_over(frames, capabilities);
            }
            if ready.is_empty() {
                let work = match frames.iter().next() {
                    Some((frame, segments)) => Work::begin(segments, frame.offload(), capabilities),
                    None => return false,
                };
                // One that nobody could send is dropped as one, not as many.
                let work = match work {
                    Ok(work) if work.longest() > sink.max_frame() => Err(DropReason::FrameTooLong),
                    work => work,
                };
                self.waiting.done += prepare(frames, work, self.pair, cutter, source, counters);
                return true;
            }
        }
        let done = match hand(sink, ready, counters) {
            Handed::Copied(n) => {
                settle(source, frames.take(n), &counters.source);
                n
            }
            Handed::Borrowed(n) => {
                let taken = frames.take(n);
                counters.source.rx_frames.add(n as u64);
                counters.source.rx_bytes.add(taken.bytes());
                n
            }
            Handed::Dropped(n, reason) => {
                counters.source.count_drop(self.pair, reason, n as u64);
                settle(source, frames.take(n), &counters.source);
                n
            }
        };
        self.waiting.done += done;
        done > 0
    }

    /// Goes on with cutting the first frame that waits; returns whether that got any further.
    fn cut(&mut self, source: &mut Source, sink: &mut Sink, counters: &LaneCounters) -> bool {
        let (Some(cutter), Some((_, segments))) = (&mut self.cutter, self.waiting.frames().iter().next())
        else {
            return false;
        };
        let tag = match source {
            Source::Guest(ring) => MOST_PAIRS as u8 + ring.pair(),
            Source::Device(_) => MOST_PAIRS as u8,
        };
        let progress = cutter.step(segments, sink, tag, self.pair, counters);
        if cutter.is_finished() {
            self.finish_cut(source, counters);
            return true;
        }
        progress
    }

    /// The frame that was being cut is done.
    fn finish_cut(&mut self, source: &mut Source, counters: &LaneCounters) {
        if let Some(cutter) = &mut self.cutter {
            cutter.reset();
            settle(source, self.waiting.frames().take(1), &counters.source);
            self.waiting.done += 1;
        }
    }

    /// A frame that was made here has come back from the device.
    pub(crate) fn returned(&mut self, source: &mut Source, counters: &LaneCounters) {
        let Some(cutter) = &mut self.cutter else { return };
        cutter.lent = cutter.lent.saturating_sub(1);
        if cutter.is_finished() {
            self.finish_cut(source, counters);
        }
    }

    /// Drops what has waited for too long; returns whether anything has.
    fn lose_patience(
        &mut self,
        source: &mut Source,
        sink: &Sink,
        counters: &LaneCounters,
        now: Instant,
    ) -> bool {
        if matches!((&*source, sink), (Source::Device(queue), Sink::Guest(_)) if queue.can_wait()) {
            return false;
        }
        let since = *self.waiting.since.get_or_insert(now);
        let (patience, reason) = match sink {
            Sink::Device(..) => (DEVICE_PATIENCE, DropReason::VfQueueFull),
            // Behind a virtual IOMMU the front end is asked for each address first.
            Sink::Guest(ring) if ring.is_unmapped() => (TRANSLATION_PATIENCE, DropReason::GuestQueueFull),
            _ => (GUEST_PATIENCE, DropReason::GuestQueueFull),
        };
        let is_over = now.duration_since(since) >= patience && !self.has_lent();
        if is_over {
            self.drop_waiting(source, reason, counters);
        }
        is_over
    }

    /// Drops all that waits, for `reason`.
    fn drop_waiting(&mut self, source: &mut Source, reason: DropReason, counters: &LaneCounters) {
        let frames = self.waiting.frames();
        counters.source.count_drop(self.pair, reason, frames.len() as u64);
        settle(source, frames, &counters.source);
        self.waiting.clear();
        if let Some(cutter) = &mut self.cutter {
            cutter.reset();
        }
    }

    /// Gives what waits back to a guest's queue, as if it had not been taken. A frame of which the sink has a part
    /// already is not sent again: it counts as aborted.
    pub(crate) fn put_back(&mut self, source: &mut Source, counters: &LaneCounters) {
        if let Some(cutter) = &mut self.cutter
            && cutter.work.is_some()
        {
            if cutter.began {
                counters.source.count_drop(self.pair, DropReason::Aborted, 1);
                self.finish_cut(source, counters);
            } else {
                cutter.reset();
            }
        }
        if let Source::Guest(ring) = source {
            ring.put_back(self.waiting.frames());
            self.waiting.clear();
        }
    }
}

/// Has the first of `frames` worked on; returns how many are done with (one, if it cannot be).
fn prepare(
    frames: Frames<'_>,
    work: Result<Work, DropReason>,
    pair: u8,
    cutter: &mut Cutter,
    source: &mut Source,
    counters: &LaneCounters,
) -> usize {
    match work {
        Ok(work) => {
            cutter.begin(work);
            0
        }
        Err(reason) => {
            counters.source.count_drop(pair, reason, 1);
            settle(source, frames.take(1), &counters.source);
            1
        }
    }
}

/// Hands frames to the sink, which takes a prefix of them.
#[inline]
fn hand(sink: &mut Sink, frames: Frames<'_>, counters: &LaneCounters) -> Handed {
    let sink = match sink {
        Sink::Guest(ring) => return Handed::Copied(ring.deliver(frames, &counters.sink)),
        Sink::Nobody(reason) => return Handed::Dropped(frames.len(), *reason),
        Sink::Device(sink) => sink,
    };
    let max_frame = sink.max_frame;
    let bad = |frame: &Frame| {
        let whole = frame.offload().segment_size == 0;
        frame.len() < MIN_FRAME || (whole && frame.len() > max_frame)
    };
    let good = frames.iter().take_while(|(frame, _)| !bad(frame)).count();
    if good == 0 {
        let short = frames.take(1).bytes() < u64::from(MIN_FRAME);
        let reason = if short { DropReason::FrameTooShort } else { DropReason::FrameTooLong };
        return Handed::Dropped(1, reason);
    }
    let (n, handed) = match sink.queue.transmit(frames.take(good)) {
        Accepted::Copied(n) => (n, Handed::Copied(n)),
        Accepted::Borrowed(n) => (n, Handed::Borrowed(n)),
        Accepted::Refused(n) => return Handed::Dropped(n, DropReason::VfRefused),
    };
    counters.sink.tx_frames.add(n as u64);
    counters.sink.tx_bytes.add(frames.take(n).bytes());
    handed
}

/// Gives frames back to their source and counts them as received.
#[inline]
fn settle(source: &mut Source, frames: Frames<'_>, counters: &DirectionCounters) {
    counters.rx_frames.add(frames.len() as u64);
    counters.rx_bytes.add(frames.bytes());
    match source {
        Source::Guest(ring) => ring.complete_all(frames),
        Source::Device(_) => frames.iter().for_each(|(frame, _)| complete(source, frame.token())),
    }
}

/// Does in software what a frame leaves to be done and its sink does not do.
#[derive(Debug, Default)]
struct Cutter {
    /// The frame being cut; it is the first that waits.
    work: Option<Work>,
    /// Whether all frames have been made of it.
    exhausted: bool,
    /// Whether the sink has taken one.
    began: bool,
    made: Burst,
    /// Frames of `made` that the sink has taken.
    done: usize,
    /// Frames of `made` that a device has borrowed.
    lent: usize,
    headers: Headers,
}

impl Cutter {
    fn begin(&mut self, work: Work) {
        self.reset();
        self.work = Some(work);
    }

    fn reset(&mut self) {
        self.work = None;
        self.made.clear();
        self.headers.clear();
        (self.exhausted, self.began, self.done, self.lent) = (false, false, 0, 0);
    }

    /// The first of `frames`, with checked headers of our own for a device that reads them; none where the first one is to
    /// be worked on otherwise. They keep their tokens, and are good until the next call.
    fn look_over(&mut self, frames: Frames<'_>, capabilities: &Capabilities) -> Frames<'_> {
        self.reset();
        for (frame, segments) in frames.iter() {
            let fits = match capabilities.take_as_is(frame.offload(), frame.len()) {
                true => self.made.push_frame(frame, segments),
                false => Work::begin(segments, frame.offload(), capabilities).is_ok_and(|mut work| {
                    let before = self.made.len();
                    work.is_only_checked()
                        && work.emit(segments, &mut self.made, &mut self.headers, frame.token())
                            == Emitted::Finished
                        && self.made.len() == before + 1
                }),
            };
            if !fits {
                break;
            }
        }
        self.made.frames()
    }

    fn is_finished(&self) -> bool {
        self.exhausted && self.done == self.made.len() && self.lent == 0
    }

    /// Makes frames of `segments`, those of the frame being cut, and hands them to the sink; returns whether that got any further.
    fn step(
        &mut self,
        segments: &[Segment],
        sink: &mut Sink,
        tag: u8,
        pair: u8,
        counters: &LaneCounters,
    ) -> bool {
        if self.done == self.made.len() && !self.exhausted {
            if self.lent > 0 {
                return false;
            }
            self.made.clear();
            self.headers.clear();
            self.done = 0;
            let Some(work) = &mut self.work else { return false };
            let token = Chain { id: 0, slots: 1 }.token(tag);
            self.exhausted =
                work.emit(segments, &mut self.made, &mut self.headers, token) == Emitted::Finished;
        }
        let frames = self.made.frames().skip(self.done);
        if frames.is_empty() {
            return false;
        }
        let n = match hand(sink, frames, counters) {
            Handed::Copied(n) => n,
            Handed::Borrowed(n) => {
                self.lent += n;
                n
            }
            Handed::Dropped(n, reason) => {
                counters.source.count_drop(pair, reason, n as u64);
                n
            }
        };
        self.done += n;
        self.began |= n > 0;
        n > 0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use pmd::frame::gather;
    use pmd::{Completions, Limits, Offload, Segmentation, Transmit};

    use super::*;
    use crate::driver::memory::GuestRam;
    use crate::driver::split::{Descriptor, DriverRing};
    use crate::ends::{Cable, Ends, RelayCounters};
    use crate::guest::memory::{GuestMemory, RegionDescription};
    use crate::guest::space::AddressSpace;
    use crate::lane::{DeviceSink, Direction, Lane, LaneKey};
    use crate::ring::receive::ReceiveRules;
    use crate::ring::transmit::TransmitRules;
    use crate::ring::{ReceiveRing, RingConfig, SplitRing, TransmitRing};

    /// A device that reads headers: it notes each burst, and what of it is left to do.
    #[derive(Debug)]
    struct Nic(Arc<Mutex<Vec<Sent>>>);

    /// A burst.
    type Sent = Vec<(Vec<u8>, Offload)>;

    impl TransmitQueue for Nic {
        fn transmit(&mut self, frames: Frames<'_>) -> Accepted {
            let frame = |(frame, segments): (&Frame, &[Segment])| {
                let mut bytes = vec![0; frame.len() as usize];
                gather(segments, &mut bytes);
                (bytes, *frame.offload())
            };
            self.0.lock().unwrap().push(frames.iter().map(frame).collect());
            Accepted::Copied(frames.len())
        }

        fn reclaim(&mut self, _done: &mut Completions) {}

        fn outstanding(&self) -> usize {
            0
        }

        fn abort(&mut self, _done: &mut Completions) {}
    }

    /// A UDP packet from 10.0.0.1 to 10.0.0.2 whose checksum is left to somebody.
    fn datagram(payload: u8) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 30, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 1, 0, 2, 0, 10, 0, 0, payload, payload]);
        frame
    }

    /// What a device with such capabilities is given of the frames that a guest sends, each behind its virtio-net header, and
    /// what was counted.
    fn sent(frames: &[([u8; 12], Vec<u8>)], capabilities: Capabilities) -> (Vec<Sent>, LaneCounters) {
        let mut ram = GuestRam::new(0, 1 << 20).unwrap();
        let mut ring = DriverRing::new(&mut ram, 8).unwrap();
        let region = RegionDescription { gpa: 0, size: ram.size(), user: ram.user(), offset: 0 };
        let memory = GuestMemory::map([(region, ram.file().try_clone().unwrap())]).unwrap();
        let space = Arc::new(AddressSpace::physical(Arc::new(memory), None));
        for (n, (header, frame)) in frames.iter().enumerate() {
            let gpa = (1 << 18) + (1 << 17) * n as u64;
            ram.write(gpa, &[&header[..], frame].concat());
            let descriptor = Descriptor { addr: gpa, len: 12 + frame.len() as u32, flags: 0, next: 0 };
            ring.set(&ram, n as u16, descriptor);
            ring.push(&ram, n as u16);
        }
        ring.publish(&ram);
        let config = RingConfig {
            size: 8,
            descriptors: ram.user_of(ring.descriptors),
            available: ram.user_of(ring.available),
            used: ram.user_of(ring.used),
            ..RingConfig::default()
        };
        let rules =
            TransmitRules { header: 12, offloads: Some(Capabilities::ALL), ..TransmitRules::default() };
        let transmit = SplitRing::new(&config, &space, None).unwrap().into();
        let bursts = Arc::new(Mutex::new(Vec::new()));
        let queue = Transmit::Other(Box::new(Nic(Arc::clone(&bursts))));
        let sink = Sink::Device(DeviceSink { queue, capabilities, max_frame: 1514 });
        let source = Source::Guest(TransmitRing::new(transmit, 0, rules));
        let key = LaneKey { relay: 0, direction: Direction::VmToVf };
        let counters = LaneCounters::of_one(&RelayCounters::default().vm_to_vf);
        let path = vec![Path::new(0, 0, 0, true)];
        let mut lane = Lane::new(key, vec![source], vec![sink], path, counters.clone());
        while lane.step(Instant::now()) {}
        let bursts = std::mem::take(&mut *bursts.lock().unwrap());
        (bursts, counters)
    }

    #[test]
    fn a_device_that_reads_headers_gets_what_it_can_do_in_one_burst() {
        // Where the checksum goes: nowhere, UDP's place, UDP's place, that of something else, UDP's place.
        let places = [None, Some(34), Some(34), Some(30), Some(34)];
        let frames = places.map(|start| match start {
            Some(start) => [1, 0, 0, 0, 0, 0, start, 0, 6, 0, 0, 0],
            None => [0; 12],
        });
        let frames: Vec<_> =
            frames.into_iter().enumerate().map(|(n, header)| (header, datagram(n as u8))).collect();
        let capabilities = Capabilities { checksum: true, by_header: true, ..Capabilities::NONE };
        let (bursts, _) = sent(&frames, capabilities);
        let done: Vec<Vec<bool>> =
            bursts.iter().map(|burst| burst.iter().map(|(_, left)| left.is_done()).collect()).collect();
        // The one with a checksum that the device would not find has been dealt with here.
        assert_eq!(done, [vec![true], vec![false, false], vec![true], vec![false]]);
        for (n, (frame, left)) in bursts.iter().flatten().enumerate() {
            assert!(n == 3 || *frame == datagram(n as u8), "frame {n}");
            assert!(left.is_done() || left.header_length == 42);
        }
    }

    /// TCP from 10.0.0.1 to 10.0.0.2 with so much payload, to be cut.
    fn tcp(payload: usize, segment_size: u16) -> ([u8; 12], Vec<u8>) {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(((40 + payload) as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0; 12]);
        frame.extend([0x50, 0x10, 0, 0, 0, 0, 0, 0]);
        frame.resize(54 + payload, 7);
        let [low, high] = segment_size.to_le_bytes();
        ([1, 1, 54, 0, low, high, 34, 0, 16, 0, 0, 0], frame)
    }

    #[test]
    fn what_a_device_cannot_cut_is_cut_here_and_what_nobody_can_is_dropped_once_by_name() {
        let limits = Limits { headers: 54, cut: 9000, segment: (64, 1448), segment_frame: 1500 };
        let nic = Capabilities { udp: false, by_header: true, limits, ..Capabilities::ALL };
        for (payload, size, frames) in [
            (8946, 1446, 1),
            // A frame that is too long, segments that are too small, too large, too long with their headers.
            (8947, 1446, 7),
            (640, 64, 1),
            (630, 63, 10),
            (2900, 1449, 3),
            (2900, 1447, 3),
        ] {
            let (bursts, counters) = sent(&[tcp(payload, size)], nic);
            let (frames_sent, cut): (Vec<_>, Vec<_>) = bursts
                .iter()
                .flatten()
                .map(|(frame, left)| (frame.len() - 54, left.segmentation == Segmentation::TcpV4))
                .unzip();
            assert_eq!(frames_sent.len(), frames, "{payload} {size}");
            assert_eq!((frames_sent.iter().sum::<usize>(), cut[0]), (payload, frames == 1));
            assert_eq!(counters.source.dropped_in_all(), 0);
        }
        // With headers that it does not read, it is not left a checksum either.
        let short = Capabilities { limits: Limits { headers: 53, ..limits }, ..nic };
        let (bursts, _) = sent(&[tcp(640, 64)], short);
        assert!(bursts.iter().flatten().all(|(_, left)| left.is_done()));
        let (bursts, counters) = sent(&[tcp(9000, 1461), tcp(640, 64)], nic);
        assert_eq!(bursts.iter().flatten().count(), 1, "the one behind it goes out");
        assert_eq!(
            (counters.source.dropped(DropReason::FrameTooLong), counters.source.dropped_in_all()),
            (1, 1)
        );
    }

    /// Who drops falls asleep anew: what kept it awake may be gone with that.
    #[test]
    fn to_drop_what_has_waited_for_too_long_is_work() {
        let mut ram = GuestRam::new(0, 1 << 20).unwrap();
        let mut rings = [(); 2].map(|()| DriverRing::new(&mut ram, 8).unwrap());
        let region = RegionDescription { gpa: 0, size: ram.size(), user: ram.user(), offset: 0 };
        let memory = GuestMemory::map([(region, ram.file().try_clone().unwrap())]).unwrap();
        let space = Arc::new(AddressSpace::physical(Arc::new(memory), None));
        rings[0].set(&ram, 0, Descriptor { addr: 1 << 19, len: 12 + 60, flags: 0, next: 0 });
        rings[0].push(&ram, 0);
        rings[0].publish(&ram);
        let [transmit, receive] = rings.map(|ring| {
            let config = RingConfig {
                size: 8,
                descriptors: ram.user_of(ring.descriptors),
                available: ram.user_of(ring.available),
                used: ram.user_of(ring.used),
                ..RingConfig::default()
            };
            SplitRing::new(&config, &space, None).unwrap().into()
        });
        let mut ends = Ends::default();
        ends.cable = Some(Cable::Loopback);
        let rules = TransmitRules { header: 12, ..TransmitRules::default() };
        ends.near.transmit[0] = Some(TransmitRing::new(transmit, 0, rules));
        let rules = ReceiveRules { header: 12, ..ReceiveRules::default() };
        ends.near.receive[0] = Some(ReceiveRing::new(receive, 0, rules));
        let counters = RelayCounters::default();
        let mut lane = ends.lanes(0, &counters).remove(0);
        let now = Instant::now();
        let dropped = || counters.vm_to_vf.dropped(DropReason::GuestQueueFull);
        assert!(!lane.step(now) && !lane.step(now), "it waits");
        assert_eq!(dropped(), 0);
        assert!(lane.step(now + GUEST_PATIENCE), "it is dropped");
        assert_eq!(dropped(), 1);
        assert!(!lane.step(now + GUEST_PATIENCE), "nothing is left");
    }
}
