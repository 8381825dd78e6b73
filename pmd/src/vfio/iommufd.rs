//! `/dev/iommu` with one IO address space: for functions that are opened by their own device files.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_BIND_FLAG_TOKEN, vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd,
};

use super::device_file::DeviceFile;
use super::failure::{Failure, Step};
use super::group::with_token;
use super::token::VfToken;
use super::uapi::{
    self, IOMMU_IOAS_MAP_FIXED_IOVA, IOMMU_IOAS_MAP_READABLE, IOMMU_IOAS_MAP_WRITEABLE, IoasAlloc,
    IoasIovaRanges, IoasMap, IoasUnmap, IovaRange,
};
use crate::memory::DmaAccess;

/// Ranges that the first question has room for; there are a handful.
const RANGES: usize = 32;

/// An IO address space (IOAS). It goes when its file is closed.
#[derive(Debug)]
pub(super) struct Ioas {
    file: File,
    id: u32,
}

impl Ioas {
    /// A new one, of the iommufd at `node`.
    pub(super) fn new(node: &Path) -> Result<Self, Failure> {
        let file = OpenOptions::new().read(true).write(true).open(node).map_err(Step::OpenIommu.failed())?;
        let mut alloc = IoasAlloc { size: uapi::size::<IoasAlloc>(), ..Default::default() };
        // SAFETY: the argument is of the type of this request, and says its size.
        unsafe { uapi::call(&file, uapi::IOMMU_IOAS_ALLOC, &raw mut alloc) }.map_err(Step::Iommu.failed())?;
        Ok(Self { file, id: alloc.out_ioas_id })
    }

    /// Opens the function whose device file is `node`, and puts it into the address space, which it leaves when it is closed.
    pub(super) fn open(&self, node: &Path, token: Option<&VfToken>) -> Result<DeviceFile, Failure> {
        // Opened anew for a second try: a file that was refused once cannot be bound any more.
        let file = with_token(token, |token| {
            let file = OpenOptions::new().read(true).write(true).open(node).map_err(Step::Open.failed())?;
            self.bind(&file, token).map_err(Step::Take.failed())?;
            Ok(file)
        })?;
        let mut attach = vfio_device_attach_iommufd_pt {
            argsz: uapi::size::<vfio_device_attach_iommufd_pt>(),
            pt_id: self.id,
            ..Default::default()
        };
        // SAFETY: the argument is of the type of this request, and says its size.
        unsafe { uapi::call(&file, uapi::VFIO_DEVICE_ATTACH_IOMMUFD_PT, &raw mut attach) }
            .map_err(Step::Attach.failed())?;
        DeviceFile::new(OwnedFd::from(file)).map_err(Step::Describe.failed())
    }

    fn bind(&self, file: &File, token: Option<&VfToken>) -> io::Result<()> {
        let mut bind = vfio_device_bind_iommufd {
            argsz: uapi::size::<vfio_device_bind_iommufd>(),
            iommufd: self.file.as_raw_fd(),
            ..Default::default()
        };
        if let Some(token) = token {
            // Kernels that ask for a token here know this flag (6.17).
            bind.flags = VFIO_DEVICE_BIND_FLAG_TOKEN;
            bind.token_uuid_ptr = token.as_bytes().as_ptr() as u64;
        }
        // SAFETY: the argument is of the type of this request, and says its size; the token has the 16 bytes that are read.
        unsafe { uapi::call(file, uapi::VFIO_DEVICE_BIND_IOMMUFD, &raw mut bind) }.map(drop)
    }

    /// Usable addresses: of all functions in it together, so fewer with each.
    pub(super) fn ranges(&self) -> io::Result<Vec<RangeInclusive<u64>>> {
        let mut ranges = vec![IovaRange::default(); RANGES];
        loop {
            let mut question = IoasIovaRanges {
                size: uapi::size::<IoasIovaRanges>(),
                ioas_id: self.id,
                num_iovas: ranges.len() as u32,
                allowed_iovas: ranges.as_mut_ptr() as u64,
                ..Default::default()
            };
            // SAFETY: the argument is of the type of this request, and says its size and for how many ranges there is room.
            let asked = unsafe { uapi::call(&self.file, uapi::IOMMU_IOAS_IOVA_RANGES, &raw mut question) };
            let there_are = question.num_iovas as usize;
            match asked {
                Ok(_) => {
                    ranges.truncate(there_are);
                    return Ok(ranges.iter().map(|range| range.start..=range.last).collect());
                }
                Err(cause) if cause.raw_os_error() == Some(libc::EMSGSIZE) && there_are > ranges.len() => {
                    ranges.resize(there_are, IovaRange::default());
                }
                Err(cause) => return Err(cause),
            }
        }
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
        let may = match access {
            DmaAccess::Read => IOMMU_IOAS_MAP_READABLE,
            DmaAccess::ReadWrite => IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
        };
        let mut map = IoasMap {
            size: uapi::size::<IoasMap>(),
            flags: IOMMU_IOAS_MAP_FIXED_IOVA | may,
            ioas_id: self.id,
            user_va: ptr as u64,
            length: len as u64,
            iova,
            ..Default::default()
        };
        // SAFETY: the argument is of the type of this request, and says its size; the caller vouches for the memory.
        unsafe { uapi::call(&self.file, uapi::IOMMU_IOAS_MAP, &raw mut map) }.map(drop)
    }

    pub(super) fn unmap(&self, iova: u64, len: usize) -> io::Result<()> {
        let size = uapi::size::<IoasUnmap>();
        let mut unmap = IoasUnmap { size, ioas_id: self.id, iova, length: len as u64 };
        // SAFETY: the argument is of the type of this request, and says its size.
        unsafe { uapi::call(&self.file, uapi::IOMMU_IOAS_UNMAP, &raw mut unmap) }.map(drop)
    }
}
