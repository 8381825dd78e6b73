//! A mapped BAR.

use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags};

use super::device::Function;
use crate::device::DeviceError;
use crate::registers::{ALL_ONES, Registers};

/// The first bytes of a BAR, mapped uncached. Keeps its function open.
#[derive(Debug)]
pub struct Bar {
    base: NonNull<u8>,
    len: usize,
    /// Dropped after the mapping is gone.
    _function: Arc<Function>,
}

// SAFETY: the mapping belongs to this value alone, and device registers may be accessed from any thread.
unsafe impl Send for Bar {}
// SAFETY: access is by volatile loads and stores of aligned words, which the hardware keeps whole.
unsafe impl Sync for Bar {}

impl Bar {
    /// Maps the first `len` bytes of BAR `index`.
    pub fn map(function: &Arc<Function>, index: u32, len: usize) -> Result<Self, DeviceError> {
        let address = function.address();
        let area = function.mappable(index).into_iter().find(|area| area.start == 0);
        let Some(area) = area.filter(|area| area.len >= len as u64) else {
            return Err(DeviceError::Unsupported(format!(
                "{address}: the kernel does not let the first {len} bytes of BAR {index} be mapped; the VF's memory \
                 may be disabled (see lspci -vv -s {address}), or smaller than a page of this machine"
            )));
        };
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                function,
                area.file_offset,
            )
        };
        let base = base.map_err(|cause| {
            DeviceError::Failed(format!("{address}: cannot map BAR {index}: {cause}; see dmesg"))
        })?;
        let Some(base) = NonNull::new(base.cast()) else {
            return Err(DeviceError::Failed(format!("{address}: BAR {index} was mapped at address 0")));
        };
        Ok(Self { base, len, _function: Arc::clone(function) })
    }

    /// Where a register is, if it is whole and aligned inside the mapping.
    #[inline]
    fn register(&self, offset: u32) -> Option<NonNull<u32>> {
        let offset = offset as usize;
        let inside = offset.checked_add(size_of::<u32>()).is_some_and(|end| end <= self.len);
        if !inside || !offset.is_multiple_of(size_of::<u32>()) {
            debug_assert!(false, "register {offset:#x} is outside the BAR");
            return None;
        }
        // SAFETY: the offset is inside the mapping.
        Some(unsafe { self.base.add(offset) }.cast())
    }
}

impl Registers for Bar {
    #[inline]
    fn read(&self, offset: u32) -> u32 {
        // SAFETY: the register is inside the mapping and aligned; PCI is little-endian.
        self.register(offset).map_or(ALL_ONES, |register| u32::from_le(unsafe { register.read_volatile() }))
    }

    #[inline]
    fn write(&self, offset: u32, value: u32) {
        if let Some(register) = self.register(offset) {
            // SAFETY: as in `read`.
            unsafe { register.write_volatile(value.to_le()) };
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `map` with this length, and nothing points into it any more.
        if let Err(cause) = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) } {
            tracing::error!(%cause, "cannot unmap a BAR");
        }
    }
}
