//! Transmit buffers that belong to the slots of a ring: frames are copied there once and sent from there.
//!
//! ```text
//!   ring      [ slot 0 ][ slot 1 ][ slot 2 ] …      a frame longer than one buffer goes on in the next slot's
//!   buffers   [  2 KiB ][  2 KiB ][  2 KiB ] …
//! ```
//!
//! To fill the buffers by turns means to write to one that has left the caches long ago. An owner whose device is done with its
//! slots in order can have the buffers that came back last used next, before it fills a slot:
//!
//! ```text
//!   slots     [ sent, came back last: hot ][ with the device ][ filled next: cold ] …
//!                                    └──────── exchange ───────────┘
//! ```

use super::dma::DmaSlice;
use super::pool::BUFFER_SIZE;
use crate::frame::{MIN_WIRE, Segment};

/// One buffer of [`BUFFER_SIZE`] bytes for each slot of a ring. Which of them a device still reads is for their owner to
/// know.
#[derive(Debug)]
pub struct SlotBuffers {
    memory: DmaSlice,
    mask: u16,
    /// The buffer of each slot: each is one slot's.
    of: Box<[u16]>,
    /// The last slot that came back.
    last: u16,
    /// The slot whose buffer is exchanged next, and how many came back with it.
    hot: u16,
    hot_count: u16,
}

impl SlotBuffers {
    /// Bytes of memory for a ring of `slots`.
    pub const fn bytes(slots: u16) -> usize {
        slots as usize * BUFFER_SIZE as usize
    }

    /// Buffers for a ring of `slots` (a power of two), in [`bytes`](Self::bytes) of memory.
    pub fn new(memory: DmaSlice, slots: u16) -> Self {
        debug_assert!(slots.is_power_of_two() && memory.len() >= Self::bytes(slots));
        Self { memory, mask: slots - 1, of: (0..slots).collect(), last: 0, hot: 0, hot_count: 0 }
    }

    /// The `count` slots before `end` came back from the device, and so did all that were filled before them.
    #[inline]
    pub fn came_back(&mut self, end: u16, count: u16) {
        self.last = end.wrapping_sub(1) & self.mask;
        (self.hot, self.hot_count) = (self.last, count);
    }

    /// Gives the `count` slots from `slot` on, which are filled next, the buffers that came back last in exchange, as long as
    /// there are such.
    #[inline(always)]
    pub fn warm(&mut self, slot: u16, count: u32) {
        for n in 0..count as u16 {
            self.exchange(slot.wrapping_add(n));
        }
    }

    #[inline(always)]
    fn exchange(&mut self, slot: u16) {
        let (slot, hot) = (slot & self.mask, self.hot);
        let is_free = hot.wrapping_sub(slot) & self.mask <= self.last.wrapping_sub(slot) & self.mask;
        if self.hot_count > 0 && is_free {
            self.of.swap(usize::from(slot), usize::from(hot));
            self.hot = hot.wrapping_sub(1) & self.mask;
            self.hot_count -= 1;
        }
    }

    /// Where the buffer of `slot` begins in the memory.
    #[inline(always)]
    fn offset(&self, slot: u16) -> usize {
        let buffer = self.of.get(usize::from(slot & self.mask)).copied().unwrap_or_default();
        usize::from(buffer) * BUFFER_SIZE as usize
    }

    /// Slots that a frame of `len` bytes takes.
    #[inline]
    pub fn needed(len: u32) -> u32 {
        len.max(MIN_WIRE).div_ceil(BUFFER_SIZE)
    }

    /// Where the device finds the buffer of `slot`.
    #[inline]
    pub fn iova(&self, slot: u16) -> u64 {
        self.memory.iova() + self.offset(slot) as u64
    }

    /// The first `len` bytes of the buffer of `slot`, cut at its end.
    #[inline]
    pub fn segment(&self, slot: u16, len: u32) -> Segment {
        self.memory.segment(self.offset(slot), len.min(BUFFER_SIZE))
    }

    /// Copies a frame of `len` bytes, which `segments` hold, into the buffers from `slot` on; the bytes that are to be sent:
    /// a frame shorter than the wire takes is filled up with zeros.
    #[inline(always)]
    pub fn copy_frame(&self, segments: &[Segment], len: u32, slot: u16) -> u32 {
        match segments {
            // Nearly all of them.
            [whole] if (MIN_WIRE..=BUFFER_SIZE).contains(&len) => {
                self.segment(slot, len).copy_from_segment(whole);
                len
            }
            _ => self.copy_odd_frame(segments, len, slot),
        }
    }

    #[inline(never)]
    fn copy_odd_frame(&self, segments: &[Segment], len: u32, slot: u16) -> u32 {
        if len < MIN_WIRE {
            self.segment(slot, MIN_WIRE).copy_from(&[0; MIN_WIRE as usize]);
        }
        self.copy(segments, slot);
        len.max(MIN_WIRE)
    }

    /// Copies `segments` into the buffers from `slot` on.
    #[inline]
    pub fn copy(&self, segments: &[Segment], slot: u16) {
        self.copy_behind(0, segments, slot);
    }

    /// As [`copy`](Self::copy), leaving out the first `at` bytes, at most [`BUFFER_SIZE`]: a header goes there.
    #[inline]
    pub fn copy_behind(&self, mut at: u32, segments: &[Segment], mut slot: u16) {
        for segment in segments {
            let mut done = 0;
            while done < segment.len() {
                if at == BUFFER_SIZE {
                    (slot, at) = (slot.wrapping_add(1), 0);
                }
                let part = segment.part(done, BUFFER_SIZE - at);
                self.memory.segment(self.offset(slot) + at as usize, part.len()).copy_from_segment(&part);
                done += part.len();
                at += part.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::dma::DmaMemory;
    use crate::memory::dma::tests::FakeMap;
    use proptest::prelude::*;
    use std::ptr::NonNull;
    use std::sync::Arc;

    fn buffers() -> SlotBuffers {
        let bytes = SlotBuffers::bytes(4);
        let memory = DmaMemory::new(Arc::new(FakeMap::default()), bytes, "test").unwrap();
        let [slice] = memory.carve([bytes]).unwrap();
        SlotBuffers::new(slice, 4)
    }

    fn segment(bytes: &mut [u8]) -> Segment {
        // SAFETY: the tests keep `bytes` alive and untouched while the segment is used.
        unsafe { Segment::new(NonNull::new(bytes.as_mut_ptr()).unwrap(), bytes.len() as u32) }
    }

    fn read(buffers: &SlotBuffers, slot: u16, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        buffers.segment(slot, len).copy_to(&mut bytes);
        bytes
    }

    #[test]
    fn a_long_frame_goes_on_in_the_next_slots_and_around_the_end() {
        let buffers = buffers();
        let (mut a, mut b) = ([1; 2000], [2; 3000]);
        assert_eq!(buffers.copy_frame(&[segment(&mut a), segment(&mut b)], 5000, 3), 5000);
        assert_eq!(SlotBuffers::needed(5000), 3);
        assert_eq!(read(&buffers, 3, 2048), [&[1; 2000][..], &[2; 48]].concat());
        assert_eq!(read(&buffers, 0, 2048), [2; 2048]);
        assert_eq!(read(&buffers, 1, 904), [2; 904]);
        assert_eq!(buffers.iova(3) - buffers.iova(0), 3 * 2048);
    }

    #[test]
    fn what_is_copied_behind_a_header_leaves_room_for_it() {
        let buffers = buffers();
        buffers.segment(3, 12).copy_from(&[9; 12]);
        buffers.copy_behind(12, &[segment(&mut [1; 2036]), segment(&mut [2; 5])], 3);
        assert_eq!(read(&buffers, 3, 2048), [&[9; 12][..], &[1; 2036]].concat());
        assert_eq!(read(&buffers, 0, 6), [2, 2, 2, 2, 2, 0]);
    }

    #[test]
    fn what_came_back_last_is_used_next() {
        let mut buffers = buffers();
        let first = buffers.iova(0);
        buffers.came_back(1, 1);
        buffers.warm(1, 1);
        assert_eq!(buffers.iova(1), first);
        buffers.warm(2, 1);
        assert_eq!(buffers.iova(2) - first, 2 * 2048, "no other came back");
        assert_eq!(buffers.iova(0) - first, 2048, "an exchange");
    }

    proptest! {
        #[test]
        fn a_buffer_that_the_device_has_stays_in_its_slot(steps in prop::collection::vec((0u16..3, 1u16..9), 1..200)) {
            const SLOTS: u16 = 16;
            let bytes = SlotBuffers::bytes(SLOTS);
            let memory = DmaMemory::new(Arc::new(FakeMap::default()), bytes, "test").unwrap();
            let [slice] = memory.carve([bytes]).unwrap();
            let mut buffers = SlotBuffers::new(slice, SLOTS);
            let (mut with_device, mut tail) = (std::collections::VecDeque::new(), 0);
            for (kind, count) in steps {
                if kind == 0 {
                    let count = count.min(with_device.len() as u16);
                    with_device.drain(..usize::from(count));
                    if count > 0 {
                        buffers.came_back(tail - with_device.len() as u16, count);
                    }
                } else if with_device.len() < usize::from(SLOTS) - 1 {
                    // Not every slot needs its buffer.
                    if kind == 1 {
                        buffers.warm(tail, 1);
                    }
                    with_device.push_back((tail, buffers.iova(tail)));
                    tail += 1;
                }
                for (slot, iova) in &with_device {
                    prop_assert_eq!(buffers.iova(*slot), *iova);
                }
                let each: std::collections::BTreeSet<_> = (0..SLOTS).map(|slot| buffers.iova(slot)).collect();
                prop_assert_eq!(each.len(), usize::from(SLOTS));
            }
        }
    }

    #[test]
    fn a_short_frame_is_filled_up_over_what_was_there() {
        let buffers = buffers();
        buffers.copy_frame(&[segment(&mut [9; 100])], 100, 0);
        assert_eq!(buffers.copy_frame(&[segment(&mut [1; 20])], 20, 0), 60);
        assert_eq!(read(&buffers, 0, 61), [&[1; 20][..], &[0; 40], &[9]].concat());
    }
}
