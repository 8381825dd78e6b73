//! Plain chains: one descriptor, the buffer in one mapping. Most frames are such, and many of them are looked at in one go,
//! with fewer questions a chain than a walk has to ask.

use arrayvec::ArrayVec;
use pmd::Segment;
use pmd::frame::BURST_FRAMES;

use super::chain::Access;
use super::queue::Chain;
use crate::guest::space::{Near, Translator};

/// A chain that is one descriptor, which says what it should and names memory that is there.
#[derive(Clone, Copy, Debug)]
pub struct PlainChain {
    /// Its buffer; never empty.
    pub segment: Segment,
    /// Index of the head (split) or buffer id (packed).
    pub id: u16,
}

impl PlainChain {
    /// As its ring knows it.
    #[inline]
    pub fn chain(&self) -> Chain {
        Chain { id: self.id, slots: 1 }
    }
}

/// Those that wait in a row, in their order.
pub type PlainChains = ArrayVec<PlainChain, BURST_FRAMES>;

/// Looks buffers up whole, most of them in the mapping where the last one was.
pub(super) struct WholeBuffers<'a> {
    memory: &'a mut Translator,
    near: Near,
    access: Access,
}

impl<'a> WholeBuffers<'a> {
    #[inline]
    pub fn new(memory: &'a mut Translator, access: Access) -> Self {
        Self { near: memory.near(access), memory, access }
    }

    /// The `len` bytes at `address`; `None` where they are none, or not all in one mapping that may be used so.
    #[inline(always)]
    pub fn find(&mut self, address: u64, len: u32) -> Option<Segment> {
        if let Some(segment) = self.near.whole(address, len) {
            return Some(segment);
        }
        self.look_further(address, len)
    }

    #[cold]
    fn look_further(&mut self, address: u64, len: u32) -> Option<Segment> {
        self.memory.go_near(address);
        self.near = self.memory.near(self.access);
        self.near.whole(address, len)
    }
}

#[cfg(test)]
mod tests;
