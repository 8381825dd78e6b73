//! One PCI function that VFIO gave us.

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_REQ_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError, VfioOps, VfioRegionInfoCap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::bar::Bar;
use super::container::{AddressSpace, Claim};
use crate::device::DeviceError;
use crate::memory::{DmaAccess, DmaMap};
use crate::pci::{Address, PciFunction, Ready, Sysfs};
use crate::registers::{Caching, Registers};

/// `VFIO_DEVICE_RESET` (linux/vfio.h), `_IO(';', 100 + 11)`.
const VFIO_DEVICE_RESET: libc::c_ulong = 0x3b6f;
/// Command register and its bus-master bit (PCI Local Bus 3.0 §6.2.2).
const PCI_COMMAND: u64 = 4;
const PCI_COMMAND_MASTER: u16 = 1 << 2;
/// Bytes of the configuration space that every function has.
const PCI_CONFIG_SIZE: u64 = 256;

/// A part of a BAR that can be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mappable {
    /// Where `mmap` finds the BAR's first byte in the device file.
    pub file_offset: u64,
    /// First mappable byte of the BAR.
    pub start: u64,
    /// Bytes from there.
    pub len: u64,
}

/// A PCI function opened through VFIO: its configuration space, its BARs, its reset, and DMA in its group's address
/// space. Closing it leaves it reset and without DMA.
pub struct Function {
    address: Address,
    /// Taken out in `drop` only.
    device: ManuallyDrop<VfioDevice>,
    /// Where the configuration space starts in the device file.
    config: u64,
    /// Given back when the device is closed.
    claim: Claim,
    removal: Option<EventFd>,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function")
            .field("address", &self.address)
            .field("claim", &self.claim)
            .finish_non_exhaustive()
    }
}

impl Function {
    /// Opens the function at `address`, which [`Sysfs::ready`] found `ready`, and resets it.
    ///
    /// Functions of one IOMMU group share an address space.
    pub fn open(sysfs: &Sysfs, address: Address, ready: &Ready) -> Result<Arc<Self>, DeviceError> {
        let claim = AddressSpace::of_group(ready.group)?.claim(address)?;
        let node = sysfs.device(address);
        let container: Arc<dyn VfioOps> = Arc::clone(claim.space().container()) as Arc<dyn VfioOps>;
        let device = VfioDevice::new(&node, container, false)
            .map_err(|cause| open_error(address, ready.group, &cause))?;
        let function = Self {
            address,
            config: device.get_region_offset(VFIO_PCI_CONFIG_REGION_INDEX),
            removal: removal_notice(&device),
            device: ManuallyDrop::new(device),
            claim,
        };
        let failed = |what: &str, cause: io::Error| {
            DeviceError::Failed(format!("{address}: cannot {what}: {cause}; see dmesg"))
        };
        let flags = function.device.get_region_flags(VFIO_PCI_CONFIG_REGION_INDEX);
        let size = function.device.get_region_size(VFIO_PCI_CONFIG_REGION_INDEX);
        let accessible = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        if flags & accessible != accessible || size < PCI_CONFIG_SIZE {
            return Err(failed("reach the configuration space", io::ErrorKind::Unsupported.into()));
        }
        // What cannot be reset from outside (a VF that a virtual machine has behind a bridge to conventional PCI shows
        // no FLR) is reset by its driver.
        match function.reset() {
            Err(cause) if cause.raw_os_error() != Some(libc::EINVAL) => {
                return Err(failed("reset the function", cause));
            }
            _ => {}
        }
        // Off until the driver has its memory in place.
        function.set_bus_master(false).map_err(|cause| failed("reach the command register", cause))?;
        Ok(Arc::new(function))
    }

    /// Where it sits.
    pub fn address(&self) -> Address {
        self.address
    }

    /// The parts of BAR `index` that can be mapped, in order.
    pub fn mappable(&self, index: u32) -> Vec<Mappable> {
        if self.device.get_region_flags(index) & VFIO_REGION_INFO_FLAG_MMAP == 0 {
            return Vec::new();
        }
        let file_offset = self.device.get_region_offset(index);
        let size = self.device.get_region_size(index);
        // A BAR with the MSI-X table inside comes with a list of what is left around it.
        let sparse = self.device.get_region_caps(index).into_iter().find_map(|cap| match cap {
            VfioRegionInfoCap::SparseMmap(sparse) => Some(sparse.areas),
            _ => None,
        });
        match sparse {
            Some(areas) => areas
                .iter()
                .map(|area| Mappable { file_offset, start: area.offset, len: area.size })
                .collect(),
            None => vec![Mappable { file_offset, start: 0, len: size }],
        }
    }
}

impl AsFd for Function {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the device file is open for as long as `self` is.
        unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) }
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        // On a function that is gone both fail, and there is no DMA left to end.
        if let Err(cause) = self.set_bus_master(false).and_then(|()| self.reset()) {
            tracing::debug!(address = %self.address, %cause, "not reset when closed");
        }
        // SAFETY: `device` is taken here only, and `self` is not used afterwards.
        let device = unsafe { ManuallyDrop::take(&mut self.device) };
        // `VfioDevice`'s own drop takes the group out of the container, by a link in sysfs that it takes for granted.
        // Closing the descriptor lets the kernel go on with a removal, and the link may be gone at any moment after that.
        close(device, self.claim.space().container());
    }
}

impl DmaMap for Function {
    unsafe fn map(
        &self,
        ptr: *mut u8,
        len: usize,
        align: usize,
        access: DmaAccess,
    ) -> Result<u64, DeviceError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.claim.space().map(ptr, len, align, access) }
    }

    fn unmap(&self, iova: u64, len: usize) {
        self.claim.space().unmap(iova, len);
    }
}

impl PciFunction for Function {
    /// Takes 100 ms and more (PCI Express §6.6.2).
    fn reset(&self) -> io::Result<()> {
        // SAFETY: the descriptor is a VFIO device; this call has no argument.
        let status = unsafe { libc::ioctl(self.device.as_raw_fd(), VFIO_DEVICE_RESET) };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn set_bus_master(&self, on: bool) -> io::Result<()> {
        let at = self.config + PCI_COMMAND;
        let mut command = [0; 2];
        whole(rustix::io::pread(self, &mut command, at)?, command.len())?;
        let old = u16::from_le_bytes(command);
        let new = if on { old | PCI_COMMAND_MASTER } else { old & !PCI_COMMAND_MASTER };
        whole(rustix::io::pwrite(self, &new.to_le_bytes(), at)?, size_of_val(&new))
    }

    fn read_config(&self, offset: u16, bytes: &mut [u8]) -> io::Result<()> {
        let read = rustix::io::pread(self, &mut *bytes, self.config + u64::from(offset))?;
        whole(read, bytes.len())
    }

    /// Uncached, whatever is wished.
    fn bar(
        self: Arc<Self>,
        index: u8,
        start: u64,
        len: usize,
        _caching: Caching,
    ) -> Result<Arc<dyn Registers>, DeviceError> {
        Ok(Arc::new(Bar::map(&self, index, start, len)?))
    }

    fn interrupts(&self, count: usize) -> io::Result<Vec<OwnedFd>> {
        let new = |_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let events = (0..count).map(new).collect::<io::Result<Vec<_>>>()?;
        self.device.enable_msix(events.iter().collect()).map_err(io::Error::other)?;
        // The kernel has a reference of its own.
        // SAFETY: each descriptor was owned by its event, which gives it up here.
        Ok(events.into_iter().map(|event| unsafe { OwnedFd::from_raw_fd(event.into_raw_fd()) }).collect())
    }

    fn shares_address_space(&self) -> bool {
        self.claim.space().is_shared()
    }

    /// The kernel asks before VFs are disabled or the device is unplugged, and waits until it is closed, for as long
    /// as it takes.
    fn removal_requested(&self) -> bool {
        self.removal.as_ref().is_some_and(|event| event.read().is_ok())
    }
}

/// Closes a device and leaves its group in `container`, with which it was opened; the group goes when that is closed.
fn close(device: VfioDevice, container: &Arc<VfioContainer>) {
    let device = ManuallyDrop::new(device);
    // SAFETY: the descriptor belongs to `device`, which is never used or dropped after this.
    unsafe { libc::close(device.as_raw_fd()) };
    // SAFETY: `device` holds one count of this container, which it will never give back itself; `container` is another.
    unsafe { Arc::decrement_strong_count(Arc::as_ptr(container)) };
}

/// Accesses to the configuration space are whole or failed.
fn whole(bytes: usize, expected: usize) -> io::Result<()> {
    if bytes == expected { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn removal_notice(device: &VfioDevice) -> Option<EventFd> {
    let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).ok()?;
    // Kernels before 4.0 have no such notice.
    device.enable_irq(VFIO_PCI_REQ_IRQ_INDEX, vec![&event]).ok()?;
    Some(event)
}

fn open_error(address: Address, group: u32, cause: &VfioError) -> DeviceError {
    let os_error = match cause {
        VfioError::OpenGroup(cause, _) => cause.raw_os_error(),
        VfioError::ContainerSetIOMMU(errno) | VfioError::GroupGetDeviceFD(errno) => Some(errno.errno()),
        _ => None,
    };
    match (cause, os_error) {
        (_, Some(libc::EBUSY)) => DeviceError::Busy(format!(
            "{address} (IOMMU group {group}) is in use by another process; find it: fuser -v /dev/vfio/{group}"
        )),
        (VfioError::OpenGroup(..), Some(libc::EACCES | libc::EPERM)) => DeviceError::NotReady(format!(
            "no permission for /dev/vfio/{group}, the IOMMU group of {address}; run the daemon as root, or give the \
             file to its user: chown USER /dev/vfio/{group}"
        )),
        (VfioError::OpenGroup(..), Some(libc::ENOENT)) => DeviceError::NotReady(format!(
            "there is no /dev/vfio/{group}, the IOMMU group of {address}; let the daemon see /dev/vfio (container, \
             chroot), and look for the cause in dmesg"
        )),
        (VfioError::GroupViable, _) => DeviceError::NotReady(format!(
            "IOMMU group {group} of {address} has a member that another driver holds; list them: \
             ls -l /sys/kernel/iommu_groups/{group}/devices/*/driver"
        )),
        (VfioError::GroupSetContainer, _) => DeviceError::Busy(format!(
            "IOMMU group {group} of {address} is already in another VFIO container; find its user: \
             fuser -v /dev/vfio/{group}"
        )),
        (VfioError::ContainerSetIOMMU(_), Some(libc::EPERM)) => DeviceError::NotReady(format!(
            "the kernel refuses the IOMMU to {address}: this machine does not remap interrupts; switch that on in the \
             firmware, or accept the risk: modprobe vfio_iommu_type1 allow_unsafe_interrupts=1"
        )),
        _ => DeviceError::Failed(format!("cannot open {address} through VFIO: {cause}; see dmesg")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_to_open_say_what_to_do() {
        let address = "0000:01:10.0".parse().unwrap();
        let group = |errno| VfioError::OpenGroup(io::Error::from_raw_os_error(errno), "7".to_owned());
        let text = |cause| open_error(address, 7, &cause);
        assert!(
            matches!(text(group(libc::EBUSY)), DeviceError::Busy(text) if text.contains("fuser -v /dev/vfio/7"))
        );
        assert!(matches!(text(group(libc::EACCES)), DeviceError::NotReady(text) if text.contains("chown")));
        assert!(
            matches!(text(VfioError::GroupViable), DeviceError::NotReady(text) if text.contains("iommu_groups/7"))
        );
        assert!(
            matches!(text(VfioError::VfioInvalidType), DeviceError::Failed(text) if text.contains("dmesg"))
        );
    }
}
