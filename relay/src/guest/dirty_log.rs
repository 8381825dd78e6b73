//! The dirty log of a live migration: a bitmap that the front end shares (`VHOST_USER_SET_LOG_BASE` with `LOG_SHMFD`),
//! in which we mark every page of guest memory that we write.
//!
//! ```text
//!   bit n of the log  ◀──▶  guest addresses n × 4096 … n × 4096 + 4095        (bit n is bit n % 8 of byte n / 8)
//! ```
//!
//! The front end clears bits while we set them and copies the pages that it found marked. So each bit is set by an atomic
//! OR on its byte, after the write of the page: a front end that takes the bit sees the write, and neither it nor
//! another worker loses a bit of the same byte. Layout and page size are those of the vhost-user specification, "Migration".

use std::fs::File;
use std::sync::atomic::{AtomicU8, Ordering};

use pmd::memory::sigbus::Guard;
use thiserror::Error;
use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

/// Bytes of guest memory that one bit stands for, whatever pages host and guest have (`VHOST_LOG_PAGE`).
pub const LOG_PAGE: u64 = 4096;

/// Longest log in bytes, 4 GiB: guest addresses up to 128 TiB. A longer one would only use up address space here.
pub const MAX_LOG: u64 = 1 << 32;

/// Why a log was refused.
#[derive(Debug, Error)]
pub enum LogError {
    /// No bytes at all.
    #[error("a dirty log of size 0")]
    Empty,
    /// Offset and size together are no position in a file (CVE-2020-10722 is a back end that added them unchecked), or
    /// the size is over [`MAX_LOG`].
    #[error("a dirty log of {size:#x} bytes at offset {offset:#x} of its file cannot be")]
    Overflow {
        /// Size in bytes.
        size: u64,
        /// Offset in bytes.
        offset: u64,
    },
    /// The file ends before the log does.
    #[error("a dirty log that ends at {end:#x} in a file of {length:#x} bytes")]
    Short {
        /// First byte of the file behind the log.
        end: u64,
        /// Length of the file in bytes.
        length: u64,
    },
    /// The file is on a disk, say, where a page could be missing for reasons of its own.
    #[error("the dirty log must be a memfd or a file in tmpfs")]
    NotSharedMemory,
    /// The kernel refused to map it, or too many mappings are guarded already.
    #[error("cannot map the dirty log: {0}")]
    Map(String),
}

/// A shared dirty log. Rings hold it by `Arc` and mark in it from any thread.
#[derive(Debug)]
pub struct DirtyLog {
    // Before the region, so that it goes first: the handler must not lay pages where something else may be mapped.
    guard: Guard,
    region: MmapRegion<()>,
    /// Bytes of the mapping before the log, which need not begin with a page of its file.
    skip: usize,
    /// Pages that the log has bits for.
    pages: u64,
}

impl DirtyLog {
    /// Maps `size` bytes at `offset` of `file`, as a front end describes its log.
    pub fn map(file: File, size: u64, offset: u64) -> Result<Self, LogError> {
        if size == 0 {
            return Err(LogError::Empty);
        }
        let overflow = LogError::Overflow { size, offset };
        let Some(end) = offset.checked_add(size).filter(|end| *end <= i64::MAX as u64) else {
            return Err(overflow);
        };
        if size > MAX_LOG {
            return Err(overflow);
        }
        let map_error = |cause: &dyn std::fmt::Display| LogError::Map(cause.to_string());
        let length = file.metadata().map_err(|cause| map_error(&cause))?.len();
        if end > length {
            return Err(LogError::Short { end, length });
        }
        // Not hugetlbfs, as guest memory may be: no front end spends huge pages on a log.
        if rustix::fs::fstatfs(&file).map_err(|cause| map_error(&cause))?.f_type != libc::TMPFS_MAGIC {
            return Err(LogError::NotSharedMemory);
        }
        let skip = offset % rustix::param::page_size() as u64;
        let bytes = (size + skip) as usize;
        let region = MmapRegionBuilder::new(bytes)
            .with_file_offset(FileOffset::new(file, offset - skip))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .build()
            .map_err(|cause| map_error(&cause))?;
        // SAFETY: the region goes after its guard, and is only reached through atomic words.
        let guard = unsafe { Guard::new(region.as_ptr() as usize, bytes) };
        let guard = guard.ok_or_else(|| map_error(&"too many shared mappings"))?;
        Ok(Self { guard, region, skip: skip as usize, pages: 8 * size })
    }

    /// Whether the log has a bit for every page below guest address `end`, which is one past the highest of memory. A
    /// smaller log must be refused: a page without a bit would be lost in the migration.
    pub fn covers(&self, end: u64) -> bool {
        end.div_ceil(LOG_PAGE) <= self.pages
    }

    /// Whether the front end took pages of the log away (it truncated the file): marks since then are lost.
    pub fn is_poisoned(&self) -> bool {
        self.guard.is_poisoned()
    }

    /// Marks the pages of `len` bytes at guest address `gpa` as written. To be called after they were written and before
    /// the guest is told of it. Pages that the log has no bit for are left out.
    #[inline]
    pub fn mark(&self, gpa: u64, len: u32) {
        let Some(more) = len.checked_sub(1) else { return };
        let last = (gpa.saturating_add(u64::from(more)) / LOG_PAGE).min(self.pages - 1);
        for page in gpa / LOG_PAGE..=last {
            // The write of the page comes first for whoever takes the bit with acquire order.
            self.byte(page).fetch_or(1 << (page % 8), Ordering::Release);
        }
    }

    #[inline]
    fn byte(&self, page: u64) -> &AtomicU8 {
        debug_assert!(page < self.pages);
        // SAFETY: `page` is below `pages`, so its byte is within the `skip + pages / 8` bytes of the mapping, which is
        // writable and lives as long as `self`. Others only touch it atomically, or from other processes.
        unsafe { AtomicU8::from_ptr(self.region.as_ptr().add(self.skip + (page / 8) as usize)) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::guest::memory::tests::memfd;

    /// Pages marked in `size` bytes at `offset` of `file`.
    fn marked(file: &File, size: u64, offset: u64) -> BTreeSet<u64> {
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, offset).unwrap();
        (0..8 * size).filter(|page| bytes[(page / 8) as usize] & 1 << (page % 8) != 0).collect()
    }

    /// A log of `size` bytes at `offset`, and its file with 4 KiB more.
    fn log(size: u64, offset: u64) -> (DirtyLog, File) {
        let file = memfd(offset + size + 0x1000);
        (DirtyLog::map(file.try_clone().unwrap(), size, offset).unwrap(), file)
    }

    #[test]
    fn the_first_and_the_last_byte_decide_which_pages_are_marked() {
        let (log, file) = log(16, 0);
        log.mark(0x1000, 0);
        assert!(marked(&file, 16, 0).is_empty(), "nothing was written");
        log.mark(0x1fff, 1);
        log.mark(0x3fff, 2);
        log.mark(0x8000, 0x1000);
        assert_eq!(marked(&file, 16, 0), BTreeSet::from([1, 3, 4, 8]));
    }

    #[test]
    fn a_log_covers_eight_pages_a_byte() {
        let (log, _file) = log(2, 0);
        assert!(log.covers(0) && log.covers(1) && log.covers(16 * LOG_PAGE));
        assert!(!log.covers(16 * LOG_PAGE + 1) && !log.covers(u64::MAX));
    }

    #[test]
    fn what_the_log_does_not_cover_is_left_out() {
        let (log, file) = log(2, 0);
        log.mark(15 * LOG_PAGE, 2 * LOG_PAGE as u32);
        log.mark(16 * LOG_PAGE, 1);
        log.mark(u64::MAX - 1, u32::MAX);
        assert_eq!(marked(&file, 18, 0), BTreeSet::from([15]));
    }

    proptest! {
        #[test]
        fn exactly_the_pages_that_were_written_are_marked(
            writes in prop::collection::vec((0..0x30_0000u64, 0..0x8000u32), 0..40),
            offset in prop_oneof![Just(0), Just(0x1000), 1..0x3000u64],
        ) {
            let size = 64;
            let (log, file) = log(size, offset);
            let mut expected = BTreeSet::new();
            for (gpa, len) in writes {
                log.mark(gpa, len);
                let touched = |page: &u64| page * LOG_PAGE < gpa + u64::from(len) && gpa < (page + 1) * LOG_PAGE;
                expected.extend((0..8 * size).filter(|_| len > 0).filter(touched));
            }
            prop_assert_eq!(marked(&file, size, offset), expected);
            prop_assert!(marked(&file, offset, 0).is_empty(), "before the log");
            prop_assert!(marked(&file, 0x1000, offset + size).is_empty(), "behind the log");
        }
    }

    #[test]
    fn workers_that_mark_pages_of_one_byte_lose_none() {
        for round in 0..200u64 {
            let (log, file) = log(1, 0);
            let log = Arc::new(log);
            let start = Arc::new(std::sync::Barrier::new(4));
            let mark = |n: u64| {
                let (log, start) = (Arc::clone(&log), Arc::clone(&start));
                std::thread::spawn(move || {
                    start.wait();
                    log.mark(2 * n * LOG_PAGE, 1);
                })
            };
            for thread in [0, 1, 2, 3].map(mark) {
                thread.join().unwrap();
            }
            assert_eq!(marked(&file, 1, 0), BTreeSet::from([0, 2, 4, 6]), "round {round}");
        }
    }

    #[test]
    fn a_truncated_log_is_poisoned_and_nobody_dies() {
        let (log, file) = log(0x2000, 0x10);
        log.mark(0, 1);
        assert!(!log.is_poisoned());
        file.set_len(0).unwrap();
        log.mark(0x100_0000, 1);
        assert!(log.is_poisoned());
        log.mark(0, u32::MAX);
    }

    #[test]
    fn logs_that_cannot_be_are_refused() {
        let map = |size, offset| DirtyLog::map(memfd(0x1000), size, offset).unwrap_err();
        assert!(matches!(map(0, 0), LogError::Empty));
        for below in [0, 1, 7, 0xfff, 0x1000] {
            assert!(matches!(map(0x1000, u64::MAX - below), LogError::Overflow { .. }));
            assert!(matches!(map(u64::MAX - below, 0x1000), LogError::Overflow { .. }));
        }
        assert!(matches!(map(MAX_LOG + 1, 0), LogError::Overflow { .. }));
        assert!(matches!(map(0x1001, 0), LogError::Short { .. }));
        assert!(matches!(map(0x1000, 1), LogError::Short { end: 0x1001, length: 0x1000 }));
        assert!(DirtyLog::map(memfd(0x1000), 1, 0xfff).is_ok());
        let disk = File::open("/proc/self/exe").unwrap();
        assert!(matches!(DirtyLog::map(disk, 1, 0), Err(LogError::NotSharedMemory)));
        let file = memfd(0x1000);
        let read_only =
            File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file))).unwrap();
        assert!(matches!(DirtyLog::map(read_only, 1, 0), Err(LogError::Map(_))));
    }
}
