//! One PCI function that VFIO gave us.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
    VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};

use super::access::{Access, Way};
use super::bar::Bar;
use super::device_file::DeviceFile;
use super::space::{AddressSpace, Claim};
use super::token::VfToken;
use crate::device::DeviceError;
use crate::memory::{DmaAccess, DmaMap};
use crate::pci::{Address, PciFunction, Ready, Sysfs};
use crate::registers::{Caching, Registers};

/// Command register and its bus-master bit (PCI Local Bus 3.0 §6.2.2).
const PCI_COMMAND: u64 = 4;
const PCI_COMMAND_MASTER: u16 = 1 << 2;
/// Bytes of the configuration space that every function has.
const PCI_CONFIG_SIZE: u64 = 256;
/// Address width that every device served here has. The NFP's older descriptors hold 40 bits; others say how many they hold.
const DMA_BITS: u32 = 40;
/// Tries to reset a function that somebody else has hold of just then, and the time between two.
const RESET_TRIES: u32 = 20;
const RESET_INTERVAL: Duration = Duration::from_millis(10);

/// A PCI function opened through VFIO: its configuration space, its BARs, its reset, and DMA in its group's address
/// space. Closing it leaves it reset and without DMA.
pub struct Function {
    address: Address,
    /// Its folder in sysfs.
    folder: PathBuf,
    // Closed before the claim is given back.
    device: DeviceFile,
    /// Where the configuration space starts in the device file.
    config: u64,
    claim: Claim,
    removal: Option<OwnedFd>,
    dma_bits: AtomicU32,
    /// MSI-X interrupts that ring something.
    ringing: Mutex<usize>,
    /// BARs that are mapped through sysfs, a bit each.
    through_sysfs: AtomicU8,
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
    pub fn open(
        sysfs: &Sysfs,
        address: Address,
        ready: &Ready,
        access: Access,
        token: Option<&VfToken>,
    ) -> Result<Arc<Self>, DeviceError> {
        let access = AddressSpace::access_in_use(ready.group).unwrap_or(access);
        let way = Way::choose(sysfs, Path::new("/dev"), address, ready, access)?;
        let claim = AddressSpace::of_group(ready.group, &way)?.claim(address)?;
        let device = claim.space().open(address, &way, token)?;
        let failed = |what: &str, cause: io::Error| {
            DeviceError::Failed(format!("{address}: cannot {what}: {cause}; see dmesg"))
        };
        let config =
            device.region(VFIO_PCI_CONFIG_REGION_INDEX).map_err(|cause| failed("find its regions", cause))?;
        let accessible = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        if config.flags & accessible != accessible || config.size < PCI_CONFIG_SIZE {
            return Err(failed("reach the configuration space", io::ErrorKind::Unsupported.into()));
        }
        let function = Self {
            address,
            folder: sysfs.device(address),
            config: config.offset,
            removal: removal_notice(&device),
            device,
            claim,
            dma_bits: AtomicU32::new(DMA_BITS),
            ringing: Mutex::default(),
            through_sysfs: AtomicU8::new(0),
        };
        tracing::debug!(%address, node = %way.node().display(), resets = function.device.can_reset(), "opened");
        // What cannot be reset from outside (a VF that a virtual machine has behind a bridge to conventional PCI shows
        // no FLR) is reset by its driver.
        if function.device.can_reset() {
            function.reset().map_err(|cause| failed("reset the function", cause))?;
        }
        // Off until the driver has its memory in place.
        function.set_bus_master(false).map_err(|cause| failed("reach the command register", cause))?;
        Ok(Arc::new(function))
    }

    /// Where it sits.
    pub fn address(&self) -> Address {
        self.address
    }

    /// Maps a part of a BAR through VFIO, uncached.
    fn bar_of_vfio(self: &Arc<Self>, index: u8, start: u64, len: usize) -> Result<Bar, DeviceError> {
        let address = self.address;
        let end = start.saturating_add(len as u64);
        let region = self.device.region(u32::from(index)).map_err(|cause| {
            DeviceError::Failed(format!("{address}: cannot find BAR {index}: {cause}; see dmesg"))
        })?;
        let areas = region.sparse.clone().unwrap_or_else(|| vec![(0, region.size)]);
        let holds = |(first, size): &(u64, u64)| *first <= start && end <= first.saturating_add(*size);
        if region.flags & VFIO_REGION_INFO_FLAG_MMAP == 0 || !areas.iter().any(holds) {
            return Err(DeviceError::Unsupported(format!(
                "{address}: the kernel does not let bytes {start} to {end} of BAR {index} be mapped; the VF's memory \
                 may be disabled (see lspci -vv -s {address}), or smaller than a page of this machine"
            )));
        }
        Bar::map(&self.device, region.offset, start, len, Caching::Uncached, Some(Arc::clone(self))).map_err(
            |cause| DeviceError::Failed(format!("{address}: cannot map BAR {index}: {cause}; see dmesg")),
        )
    }

    /// Maps a part of a BAR through sysfs: write-combining, which VFIO's own mapping is not, or uncached. The kernel allows it
    /// for a BAR of which VFIO has mapped nothing (CONFIG_IO_STRICT_DEVMEM), and takes the mapping away when VFIO does.
    fn bar_of_sysfs(
        self: &Arc<Self>,
        index: u8,
        start: u64,
        len: usize,
        caching: Caching,
    ) -> io::Result<Bar> {
        let suffix = if caching == Caching::WriteCombining { "_wc" } else { "" };
        let file = self.folder.join(format!("resource{index}{suffix}"));
        let file = OpenOptions::new().read(true).write(true).open(file)?;
        if start.checked_add(len as u64).is_none_or(|end| file.metadata().is_ok_and(|of| of.len() < end)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bar = Bar::map(&file, 0, start, len, caching, Some(Arc::clone(self)))?;
        self.through_sysfs.fetch_or(bit(index), Ordering::Relaxed);
        Ok(bar)
    }
}

fn bit(bar: u8) -> u8 {
    1u8.checked_shl(u32::from(bar)).unwrap_or(0)
}

impl AsFd for Function {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        // On a function that is gone all of these fail, and there is no DMA left to end.
        let quiet = self.set_bus_master(false).and_then(|()| self.interrupts(0)).and_then(|_| self.reset());
        if let Err(cause) = quiet {
            tracing::debug!(address = %self.address, %cause, "not reset when closed");
        }
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
        let bits = self.dma_bits.load(Ordering::Relaxed);
        // SAFETY: the caller's promise is the same.
        unsafe { self.claim.space().map(ptr, len, align, access, bits) }
    }

    fn unmap(&self, iova: u64, len: usize) {
        self.claim.space().unmap(iova, len);
    }

    fn is_physical(&self) -> bool {
        self.claim.space().is_physical()
    }
}

impl PciFunction for Function {
    /// The kernel chooses how: by FLR if the function has it, else as sysfs says in `reset_method`. Takes 100 ms and more
    /// (PCI Express §6.6.2).
    fn reset(&self) -> io::Result<()> {
        let mut tries = 0;
        loop {
            match self.device.reset() {
                // Somebody holds the function's lock: its PF is being reset, say.
                Err(cause) if cause.raw_os_error() == Some(libc::EAGAIN) && tries < RESET_TRIES => {
                    tries += 1;
                    thread::sleep(RESET_INTERVAL);
                }
                done => return done,
            }
        }
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

    fn bar(
        self: Arc<Self>,
        index: u8,
        start: u64,
        len: usize,
        caching: Caching,
    ) -> Result<Arc<dyn Registers>, DeviceError> {
        let address = self.address;
        if caching == Caching::WriteCombining {
            match self.bar_of_sysfs(index, start, len, caching) {
                Ok(bar) => return Ok(Arc::new(bar)),
                // Its driver tells the operator.
                Err(cause) => tracing::debug!(%address, bar = index, %cause, "no write-combining mapping"),
            }
        } else if self.through_sysfs.load(Ordering::Relaxed) & bit(index) != 0 {
            return match self.bar_of_sysfs(index, start, len, caching) {
                Ok(bar) => Ok(Arc::new(bar)),
                Err(cause) => {
                    Err(DeviceError::Failed(format!("{address}: cannot map BAR {index}: {cause}; see dmesg")))
                }
            };
        }
        Ok(Arc::new(self.bar_of_vfio(index, start, len)?))
    }

    fn set_dma_bits(&self, bits: u32) {
        self.dma_bits.store(bits, Ordering::Relaxed);
    }

    fn interrupts(&self, count: usize) -> io::Result<Vec<OwnedFd>> {
        let mut ringing = self.ringing.lock().unwrap_or_else(PoisonError::into_inner);
        // The kernel only adds to what is there where it can do so at run time (6.4 and later, and not every NIC).
        if *ringing > 0 {
            self.device.silence(VFIO_PCI_MSIX_IRQ_INDEX)?;
            *ringing = 0;
        }
        if count == 0 {
            return Ok(Vec::new());
        }
        let has = self.device.interrupts(VFIO_PCI_MSIX_IRQ_INDEX)?;
        if count > has as usize {
            let text = format!("{} has {has} MSI-X interrupts, and {count} are wanted", self.address);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let new = |_| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let bells = (0..count).map(new).collect::<Result<Vec<_>, _>>()?;
        let borrowed: Vec<BorrowedFd<'_>> = bells.iter().map(AsFd::as_fd).collect();
        self.device.ring(VFIO_PCI_MSIX_IRQ_INDEX, &borrowed).map_err(|cause| {
            let text = format!("{}: cannot switch on {count} MSI-X interrupts: {cause}", self.address);
            io::Error::new(cause.kind(), text)
        })?;
        *ringing = count;
        Ok(bells)
    }

    fn shares_address_space(&self) -> bool {
        self.claim.space().is_shared()
    }

    /// The kernel asks before VFs are disabled or the device is unplugged, and waits until it is closed, for as long
    /// as it takes.
    fn removal_requested(&self) -> bool {
        self.removal.as_ref().is_some_and(|event| rustix::io::read(event, &mut [0; 8]).is_ok())
    }
}

/// Accesses to the configuration space are whole or failed.
fn whole(bytes: usize, expected: usize) -> io::Result<()> {
    if bytes == expected { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn removal_notice(device: &DeviceFile) -> Option<OwnedFd> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
    // Kernels before 4.0 have no such notice.
    device.ring(VFIO_PCI_REQ_IRQ_INDEX, &[event.as_fd()]).ok()?;
    Some(event)
}
