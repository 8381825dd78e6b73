//! Where frames lie until they are sent: one behind the other around a piece of DMA memory, each in one piece, given back in
//! the order in which they came.
//!
//! ```text
//!   [ frame 7 ][ frame 8 ]  …  free  …  [ frame 5 ][ frame 6 ]~      what is too short at the end is left out
//! ```

use crate::frame::{MIN_WIRE, Segment};
use crate::memory::DmaSlice;

/// Frames begin at multiples of a cache line.
const LINE: u32 = 64;

/// The memory, and how far it is filled. Positions count bytes from the beginning on and wrap at 32 bits.
#[derive(Debug)]
pub struct Arena {
    memory: DmaSlice,
    /// Bytes of it, a power of two.
    size: u32,
    /// Where the next frame goes.
    filled: u32,
    /// Up to where it is free again.
    freed: u32,
}

impl Arena {
    /// All of `memory`, whose length must be a power of two.
    pub fn new(memory: DmaSlice) -> Self {
        debug_assert!(memory.len().is_power_of_two());
        let size = memory.len() as u32;
        Self { memory, size, filled: 0, freed: 0 }
    }

    /// Where the next frame of `len` bytes goes, as a position; `None` where there is no room for it.
    #[inline]
    pub fn place(&self, len: u32) -> Option<u32> {
        let at = self.filled & (self.size - 1);
        let left_out = if at + len > self.size { self.size - at } else { 0 };
        let start = self.filled.wrapping_add(left_out);
        (start.wrapping_sub(self.freed) + len <= self.size).then_some(start)
    }

    /// Whether frames of `len` bytes together, none of which has more than `longest`, find room.
    #[inline]
    pub fn has_room(&self, len: u32, longest: u32) -> bool {
        self.size - self.filled.wrapping_sub(self.freed) >= len.saturating_add(longest)
    }

    /// Copies a frame to a place that it was given: `headers`, and then `len` bytes of what is in `segments` from byte
    /// `from` on, filled up with zeros to what the wire takes; its end.
    #[inline]
    pub fn copy(&mut self, start: u32, headers: &[u8], segments: &[Segment], from: u32, len: u32) -> u32 {
        let base = (start & (self.size - 1)) as usize;
        let whole = headers.len() as u32 + len;
        if whole < MIN_WIRE {
            self.memory.segment(base, MIN_WIRE).copy_from(&[0; MIN_WIRE as usize]);
        }
        self.memory.segment(base, headers.len() as u32).copy_from(headers);
        let (mut skip, mut at) = (from, headers.len() as u32);
        for segment in segments {
            // A frame is not longer than its place.
            let part = segment.part(skip, whole - at);
            skip = skip.saturating_sub(segment.len());
            self.memory.segment(base + at as usize, part.len()).copy_from_segment(&part);
            at += part.len();
        }
        self.filled = start.wrapping_add(whole.max(MIN_WIRE).next_multiple_of(LINE));
        self.filled
    }

    /// Where the device finds what is at `position`.
    #[inline]
    pub fn iova(&self, position: u32) -> u64 {
        self.memory.iova() + u64::from(position & (self.size - 1))
    }

    /// Up to where it is filled.
    #[inline]
    pub fn filled(&self) -> u32 {
        self.filled
    }

    /// All before `position`, an end, is free again.
    #[inline]
    pub fn free(&mut self, position: u32) {
        self.freed = position;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::ptr::NonNull;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::memory::DmaMemory;
    use crate::memory::dma::tests::FakeMap;

    const SIZE: usize = 16 * 1024;

    fn arena() -> Arena {
        let memory = DmaMemory::new(Arc::new(FakeMap::default()), SIZE, "test").unwrap();
        let [slice] = memory.carve([SIZE]).unwrap();
        // As after four gigabytes less a few frames: positions wrap soon.
        Arena { filled: u32::MAX - 8191, freed: u32::MAX - 8191, ..Arena::new(slice) }
    }

    fn put(arena: &mut Arena, bytes: &mut [u8]) -> Option<(u32, u32)> {
        let len = bytes.len() as u32;
        let start = arena.place(len.max(MIN_WIRE))?;
        // SAFETY: the test keeps `bytes` alive and untouched while the segment is used.
        let segment = unsafe { Segment::new(NonNull::new(bytes.as_mut_ptr()).unwrap(), len) };
        let pieces = [segment.part(0, 9), segment.part(9, 3), segment.part(12, len)];
        // Half of the frames come as their first bytes and the rest from behind them.
        let from = if bytes[0].is_multiple_of(2) { 0 } else { 10 };
        Some((start, arena.copy(start, &vec![bytes[0]; from as usize], &pieces, from, len - from)))
    }

    fn read(arena: &Arena, start: u32, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        arena.memory.segment(start as usize & (SIZE - 1), len).copy_to(&mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn frames_lie_whole_until_they_are_freed(
            lens in prop::collection::vec((14usize..6000, any::<bool>()), 1..200)
        ) {
            let mut arena = arena();
            let mut there: VecDeque<(u32, u32, Vec<u8>)> = VecDeque::new();
            for (n, (len, free)) in lens.into_iter().enumerate() {
                let mut bytes = vec![n as u8; len];
                if let Some((start, end)) = put(&mut arena, &mut bytes) {
                    bytes.resize(len.max(60), 0);
                    there.push_back((start, end, bytes));
                } else {
                    prop_assert!(!there.is_empty(), "an empty arena takes everything");
                }
                if free && let Some((_, end, _)) = there.pop_front() {
                    arena.free(end);
                }
                for (start, _, bytes) in &there {
                    prop_assert!(start % LINE == 0 && read(&arena, *start, bytes.len() as u32) == *bytes);
                }
            }
        }
    }
}
