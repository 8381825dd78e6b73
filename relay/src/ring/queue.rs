//! What the device side does with a ring, whichever its layout: the one mechanism that split and packed rings share.
//!
//! ```text
//!   begin_burst ─▶ next_chain ─▶ take ─▶ … ─▶ complete ─▶ publish
//!                      ▲           │ put_back (nothing completed since)
//!                      └───────────┘
//! ```

use std::sync::Arc;

use pmd::{Segment, Token};

use super::chain::{Access, Stop};
use super::plain::PlainChains;
use crate::guest::space::AddressSpace;
use crate::handshake;

/// A chain of descriptors, as its ring knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Index of the head (split) or buffer id (packed).
    pub id: u16,
    /// Slots that the chain takes in the ring that the driver fills: 1 in a split ring (its entry in the available
    /// ring), the number of its descriptors in a packed ring.
    pub slots: u16,
}

/// Bits of a token for the chain's id, and for its slots (a chain has 512 at most).
const ID_BITS: u32 = 16;
const SLOT_BITS: u32 = 10;

impl Chain {
    /// The token of a frame in this chain; `tag`, below 64, says which ring it came from.
    #[inline]
    pub fn token(self, tag: u8) -> Token {
        Token(u32::from(tag) << (ID_BITS + SLOT_BITS) | u32::from(self.slots) << ID_BITS | u32::from(self.id))
    }

    /// The chain of a token.
    #[inline]
    pub fn of(token: Token) -> Self {
        Self { id: token.0 as u16, slots: (token.0 >> ID_BITS) as u16 & ((1 << SLOT_BITS) - 1) }
    }
}

/// The tag of a token.
#[inline]
pub fn tag_of(token: Token) -> u8 {
    (token.0 >> (ID_BITS + SLOT_BITS)) as u8
}

/// A piece of a chain's buffer.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Where it is mapped here.
    pub segment: Segment,
    /// Guest physical address of its first byte, which is what a dirty log counts in.
    pub gpa: u64,
}

/// The driver's available index is further ahead than the ring is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadIndex;

/// The next chain, walked.
pub type Walked = (Chain, Result<(), Stop>);

/// The device side of a virtqueue.
pub trait Virtqueue {
    /// What descriptors are looked up in.
    fn space(&self) -> &Arc<AddressSpace>;

    /// Begins a burst of at most `wanted` chains: looks up what waits, asks the processor for what will be walked, and
    /// starts counting the descriptors looked at.
    fn begin_burst(&mut self, wanted: u16) -> Result<(), BadIndex>;

    /// Whether so many descriptors, and pieces of their buffers, were looked at in this burst that others must have
    /// their turn: a guest that writes long chains for nothing costs its neighbours no more than one with full bursts
    /// does.
    fn is_exhausted(&self) -> bool;

    /// Looks at the chains that wait, from the first on, and adds them to `found` while they are plain (see
    /// [`PlainChains`]); at most `wanted` of them, and as many as it has room for. They go on waiting until
    /// [`take_plain`](Self::take_plain). Returns whether it ended at a chain that is one for
    /// [`next_chain`](Self::next_chain).
    fn plain_chains(&mut self, access: Access, wanted: usize, found: &mut PlainChains) -> bool;

    /// Marks the first `n` chains that [`plain_chains`](Self::plain_chains) found last as taken.
    fn take_plain(&mut self, n: u16);

    /// Visits the buffers of the first chain that waits, cut where mappings end; empty buffers are left out. `None`
    /// when no chain waits. The chain goes on waiting until [`take`](Self::take).
    ///
    /// With [`Stop::Malformed`] the chain is to be taken and completed unused, with [`Stop::Enough`] the visitor ended
    /// the walk, with [`Stop::Unmapped`] an address is not known yet: the chain is to be left where it is. Not for a
    /// burst that [is exhausted](Self::is_exhausted): what is looked at for one chain is bounded only together with that.
    fn next_chain(&mut self, access: Access, visit: impl FnMut(Piece) -> Result<(), Stop>) -> Option<Walked>;

    /// Marks the chain that [`next_chain`](Self::next_chain) returned last as taken.
    fn take(&mut self, chain: Chain);

    /// Puts back what was taken last: chains with `slots` slots in all, none of which may have been completed.
    fn put_back(&mut self, slots: u16);

    /// Writes a used entry: `chain` is done and `len` bytes of it were written. The driver sees it after
    /// [`publish`](Self::publish).
    fn complete(&mut self, chain: Chain, len: u32);

    /// [Completes](Self::complete) chains of one slot each: their ids, and the bytes written.
    fn complete_run(&mut self, run: impl ExactSizeIterator<Item = (u16, u32)>);

    /// Lets the driver see all completed chains; returns whether it is to be asked, once a full fence has passed, if it wants
    /// to be interrupted.
    fn release(&mut self) -> bool;

    /// Interrupts the driver if it wants to know of what was [released](Self::release); returns whether it was.
    fn interrupt(&mut self) -> bool;

    /// Lets the driver see all completed chains and interrupts it if it wants that; returns whether it was.
    #[inline]
    fn publish(&mut self) -> bool
    where
        Self: Sized,
    {
        handshake::show(self, Self::release, Self::interrupt)
    }

    /// Lets the driver see all completed chains, without interrupting it: for a ring that is being stopped.
    fn publish_quietly(&mut self);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_carries_its_chain_and_where_it_came_from() {
        for (id, slots, tag) in [(0, 0, 0), (u16::MAX, 512, 63), (7, 1, 31)] {
            let chain = Chain { id, slots };
            assert_eq!((Chain::of(chain.token(tag)), tag_of(chain.token(tag))), (chain, tag));
        }
    }
}
