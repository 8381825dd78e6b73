//! IO address spaces: what the devices of one IOMMU group can reach by DMA.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::access::{Access, Way};
use super::device_file::DeviceFile;
use super::failure::{Failure, Step, explain};
use super::iommufd::Ioas;
use super::iova::IovaAllocator;
use super::no_iommu::NoIommu;
use super::token::VfToken;
use super::type1::Type1;
use crate::device::DeviceError;
use crate::memory::DmaAccess;
use crate::pci::Address;

/// Address bits when the kernel lists no ranges (before 5.4): what the narrowest VT-d units reach.
const CAUTIOUS_WIDTH: u32 = 39;
/// The window that x86 reserves for message-signalled interrupts.
const MSI_WINDOW: RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

/// One IO address space, and who uses which of its addresses.
pub struct AddressSpace {
    backend: Backend,
    /// `None` until a function is in it, and for ever without an IOMMU.
    iova: Mutex<Option<IovaAllocator>>,
    group: u32,
    /// Functions that are open in it.
    claimed: Mutex<BTreeSet<Address>>,
}

/// What makes memory reachable.
enum Backend {
    Type1(Type1),
    Iommufd(Ioas),
    NoIommu(NoIommu),
}

/// The right to open one function of an address space; given back when dropped.
#[derive(Debug)]
pub(super) struct Claim {
    space: Arc<AddressSpace>,
    address: Address,
}

impl Claim {
    pub(super) fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.space.claimed).remove(&self.address);
    }
}

impl fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace").field("group", &self.group).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is consistent between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Address spaces in use, by IOMMU group. The kernel lets a group into one address space of one process only.
static SPACES: Mutex<Option<HashMap<u32, Weak<AddressSpace>>>> = Mutex::new(None);

impl AddressSpace {
    /// The address space of an IOMMU group: the one that is in use, else a new one by this way.
    pub(super) fn of_group(group: u32, way: &Way) -> Result<Arc<Self>, DeviceError> {
        let mut spaces = lock(&SPACES);
        let spaces = spaces.get_or_insert_default();
        if let Some(space) = spaces.get(&group).and_then(Weak::upgrade) {
            return Ok(space);
        }
        let backend = match way {
            Way::Group { .. } => Backend::Type1(Type1::new()?),
            Way::NoIommu { .. } => Backend::NoIommu(NoIommu::new()?),
            Way::DeviceFile { iommu, .. } => Backend::Iommufd(Ioas::new(iommu).map_err(|failure| {
                let Failure { cause, .. } = failure;
                DeviceError::NotReady(format!(
                    "cannot use /dev/iommu: {cause}; run the daemon as root, or give the file to its user: chown USER \
                     /dev/iommu"
                ))
            })?),
        };
        let (iova, claimed) = (Mutex::default(), Mutex::default());
        let space = Arc::new(Self { backend, iova, group, claimed });
        spaces.retain(|_, space| space.strong_count() > 0);
        spaces.insert(group, Arc::downgrade(&space));
        Ok(space)
    }

    /// By which way a group's functions are already in use here: others of it must be opened by the same.
    pub(super) fn access_in_use(group: u32) -> Option<Access> {
        let space = lock(&SPACES).as_ref()?.get(&group)?.upgrade()?;
        Some(match space.backend {
            Backend::Iommufd(_) => Access::DeviceFile,
            Backend::Type1(_) | Backend::NoIommu(_) => Access::Group,
        })
    }

    /// Claims the function at `address`: the kernel itself lets a process open it twice.
    pub(super) fn claim(self: Arc<Self>, address: Address) -> Result<Claim, DeviceError> {
        let mut claimed = lock(&self.claimed);
        if !claimed.insert(address) {
            return Err(DeviceError::Busy(format!(
                "{address} is already in use by this process; remove it from its relay first"
            )));
        }
        if claimed.len() > 1 {
            tracing::info!(
                %address, group = self.group,
                "shares its IOMMU group, and so its IO address space, with another device in use; zero-copy is refused there"
            );
        }
        drop(claimed);
        Ok(Claim { space: self, address })
    }

    /// Opens a function in it, by the way for which it was made, and learns which addresses are left with it.
    pub(super) fn open(
        &self,
        address: Address,
        way: &Way,
        token: Option<&VfToken>,
    ) -> Result<DeviceFile, DeviceError> {
        let opened = match &self.backend {
            Backend::Type1(container) => container.open(way.node(), address, token),
            Backend::NoIommu(container) => container.open(way.node(), address, token),
            Backend::Iommufd(ioas) => ioas.open(way.node(), token),
        };
        let device = opened
            .and_then(|device| self.learn_ranges().map(|()| device).map_err(Step::Describe.failed()))
            .map_err(|failure| explain(address, self.group, way, &failure, token.is_some()))?;
        Ok(device)
    }

    /// Number of the IOMMU group.
    pub fn group(&self) -> u32 {
        self.group
    }

    /// Whether several functions are open in it.
    pub(super) fn is_shared(&self) -> bool {
        lock(&self.claimed).len() > 1
    }

    /// Whether devices find memory at its physical address, because nothing translates.
    pub(super) fn is_physical(&self) -> bool {
        matches!(self.backend, Backend::NoIommu(_))
    }

    /// Makes `len` bytes at `ptr` reachable for DMA, and returns the address at which devices find them: a multiple of
    /// `align`, of at most `bits` bits.
    ///
    /// # Safety
    /// The bytes must stay mapped, and no Rust reference to them may exist, until [`unmap`](Self::unmap).
    pub unsafe fn map(
        &self,
        ptr: *mut u8,
        len: usize,
        align: usize,
        access: DmaAccess,
        bits: u32,
    ) -> Result<u64, DeviceError> {
        if let Backend::NoIommu(physical) = &self.backend {
            return physical.map(ptr, len, align, bits);
        }
        let address = self.allocate(len, align, bits)?;
        // Without the lock: the kernel brings in and holds every page, and others need an address meanwhile.
        // SAFETY: the caller vouches for the memory.
        let mapped = unsafe {
            match &self.backend {
                Backend::Type1(container) => container.map(address, ptr, len, access),
                Backend::Iommufd(ioas) => ioas.map(address, ptr, len, access),
                Backend::NoIommu(_) => Err(io::ErrorKind::Unsupported.into()),
            }
        };
        mapped.map(|()| address).map_err(|cause| {
            if let Some(iova) = &mut *lock(&self.iova) {
                iova.release(address, len as u64);
            }
            self.map_error(len, &cause)
        })
    }

    fn allocate(&self, len: usize, align: usize, bits: u32) -> Result<u64, DeviceError> {
        let address = match &mut *lock(&self.iova) {
            Some(iova) => iova.allocate_below(len as u64, align as u64, bits),
            None => None,
        };
        address.ok_or_else(|| {
            DeviceError::Failed(format!(
                "no room for {len} bytes below {bits} bits in the IO address space of IOMMU group {}; use fewer relays \
                 with VFs of this group",
                self.group
            ))
        })
    }

    /// Takes back what [`map`](Self::map) gave: no device reaches the bytes any more.
    pub fn unmap(&self, address: u64, len: usize) {
        let unmapped = match &self.backend {
            Backend::Type1(container) => container.unmap(address, len),
            Backend::Iommufd(ioas) => ioas.unmap(address, len),
            // Nothing was mapped; the device was quiet before its memory was given up.
            Backend::NoIommu(_) => return,
        };
        match unmapped {
            Ok(()) => {
                if let Some(iova) = &mut *lock(&self.iova) {
                    iova.release(address, len as u64);
                }
            }
            // The address stays taken: better a lost range than a range mapped twice.
            Err(cause) => {
                tracing::error!(group = self.group, address, len, %cause, "cannot unmap DMA memory")
            }
        }
    }

    /// Asks which addresses may be used: fewer with each function that was opened.
    fn learn_ranges(&self) -> io::Result<()> {
        let ranges = match &self.backend {
            Backend::Type1(container) => container.ranges()?,
            Backend::Iommufd(ioas) => ioas.ranges()?,
            Backend::NoIommu(_) => return Ok(()),
        };
        tracing::debug!(group = self.group, ?ranges, "IO address space");
        let mut iova = lock(&self.iova);
        match &mut *iova {
            Some(_) if ranges.is_empty() => {}
            Some(iova) => iova.restrict(&ranges),
            None if ranges.is_empty() => {
                let ranges = [0..=*MSI_WINDOW.start() - 1, *MSI_WINDOW.end() + 1..=u64::MAX];
                *iova = Some(IovaAllocator::new(&ranges, CAUTIOUS_WIDTH));
            }
            None => *iova = Some(IovaAllocator::new(&ranges, u64::BITS)),
        }
        Ok(())
    }

    fn map_error(&self, len: usize, cause: &io::Error) -> DeviceError {
        let remedy = match (cause.raw_os_error().unwrap_or_default(), &self.backend) {
            // Type 1 answers ENOMEM for both limits, and ENOSPC for the second since 5.10; iommufd has only the first.
            (libc::ENOSPC, Backend::Type1(_)) => too_many_mappings(),
            (libc::ENOMEM, Backend::Type1(container)) if container.mappings_left() == Some(0) => {
                too_many_mappings()
            }
            (libc::ENOMEM, _) => locked_memory(len),
            (libc::EPERM, _) => {
                "an entry of the kernel command line (intel_iommu, amd_iommu) or the firmware forbids it; \
                            see dmesg"
                    .to_owned()
            }
            _ => "see dmesg".to_owned(),
        };
        let group = self.group;
        DeviceError::Failed(format!(
            "cannot map {len} bytes for DMA in IOMMU group {group}: {cause}; {remedy}"
        ))
    }
}

fn too_many_mappings() -> String {
    "the kernel's limit of DMA mappings is reached; raise it: \
     echo 262144 > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit"
        .to_owned()
}

/// What helps where memory cannot be locked.
pub(super) fn locked_memory(len: usize) -> String {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let limit = limit.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
    format!(
        "DMA memory is locked, and the limit of locked memory ({limit}) has no room for {} KiB more; raise it: \
         LimitMEMLOCK=infinity in the systemd unit, or ulimit -l unlimited",
        len.div_ceil(1024)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_explained() {
        assert!(locked_memory(4096).contains("LimitMEMLOCK"));
        assert!(too_many_mappings().contains("dma_entry_limit"));
    }
}
