//! IO address spaces: what the devices of one IOMMU group can reach by DMA.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vfio_bindings::bindings::vfio::{
    VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_IOMMU_INFO_CAPS,
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, vfio_iommu_type1_dma_map,
};
use vfio_ioctls::{VfioContainer, VfioError};

use super::iova::IovaAllocator;
use crate::device::DeviceError;
use crate::memory::DmaAccess;
use crate::pci::Address;

/// `VFIO_IOMMU_GET_INFO` (linux/vfio.h), `_IO(';', 100 + 12)`.
const VFIO_IOMMU_GET_INFO: libc::c_ulong = 0x3b70;
/// `VFIO_IOMMU_MAP_DMA`, `_IO(';', 100 + 13)`.
const VFIO_IOMMU_MAP_DMA: libc::c_ulong = 0x3b71;
/// Address bits when the kernel lists no ranges (before 5.4): what the narrowest VT-d units reach.
const CAUTIOUS_WIDTH: u32 = 39;
/// The window that x86 reserves for message-signalled interrupts.
const MSI_WINDOW: RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;
/// Address width that every device served here has. The NFP's older descriptors hold 40 bits; Intel's hold 64.
const DEVICE_WIDTH: u32 = 40;

/// What the kernel says about an address space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct IommuInfo {
    /// Usable addresses, first to last; empty where the kernel does not say.
    ranges: Vec<RangeInclusive<u64>>,
    /// Mappings that may still be made; `None` where the kernel does not say.
    mappings_left: Option<u32>,
}

/// One IO address space: a VFIO container, and who uses which of its addresses.
pub struct AddressSpace {
    container: Arc<VfioContainer>,
    iova: Mutex<Option<IovaAllocator>>,
    group: u32,
    /// Functions that are open in it.
    claimed: Mutex<BTreeSet<Address>>,
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

/// Address spaces in use, by IOMMU group. The kernel lets a group into one container of one process only.
static SPACES: Mutex<Option<HashMap<u32, Weak<AddressSpace>>>> = Mutex::new(None);

impl AddressSpace {
    /// The address space of an IOMMU group: the one that is in use, else a new one.
    ///
    /// The group joins with the first [`Function`](super::Function) that is opened in the space.
    pub fn of_group(group: u32) -> Result<Arc<Self>, DeviceError> {
        let mut spaces = lock(&SPACES);
        let spaces = spaces.get_or_insert_default();
        if let Some(space) = spaces.get(&group).and_then(Weak::upgrade) {
            return Ok(space);
        }
        let container = VfioContainer::new(None).map_err(|cause| container_error(&cause))?;
        let space = Arc::new(Self {
            container: Arc::new(container),
            iova: Mutex::new(None),
            group,
            claimed: Mutex::default(),
        });
        spaces.retain(|_, space| space.strong_count() > 0);
        spaces.insert(group, Arc::downgrade(&space));
        Ok(space)
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

    /// The container, to open devices with.
    pub(super) fn container(&self) -> &Arc<VfioContainer> {
        &self.container
    }

    /// Number of the IOMMU group.
    pub fn group(&self) -> u32 {
        self.group
    }

    /// Whether several functions are open in it.
    pub(super) fn is_shared(&self) -> bool {
        lock(&self.claimed).len() > 1
    }

    /// Makes `len` bytes at `ptr` reachable for DMA, and returns the address at which devices find them, a multiple of
    /// `align`.
    ///
    /// # Safety
    /// The bytes must stay mapped, and no Rust reference to them may exist, until [`unmap`](Self::unmap).
    pub unsafe fn map(
        &self,
        ptr: *mut u8,
        len: usize,
        align: usize,
        access: DmaAccess,
    ) -> Result<u64, DeviceError> {
        let address = self.allocate(len, align)?;
        // Without the lock: the kernel brings in and holds every page, and others need an address meanwhile.
        // SAFETY: the caller vouches for the memory.
        let mapped = unsafe { dma_map(&self.container, address, ptr, len, access) };
        mapped.map(|()| address).map_err(|cause| {
            if let Some(iova) = &mut *lock(&self.iova) {
                iova.release(address, len as u64);
            }
            self.map_error(len, &cause)
        })
    }

    fn allocate(&self, len: usize, align: usize) -> Result<u64, DeviceError> {
        let mut guard = lock(&self.iova);
        let iova = match &mut *guard {
            Some(iova) => iova,
            none => none.insert(self.allocator()?),
        };
        iova.allocate(len as u64, align as u64).ok_or_else(|| {
            DeviceError::Failed(format!(
                "no room for {len} bytes below {DEVICE_WIDTH} bits in the IO address space of IOMMU group {}; \
                 use fewer relays with VFs of this group",
                self.group
            ))
        })
    }

    /// Takes back what [`map`](Self::map) gave: no device reaches the bytes any more.
    pub fn unmap(&self, address: u64, len: usize) {
        match self.container.vfio_dma_unmap(address, len) {
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

    fn allocator(&self) -> Result<IovaAllocator, DeviceError> {
        let info = iommu_info(&self.container).map_err(|cause| {
            DeviceError::Failed(format!(
                "the kernel does not describe the IO address space of IOMMU group {}: {cause}; see dmesg",
                self.group
            ))
        })?;
        tracing::debug!(group = self.group, ?info, "IO address space");
        if info.ranges.is_empty() {
            let ranges = [0..=*MSI_WINDOW.start() - 1, *MSI_WINDOW.end() + 1..=u64::MAX];
            return Ok(IovaAllocator::new(&ranges, CAUTIOUS_WIDTH));
        }
        Ok(IovaAllocator::new(&info.ranges, DEVICE_WIDTH))
    }

    fn map_error(&self, len: usize, cause: &io::Error) -> DeviceError {
        let remedy = match cause.raw_os_error().unwrap_or_default() {
            // The kernel answers ENOMEM for both limits, and ENOSPC for the second since 5.10.
            libc::ENOSPC => too_many_mappings(),
            libc::ENOMEM => {
                let left = iommu_info(&self.container).ok().and_then(|info| info.mappings_left);
                if left == Some(0) { too_many_mappings() } else { locked_memory(len) }
            }
            libc::EPERM => {
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

/// Maps `len` bytes at `ptr` at address `iova`.
///
/// # Safety
/// As for [`AddressSpace::map`].
unsafe fn dma_map(
    container: &VfioContainer,
    iova: u64,
    ptr: *mut u8,
    len: usize,
    access: DmaAccess,
) -> io::Result<()> {
    let flags = match access {
        DmaAccess::Read => VFIO_DMA_MAP_FLAG_READ,
        DmaAccess::ReadWrite => VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
    };
    let argument = vfio_iommu_type1_dma_map {
        argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
        flags,
        vaddr: ptr as u64,
        iova,
        size: len as u64,
    };
    // SAFETY: the argument is of the type that this request reads, and says its own size; the caller vouches for the rest.
    let status = unsafe { libc::ioctl(container.as_raw_fd(), VFIO_IOMMU_MAP_DMA, &raw const argument) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn too_many_mappings() -> String {
    "the kernel's limit of DMA mappings is reached; raise it: \
     echo 262144 > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit"
        .to_owned()
}

fn locked_memory(len: usize) -> String {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let limit = limit.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
    format!(
        "DMA memory is locked, and the limit of locked memory ({limit}) has no room for {} KiB more; raise it: \
         LimitMEMLOCK=infinity in the systemd unit, or ulimit -l unlimited",
        len.div_ceil(1024)
    )
}

fn container_error(cause: &VfioError) -> DeviceError {
    DeviceError::NotReady(match cause {
        VfioError::OpenContainer(cause) => match cause.kind() {
            io::ErrorKind::NotFound => {
                "there is no /dev/vfio/vfio: the kernel has no VFIO; load it: modprobe vfio-pci".to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                "no permission for /dev/vfio/vfio; run the daemon as root, or: \
                                                chmod 0666 /dev/vfio/vfio"
                    .to_owned()
            }
            _ => format!("cannot open /dev/vfio/vfio: {cause}; see dmesg"),
        },
        VfioError::VfioExtension => {
            "this kernel's VFIO has no type 1 IOMMU (version 2), so DMA cannot be confined; \
                                     boot with intel_iommu=on and load it: modprobe vfio_iommu_type1"
                .to_owned()
        }
        _ => format!("cannot use /dev/vfio/vfio: {cause}; load the modules: modprobe vfio-pci"),
    })
}

/// `struct vfio_iommu_type1_info` without its capabilities.
const INFO_HEADER: usize = 24;
/// More than any kernel's capabilities take; the kernel says how much it needs.
const MAX_INFO: usize = 64 * 1024;

fn iommu_info(container: &VfioContainer) -> io::Result<IommuInfo> {
    let mut buffer = vec![0u8; 512];
    loop {
        // Neither can fail: the buffer has INFO_HEADER bytes at least.
        let argsz = buffer.len() as u32;
        if let Some(field) = buffer.get_mut(..4) {
            field.copy_from_slice(&argsz.to_ne_bytes());
        }
        // SAFETY: the first word tells the kernel how many bytes it may write, and the buffer has as many.
        let status = unsafe { libc::ioctl(container.as_raw_fd(), VFIO_IOMMU_GET_INFO, buffer.as_mut_ptr()) };
        if status < 0 {
            return Err(io::Error::last_os_error());
        }
        let needed = word(&buffer, 0).unwrap_or_default() as usize;
        if needed <= buffer.len() || needed > MAX_INFO {
            return Ok(parse_info(&buffer));
        }
        buffer.resize(needed, 0);
    }
}

fn word(buffer: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(buffer.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn quad(buffer: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(buffer.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Walks the capabilities behind `struct vfio_iommu_type1_info`: a header of `u16` id, `u16` version and `u32` offset
/// of the next, 0 at the end.
fn parse_info(buffer: &[u8]) -> IommuInfo {
    let mut info = IommuInfo::default();
    if word(buffer, 4).unwrap_or_default() & VFIO_IOMMU_INFO_CAPS == 0 {
        return info;
    }
    let mut at = word(buffer, 16).unwrap_or_default() as usize;
    // Offsets must grow, or a circle of them would hold us here.
    let mut seen = INFO_HEADER;
    while at >= seen {
        let (Some(id), Some(next)) = (word(buffer, at), word(buffer, at + 4)) else { break };
        match id & 0xffff {
            VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                let count = word(buffer, at + 8).unwrap_or_default() as usize;
                let range = |n: usize| {
                    let at = at + 16 + n * 16;
                    Some(quad(buffer, at)?..=quad(buffer, at + 8)?)
                };
                info.ranges = (0..count).map_while(range).collect();
            }
            VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => info.mappings_left = word(buffer, at + 8),
            _ => {}
        }
        seen = at + 8;
        at = next as usize;
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn capabilities_are_read() {
        let caps = [1 | 1 << 16, 64, 2, 0, 0, 0, 0xfedf_ffff, 0, 0xfef0_0000, 0];
        let head = [0, VFIO_IOMMU_INFO_CAPS, 0x1000, 0, 24, 0];
        let tail = [0x7f_ffff, 0x7f_0000, 3 | 1 << 16, 0, 65535, 0];
        let mut words = [&head[..], &caps[..], &tail[..]].concat();
        words[7] = 18 * 4;
        words[15] = 0;
        let info = parse_info(&bytes(&words));
        assert_eq!(info.ranges[0], 0..=0xfedf_ffff);
        assert_eq!(info.ranges.len(), 2);
        assert_eq!(info.mappings_left, Some(65535));
    }

    #[test]
    fn without_capabilities_nothing_is_known() {
        assert_eq!(parse_info(&bytes(&[24, 1, 0x1000, 0, 24, 0])), IommuInfo::default());
        assert_eq!(parse_info(&[]), IommuInfo::default());
    }

    proptest! {
        #[test]
        fn no_answer_of_the_kernel_makes_it_hang(words in prop::collection::vec(0u32..100, 0..64)) {
            parse_info(&bytes(&words));
        }
    }

    #[test]
    fn limits_are_explained() {
        assert!(locked_memory(4096).contains("LimitMEMLOCK"));
        assert!(too_many_mappings().contains("dma_entry_limit"));
    }
}
