//! A mapped part of a BAR.

use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags};

use super::device::{Function, Mappable};
use crate::device::DeviceError;
use crate::registers::{ALL_ONES, Caching, Registers};

/// A part of a BAR, mapped. Keeps its function open.
#[derive(Debug)]
pub struct Bar {
    /// The first byte that was asked for.
    base: NonNull<u8>,
    /// Bytes that were asked for.
    len: usize,
    /// What is mapped: whole pages around them.
    mapping: (NonNull<u8>, usize),
    caching: Caching,
    /// Dropped after the mapping is gone.
    _function: Arc<Function>,
}

// SAFETY: the mapping belongs to this value alone, and device registers may be accessed from any thread.
unsafe impl Send for Bar {}
// SAFETY: access is by volatile loads and stores of aligned words, which the hardware keeps whole.
unsafe impl Sync for Bar {}

impl Bar {
    /// Maps `len` bytes of BAR `index` from `start` on, uncached.
    pub fn map(function: &Arc<Function>, index: u8, start: u64, len: usize) -> Result<Self, DeviceError> {
        let address = function.address();
        let end = start.saturating_add(len as u64);
        let page = rustix::param::page_size() as u64;
        let holds = |area: &Mappable| area.start <= start && end <= area.start + area.len;
        let Some(area) = function.mappable(u32::from(index)).into_iter().find(holds) else {
            return Err(DeviceError::Unsupported(format!(
                "{address}: the kernel does not let bytes {start} to {end} of BAR {index} be mapped; the VF's memory \
                 may be disabled (see lspci -vv -s {address}), or smaller than a page of this machine"
            )));
        };
        let first = start - start % page;
        let (before, mapped) = ((start - first) as usize, (end - first) as usize);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let mapping = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                function,
                area.file_offset + first,
            )
        };
        let mapping = mapping.map_err(|cause| {
            DeviceError::Failed(format!("{address}: cannot map BAR {index}: {cause}; see dmesg"))
        })?;
        let Some(mapping) = NonNull::new(mapping.cast::<u8>()) else {
            return Err(DeviceError::Failed(format!("{address}: BAR {index} was mapped at address 0")));
        };
        // SAFETY: the byte is inside the mapping.
        let base = unsafe { mapping.add(before) };
        let caching = Caching::Uncached;
        Ok(Self { base, len, mapping: (mapping, mapped), caching, _function: Arc::clone(function) })
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
        self.register(offset).map_or(nothing, |register| unsafe { register.read_volatile() })
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

    fn caching(&self) -> Caching {
        self.caching
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `map` with this length, and nothing points into it any more.
        if let Err(cause) = unsafe { rustix::mm::munmap(self.mapping.0.as_ptr().cast(), self.mapping.1) } {
            tracing::error!(%cause, "cannot unmap a BAR");
        }
    }
}
