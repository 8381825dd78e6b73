//! Receive buffers of software devices: equal parts of ordinary memory.

use std::alloc::Layout;
use std::ptr::NonNull;

/// Bytes that buffers begin at a multiple of: a cache line.
const ALIGNMENT: usize = 64;

/// Some buffers of one size, numbered from 0. Never seen as a slice: frames that are on their way to the guest point
/// into them. Pages that nobody wrote to take no memory.
#[derive(Debug)]
pub(super) struct Buffers {
    start: NonNull<u8>,
    layout: Layout,
    size: usize,
}

// SAFETY: the allocation belongs to this value alone and is freed with it, on whichever thread that is.
unsafe impl Send for Buffers {}
// SAFETY: what is shared is where buffers are; who may use which is agreed on elsewhere.
unsafe impl Sync for Buffers {}

impl Buffers {
    /// `count` buffers of `size` bytes or a little more; `None` without memory for them.
    pub(super) fn new(count: u32, size: usize) -> Option<Self> {
        let size = size.checked_next_multiple_of(ALIGNMENT)?;
        let layout = Layout::from_size_align(size.checked_mul(count as usize)?, ALIGNMENT).ok()?;
        if layout.size() == 0 {
            return None;
        }
        // SAFETY: the layout has a size above 0.
        let start = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        Some(Self { start, layout, size })
    }

    /// Bytes of each buffer.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Where buffer `number` begins; the last one's beginning for numbers that there are not.
    pub(super) fn buffer(&self, number: u32) -> NonNull<u8> {
        let offset = (number as usize * self.size).min(self.layout.size() - self.size);
        // SAFETY: a whole buffer behind `offset` is inside the allocation.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_follow_one_another_and_none_lies_outside() {
        let buffers = Buffers::new(3, 100).unwrap();
        assert_eq!(buffers.size(), 128);
        let at = |number| buffers.buffer(number).as_ptr() as usize - buffers.buffer(0).as_ptr() as usize;
        assert_eq!([0, 1, 2, 3, u32::MAX].map(at), [0, 128, 256, 256, 256]);
        assert!(Buffers::new(0, 64).is_none() && Buffers::new(u32::MAX, usize::MAX / 2).is_none());
    }
}
