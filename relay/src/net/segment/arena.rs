//! Private memory for the headers of frames that are cut or summed up.

use std::ptr::NonNull;

use pmd::Segment;
use pmd::frame::BURST_FRAMES;

use pmd::net::packet::LOOKED_AT;

/// Headers for one burst: a slot for each of its frames.
const SLOTS: usize = BURST_FRAMES;
/// Bytes of a slot.
const SLOT: usize = LOOKED_AT;

type Memory = [u8; SLOTS * SLOT];

/// Memory for the headers of one burst's frames, 8 KiB: make it once, where its burst is made.
///
/// The segments that come from here point into it. It must therefore live as long as they are in use, and be
/// [cleared](Self::clear) only when all frames that hold them are done, not when they have been handed over: a device
/// that borrows frames reads the headers later.
#[derive(Debug)]
pub struct Headers {
    memory: Segment,
    used: usize,
}

impl Default for Headers {
    fn default() -> Self {
        Self::new()
    }
}

impl Headers {
    /// All slots are free.
    pub fn new() -> Self {
        let memory: NonNull<Memory> = NonNull::from(Box::leak(Box::new([0; SLOTS * SLOT])));
        // SAFETY: the memory is on the heap until `drop`, and nothing but this segment and its parts refers to it. That
        // the parts are not used longer is what the type asks of its owner.
        Self { memory: unsafe { Segment::new(memory.cast(), (SLOTS * SLOT) as u32) }, used: 0 }
    }

    /// Free slots.
    #[inline]
    pub fn room(&self) -> usize {
        SLOTS - self.used
    }

    /// All slots are free again; no frame that came of them is under way any more.
    #[inline]
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// The first `len` bytes of the next slot; it is not taken by that.
    #[inline]
    pub(super) fn next(&self, len: usize) -> Option<Segment> {
        (self.used < SLOTS).then(|| self.memory.part((self.used * SLOT) as u32, len.min(SLOT) as u32))
    }

    /// Takes the next slot.
    #[inline]
    pub(super) fn take(&mut self) {
        self.used += 1;
    }
}

impl Drop for Headers {
    fn drop(&mut self) {
        // SAFETY: the pointer is that of the box which `new` leaked, and this is the one place where it is taken back.
        drop(unsafe { Box::from_raw(self.memory.as_ptr().cast::<Memory>()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_apart_and_come_back_all_at_once() {
        let mut headers = Headers::new();
        let mut last = None;
        for n in 0..SLOTS {
            assert_eq!(headers.room(), SLOTS - n);
            let slot = headers.next(SLOT).unwrap();
            assert_eq!(slot.copy_from(&[n as u8; SLOT]), SLOT);
            assert_ne!(last.replace(slot.as_ptr()), Some(slot.as_ptr()));
            headers.take();
        }
        assert!(headers.next(1).is_none());
        headers.clear();
        let mut first = [9; SLOT];
        assert_eq!(headers.next(1000).unwrap().copy_to(&mut first), SLOT);
        assert_eq!(first, [0; SLOT]);
    }
}
