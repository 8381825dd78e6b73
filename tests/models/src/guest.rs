//! Memory of a guest, which a device reaches: for drivers that send from where frames lie.

#![allow(clippy::panic, reason = "a test that gets no memory fails by panicking")]

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

use pmd::memory::{GuestWindow, GuestWindows};
use pmd::{Segment, TransmitQueue};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::exam::Exam;
use crate::model::Model;

/// A guest's memory.
#[derive(Debug)]
pub struct Guest {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the bytes are only copied.
unsafe impl Send for Guest {}
// SAFETY: as above.
unsafe impl Sync for Guest {}

impl Guest {
    /// `len` bytes (whole pages), which the device of the exam reaches from now on, and its first transmit queue sends from.
    ///
    /// # Panics
    /// Where the device cannot, or there is no memory.
    pub fn of<M: Model>(exam: &mut Exam<M>, len: usize) -> Arc<Self> {
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), len, flags, MapFlags::PRIVATE) };
        let Some(start) = mapped.ok().and_then(|ptr| NonNull::new(ptr.cast::<u8>())) else {
            panic!("no {len} bytes of memory")
        };
        let guest = Arc::new(Self { start, len });
        let map = exam.device.guest_dma().unwrap_or_else(|cause| panic!("{cause}"));
        let memory = Arc::clone(&guest) as Arc<dyn Any + Send + Sync>;
        // SAFETY: the window keeps the guest's memory, which nobody has a reference to.
        let window = unsafe { GuestWindow::map(&map, start, len, memory) };
        let window = window.unwrap_or_else(|cause| panic!("{cause}"));
        exam.queues().transmit[0].set_guest_memory(Arc::new(GuestWindows::new(vec![Arc::new(window)])));
        guest
    }

    /// Writes `bytes` at `at`; where they are.
    ///
    /// # Panics
    /// Where they do not fit.
    pub fn write(&self, at: usize, bytes: &[u8]) -> Segment {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: inside the mapping, which lives as long as the guest.
        let segment = unsafe { Segment::new(self.start.add(at), bytes.len() as u32) };
        segment.copy_from(bytes);
        segment
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `of`, which nothing uses any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}
