//! The guest's transmit queue: frames leave it borrowed, and come back completed.

use std::collections::VecDeque;

use arrayvec::ArrayVec;
use pmd::frame::{BURST_BYTES, MIN_FRAME};
use pmd::prefetch::prefetch;
use pmd::{Armed, Burst, Capabilities, Frames, Offload, Segment, Token};

use super::Ring;
use super::chain::{Access, Stop};
use super::notify::Kicks;
use super::plain::{PlainChain, PlainChains};
use super::queue::{Chain, Virtqueue};
use super::with_ring;
use crate::bells::Ringer;
use crate::counters::{DirectionCounters, DropReason};
use crate::handshake;
use crate::net::header::{self, RawHeader};

/// What a driver's frames look like in a transmit queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitRules {
    /// Bytes of virtio-net header before each frame.
    pub header: u32,
    /// What a header may ask for; `None` where nothing was negotiated and it is not looked at.
    pub offloads: Option<Capabilities>,
    /// `VIRTIO_F_IN_ORDER`: chains are completed in the order in which they were made available.
    pub in_order: bool,
}

impl TransmitRules {
    /// The frame in a plain chain; `None` where there is none that is good, which walking the chain will say more of.
    #[inline(always)]
    pub(crate) fn frame_in(&self, chain: &PlainChain) -> Option<Segment> {
        let frame = chain.segment.part(self.header, u32::MAX);
        (MIN_FRAME..=BURST_BYTES).contains(&frame.len()).then_some(frame)
    }

    /// Whether the header before a [frame](Self::frame_in) says that something is left to be done.
    #[inline(always)]
    pub(crate) fn asks_for_something(&self, chain: &PlainChain) -> bool {
        self.offloads.is_some() && chain.segment.read_array().is_some_and(header::asks_for_something)
    }

    /// What the header before a [frame](Self::frame_in) of `len` bytes leaves to be done.
    #[inline]
    pub(crate) fn offload_in(&self, chain: &PlainChain, len: u32) -> Result<Offload, DropReason> {
        // A private copy. A legacy header is two bytes shorter, and those are not looked at here.
        match chain.segment.read_array() {
            Some(header) if self.offloads.is_some() => self.offload_of(&header, len),
            _ => Ok(Offload::NONE),
        }
    }

    /// What a header leaves to be done for a frame of `len` bytes.
    pub(crate) fn offload_of(&self, header: &RawHeader, len: u32) -> Result<Offload, DropReason> {
        let rules = self.offloads.unwrap_or(Capabilities::NONE);
        header::parse(header, len, &rules).map_err(|_| DropReason::BadOffload)
    }

    /// Asks the processor for what will be read of these chains.
    #[inline]
    pub(crate) fn prefetch(&self, chains: &PlainChains) {
        for chain in chains {
            if self.offloads.is_some() {
                prefetch(chain.segment.as_ptr());
            }
            prefetch(chain.segment.part(self.header, u32::MAX).as_ptr());
        }
    }
}

/// A transmit queue of a guest (virtqueue 1, 3, 5 …).
///
/// The chains of frames in a burst are *taken* but not *completed*: their memory is borrowed from the guest until
/// [`complete`](Self::complete) has been called with each frame's token.
#[derive(Debug)]
pub struct TransmitRing {
    ring: Ring,
    pair: u8,
    rules: TransmitRules,
    order: Option<Order>,
    kicks: Kicks,
}

impl TransmitRing {
    /// The transmit queue of queue pair `pair`.
    pub fn new(mut ring: Ring, pair: u8, rules: TransmitRules) -> Self {
        ring.disable_kicks();
        let order = rules.in_order.then(|| Order::new(ring.size()));
        Self { ring, pair, rules, order, kicks: Kicks::default() }
    }

    /// Its queue pair.
    pub fn pair(&self) -> u8 {
        self.pair
    }

    /// Whether its frames may leave something to do.
    pub fn may_offload(&self) -> bool {
        self.rules.offloads.is_some()
    }

    /// The ring itself, for what is not about frames.
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// The ring and its rules, if nothing that was taken from it is still to be completed in its turn.
    #[inline]
    pub(crate) fn idle_ring(&mut self) -> Option<(&mut Ring, &TransmitRules)> {
        let waits = self.order.as_ref().is_some_and(|order| !order.taken.is_empty());
        (!waits).then_some((&mut self.ring, &self.rules))
    }

    /// Whether it is time to look at what waits (see [`PackedRing::is_ripe`](super::PackedRing::is_ripe)).
    #[inline]
    pub fn is_ripe(&mut self) -> bool {
        match &mut self.ring {
            Ring::Split(_) => true,
            Ring::Packed(ring) => ring.is_ripe(),
        }
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

    /// Adds waiting frames to `burst`, as many as fit. A malformed chain is completed unused and counted.
    ///
    /// Such a chain is only dealt with at the head of the burst: what follows a frame can still be put back.
    pub fn receive(&mut self, burst: &mut Burst, counters: &DirectionCounters) {
        let Self { ring, pair, rules, order, .. } = self;
        with_ring!(ring, ring => receive(ring, *pair, rules, order, burst, counters));
    }

    /// The frame with this token is done: its memory is the guest's again (after [`flush`](Self::flush)).
    #[inline]
    pub fn complete(&mut self, token: Token) {
        let chain = Chain::of(token);
        match &mut self.order {
            None => with_ring!(&mut self.ring, ring => ring.complete(chain, 0)),
            Some(order) => {
                let ring = &mut self.ring;
                order.complete(chain, |chain| with_ring!(ring, ring => ring.complete(chain, 0)));
            }
        }
    }

    /// Completes all of `frames`.
    #[inline]
    pub fn complete_all(&mut self, frames: Frames<'_>) {
        if self.order.is_some() {
            return frames.iter().for_each(|(frame, _)| self.complete(frame.token()));
        }
        with_ring!(&mut self.ring, ring => {
            let mut chains = frames.iter().map(|(frame, _)| Chain::of(frame.token()));
            if chains.all(|chain| chain.slots == 1) {
                ring.complete_run(frames.iter().map(|(frame, _)| (Chain::of(frame.token()).id, 0)));
            } else {
                frames.iter().for_each(|(frame, _)| ring.complete(Chain::of(frame.token()), 0));
            }
        });
    }

    /// Puts back `frames`, which were the last that were taken, untouched.
    pub fn put_back(&mut self, frames: Frames<'_>) {
        let slots = frames.iter().map(|(frame, _)| Chain::of(frame.token()).slots).sum();
        with_ring!(&mut self.ring, ring => ring.put_back(slots));
        if let Some(order) = &mut self.order {
            order.put_back(frames.len());
        }
    }

    /// Shows the guest what was completed; to be called once a burst.
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

fn receive(
    ring: &mut impl Virtqueue,
    pair: u8,
    rules: &TransmitRules,
    order: &mut Option<Order>,
    burst: &mut Burst,
    counters: &DirectionCounters,
) {
    let room = burst.room() as u16;
    if ring.begin_burst(room).is_err() {
        counters.bad_available_index.add(1);
        return;
    }
    for _ in 0..room {
        if !push_plain(ring, pair, rules, order, burst) || burst.room() == 0 || ring.is_exhausted() {
            return;
        }
        let Some((chain, walked)) = push_frame(ring, pair, rules, burst) else { return };
        match walked {
            Ok(()) => {
                ring.take(chain);
                if let Some(order) = order {
                    order.take(chain);
                }
            }
            Err(Stop::Enough | Stop::Unmapped) => return,
            Err(Stop::Malformed(reason)) => {
                if !burst.is_empty() {
                    return;
                }
                ring.take(chain);
                match order {
                    None => ring.complete(chain, 0),
                    Some(order) => {
                        order.take(chain);
                        order.complete(chain, |chain| ring.complete(chain, 0));
                    }
                }
                counters.count_drop(pair, reason, 1);
            }
        }
    }
}

/// Takes the plain chains that wait; returns whether one waits that needs to be walked, or judged.
#[inline]
fn push_plain(
    ring: &mut impl Virtqueue,
    pair: u8,
    rules: &TransmitRules,
    order: &mut Option<Order>,
    burst: &mut Burst,
) -> bool {
    let mut found = PlainChains::new();
    let more = ring.plain_chains(Access::Read, burst.room(), &mut found);
    rules.prefetch(&found);
    let mut taken = 0;
    for plain in &found {
        let Some(frame) = rules.frame_in(plain) else { break };
        let offload = match rules.asks_for_something(plain) {
            false => Offload::NONE,
            true => match rules.offload_in(plain, frame.len()) {
                Ok(offload) => offload,
                Err(_) => break,
            },
        };
        if burst.room() == 0 || !burst.push_whole(frame, plain.chain().token(pair), offload) {
            break;
        }
        if let Some(order) = order {
            order.take(plain.chain());
        }
        taken += 1;
    }
    ring.take_plain(taken);
    more || usize::from(taken) < found.len()
}

#[inline]
fn push_frame(
    ring: &mut impl Virtqueue,
    pair: u8,
    rules: &TransmitRules,
    burst: &mut Burst,
) -> Option<(Chain, Result<(), Stop>)> {
    let fresh = burst.is_empty();
    let mut header_left = rules.header;
    let mut pieces = HeaderPieces::new();
    let mut total = 0u32;
    let (chain, walked) = ring.next_chain(Access::Read, |piece| {
        let segment = piece.segment;
        let skipped = header_left.min(segment.len());
        if skipped > 0 {
            header_left -= skipped;
            if rules.offloads.is_some() {
                // Every piece holds at least one byte of the header, so there are never more pieces than room.
                let _ = pieces.try_push(segment.part(0, skipped));
            }
            if skipped == segment.len() {
                return Ok(());
            }
        }
        let segment = segment.part(skipped, u32::MAX);
        total = total.saturating_add(segment.len());
        if total > BURST_BYTES {
            return Err(DropReason::FrameTooLong.into());
        }
        // A chain that does not fit behind other frames may fit alone; one that does not fit alone never will.
        let full = if fresh { DropReason::TooManyBuffers.into() } else { Stop::Enough };
        burst.push_segment(segment).map_err(|_| full)
    })?;
    let walked = walked.and_then(|()| match total {
        _ if header_left > 0 => Err(DropReason::ChainTooShort.into()),
        // Another guest must not get what no wire would carry.
        _ if total < MIN_FRAME => Err(DropReason::FrameTooShort.into()),
        _ => match &rules.offloads {
            None => Ok(Offload::NONE),
            Some(_) => rules.offload_of(&gathered(&pieces), total).map_err(Stop::from),
        },
    });
    Some(match walked {
        Ok(offload) => {
            burst.finish_frame_with(chain.token(pair), offload);
            (chain, Ok(()))
        }
        Err(stop) => {
            burst.abandon_frame();
            (chain, Err(stop))
        }
    })
}

/// The pieces of a header: one byte each at worst.
type HeaderPieces = ArrayVec<Segment, { header::LENGTH as usize }>;

#[inline]
fn gathered(pieces: &HeaderPieces) -> RawHeader {
    let mut bytes = [0; header::LENGTH as usize];
    pmd::frame::gather(pieces, &mut bytes);
    bytes
}

/// Chains that were taken and not completed, for a driver that wants them back in order.
#[derive(Debug)]
struct Order {
    /// The oldest first; `true` when a chain is done and waits for older ones.
    taken: VecDeque<(Chain, bool)>,
}

/// More than any device borrows: so that the queue never grows, even when a driver makes chains available that it did
/// not get back.
const MOST_BORROWED: usize = 4096;

impl Order {
    fn new(size: u16) -> Self {
        Self { taken: VecDeque::with_capacity(usize::from(size) + MOST_BORROWED) }
    }

    fn take(&mut self, chain: Chain) {
        self.taken.push_back((chain, false));
    }

    fn put_back(&mut self, n: usize) {
        self.taken.truncate(self.taken.len().saturating_sub(n));
    }

    /// `chain` is done; `ready` gets all that can be completed now.
    #[inline]
    fn complete(&mut self, chain: Chain, mut ready: impl FnMut(Chain)) {
        // A device that sends in order finishes the oldest first. Where a driver uses an id twice, either will do.
        if let Some(entry) = self.taken.iter_mut().find(|(taken, done)| *taken == chain && !*done) {
            entry.1 = true;
        }
        while let Some((chain, true)) = self.taken.front().copied() {
            self.taken.pop_front();
            ready(chain);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_order_means_that_a_chain_waits_for_the_older_ones() {
        let chain = |id| Chain { id, slots: 1 };
        let mut order = Order::new(8);
        (0..5).for_each(|id| order.take(chain(id)));
        order.put_back(1);
        let mut finish = |id| {
            let mut ready = Vec::new();
            order.complete(chain(id), |chain| ready.push(chain.id));
            ready
        };
        assert!(finish(2).is_empty());
        assert!(finish(1).is_empty());
        assert_eq!(finish(0), [0, 1, 2]);
        assert_eq!(finish(3), [3]);
        assert!(finish(3).is_empty(), "once");
    }
}
