//! Receive buffers: equal parts of DMA memory, and which of them are free.

use super::dma::DmaSlice;
use crate::frame::Segment;

/// Bytes of one buffer: what a whole frame of a usual network fits into, in the granule of 1 KiB that Intel's receive
/// units have.
pub const BUFFER_SIZE: u32 = 2048;

/// Marks the end of a chain of buffers.
const NONE: u32 = u32::MAX;

/// Buffers of one size, [`BUFFER_SIZE`] unless it is told, with one owner, numbered from 0. A frame that needs several is a
/// chain of them, known by its first.
#[derive(Debug)]
pub struct BufferPool {
    memory: DmaSlice,
    /// Bytes of each.
    size: u32,
    free: Vec<u32>,
    /// The buffer after each one in its chain.
    next: Box<[u32]>,
    /// Whether each one is off the free list, so that no buffer comes back twice.
    taken: Box<[bool]>,
}

impl BufferPool {
    /// As many buffers as `memory` has room for.
    pub fn new(memory: DmaSlice) -> Self {
        Self::of_size(memory, BUFFER_SIZE)
    }

    /// As many buffers of `size` bytes as `memory` has room for: for devices that put a whole frame into one buffer.
    pub fn of_size(memory: DmaSlice, size: u32) -> Self {
        let count = (memory.len() / size.max(1) as usize) as u32;
        Self {
            memory,
            size,
            free: (0..count).rev().collect(),
            next: vec![NONE; count as usize].into_boxed_slice(),
            taken: vec![false; count as usize].into_boxed_slice(),
        }
    }

    /// Free buffers.
    #[inline]
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// A free buffer.
    #[inline]
    pub fn take(&mut self) -> Option<u32> {
        let buffer = self.free.pop()?;
        if let (Some(next), Some(taken)) =
            (self.next.get_mut(buffer as usize), self.taken.get_mut(buffer as usize))
        {
            *next = NONE;
            *taken = true;
        }
        Some(buffer)
    }

    /// Appends `buffer` to the chain that ends with `last`.
    #[inline]
    pub fn link(&mut self, last: u32, buffer: u32) {
        if let Some(next) = self.next.get_mut(last as usize) {
            *next = buffer;
        }
    }

    /// Takes back the chain that starts with `buffer`. A number that is not out changes nothing.
    #[inline]
    pub fn give_back(&mut self, buffer: u32) {
        let mut buffer = buffer;
        while let Some(taken) = self.taken.get_mut(buffer as usize).filter(|taken| **taken) {
            *taken = false;
            // The list was made with room for all, and each buffer is on it once.
            self.free.push(buffer);
            buffer = std::mem::replace(&mut self.next[buffer as usize], NONE);
        }
    }

    /// Where the device finds `buffer`.
    #[inline]
    pub fn iova(&self, buffer: u32) -> u64 {
        self.memory.iova() + u64::from(buffer) * u64::from(self.size)
    }

    /// The first `len` bytes of `buffer`, cut at its end.
    #[inline]
    pub fn segment(&self, buffer: u32, len: u32) -> Segment {
        self.part(buffer, 0, len)
    }

    /// The `len` bytes of `buffer` from `offset` on, cut at its end.
    #[inline]
    pub fn part(&self, buffer: u32, offset: u32, len: u32) -> Segment {
        let offset = offset.min(self.size);
        let start = buffer as usize * self.size as usize + offset as usize;
        self.memory.segment(start, len.min(self.size - offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::dma::DmaMemory;
    use crate::memory::dma::tests::FakeMap;
    use std::sync::Arc;

    fn pool(buffers: usize) -> BufferPool {
        let memory = DmaMemory::new(Arc::new(FakeMap::default()), buffers * 2048, "test").unwrap();
        let [slice] = memory.carve([buffers * 2048]).unwrap();
        BufferPool::new(slice)
    }

    #[test]
    fn chains_come_back_whole_and_once() {
        let mut pool = pool(4);
        let [a, b, c, d] = [(); 4].map(|()| pool.take().unwrap());
        assert_eq!(pool.take(), None);
        pool.link(a, b);
        pool.link(b, c);
        pool.give_back(a);
        assert_eq!(pool.available(), 3);
        pool.give_back(a);
        pool.give_back(c);
        pool.give_back(99);
        assert_eq!(pool.available(), 3);
        pool.give_back(d);
        assert_eq!(pool.available(), 4);
    }

    #[test]
    fn addresses_are_arithmetic_and_segments_end_with_the_buffer() {
        let pool = pool(3);
        assert_eq!(pool.iova(2) - pool.iova(0), 4096);
        assert_eq!(pool.segment(1, 5000).len(), BUFFER_SIZE);
        assert_eq!(pool.segment(1, 60).as_ptr() as usize - pool.segment(0, 60).as_ptr() as usize, 2048);
        let part = pool.part(1, 40, 5000);
        assert_eq!((part.len(), part.as_ptr()), (2008, pool.segment(1, 60).as_ptr().wrapping_add(40)));
        assert_eq!(pool.part(1, 5000, 1).len(), 0);
    }

    #[test]
    fn buffers_may_have_another_size() {
        let memory = DmaMemory::new(Arc::new(FakeMap::default()), 10_000, "test").unwrap();
        let [slice] = memory.carve([10_000]).unwrap();
        let pool = BufferPool::of_size(slice, 4800);
        assert_eq!((pool.available(), pool.iova(1) - pool.iova(0)), (2, 4800));
        assert_eq!(pool.segment(1, 9000).len(), 4800);
    }
}
