//! Requests to VFIO and iommufd that `vfio-ioctls` has no call for.
//!
//! VFIO's structures are those of `vfio-bindings`; the four of iommufd that are needed are written down here.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// A request number. Both interfaces make them by `_IO(';', n)`, whatever the size of the argument.
pub(super) type Request = libc::c_ulong;

const fn request(number: Request) -> Request {
    ((b';' as Request) << 8) | number
}

// linux/vfio.h, from VFIO_BASE (100) on.
pub(super) const VFIO_SET_IOMMU: Request = request(102);
pub(super) const VFIO_GROUP_GET_STATUS: Request = request(103);
pub(super) const VFIO_GROUP_SET_CONTAINER: Request = request(104);
pub(super) const VFIO_GROUP_GET_DEVICE_FD: Request = request(106);
pub(super) const VFIO_DEVICE_GET_INFO: Request = request(107);
pub(super) const VFIO_DEVICE_GET_REGION_INFO: Request = request(108);
pub(super) const VFIO_DEVICE_GET_IRQ_INFO: Request = request(109);
pub(super) const VFIO_DEVICE_SET_IRQS: Request = request(110);
pub(super) const VFIO_DEVICE_RESET: Request = request(111);
pub(super) const VFIO_IOMMU_GET_INFO: Request = request(112);
pub(super) const VFIO_IOMMU_MAP_DMA: Request = request(113);
pub(super) const VFIO_DEVICE_BIND_IOMMUFD: Request = request(118);
pub(super) const VFIO_DEVICE_ATTACH_IOMMUFD_PT: Request = request(119);

// linux/iommufd.h, from IOMMUFD_CMD_BASE (0x80) on.
pub(super) const IOMMU_IOAS_ALLOC: Request = request(0x81);
pub(super) const IOMMU_IOAS_IOVA_RANGES: Request = request(0x84);
pub(super) const IOMMU_IOAS_MAP: Request = request(0x85);
pub(super) const IOMMU_IOAS_UNMAP: Request = request(0x86);

/// `enum iommufd_ioas_map_flags`.
pub(super) const IOMMU_IOAS_MAP_FIXED_IOVA: u32 = 1 << 0;
pub(super) const IOMMU_IOAS_MAP_WRITEABLE: u32 = 1 << 1;
pub(super) const IOMMU_IOAS_MAP_READABLE: u32 = 1 << 2;

/// `struct iommu_ioas_alloc`. In each structure of iommufd `size` is its own.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct IoasAlloc {
    pub(super) size: u32,
    pub(super) flags: u32,
    pub(super) out_ioas_id: u32,
}

/// `struct iommu_iova_range`: first and last address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct IovaRange {
    pub(super) start: u64,
    pub(super) last: u64,
}

/// `struct iommu_ioas_iova_ranges`.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct IoasIovaRanges {
    pub(super) size: u32,
    pub(super) ioas_id: u32,
    /// Ranges that there is room for; then, how many there are.
    pub(super) num_iovas: u32,
    pub(super) reserved: u32,
    /// Where they go.
    pub(super) allowed_iovas: u64,
    pub(super) out_iova_alignment: u64,
}

/// `struct iommu_ioas_map`.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct IoasMap {
    pub(super) size: u32,
    pub(super) flags: u32,
    pub(super) ioas_id: u32,
    pub(super) reserved: u32,
    pub(super) user_va: u64,
    pub(super) length: u64,
    pub(super) iova: u64,
}

/// `struct iommu_ioas_unmap`.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct IoasUnmap {
    pub(super) size: u32,
    pub(super) ioas_id: u32,
    pub(super) iova: u64,
    pub(super) length: u64,
}

const _: () = assert!(size_of::<IoasAlloc>() == 12 && size_of::<IovaRange>() == 16);
const _: () = assert!(size_of::<IoasIovaRanges>() == 32);
const _: () = assert!(size_of::<IoasMap>() == 40 && size_of::<IoasUnmap>() == 24);

/// Makes a request whose argument lies at `argument`; the kernel's answer, which is 0 or more.
///
/// # Safety
/// `argument` must point to what the request reads and writes, as large as that says itself, and what it points to in turn
/// must be so, too.
pub(super) unsafe fn call<T>(file: &impl AsFd, request: Request, argument: *mut T) -> io::Result<i32> {
    // SAFETY: the caller vouches for the argument.
    let status = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), request, argument) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(status) }
}

/// Makes a request whose argument is a number, or that has none.
pub(super) fn call_with(file: &impl AsFd, request: Request, argument: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: the requests made so (see above) take numbers, which point to nothing.
    let status = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), request, argument) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(status) }
}

/// The size of a structure as it says it itself.
pub(super) const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

/// The 32-bit word at byte `at` of what the kernel wrote.
pub(super) fn word(buffer: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(buffer.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The 64-bit word at byte `at`.
pub(super) fn quad(buffer: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(buffer.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Walks a chain of capabilities (`struct vfio_info_cap_header`: `u16` id, `u16` version, `u32` offset of the next, 0 at the
/// end) from byte `at` of `buffer` on: calls `each` with id and place. `head` bytes come before the first.
pub(super) fn capabilities(buffer: &[u8], at: u32, head: usize, mut each: impl FnMut(u32, usize)) {
    let mut at = at as usize;
    // Offsets must grow, or a circle of them would hold us here.
    let mut seen = head;
    while at >= seen {
        let (Some(id), Some(next)) = (word(buffer, at), word(buffer, at.saturating_add(4))) else { break };
        each(id & 0xffff, at);
        seen = at + 8;
        at = next as usize;
    }
}

/// More than any answer of the kernel takes; it says how much it needs.
const LONGEST: usize = 64 * 1024;

/// Makes a request whose answer has a length that only the kernel knows: `buffer` is the argument, whose first word (`argsz`)
/// is set here, and grows as that says.
pub(super) fn call_growing(file: &impl AsFd, request: Request, mut buffer: Vec<u8>) -> io::Result<Vec<u8>> {
    let question = buffer.clone();
    loop {
        buffer.get_mut(..question.len()).into_iter().for_each(|head| head.copy_from_slice(&question));
        let argsz = buffer.len() as u32;
        buffer.get_mut(..4).into_iter().for_each(|field| field.copy_from_slice(&argsz.to_ne_bytes()));
        // SAFETY: the first word tells the kernel how many bytes it may write, and the buffer has as many.
        unsafe { call(file, request, buffer.as_mut_ptr()) }?;
        let needed = word(&buffer, 0).unwrap_or_default() as usize;
        if needed <= buffer.len() || needed > LONGEST {
            return Ok(buffer);
        }
        buffer.resize(needed, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn request_numbers_are_those_of_the_headers() {
        assert_eq!((VFIO_DEVICE_RESET, VFIO_IOMMU_MAP_DMA, IOMMU_IOAS_MAP), (0x3b6f, 0x3b71, 0x3b85));
    }

    proptest! {
        #[test]
        fn no_answer_of_the_kernel_makes_a_walk_hang(bytes in prop::collection::vec(0u8..40, 0..256), at in 0u32..300) {
            let mut seen = 0;
            capabilities(&bytes, at, 8, |_, at| { seen += 1; assert!(at + 8 <= bytes.len()); });
            prop_assert!(seen <= bytes.len() / 8);
        }
    }
}
