//! A mapped part of a BAR.
//!
//! A function that leaves the machine takes its BARs along: the kernel takes the mapping away, and the next access raises
//! SIGBUS. The handler (`memory::sigbus`) lays zeros there; reads give ones from then on, as they do on a bus where nobody
//! answers, and writes go nowhere.

use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::device::Function;
use crate::memory::sigbus::Guard;
use crate::registers::{ALL_ONES, Caching, Registers};

/// A part of a BAR, mapped. Keeps its function open.
#[derive(Debug)]
pub struct Bar {
    /// The first byte that was asked for.
    base: NonNull<u8>,
    /// Bytes that were asked for.
    len: usize,
    caching: Caching,
    // Before the mapping: the handler must not lay pages where something else may be mapped by then.
    guard: Guard,
    _mapping: Mapping,
    // Dropped after the mapping is gone.
    _function: Option<Arc<Function>>,
}

// SAFETY: the mapping belongs to this value alone, and device registers may be accessed from any thread.
unsafe impl Send for Bar {}
// SAFETY: access is by volatile loads and stores of aligned words, which the hardware keeps whole.
unsafe impl Sync for Bar {}

/// Whole pages of a file.
#[derive(Debug)]
struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `Bar::map` with this length, and nothing points into it any more.
        if let Err(cause) = unsafe { rustix::mm::munmap(self.ptr.as_ptr().cast(), self.len) } {
            tracing::error!(%cause, "cannot unmap a BAR");
        }
    }
}

impl Bar {
    /// Maps `len` bytes from `start` on of the BAR that begins at `offset` in `file`, and that the file maps as `caching`
    /// says.
    pub(super) fn map(
        file: &impl AsFd,
        offset: u64,
        start: u64,
        len: usize,
        caching: Caching,
        function: Option<Arc<Function>>,
    ) -> Result<Self, Errno> {
        let page = rustix::param::page_size() as u64;
        let first = start - start % page;
        let before = (start - first) as usize;
        let mapped = before.checked_add(len).ok_or(Errno::INVAL)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let ptr = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                offset + first,
            )
        }?;
        let ptr = NonNull::new(ptr.cast::<u8>()).ok_or(Errno::FAULT)?;
        let mapping = Mapping { ptr, len: mapped.next_multiple_of(page as usize) };
        // SAFETY: the guard goes before the mapping; registers are reached by volatile words alone, whose values are the
        // device's.
        let guard = unsafe { Guard::new(ptr.as_ptr() as usize, mapping.len) }.ok_or(Errno::NOMEM)?;
        // SAFETY: the byte is inside the mapping.
        let base = unsafe { ptr.add(before) };
        Ok(Self { base, len, caching, guard, _mapping: mapping, _function: function })
    }

    /// Where a register is, if it is whole and aligned inside what was asked for.
    #[inline]
    fn register<T>(&self, offset: u32) -> Option<NonNull<T>> {
        let offset = offset as usize;
        let inside = offset.checked_add(size_of::<T>()).is_some_and(|end| end <= self.len);
        // SAFETY: the offset is inside the mapping, where it is used.
        let register = inside.then(|| unsafe { self.base.add(offset) }.cast::<T>());
        let register = register.filter(|register| register.is_aligned());
        debug_assert!(register.is_some(), "register {offset:#x} is outside the BAR");
        register
    }

    #[inline]
    fn load<T: Copy>(&self, offset: u32, nothing: T) -> T {
        // SAFETY: the register is inside the mapping and aligned.
        let value = self.register(offset).map_or(nothing, |register| unsafe { register.read_volatile() });
        // Asked behind the load, which may have been the one that found nothing.
        fence(Ordering::Acquire);
        if self.guard.is_poisoned() { nothing } else { value }
    }

    #[inline]
    fn store<T: Copy>(&self, offset: u32, value: T) {
        if let Some(register) = self.register(offset) {
            // SAFETY: as in `load`.
            unsafe { register.write_volatile(value) };
        }
    }
}

impl Registers for Bar {
    #[inline]
    fn read(&self, offset: u32) -> u32 {
        u32::from_le(self.load(offset, ALL_ONES))
    }

    #[inline]
    fn write(&self, offset: u32, value: u32) {
        self.store(offset, value.to_le());
    }

    fn read8(&self, offset: u32) -> u8 {
        self.load(offset, u8::MAX)
    }

    fn read16(&self, offset: u32) -> u16 {
        u16::from_le(self.load(offset, u16::MAX))
    }

    fn write8(&self, offset: u32, value: u8) {
        self.store(offset, value);
    }

    #[inline]
    fn write16(&self, offset: u32, value: u16) {
        self.store(offset, value.to_le());
    }

    #[inline]
    fn write64(&self, offset: u32, value: u64) {
        self.store(offset, value.to_le());
    }

    #[inline]
    fn push(&self, offset: u32, words: &[u64]) {
        let bytes = size_of_val(words);
        let inside = (offset as usize).checked_add(bytes).is_some_and(|end| end <= self.len);
        debug_assert!(inside, "{bytes} bytes at {offset:#x} are outside the BAR");
        if !inside {
            return;
        }
        for (at, word) in (offset..).step_by(size_of::<u64>()).zip(words) {
            self.store(at, word.to_le());
        }
        flush(self.caching);
    }

    fn caching(&self) -> Caching {
        self.caching
    }
}

/// Sends gathered stores on their way, in front of every store that follows.
#[inline]
fn flush(caching: Caching) {
    #[cfg(target_arch = "x86_64")]
    if caching == Caching::WriteCombining {
        // Only this fence empties the write-combining buffers in order (Intel SDM vol. 3, "Write Combining Memory Location").
        // SAFETY: every x86-64 processor has it (SSE).
        unsafe { std::arch::x86_64::_mm_sfence() };
        return;
    }
    let _ = caching;
    fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    /// A file in the place of a BAR, and a part of it from `start` on.
    fn bar(start: u64, len: usize) -> (File, Bar) {
        let file = File::from(rustix::fs::memfd_create("bar", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(0x4000).unwrap();
        let bar = Bar::map(&file, 0x1000, start, len, Caching::Uncached, None).unwrap();
        (file, bar)
    }

    #[test]
    fn registers_lie_where_the_specification_counts_them() {
        let (file, bar) = bar(0x800, 0x1000);
        bar.write(4, 0x1234_5678);
        bar.write16(8, 0xabcd);
        bar.write8(10, 0xef);
        bar.write64(16, 1 << 40);
        let mut bytes = [0; 24];
        file.read_exact_at(&mut bytes, 0x1800).unwrap();
        assert_eq!(bytes[4..11], [0x78, 0x56, 0x34, 0x12, 0xcd, 0xab, 0xef]);
        assert_eq!(bytes[16..], (1u64 << 40).to_le_bytes());
        assert_eq!((bar.read(4), bar.read16(8), bar.read8(10)), (0x1234_5678, 0xabcd, 0xef));
    }

    #[test]
    fn what_is_pushed_arrives_whole() {
        let (file, bar) = bar(0, 0x1000);
        bar.push(0x40, &[1, 2, 3]);
        let mut bytes = [0; 32];
        file.read_exact_at(&mut bytes, 0x1040).unwrap();
        assert_eq!(bytes, *[1u64, 2, 3, 0].map(u64::to_le_bytes).as_flattened());
        for caching in [Caching::Uncached, Caching::WriteCombining] {
            flush(caching);
        }
    }

    #[test]
    fn a_bar_that_is_gone_reads_ones_and_swallows_writes() {
        let (file, bar) = bar(0x1000, 0x1000);
        bar.write(0, 7);
        assert_eq!(bar.read(0), 7);
        // As when the kernel takes the mapping of a function that leaves: the next access raises SIGBUS.
        file.set_len(0x1000).unwrap();
        bar.write(0, 9);
        bar.push(0x100, &[1; 8]);
        assert_eq!(bar.read(0), ALL_ONES);
        assert_eq!((bar.read8(0), bar.read16(0x100), bar.read(0xffc)), (0xff, 0xffff, ALL_ONES));
    }

    #[test]
    fn the_first_read_of_a_bar_that_is_gone_gives_ones_and_so_does_every_thread() {
        let (file, bar) = bar(0, 0x1000);
        file.set_len(0).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!((0..1000).all(|_| bar.read(32) == ALL_ONES)));
            }
        });
    }
}
