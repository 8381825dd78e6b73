//! VFIO without an IOMMU: devices see physical addresses, and nothing keeps them from any.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::Once;

use vfio_bindings::bindings::vfio::VFIO_NOIOMMU_IOMMU;
use vfio_ioctls::VfioError;

use super::device_file::DeviceFile;
use super::failure::Failure;
use super::group::Place;
use super::space::locked_memory;
use super::token::VfToken;
use super::type1::container_error;
use crate::device::DeviceError;
use crate::memory::physical::{self, HUGE_PAGE};
use crate::pci::Address;

static WARNED: Once = Once::new();

/// A container that confines nothing, and the group in it.
pub(super) struct NoIommu {
    group: Place,
    container: File,
}

impl NoIommu {
    pub(super) fn new() -> Result<Self, DeviceError> {
        let container = OpenOptions::new().read(true).write(true).open("/dev/vfio/vfio");
        let container = container.map_err(|cause| container_error(&VfioError::OpenContainer(cause)))?;
        Ok(Self { group: Place::default(), container })
    }

    /// Opens a function of the group at `node`, and says what that gives up.
    pub(super) fn open(
        &self,
        node: &Path,
        address: Address,
        token: Option<&VfToken>,
    ) -> Result<DeviceFile, Failure> {
        let device = self.group.open(&self.container, VFIO_NOIOMMU_IOMMU, node, address, token)?;
        WARNED.call_once(|| {
            tracing::warn!(
                "NO IOMMU: {address} is used without one. Its DMA reaches all memory of this machine: a fault of the NIC, of its \
                 firmware or of this daemon can overwrite anything, and whoever controls the NIC controls the machine. Zero-copy \
                 is refused. After a crash of the daemon the NIC may write for a moment into memory that has a new owner."
            );
        });
        Ok(device)
    }

    /// Where devices find the `len` bytes at `ptr`, which must be whole huge pages in a row: those are not swapped, and
    /// the kernel moves them only when memory is taken offline. They are locked all the same.
    pub(super) fn map(&self, ptr: *mut u8, len: usize, align: usize, bits: u32) -> Result<u64, DeviceError> {
        if !align.is_multiple_of(HUGE_PAGE) {
            return Err(DeviceError::Unsupported(
                "without an IOMMU a device only reaches huge pages; it is not let into other memory"
                    .to_owned(),
            ));
        }
        let address = physical::address(ptr, len)?;
        let last = address.saturating_add(len as u64).saturating_sub(1);
        if bits < u64::BITS && last >> bits != 0 {
            return Err(DeviceError::Failed(format!(
                "the device reaches addresses of {bits} bits, and the huge pages at hand lie above; have the kernel reserve \
                 some early: hugepages=N on its command line, or memory below mem="
            )));
        }
        // SAFETY: this only changes whether the pages may be paged out.
        if unsafe { rustix::mm::mlock(ptr.cast(), len) }.is_err() {
            return Err(DeviceError::Failed(format!(
                "cannot lock {len} bytes for DMA: {}",
                locked_memory(len)
            )));
        }
        Ok(address)
    }
}
