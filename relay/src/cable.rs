//! Guest ring to guest ring: the short way of frames that need nothing done.
//!
//! ```text
//!   transmit ring                             receive ring
//!   [descriptor] ──▶ header │ frame ──copy──▶ header │ frame ◀── [descriptor]
//!        └── completed                                completed ──┘
//! ```
//!
//! Most frames are a plain chain at both ends (see [`crate::ring::plain`]). Those are copied as they are found, without being
//! put into a burst in between. What is otherwise (several descriptors, a frame that needs several buffers or leaves more to
//! be done than the receiver takes, a full ring) is left where it is, for the lane's general way.

use pmd::Segment;
use pmd::frame::{BURST_BYTES, BURST_FRAMES};

use crate::lane::LaneCounters;
use crate::ring::ahead::{Ahead, Copied};
use crate::ring::chain::Access;
use crate::ring::plain::{PlainChain, PlainChains};
use crate::ring::queue::Virtqueue;
use crate::ring::receive::ReceiveRules;
use crate::ring::transmit::TransmitRules;
use crate::ring::{ReceiveRing, TransmitRing, with_ring};

/// What became of a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    /// Frames were carried.
    Some,
    /// The source has none.
    Nothing,
    /// The first that waits is one for the general way, if any does.
    Otherwise,
}

/// Carries frames from `source` to `sink` for as long as they need nothing done, a burst at most.
#[inline]
pub(crate) fn carry(source: &mut TransmitRing, sink: &mut ReceiveRing, counters: &LaneCounters) -> Carried {
    let Some((from, from_rules)) = source.idle_ring() else { return Carried::Otherwise };
    let mut chains = PlainChains::new();
    match with_ring!(from, from => waiting(from, &mut chains)) {
        Carried::Some => {}
        other => return other,
    }
    let (to, to_rules) = sink.parts();
    let (n, bytes) = with_ring!(to, to => copy(&chains, from_rules, to, to_rules));
    if n == 0 {
        return Carried::Otherwise;
    }
    with_ring!(from, from => {
        from.take_plain(n as u16);
        from.complete_run(chains[..n].iter().map(|chain| (chain.id, 0)));
    });
    counters.source.rx_frames.add(n as u64);
    counters.source.rx_bytes.add(bytes);
    counters.sink.tx_frames.add(n as u64);
    counters.sink.tx_bytes.add(bytes);
    Carried::Some
}

/// Looks for plain chains in the source's ring.
#[inline]
fn waiting(from: &mut impl Virtqueue, chains: &mut PlainChains) -> Carried {
    if from.begin_burst(BURST_FRAMES as u16).is_err() {
        return Carried::Otherwise;
    }
    let is_other = from.plain_chains(Access::Read, BURST_FRAMES, chains);
    match (chains.is_empty(), is_other) {
        (false, _) => Carried::Some,
        (true, true) => Carried::Otherwise,
        (true, false) => Carried::Nothing,
    }
}

/// Copies the first of `chains`, and completes their copies; returns how many, and the bytes of their frames.
#[inline]
fn copy(
    chains: &PlainChains,
    from_rules: &TransmitRules,
    to: &mut impl Virtqueue,
    to_rules: &ReceiveRules,
) -> (usize, u64) {
    let ahead = Ahead { source_header: from_rules.header, sink_header: to_rules.header };
    ahead.start_sources(|at| Some(&chains.get(at)?.segment));
    // What is written to a guest that is being migrated is marked page by page; the general way does that.
    if to.space().log().is_some() || to.begin_burst(chains.len() as u16).is_err() {
        return (0, 0);
    }
    let mut buffers = PlainChains::new();
    to.plain_chains(Access::Write, chains.len(), &mut buffers);
    let copied = |at: usize| Some((&chains.get(at)?.segment, &buffers.get(at)?.segment));
    ahead.start_sinks(copied);
    let (mut n, mut bytes) = (0, 0);
    for (chain, buffer) in chains.iter().zip(&buffers) {
        ahead.go_on(n, copied);
        let Some(frame) = from_rules.frame_in(chain) else { break };
        if bytes >= u64::from(BURST_BYTES) {
            break;
        }
        let next = || copied(n + 1);
        let fits = match from_rules.asks_for_something(chain) {
            false => to_rules.put_plain(&frame, &buffer.segment, next),
            true => put_with_offload(from_rules, chain, to_rules, &frame, buffer, copied(n + 1)),
        };
        if !fits {
            break;
        }
        bytes += u64::from(frame.len());
        n += 1;
    }
    to.take_plain(n as u16);
    let more = to_rules.header.wrapping_sub(from_rules.header);
    let written = chains.iter().map(|chain| chain.segment.len().wrapping_add(more));
    to.complete_run(buffers[..n].iter().zip(written).map(|(buffer, len)| (buffer.id, len)));
    (n, bytes)
}

/// Copies a frame that leaves something to be done, if that is no more than the receiver takes, and it fits.
// Not in the loop, where what it needs would crowd out what all frames need.
#[inline(never)]
fn put_with_offload(
    from: &TransmitRules,
    chain: &PlainChain,
    to: &ReceiveRules,
    frame: &Segment,
    buffer: &PlainChain,
    next: Option<Copied<'_>>,
) -> bool {
    match from.offload_in(chain, frame.len()) {
        Ok(offload) => to.offloads.cover(&offload) && to.put(&offload, frame, &buffer.segment, || next),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests;
