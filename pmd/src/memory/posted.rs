//! Receive buffers that a device fills in the order in which it got them, each known by its slot of a ring.
//!
//! ```text
//!   head ──▶ [buffer][buffer] … [buffer] ◀── tail      filled by the device from head on, given to it at tail
//! ```

use super::pool::BufferPool;
use crate::frame::{Segment, Token};

/// Buffers given to a ring of `slots` at once, unless its device is running out of them. To tell the device of them costs it
/// and us far more than to describe them, and what is left meanwhile lasts for long.
pub const fn refill_of(slots: u16) -> u16 {
    slots / 4
}

/// A slot without a buffer.
const NONE: u32 = u32::MAX;

/// Which buffer of a pool is in which slot of a ring of `RING` slots, a power of two. What descriptors look like, and how the
/// device is told, is for their owner to know.
#[derive(Debug)]
pub struct PostedBuffers<const RING: u16> {
    pool: BufferPool,
    slots: Box<[u32]>,
    /// The slot that the device fills next, as far as its owner has looked.
    head: u16,
    /// The slot that is given to the device next.
    tail: u16,
    /// Slots with the device.
    count: u16,
    /// Most of them.
    most: u16,
    /// The tail is a multiple of this.
    step: u16,
}

impl<const RING: u16> PostedBuffers<RING> {
    const MASK: u16 = RING - 1;
    const REFILL: u16 = refill_of(RING);

    /// None is posted yet. `kept_free` slots (1 at least: a ring whose tail meets its head is an empty one) are never given to
    /// the device, and the others in multiples of `step` (1 for any number).
    pub fn new(pool: BufferPool, kept_free: u16, step: u16) -> Self {
        const { assert!(RING.is_power_of_two()) };
        debug_assert!(kept_free >= 1 && step >= 1 && RING.is_multiple_of(step));
        let slots = vec![NONE; usize::from(RING)].into_boxed_slice();
        Self { pool, slots, head: 0, tail: 0, count: 0, most: RING - kept_free, step }
    }

    /// Gives the device buffers, when enough are free or it has few: `describe` writes the descriptor of a slot, with the
    /// address at which the device finds its buffer. How many there were; the device is to be told of them.
    #[inline]
    pub fn refill(&mut self, mut describe: impl FnMut(usize, u64)) -> u16 {
        let free = self.pool.available().min(usize::from(RING)) as u16;
        let room = self.most.saturating_sub(self.count).min(free) / self.step * self.step;
        if room == 0 || (room < Self::REFILL && self.count >= Self::REFILL) {
            return 0;
        }
        for _ in 0..room {
            let Some(buffer) = self.pool.take() else { break };
            let slot = usize::from(self.tail);
            describe(slot, self.pool.iova(buffer));
            if let Some(entry) = self.slots.get_mut(slot) {
                *entry = buffer;
            }
            self.tail = (self.tail + 1) & Self::MASK;
            self.count += 1;
        }
        room
    }

    /// The slot that is given to the device next.
    #[inline]
    pub fn tail(&self) -> u16 {
        self.tail
    }

    /// Slots with the device.
    #[inline]
    pub fn len(&self) -> u16 {
        self.count
    }

    /// Whether the device has none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The slot `n` after the head.
    #[inline]
    pub fn slot(&self, n: usize) -> usize {
        (usize::from(self.head) + n) & usize::from(Self::MASK)
    }

    /// The buffer in the slot `n` after the head.
    #[inline]
    pub fn buffer(&self, n: usize) -> u32 {
        self.slots.get(self.slot(n)).copied().unwrap_or(NONE)
    }

    /// The first `len` bytes of that buffer, cut at its end.
    #[inline]
    pub fn segment(&self, n: usize, len: u32) -> Segment {
        self.pool.segment(self.buffer(n), len)
    }

    /// The `len` bytes from `offset` on of that buffer, cut at its end.
    #[inline]
    pub fn part(&self, n: usize, offset: u32, len: u32) -> Segment {
        self.pool.part(self.buffer(n), offset, len)
    }

    /// Takes the buffers of the first `count` slots from the device, as the chain of one frame that is known by the first.
    #[inline]
    pub fn take(&mut self, count: usize) -> Token {
        let first = self.take_first();
        let mut last = first;
        for _ in 1..count.min(usize::from(self.count) + 1) {
            let next = self.take_first();
            self.pool.link(last.0, next.0);
            last = next;
        }
        first
    }

    /// As [`take`](Self::take) of one slot.
    #[inline(always)]
    pub fn take_first(&mut self) -> Token {
        if self.count == 0 {
            return Token(NONE);
        }
        let buffer =
            self.slots.get_mut(usize::from(self.head)).map_or(NONE, |entry| std::mem::replace(entry, NONE));
        self.head = (self.head + 1) & Self::MASK;
        self.count -= 1;
        Token(buffer)
    }

    /// Drops the frame in the first `count` slots: its buffers are free again.
    #[inline]
    pub fn drop_frame(&mut self, count: usize) {
        let frame = self.take(count);
        self.release(frame);
    }

    /// The buffers of a frame are free again. A token that is not out changes nothing.
    #[inline]
    pub fn release(&mut self, frame: Token) {
        self.pool.give_back(frame.0);
    }

    /// Buffers that are neither with the device nor lent.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.pool.available()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::dma::DmaMemory;
    use crate::memory::dma::tests::FakeMap;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn posted(buffers: usize, kept_free: u16, step: u16) -> PostedBuffers<64> {
        let memory = DmaMemory::new(Arc::new(FakeMap::default()), buffers * 2048, "test").unwrap();
        let [slice] = memory.carve([buffers * 2048]).unwrap();
        PostedBuffers::new(BufferPool::new(slice), kept_free, step)
    }

    #[test]
    fn some_slots_stay_free_and_buffers_are_given_in_heaps() {
        let mut posted = posted(200, 1, 1);
        assert_eq!((posted.refill(|_, _| {}), posted.tail(), posted.free()), (63, 63, 137));
        for _ in 0..15 {
            posted.drop_frame(1);
            assert_eq!(posted.refill(|_, _| {}), 0, "it has enough");
        }
        posted.drop_frame(1);
        assert_eq!((posted.refill(|_, _| {}), posted.tail()), (16, 15));
    }

    #[test]
    fn a_device_that_runs_out_gets_what_there_is() {
        let mut posted = posted(40, 8, 8);
        assert_eq!((posted.refill(|_, _| {}), posted.free()), (40, 0));
        let frames: Vec<Token> = (0..25).map(|_| posted.take(1)).collect();
        for (n, frame) in frames.into_iter().take(11).enumerate() {
            posted.release(frame);
            assert_eq!(posted.refill(|_, _| {}), if n == 7 { 8 } else { 0 }, "{n}: only whole steps");
        }
    }

    proptest! {
        #[test]
        fn every_buffer_is_with_the_device_lent_or_free(
            steps in prop::collection::vec((0u8..4, 1usize..6), 1..200), eights: bool
        ) {
            let mut posted = posted(100, 8, if eights { 8 } else { 1 });
            let (mut described, mut lent) = (std::collections::VecDeque::new(), Vec::new());
            for (step, count) in steps {
                match step {
                    0 => {
                        let before = described.len();
                        let told = posted.refill(|slot, iova| described.push_back((slot, iova)));
                        prop_assert_eq!(described.len() - before, usize::from(told));
                    }
                    1 | 2 if count <= usize::from(posted.len()) => {
                        for n in 0..count {
                            let (slot, iova) = described.pop_front().unwrap();
                            prop_assert_eq!((slot, iova), (posted.slot(n), posted.pool.iova(posted.buffer(n))));
                        }
                        if step == 1 {
                            lent.push((posted.take(count), count));
                        } else {
                            posted.drop_frame(count);
                        }
                    }
                    _ => lent.pop().into_iter().for_each(|(frame, _)| {
                        posted.release(frame);
                        posted.release(frame);
                    }),
                }
                let out: usize = lent.iter().map(|(_, count)| count).sum();
                prop_assert_eq!(posted.free() + usize::from(posted.len()) + out, 100);
                prop_assert!(posted.len() <= 56 && (!eights || posted.tail().is_multiple_of(8)));
            }
        }
    }
}
