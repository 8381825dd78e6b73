//! A container with the type 1 IOMMU: the address space of a group that is opened by its file.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use vfio_bindings::bindings::vfio::{
    VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_IOMMU_INFO_CAPS,
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, VFIO_TYPE1v2_IOMMU,
    vfio_iommu_type1_dma_map, vfio_iommu_type1_info,
};
use vfio_ioctls::{VfioContainer, VfioError};

use super::device_file::DeviceFile;
use super::failure::Failure;
use super::group::Place;
use super::token::VfToken;
use super::uapi::{self, quad, word};
use crate::device::DeviceError;
use crate::memory::DmaAccess;
use crate::pci::Address;

/// A container, and the group in it.
pub(super) struct Type1 {
    // The group leaves the container when it is closed, so it goes first.
    group: Place,
    container: VfioContainer,
}

impl Type1 {
    pub(super) fn new() -> Result<Self, DeviceError> {
        let container = VfioContainer::new(None).map_err(|cause| container_error(&cause))?;
        Ok(Self { group: Place::default(), container })
    }

    /// The container's descriptor.
    fn file(&self) -> BorrowedFd<'_> {
        // SAFETY: the container is open for as long as `self` is.
        unsafe { BorrowedFd::borrow_raw(self.container.as_raw_fd()) }
    }

    /// Opens a function of the group at `node`.
    pub(super) fn open(
        &self,
        node: &Path,
        address: Address,
        token: Option<&VfToken>,
    ) -> Result<DeviceFile, Failure> {
        self.group.open(&self.file(), VFIO_TYPE1v2_IOMMU, node, address, token)
    }

    /// Usable addresses; none where the kernel does not say (before 5.4).
    pub(super) fn ranges(&self) -> io::Result<Vec<RangeInclusive<u64>>> {
        self.info().map(|info| info.ranges)
    }

    /// Mappings that may still be made, where the kernel says so.
    pub(super) fn mappings_left(&self) -> Option<u32> {
        self.info().ok()?.mappings_left
    }

    fn info(&self) -> io::Result<Info> {
        let question = vec![0; size_of::<vfio_iommu_type1_info>()];
        uapi::call_growing(&self.file(), uapi::VFIO_IOMMU_GET_INFO, question)
            .map(|answer| parse_info(&answer))
    }

    /// # Safety
    /// As for [`AddressSpace::map`](super::AddressSpace::map).
    pub(super) unsafe fn map(
        &self,
        iova: u64,
        ptr: *mut u8,
        len: usize,
        access: DmaAccess,
    ) -> io::Result<()> {
        let flags = match access {
            DmaAccess::Read => VFIO_DMA_MAP_FLAG_READ,
            DmaAccess::ReadWrite => VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        };
        let mut argument = vfio_iommu_type1_dma_map {
            argsz: uapi::size::<vfio_iommu_type1_dma_map>(),
            flags,
            vaddr: ptr as u64,
            iova,
            size: len as u64,
        };
        // SAFETY: the argument is of the type that this request reads, and says its own size; the caller vouches for the rest.
        unsafe { uapi::call(&self.file(), uapi::VFIO_IOMMU_MAP_DMA, &raw mut argument) }.map(drop)
    }

    pub(super) fn unmap(&self, iova: u64, len: usize) -> io::Result<()> {
        self.container.vfio_dma_unmap(iova, len).map_err(io::Error::other)
    }
}

/// What is wrong with containers altogether.
pub(super) fn container_error(cause: &VfioError) -> DeviceError {
    DeviceError::NotReady(match cause {
        VfioError::OpenContainer(cause) => match cause.kind() {
            io::ErrorKind::NotFound => {
                "there is no /dev/vfio/vfio: the kernel has no VFIO; load it: modprobe vfio-pci".to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                "no permission for /dev/vfio/vfio; run the daemon as root, or: chmod 0666 /dev/vfio/vfio".to_owned()
            }
            _ => format!("cannot open /dev/vfio/vfio: {cause}; see dmesg"),
        },
        VfioError::VfioExtension => {
            "this kernel's VFIO has no type 1 IOMMU (version 2), so DMA cannot be confined; boot with intel_iommu=on and \
             load it: modprobe vfio_iommu_type1"
                .to_owned()
        }
        _ => format!("cannot use /dev/vfio/vfio: {cause}; load the modules: modprobe vfio-pci"),
    })
}

/// What the kernel says about an address space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Info {
    ranges: Vec<RangeInclusive<u64>>,
    mappings_left: Option<u32>,
}

/// `struct vfio_iommu_type1_info`, and the capabilities behind it.
fn parse_info(answer: &[u8]) -> Info {
    let mut info = Info::default();
    if word(answer, 4).unwrap_or_default() & VFIO_IOMMU_INFO_CAPS == 0 {
        return info;
    }
    let first = word(answer, 16).unwrap_or_default();
    uapi::capabilities(answer, first, size_of::<vfio_iommu_type1_info>(), |id, at| match id {
        VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
            let count = word(answer, at + 8).unwrap_or_default() as usize;
            let range = |n: usize| {
                let at = at + 16 + n * 16;
                Some(quad(answer, at)?..=quad(answer, at + 8)?)
            };
            info.ranges = (0..count).map_while(range).collect();
        }
        VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => info.mappings_left = word(answer, at + 8),
        _ => {}
    });
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
        assert_eq!(parse_info(&bytes(&[24, 1, 0x1000, 0, 24, 0])), Info::default());
        assert_eq!(parse_info(&[]), Info::default());
    }

    proptest! {
        #[test]
        fn no_answer_of_the_kernel_makes_it_hang(words in prop::collection::vec(0u32..100, 0..64)) {
            parse_info(&bytes(&words));
        }
    }
}
