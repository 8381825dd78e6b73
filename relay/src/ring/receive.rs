//! The guest's receive queue: frames are copied into the buffers that the guest posted.

use std::sync::Arc;

use arrayvec::ArrayVec;
use pmd::frame::MIN_FRAME;
use pmd::{Armed, Capabilities, Checksum, Frame, Frames, Offload, Segment};

use super::Ring;
use super::ahead::{Ahead, Copied};
use super::chain::{Access, Stop};
use super::notify::Kicks;
use super::plain::PlainChains;
use super::queue::{Chain, Virtqueue};
use super::with_ring;
use crate::bells::Ringer;
use crate::counters::{DirectionCounters, DropReason};
use crate::guest::dirty_log::DirtyLog;
use crate::handshake;
use crate::net::header::{self, RawHeader};

/// Chains that one frame may be spread over. A jumbo frame of 9702 bytes needs 38 of 256 bytes.
const MAX_CHAINS: usize = 64;

/// What a driver wants to find in a receive queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiveRules {
    /// Bytes of virtio-net header before each frame.
    pub header: u32,
    /// Whether a frame may be spread over several chains.
    pub mergeable: bool,
    /// What frames may leave to the guest.
    pub offloads: Capabilities,
}

impl ReceiveRules {
    /// The header before a frame that leaves `offload` and is spread over so many buffers.
    #[inline]
    fn header_of(&self, offload: &Offload, buffers: u16) -> RawHeader {
        // Nothing that a guest would look at which did not ask for it.
        if *offload == Offload::NONE || offload.checksum == Checksum::Valid && !self.offloads.checksum {
            return header::plain(buffers);
        }
        header::write(offload, buffers)
    }

    /// Copies a frame in one piece into `buffer`, behind its header; `false`, and nothing is done, where it does not fit.
    /// `next` is what will be copied after it.
    #[inline(always)]
    pub(crate) fn put<'a>(
        &self,
        offload: &Offload,
        frame: &Segment,
        buffer: &Segment,
        next: impl FnOnce() -> Option<Copied<'a>>,
    ) -> bool {
        self.put_behind(&self.header_of(offload, 1), frame, buffer, next)
    }

    /// The same for a frame that leaves nothing to be done.
    #[inline(always)]
    pub(crate) fn put_plain<'a>(
        &self,
        frame: &Segment,
        buffer: &Segment,
        next: impl FnOnce() -> Option<Copied<'a>>,
    ) -> bool {
        self.put_behind(&header::PLAIN, frame, buffer, next)
    }

    #[inline(always)]
    fn put_behind<'a>(
        &self,
        header: &RawHeader,
        frame: &Segment,
        buffer: &Segment,
        next: impl FnOnce() -> Option<Copied<'a>>,
    ) -> bool {
        if self.header == header::LENGTH {
            return buffer.copy_behind(header, frame, next);
        }
        // A driver of the time before virtio 1.0, or none that asks for headers.
        if self.header + frame.len() > buffer.len() {
            return false;
        }
        buffer.copy_from(&header[..self.header as usize]);
        buffer.part(self.header, u32::MAX).copy_from_segment(frame);
        true
    }
}

/// A receive queue of a guest (virtqueue 0, 2, 4 …).
#[derive(Debug)]
pub struct ReceiveRing {
    ring: Ring,
    pair: u8,
    rules: ReceiveRules,
    /// The next buffer's address is not known yet; it was asked for.
    unmapped: bool,
    kicks: Kicks,
}

/// What became of one frame.
enum Outcome {
    Delivered,
    /// The frame is lost; the ring goes on.
    Dropped(DropReason),
    /// There are not enough buffers now.
    Full,
    /// The address of a buffer is not known yet.
    Unmapped,
}

/// The chains that a frame has been spread over so far, none of them completed.
type Chains = ArrayVec<(Chain, u32), MAX_CHAINS>;

impl ReceiveRing {
    /// The receive queue of queue pair `pair`.
    pub fn new(mut ring: Ring, pair: u8, rules: ReceiveRules) -> Self {
        ring.disable_kicks();
        Self { ring, pair, rules, unmapped: false, kicks: Kicks::default() }
    }

    /// Its queue pair.
    pub fn pair(&self) -> u8 {
        self.pair
    }

    /// What frames may leave to the guest.
    pub fn capabilities(&self) -> &Capabilities {
        &self.rules.offloads
    }

    /// The ring itself, for what is not about frames.
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// The ring and its rules, for whoever delivers without [`deliver`](Self::deliver).
    #[inline]
    pub(crate) fn parts(&mut self) -> (&mut Ring, &ReceiveRules) {
        (&mut self.ring, &self.rules)
    }

    /// Takes the descriptor that the driver kicks, if it has one.
    pub fn with_kick(mut self, kick: Option<Ringer>) -> Self {
        self.kicks.ringer = kick;
        self
    }

    /// The descriptor that the driver kicks.
    pub(crate) fn kick(&mut self) -> Option<&mut Ringer> {
        self.kicks.ringer.as_mut()
    }

    /// Asks the driver to kick, and looks once more whether a chain waits.
    pub(crate) fn arm(&mut self) -> Armed {
        self.kicks.enable(&mut self.ring)
    }

    /// Tells the driver that it need not kick any more.
    pub(crate) fn disarm(&mut self) {
        self.kicks.disable(&mut self.ring);
    }

    /// Copies frames into the guest, in order, until one finds no room; returns how many it is done with (delivered or
    /// dropped with a reason).
    pub fn deliver(&mut self, frames: Frames<'_>, counters: &DirectionCounters) -> usize {
        let Self { ring, pair, rules, unmapped, .. } = self;
        *unmapped = false;
        with_ring!(ring, ring => deliver(ring, *pair, rules, frames, counters, unmapped))
    }

    /// Whether the last frame that found no room waits for the address of a buffer, not for a buffer.
    pub fn is_unmapped(&self) -> bool {
        self.unmapped
    }

    /// Shows the guest what was delivered; to be called once a burst.
    #[inline]
    pub fn flush(&mut self, counters: &DirectionCounters) {
        handshake::show(self, Self::release, |ring| ring.interrupt(counters));
    }

    /// The first half of [`flush`](Self::flush); returns whether the second one is due, after a full fence.
    #[inline]
    pub(crate) fn release(&mut self) -> bool {
        with_ring!(&mut self.ring, ring => ring.release())
    }

    /// The second half.
    #[inline]
    pub(crate) fn interrupt(&mut self, counters: &DirectionCounters) {
        if with_ring!(&mut self.ring, ring => ring.interrupt()) {
            counters.interrupts.add(1);
        }
    }
}

fn deliver(
    ring: &mut impl Virtqueue,
    pair: u8,
    rules: &ReceiveRules,
    frames: Frames<'_>,
    counters: &DirectionCounters,
    unmapped: &mut bool,
) -> usize {
    if ring.begin_burst(frames.len() as u16).is_err() {
        counters.bad_available_index.add(1);
        return 0;
    }
    // Held by this burst while it lasts, since the ring is busy with it; only during a migration.
    let space = ring.space().log().is_some().then(|| Arc::clone(ring.space()));
    let log = space.as_ref().and_then(|space| space.log());
    let (mut done, mut delivered, mut bytes) = (0, 0, 0);
    let mut may_be_plain = log.is_none();
    while let Some((frame, segments)) = frames.skip(done).iter().next() {
        // Not again after it was in vain: each time, all chains that wait are looked at.
        if may_be_plain && segments.len() == 1 {
            let (n, sum) = deliver_plain(ring, rules, frames.skip(done));
            may_be_plain = n > 0;
            done += n;
            delivered += n as u64;
            bytes += sum;
            if n > 0 {
                continue;
            }
        }
        // After one frame at least: what waits must get on.
        if done > 0 && ring.is_exhausted() {
            break;
        }
        match deliver_one(ring, rules, frame, segments, log, done == 0) {
            Outcome::Delivered => {
                delivered += 1;
                bytes += u64::from(frame.len());
            }
            Outcome::Dropped(reason) => counters.count_drop(pair, reason, 1),
            Outcome::Full => break,
            Outcome::Unmapped => {
                *unmapped = true;
                break;
            }
        }
        done += 1;
    }
    counters.tx_frames.add(delivered);
    counters.tx_bytes.add(bytes);
    done
}

/// Delivers the first of `frames`, for as long as they are in one piece and a plain chain has room for one; returns how
/// many that were, and their bytes.
#[inline]
fn deliver_plain(ring: &mut impl Virtqueue, rules: &ReceiveRules, frames: Frames<'_>) -> (usize, u64) {
    let ahead = Ahead { source_header: 0, sink_header: rules.header };
    ahead.start_sources(|at| frames.beginning(at));
    let mut found = PlainChains::new();
    ring.plain_chains(Access::Write, frames.len(), &mut found);
    let copied = |at: usize| Some((frames.beginning(at)?, &found.get(at)?.segment));
    ahead.start_sinks(copied);
    let mut bytes = 0;
    let mut n = 0;
    for ((frame, segments), plain) in frames.iter().zip(&found) {
        ahead.go_on(n, copied);
        let next = || copied(n + 1);
        let [source] = segments else { break };
        let offload = frame.offload();
        let fits = if *offload == Offload::NONE {
            rules.put_plain(source, &plain.segment, next)
        } else {
            rules.put(offload, source, &plain.segment, next)
        };
        if !fits {
            break;
        }
        bytes += u64::from(frame.len());
        n += 1;
    }
    ring.take_plain(n as u16);
    let lengths = frames.iter().map(|(frame, _)| rules.header + frame.len());
    ring.complete_run(found[..n].iter().zip(lengths).map(|(plain, len)| (plain.id, len)));
    (n, bytes)
}

#[inline]
fn deliver_one(
    ring: &mut impl Virtqueue,
    rules: &ReceiveRules,
    frame: &Frame,
    segments: &[Segment],
    log: Option<&DirtyLog>,
    first: bool,
) -> Outcome {
    let mut copy = Copy {
        source: segments,
        within: 0,
        header_left: rules.header,
        header: ArrayVec::new(),
        header_at: ArrayVec::new(),
    };
    let mut left = frame.len() + rules.header;
    let mut chains = Chains::new();
    while left > 0 {
        if !chains.is_empty() && ring.is_exhausted() {
            // Each of its chains may be a long walk for a byte. With a burst of its own a frame gets what it needs of any
            // driver that means it.
            if first {
                return give_up(ring, &chains, DropReason::TooManyBuffers);
            }
            ring.put_back(chains.iter().map(|(chain, _)| chain.slots).sum());
            return Outcome::Full;
        }
        let mut written = 0;
        let next = ring.next_chain(Access::Write, |piece| {
            let n = copy.fill(piece.segment.part(0, left - written), piece.gpa)?;
            if let Some(log) = log {
                log.mark(piece.gpa, n);
            }
            written += n;
            if written == left { Err(Stop::Enough) } else { Ok(()) }
        });
        let (chain, walked) = match next {
            Some((chain, walked)) if walked != Err(Stop::Unmapped) => (chain, walked),
            none => {
                ring.put_back(chains.iter().map(|(chain, _)| chain.slots).sum());
                return if none.is_some() { Outcome::Unmapped } else { Outcome::Full };
            }
        };
        let smallest = if !chains.is_empty() {
            1
        } else if rules.mergeable {
            rules.header
        } else {
            rules.header + MIN_FRAME
        };
        let fault = match walked {
            Err(Stop::Malformed(reason)) => Some(reason),
            _ if written < left && written < smallest => Some(DropReason::ChainTooShort),
            _ if written < left && !rules.mergeable => {
                return Outcome::Dropped(DropReason::GuestBufferTooSmall);
            }
            _ if chains.is_full() => Some(DropReason::TooManyBuffers),
            _ => None,
        };
        ring.take(chain);
        if let Some(reason) = fault {
            give_up(ring, &chains, reason);
            ring.complete(chain, 0);
            return Outcome::Dropped(reason);
        }
        chains.push((chain, written));
        left -= written;
    }
    let buffers = if rules.mergeable { chains.len() as u16 } else { 1 };
    let header = rules.header_of(frame.offload(), buffers);
    header::scatter(&header[..rules.header as usize], &copy.header);
    if let Some(log) = log {
        // Once more: this was written after they were marked.
        copy.header.iter().zip(&copy.header_at).for_each(|(piece, gpa)| log.mark(*gpa, piece.len()));
    }
    for (chain, written) in &chains {
        ring.complete(*chain, *written);
    }
    Outcome::Delivered
}

/// Gives the chains of an undeliverable frame back to the guest, empty.
#[cold]
fn give_up(ring: &mut impl Virtqueue, chains: &Chains, reason: DropReason) -> Outcome {
    for (chain, _) in chains {
        ring.complete(*chain, 0);
    }
    Outcome::Dropped(reason)
}

/// Copies header room and a frame's segments into buffers as they come.
struct Copy<'a> {
    source: &'a [Segment],
    /// Bytes of `source[0]` already copied.
    within: u32,
    /// Bytes of header room still to leave.
    header_left: u32,
    /// Where the header goes once the number of buffers is known: one byte a piece at worst.
    header: ArrayVec<Segment, { header::LENGTH as usize }>,
    /// Guest physical addresses of those pieces.
    header_at: ArrayVec<u64, { header::LENGTH as usize }>,
}

impl Copy<'_> {
    /// Fills `buffer` from its start; returns the bytes used of it (all of it, or less where the frame ends).
    #[inline]
    fn fill(&mut self, buffer: Segment, gpa: u64) -> Result<u32, Stop> {
        let mut used = self.header_left.min(buffer.len());
        if used > 0 {
            self.header_left -= used;
            // Every piece holds at least one of the header's bytes, so there are never more pieces than room.
            self.header
                .try_push(buffer.part(0, used))
                .map_err(|_| Stop::Malformed(DropReason::ChainTooShort))?;
            let _ = self.header_at.try_push(gpa);
        }
        while used < buffer.len() {
            let Some(first) = self.source.first() else { break };
            let n = buffer.part(used, u32::MAX).copy_from_segment(&first.part(self.within, u32::MAX));
            used += n;
            self.within += n;
            if self.within == first.len() {
                self.source = &self.source[1..];
                self.within = 0;
            }
        }
        Ok(used)
    }
}
