//! One lane: frames from sources to the sinks that only it writes, a burst at a time.
//!
//! ```text
//!            receive            forward                    flush
//!   Source ───────────▶ path ───────────▶ Sink      used ring, interrupt
//!     ▲                  │ what the sink has no room for waits here
//!     └── complete ◀─────┴── completions of borrowed frames
//!
//!   one guest queue, one device queue    a guest with many transmit queues      a guest with many receive queues
//!   S ──▶ K                              S0 ─▶ K      each source has a path    S ─▶ K0    the frames of a flow take
//!                                        S1 ─▶ K      of its own                └─▶ K1    the same path always
//! ```
//!
//! A lane is a value with one owner. A worker that owns it calls [`Lane::step`]; a control thread that recalled it may
//! take it apart. This is the hot loop: no lock, no allocation, no logging, and no system call but the guest's interrupt
//! and a software device's own I/O.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use pmd::{Burst, Capabilities, Completions, Frames, Receive, ReceiveQueue, Token, Transmit, TransmitQueue};

use crate::bells::Ringer;
use crate::cable::{self, Carried};
use crate::counters::{DirectionCounters, DropReason};
use crate::handshake;
use crate::net::hash;
use crate::path::{Path, Waiting};
use crate::ring::queue::{Chain, tag_of};
use crate::ring::{ReceiveRing, TransmitRing};
use crate::roster::Rest;
use crate::turns::Account;

/// Queue pairs of one guest, at most.
pub const MOST_PAIRS: usize = 32;
/// Bytes of a frame that its flow is told by.
const FLOW_BYTES: usize = 128;

/// Which way a lane carries frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From the device to the guest.
    VfToVm,
    /// From the guest to the device; of a loopback, both ways.
    VmToVf,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VfToVm => "vf_to_vm",
            Self::VmToVf => "vm_to_vf",
        })
    }
}

/// What a lane is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneKey {
    /// The relay's virtio-id.
    pub relay: u32,
    /// The direction.
    pub direction: Direction,
}

impl LaneKey {
    /// As one number, for where only that can be kept; far below `u64::MAX`.
    #[inline]
    pub fn code(self) -> u64 {
        u64::from(self.relay) << 1 | u64::from(self.direction == Direction::VmToVf)
    }

    /// The inverse of [`code`](Self::code).
    #[inline]
    pub fn from_code(code: u64) -> Self {
        let direction = if code & 1 == 0 { Direction::VfToVm } else { Direction::VmToVf };
        Self { relay: (code >> 1) as u32, direction }
    }
}

impl fmt::Display for LaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "relay {}, {}", self.relay, self.direction)
    }
}

/// Where frames come from.
// Lanes keep these in place for long, and look into them without another indirection.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum Source {
    /// A guest's transmit queue.
    Guest(TransmitRing),
    /// A device's receive queue.
    Device(Receive),
}

/// A device's transmit queue with what it takes.
#[derive(Debug)]
pub struct DeviceSink {
    /// The queue.
    pub queue: Transmit,
    /// Longest frame in bytes that it takes, unless it cuts it itself.
    pub max_frame: u32,
    /// What frames may leave to it.
    pub capabilities: Capabilities,
}

/// Where frames go.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum Sink {
    /// A guest's receive queue.
    Guest(ReceiveRing),
    /// A device's transmit queue.
    Device(DeviceSink),
    /// There is nobody: every frame is dropped for this reason.
    Nobody(DropReason),
}

impl Sink {
    /// What frames may leave to it.
    #[inline]
    pub(crate) fn capabilities(&self) -> &Capabilities {
        match self {
            Self::Guest(ring) => ring.capabilities(),
            Self::Device(sink) => &sink.capabilities,
            Self::Nobody(_) => &Capabilities::ALL,
        }
    }

    /// Longest frame in bytes that it takes, unless it cuts it itself.
    #[inline]
    pub(crate) fn max_frame(&self) -> u32 {
        match self {
            Self::Device(sink) => sink.max_frame,
            // What fits a guest's buffers shows when it is put there.
            Self::Guest(_) | Self::Nobody(_) => u32::MAX,
        }
    }
}

/// The counters that a lane writes: what comes in at the source is counted in one block, what goes out at the sink in
/// another. Only for a loopback, which serves both directions, are they two.
#[derive(Clone, Debug)]
pub struct LaneCounters {
    /// Frames from the source, and drops.
    pub source: Arc<DirectionCounters>,
    /// Frames to the sink, and those that did not fit the guest's buffers.
    pub sink: Arc<DirectionCounters>,
}

impl LaneCounters {
    /// For a lane that serves one direction.
    pub(crate) fn of_one(direction: &Arc<DirectionCounters>) -> Self {
        Self { source: Arc::clone(direction), sink: Arc::clone(direction) }
    }
}

/// One lane.
#[derive(Debug)]
pub struct Lane {
    /// Its name.
    pub key: LaneKey,
    /// The time that its worker has spent on it.
    pub account: Account,
    /// How it rests while it has no work.
    pub(crate) rest: Rest,
    /// `rx_frames` when it was last asked for.
    counted: u64,
    /// What rings for its sources that are a device's.
    pub(crate) ringers: Vec<Option<Ringer>>,
    pub(crate) sources: Vec<Source>,
    pub(crate) sinks: Vec<Sink>,
    /// In the order of their sources.
    pub(crate) paths: Vec<Path>,
    /// Where each source's paths begin in `paths`, and at the end where the last one's end.
    pub(crate) starts: Vec<usize>,
    /// The source that is queue pair n of the guest.
    by_pair: [u8; MOST_PAIRS],
    /// Frames of a source with several paths, until they are told apart.
    mixed: Box<Burst>,
    pub(crate) counters: LaneCounters,
}

impl Lane {
    /// A lane whose paths are in the order of their sources; every source has one at least.
    pub(crate) fn new(
        key: LaneKey,
        sources: Vec<Source>,
        sinks: Vec<Sink>,
        paths: Vec<Path>,
        counters: LaneCounters,
    ) -> Self {
        let starts = (0..=sources.len()).map(|n| paths.partition_point(|path| path.source < n)).collect();
        let mut by_pair = [0; MOST_PAIRS];
        for (index, source) in sources.iter().enumerate() {
            if let Source::Guest(ring) = source
                && let Some(entry) = by_pair.get_mut(usize::from(ring.pair()))
            {
                *entry = index as u8;
            }
        }
        Self {
            key,
            account: Account::default(),
            rest: Rest::default(),
            counted: counters.source.rx_frames.get(),
            ringers: Vec::new(),
            sources,
            sinks,
            paths,
            starts,
            by_pair,
            mixed: Box::default(),
            counters,
        }
    }

    /// Moves at most one burst from each source; returns whether there was anything to do. `now` is the time of this
    /// pass.
    #[inline]
    pub fn step(&mut self, now: Instant) -> bool {
        let mut busy = self.collect() > 0;
        let Self { sources, sinks, paths, starts, mixed, counters, .. } = self;
        for (source, range) in sources.iter_mut().zip(starts.windows(2)) {
            if let Source::Guest(ring) = source
                && !ring.is_ripe()
            {
                continue;
            }
            if is_held(source, &paths[range[0]..range[1]], sinks) {
                continue;
            }
            match &mut paths[range[0]..range[1]] {
                [path] => {
                    let sink = &mut sinks[path.sink];
                    if path.is_empty() {
                        if let (Source::Guest(from), Sink::Guest(to)) = (&mut *source, &mut *sink) {
                            let carried = cable::carry(from, to, counters);
                            if carried != Carried::Otherwise {
                                busy |= carried == Carried::Some;
                                continue;
                            }
                        }
                        path.waiting.clear();
                        receive(source, &mut path.waiting.burst, counters);
                    }
                    if !path.is_empty() {
                        busy |= path.forward(source, sink, counters, now);
                    }
                }
                several => {
                    // What a source that can wait would give now might find one of its paths full, and be dropped.
                    let waits = matches!(source, Source::Device(queue) if queue.can_wait())
                        && several.iter().any(|path| !path.is_empty());
                    if !waits {
                        receive(source, mixed, counters);
                    }
                    busy |= !mixed.is_empty();
                    tell_apart(mixed.frames(), source, several, counters);
                    mixed.clear();
                    for path in several {
                        if !path.is_empty() {
                            busy |= path.forward(source, &mut sinks[path.sink], counters, now);
                        }
                    }
                }
            }
        }
        self.flush();
        busy
    }

    /// Frames that were counted as taken from the sources since the last call.
    #[inline]
    pub fn newly_counted(&mut self) -> u64 {
        let frames = self.counters.source.rx_frames.get();
        frames.wrapping_sub(std::mem::replace(&mut self.counted, frames))
    }

    /// Lets guests see what was done since the last call: all rings are released before it is asked once, for all of them,
    /// who wants to be told.
    #[inline]
    pub fn flush(&mut self) {
        handshake::show(self, Self::release, Self::interrupt);
    }

    #[inline]
    fn release(&mut self) -> bool {
        let mut asks = false;
        for source in &mut self.sources {
            if let Source::Guest(ring) = source {
                asks |= ring.release();
            }
        }
        for sink in &mut self.sinks {
            if let Sink::Guest(ring) = sink {
                asks |= ring.release();
            }
        }
        asks
    }

    #[inline]
    fn interrupt(&mut self) {
        for source in &mut self.sources {
            if let Source::Guest(ring) = source {
                ring.interrupt(&self.counters.source);
            }
        }
        for sink in &mut self.sinks {
            if let Sink::Guest(ring) = sink {
                ring.interrupt(&self.counters.sink);
            }
        }
    }

    /// Gives what waits back to a guest's queues, as if it had not been taken; a device's frames stay where they are.
    pub fn put_back_waiting(&mut self) {
        let Self { sources, paths, counters, .. } = self;
        for path in paths {
            path.put_back(&mut sources[path.source], counters);
        }
    }

    /// Takes in what devices have finished, without sending anything; returns how many borrowed frames that were.
    #[inline]
    pub fn collect(&mut self) -> usize {
        self.take_in(|queue, done| queue.reclaim(done), |_| {})
    }

    /// Borrowed frames that devices have not given back.
    pub fn outstanding(&self) -> usize {
        let outstanding = |sink: &Sink| match sink {
            Sink::Device(sink) => sink.queue.outstanding(),
            _ => 0,
        };
        self.sinks.iter().map(outstanding).sum()
    }

    /// Whether frames that were made here, out of longer ones, are on their way: the lane cannot be taken apart then.
    pub fn has_lent(&self) -> bool {
        self.paths.iter().any(Path::has_lent)
    }

    /// Takes all borrowed frames from devices that do not give them back; they count as aborted. A control thread calls
    /// this, see [`TransmitQueue::abort`].
    pub fn abort(&mut self) {
        let counters = Arc::clone(&self.counters.source);
        let aborted = |n: usize| counters.count_drop(0, DropReason::Aborted, n as u64);
        while self.outstanding() > 0 && self.take_in(|queue, done| queue.abort(done), aborted) > 0 {}
    }

    #[inline]
    fn take_in(
        &mut self,
        mut reclaim: impl FnMut(&mut Transmit, &mut Completions),
        note: impl Fn(usize),
    ) -> usize {
        let Self { sources, sinks, paths, by_pair, counters, .. } = self;
        let mut n = 0;
        for sink in sinks {
            let Sink::Device(sink) = sink else { continue };
            if sink.queue.outstanding() == 0 {
                continue;
            }
            let mut done = Completions::new();
            reclaim(&mut sink.queue, &mut done);
            n += done.len();
            note(done.len());
            for token in done {
                let chain = Chain::of(token);
                let tag = tag_of(token);
                let index = by_pair[usize::from(tag) % MOST_PAIRS];
                if usize::from(tag) >= MOST_PAIRS {
                    let path = paths.iter_mut().find(|path| path.source == usize::from(index));
                    if let (Some(path), Some(source)) = (path, sources.get_mut(usize::from(index))) {
                        path.returned(source, counters);
                    }
                } else if chain.slots > 0
                    && let Some(source) = sources.get_mut(usize::from(index))
                {
                    complete(source, token);
                }
            }
        }
        n
    }
}

#[inline]
fn receive(source: &mut Source, burst: &mut Burst, counters: &LaneCounters) {
    match source {
        Source::Device(queue) => queue.receive(burst),
        Source::Guest(ring) => {
            ring.receive(burst, &counters.source);
            if let Some((_, [first, ..])) = burst.frames().iter().next() {
                let mut head = [0; 12];
                if first.copy_to(&mut head) == head.len() {
                    let [.., a, b, c, d, e, f] = head;
                    counters.source.note_source(pmd::MacAddress([a, b, c, d, e, f]).to_u64());
                }
            }
        }
    }
}

/// Whether frames stay in `source`: they can wait, and all of `paths` lead to nobody.
#[inline]
pub(crate) fn is_held(source: &Source, paths: &[Path], sinks: &[Sink]) -> bool {
    matches!((source, paths), (Source::Device(queue), [path])
        if queue.can_wait() && matches!(sinks[path.sink], Sink::Nobody(_)))
}

/// Puts each frame of `mixed` with those of its flow.
pub(crate) fn tell_apart(
    mixed: Frames<'_>,
    source: &mut Source,
    paths: &mut [Path],
    counters: &LaneCounters,
) {
    for (frame, segments) in mixed.iter() {
        let path = match paths {
            [path] => path,
            _ => {
                let mut head = [0; FLOW_BYTES];
                let n = pmd::frame::gather(segments, &mut head);
                &mut paths[hash::queue_of(hash::flow_hash(&head[..n]), paths.len())]
            }
        };
        if !path.waiting.push(frame, segments) {
            counters.source.count_drop(path.pair, DropReason::GuestQueueFull, 1);
            counters.source.rx_frames.add(1);
            counters.source.rx_bytes.add(u64::from(frame.len()));
            complete(source, frame.token());
        }
    }
}

#[inline]
pub(crate) fn complete(source: &mut Source, token: Token) {
    match source {
        Source::Guest(ring) => ring.complete(token),
        Source::Device(queue) => queue.release(token),
    }
}

/// What waited when a device's receive queue was taken from its lane.
pub type Leftover = Vec<Box<Waiting>>;
