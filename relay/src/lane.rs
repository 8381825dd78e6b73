//! One lane: frames from a source to a sink, a burst at a time.
//!
//! ```text
//!            receive            forward                    flush
//!   Source ───────────▶ burst ───────────▶ Sink      used ring, interrupt
//!     ▲                   │ what the sink has no room for waits here
//!     └── complete ◀──────┴── completions of borrowed frames
//! ```
//!
//! A lane is a value with one owner. A worker that owns it calls [`Lane::step`]; a control thread that recalled it may
//! take it apart. This is the hot loop: no lock, no allocation, no system call but the guest's interrupt, no logging.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmd::frame::MIN_FRAME;
use pmd::{Accepted, Burst, Completions, Frames, Receive, ReceiveQueue, Token, Transmit, TransmitQueue};

use crate::counters::{DirectionCounters, DropReason};
use crate::ring::{ReceiveRing, TransmitRing};

/// Frames wait this long for a guest without free buffers; then they are dropped, as a NIC would.
pub const GUEST_PATIENCE: Duration = Duration::from_millis(1);
/// Frames wait this long for a device that takes nothing. The guest's own queue holds back meanwhile, so this is only
/// about devices that stand still; it is far below the 5 s after which a Linux guest resets its NIC.
pub const DEVICE_PATIENCE: Duration = Duration::from_millis(100);

/// Which way a lane carries frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From the device to the guest.
    VfToVm,
    /// From the guest to the device; a cable too, which has the guest at both ends.
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

impl fmt::Display for LaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "relay {}, {}", self.relay, self.direction)
    }
}

/// Where frames come from.
#[derive(Debug)]
pub enum Source {
    /// A guest's transmit queue.
    Guest(TransmitRing),
    /// A device's receive queue.
    Device(Receive),
}

/// Where frames go.
#[derive(Debug)]
pub enum Sink {
    /// A guest's receive queue.
    Guest(ReceiveRing),
    /// A device's transmit queue, which takes frames of at most so many bytes.
    Device(Transmit, u32),
    /// There is nobody: every frame is dropped for this reason.
    Nobody(DropReason),
}

/// The counters that a lane writes: what comes in at the source is counted in one block, what goes out at the sink in
/// another. Only for a cable, which serves both directions, are they two.
#[derive(Clone, Debug)]
pub struct LaneCounters {
    /// Frames from the source, and drops.
    pub source: Arc<DirectionCounters>,
    /// Frames to the sink, and those that did not fit the guest's buffers.
    pub sink: Arc<DirectionCounters>,
}

/// Frames that were received and have not gone on.
#[derive(Debug, Default)]
pub struct Waiting {
    burst: Burst,
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

    fn frames(&self) -> Frames<'_> {
        self.burst.frames().skip(self.done)
    }

    fn clear(&mut self) {
        self.burst.clear();
        self.done = 0;
        self.since = None;
    }
}

/// The pieces that a lane is made of.
#[derive(Debug)]
pub struct Lane {
    /// Its name.
    pub key: LaneKey,
    /// Where frames come from.
    pub(crate) source: Source,
    /// Where they go.
    pub(crate) sink: Sink,
    /// What is under way between the two.
    pub(crate) waiting: Box<Waiting>,
    /// What it counts in.
    pub(crate) counters: LaneCounters,
}

impl Lane {
    /// Moves at most one burst; returns whether there was anything to do. `now` is the time of this pass.
    #[inline]
    pub fn step(&mut self, now: Instant) -> bool {
        let mut busy = false;
        if let Sink::Device(queue, _) = &mut self.sink
            && queue.outstanding() > 0
        {
            busy |= collect(queue, &mut self.source) > 0;
        }
        if self.waiting.is_empty() {
            self.waiting.clear();
            match &mut self.source {
                Source::Guest(ring) => ring.receive(&mut self.waiting.burst, &self.counters.source),
                Source::Device(queue) => queue.receive(&mut self.waiting.burst),
            }
            self.note_source();
        }
        if !self.waiting.is_empty() {
            busy |= self.forward(now);
        }
        self.flush();
        busy
    }

    /// Lets guests see what was done since the last call.
    #[inline]
    pub fn flush(&mut self) {
        if let Source::Guest(ring) = &mut self.source {
            ring.flush(&self.counters.source);
        }
        if let Sink::Guest(ring) = &mut self.sink {
            ring.flush(&self.counters.sink);
        }
    }

    /// Hands waiting frames to the sink; returns whether any was dealt with.
    fn forward(&mut self, now: Instant) -> bool {
        let before = self.waiting.done;
        while !self.waiting.is_empty() {
            let frames = self.waiting.frames();
            let moved = match &mut self.sink {
                Sink::Guest(ring) => {
                    let n = ring.deliver(frames, &self.counters.sink);
                    settle(&mut self.source, frames.take(n), &self.counters.source);
                    n
                }
                Sink::Device(queue, max_frame) => {
                    let bad = |len: u32| len < MIN_FRAME || len > *max_frame;
                    let good = frames.iter().take_while(|(frame, _)| !bad(frame.len())).count();
                    if good == 0 {
                        let first = frames.take(1);
                        let short = first.bytes() < u64::from(MIN_FRAME);
                        let reason = if short { DropReason::FrameTooShort } else { DropReason::FrameTooLong };
                        self.counters.source.count_drop(reason, 1);
                        settle(&mut self.source, first, &self.counters.source);
                        1
                    } else {
                        send(queue, &mut self.source, frames.take(good), &self.counters)
                    }
                }
                Sink::Nobody(reason) => {
                    self.counters.source.count_drop(*reason, frames.len() as u64);
                    settle(&mut self.source, frames, &self.counters.source);
                    frames.len()
                }
            };
            if moved == 0 {
                break;
            }
            self.waiting.done += moved;
            self.waiting.since = Some(now);
            // A guest's ring is asked once a pass: it stops early when its descriptors take too long.
            if matches!(self.sink, Sink::Guest(_)) {
                break;
            }
        }
        if !self.waiting.is_empty() {
            self.lose_patience(now);
        }
        self.waiting.done != before
    }

    fn lose_patience(&mut self, now: Instant) {
        let since = *self.waiting.since.get_or_insert(now);
        let (patience, reason) = match self.sink {
            Sink::Device(..) => (DEVICE_PATIENCE, DropReason::VfQueueFull),
            _ => (GUEST_PATIENCE, DropReason::GuestQueueFull),
        };
        if now.duration_since(since) >= patience {
            self.drop_waiting(reason);
        }
    }

    /// Drops all that waits, for `reason`.
    pub fn drop_waiting(&mut self, reason: DropReason) {
        let frames = self.waiting.frames();
        self.counters.source.count_drop(reason, frames.len() as u64);
        settle(&mut self.source, frames, &self.counters.source);
        self.waiting.clear();
    }

    /// Gives what waits back to a guest's queue, as if it had not been taken; a device's frames stay where they are.
    pub fn put_back_waiting(&mut self) {
        if let Source::Guest(ring) = &mut self.source {
            ring.put_back(self.waiting.len() as u16);
            self.waiting.clear();
        }
    }

    /// Takes in what a device has finished, without sending anything; returns how many borrowed frames that were.
    pub fn collect(&mut self) -> usize {
        match &mut self.sink {
            Sink::Device(queue, _) => collect(queue, &mut self.source),
            _ => 0,
        }
    }

    /// Borrowed frames that a device has not given back.
    pub fn outstanding(&self) -> usize {
        match &self.sink {
            Sink::Device(queue, _) => queue.outstanding(),
            _ => 0,
        }
    }

    /// Takes all borrowed frames from a device that does not give them back; they count as aborted. A control thread
    /// calls this, see [`TransmitQueue::abort`].
    pub fn abort(&mut self) {
        let Sink::Device(queue, _) = &mut self.sink else { return };
        while queue.outstanding() > 0 {
            let mut done = Completions::new();
            queue.abort(&mut done);
            if done.is_empty() {
                break;
            }
            self.counters.source.count_drop(DropReason::Aborted, done.len() as u64);
            for token in done {
                complete(&mut self.source, token);
            }
        }
    }

    #[inline]
    fn note_source(&self) {
        if let (Source::Guest(_), Some((_, [first, ..]))) =
            (&self.source, self.waiting.frames().iter().next())
        {
            let mut head = [0; 12];
            if first.copy_to(&mut head) == head.len() {
                let [.., a, b, c, d, e, f] = head;
                self.counters.source.note_source(pmd::MacAddress([a, b, c, d, e, f]).to_u64());
            }
        }
    }
}

#[inline]
fn complete(source: &mut Source, token: Token) {
    match source {
        Source::Guest(ring) => ring.complete(token),
        Source::Device(queue) => queue.release(token),
    }
}

/// Gives frames back to their source and counts them as received.
#[inline]
fn settle(source: &mut Source, frames: Frames<'_>, counters: &DirectionCounters) {
    counters.rx_frames.add(frames.len() as u64);
    counters.rx_bytes.add(frames.bytes());
    for (frame, _) in frames.iter() {
        complete(source, frame.token());
    }
}

#[inline]
fn send(queue: &mut Transmit, source: &mut Source, frames: Frames<'_>, counters: &LaneCounters) -> usize {
    let (n, bytes) = match queue.transmit(frames) {
        Accepted::Copied(n) => {
            let taken = frames.take(n);
            settle(source, taken, &counters.source);
            (n, taken.bytes())
        }
        Accepted::Borrowed(n) => {
            let taken = frames.take(n);
            counters.source.rx_frames.add(n as u64);
            counters.source.rx_bytes.add(taken.bytes());
            (n, taken.bytes())
        }
        Accepted::Refused(n) => {
            counters.source.count_drop(DropReason::VfRefused, n as u64);
            settle(source, frames.take(n), &counters.source);
            return n;
        }
    };
    counters.sink.tx_frames.add(n as u64);
    counters.sink.tx_bytes.add(bytes);
    n
}

fn collect(queue: &mut Transmit, source: &mut Source) -> usize {
    let mut done = Completions::new();
    queue.reclaim(&mut done);
    let n = done.len();
    for token in done {
        complete(source, token);
    }
    n
}
