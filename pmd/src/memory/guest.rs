//! Memory of a guest that a device reaches: for zero-copy.
//!
//! ```text
//!   our mapping      [ window 0   )      [ window 1   )      found by the address of a segment
//!   the device's     [ iova 0     )  [ iova 1     )          allocated, never the guest's own address
//! ```
//!
//! A window is mapped as long as it lives. A queue has a table of windows that never changes; it gets another one when
//! memory comes or goes.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

use super::dma::{DmaAccess, DmaMap};
use crate::device::DeviceError;
use crate::frame::Segment;

/// Alignment of addresses, at most, so that an IOMMU can use its largest pages.
const LARGEST_PAGE: usize = 1 << 30;

/// A piece of guest memory that a device may read.
#[derive(Debug)]
pub struct GuestWindow {
    start: usize,
    len: usize,
    iova: u64,
    map: Arc<dyn DmaMap>,
    /// Keeps the bytes where they are.
    _memory: Arc<dyn Any + Send + Sync>,
}

impl GuestWindow {
    /// Lets the device behind `map` read `len` bytes at `ptr`, both whole pages. It takes long where there are many: their
    /// pages are brought in and held.
    ///
    /// # Safety
    /// The bytes must stay mapped as long as `memory` lives, and no Rust reference to them may exist meanwhile.
    pub unsafe fn map(
        map: &Arc<dyn DmaMap>,
        ptr: NonNull<u8>,
        len: usize,
        memory: Arc<dyn Any + Send + Sync>,
    ) -> Result<Self, DeviceError> {
        let align = 1 << len.max(rustix::param::page_size()).min(LARGEST_PAGE).ilog2();
        // SAFETY: the caller vouches for the bytes while `memory` lives, and `drop` unmaps them before letting go of it.
        let iova = unsafe { map.map(ptr.as_ptr(), len, align, DmaAccess::Read) }?;
        Ok(Self { start: ptr.as_ptr() as usize, len, iova, map: Arc::clone(map), _memory: memory })
    }

    /// Where the first byte is mapped here.
    pub fn start(&self) -> usize {
        self.start
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for GuestWindow {
    fn drop(&mut self) {
        self.map.unmap(self.iova, self.len);
    }
}

/// One window as the hot loop needs it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    start: usize,
    len: usize,
    iova: u64,
}

/// The windows of one guest, to look up in.
#[derive(Debug, Default)]
pub struct GuestWindows {
    /// In the order of their addresses, none overlapping another.
    entries: Box<[Entry]>,
    /// Keeps them mapped.
    _windows: Vec<Arc<GuestWindow>>,
}

impl GuestWindows {
    /// A table of `windows`, none of which overlaps another.
    pub fn new(windows: Vec<Arc<GuestWindow>>) -> Self {
        let mut entries: Vec<_> =
            windows.iter().map(|w| Entry { start: w.start, len: w.len, iova: w.iova }).collect();
        entries.sort_unstable_by_key(|entry| entry.start);
        Self { entries: entries.into(), _windows: windows }
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all windows together.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.len as u64).sum()
    }

    /// Where the device finds the bytes of `segment`; `None` where it does not reach all of them. `last` is a memory of
    /// the caller's for the window that was found last, at first 0.
    #[inline]
    pub fn find(&self, segment: &Segment, last: &mut usize) -> Option<u64> {
        let (start, len) = (segment.as_ptr() as usize, segment.len() as usize);
        if let Some(iova) = self.entries.get(*last).and_then(|entry| entry.find(start, len)) {
            return Some(iova);
        }
        let at = self.entries.partition_point(|entry| entry.start <= start).checked_sub(1)?;
        let iova = self.entries.get(at)?.find(start, len)?;
        *last = at;
        Some(iova)
    }
}

impl Entry {
    #[inline]
    fn find(&self, start: usize, len: usize) -> Option<u64> {
        let offset = start.wrapping_sub(self.start);
        (offset < self.len && len <= self.len - offset).then(|| self.iova + offset as u64)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::memory::dma::tests::{FakeMap, OFFSET};
    use std::sync::atomic::Ordering;

    /// Pages of memory as a guest's.
    pub(crate) struct Pages(NonNull<u8>, usize);

    // SAFETY: only its address is used, by tests that have it to themselves.
    unsafe impl Send for Pages {}
    // SAFETY: as above.
    unsafe impl Sync for Pages {}

    impl Pages {
        pub(crate) fn new(count: usize) -> Arc<Self> {
            let len = count * rustix::param::page_size();
            // SAFETY: a new private mapping at an address of the kernel's choice.
            let ptr = unsafe {
                rustix::mm::mmap_anonymous(
                    std::ptr::null_mut(),
                    len,
                    rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                    rustix::mm::MapFlags::PRIVATE,
                )
            };
            Arc::new(Self(NonNull::new(ptr.unwrap().cast()).unwrap(), len))
        }

        /// The `len` bytes from `at`.
        pub(crate) fn segment(&self, at: usize, len: u32) -> Segment {
            assert!(at + len as usize <= self.1);
            // SAFETY: inside the mapping, which lives as long as the tests use it.
            unsafe { Segment::new(self.0.add(at), len) }
        }

        /// A window over pages `first` to `first + count`.
        pub(crate) fn window(
            self: &Arc<Self>,
            map: &Arc<FakeMap>,
            first: usize,
            count: usize,
        ) -> Arc<GuestWindow> {
            let page = rustix::param::page_size();
            let map = Arc::clone(map) as Arc<dyn DmaMap>;
            // SAFETY: the pages are mapped while `self` lives.
            let window = unsafe {
                let start = self.0.add(first * page);
                GuestWindow::map(&map, start, count * page, Arc::clone(self) as Arc<dyn Any + Send + Sync>)
            };
            Arc::new(window.unwrap())
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            // SAFETY: the mapping made in `new`, which nothing uses any more.
            let _ = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), self.1) };
        }
    }

    #[test]
    fn a_segment_is_found_where_all_of_it_is_in_one_window() {
        let (map, pages) = (Arc::new(FakeMap::default()), Pages::new(6));
        let page = rustix::param::page_size();
        let windows = GuestWindows::new(vec![pages.window(&map, 4, 1), pages.window(&map, 1, 2)]);
        assert_eq!((windows.bytes(), map.read_only.load(Ordering::Relaxed)), (3 * page as u64, 2));
        let mut last = 0;
        let mut find = |at: usize, len: u32| {
            let segment = pages.segment(at, len);
            windows.find(&segment, &mut last).map(|iova| {
                assert_eq!(iova, segment.as_ptr() as u64 + OFFSET);
                at
            })
        };
        assert_eq!(find(page, 2 * page as u32), Some(page), "a whole window");
        assert_eq!(find(4 * page, 60), Some(4 * page), "the other one");
        assert_eq!(find(3 * page - 1, 1), Some(3 * page - 1), "the last byte");
        assert_eq!(find(3 * page - 1, 2), None, "over the end");
        assert_eq!(find(page - 1, 2), None, "before the beginning");
        assert_eq!(find(3 * page, 1), None, "between two windows");
        assert_eq!(find(5 * page, 1), None, "behind the last");
        assert_eq!(GuestWindows::default().find(&pages.segment(0, 1), &mut 0), None);
    }

    #[test]
    fn a_window_is_mapped_as_long_as_anybody_has_it_and_keeps_its_memory() {
        let (map, pages) = (Arc::new(FakeMap::default()), Pages::new(2));
        let (first, second) = (pages.window(&map, 0, 1), pages.window(&map, 1, 1));
        let table = GuestWindows::new(vec![Arc::clone(&first), second]);
        let memory = Arc::downgrade(&pages);
        drop(pages);
        let mapped = || map.mapped.lock().unwrap().len();
        assert_eq!(mapped(), 2);
        drop(table);
        assert_eq!((mapped(), memory.strong_count()), (1, 1));
        drop(first);
        assert_eq!((mapped(), memory.strong_count()), (0, 0));
    }
}
