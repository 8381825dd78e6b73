//! A VFIO device file: regions, interrupts, reset. However it was opened.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE, VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS, vfio_device_info,
    vfio_irq_info, vfio_region_info,
};

use super::uapi::{self, quad, word};

/// A region of the device file: a BAR, or the configuration space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Region {
    /// `VFIO_REGION_INFO_FLAG_…`.
    pub(super) flags: u32,
    pub(super) size: u64,
    /// Where it starts in the file.
    pub(super) offset: u64,
    /// Start and length of the parts that can be mapped, where not all of it can: a BAR with the MSI-X table inside comes
    /// with a list of what is left around it.
    pub(super) sparse: Option<Vec<(u64, u64)>>,
}

/// An open device file.
#[derive(Debug)]
pub(super) struct DeviceFile {
    file: OwnedFd,
    flags: u32,
    regions: u32,
}

impl DeviceFile {
    /// Takes over what VFIO opened.
    pub(super) fn new(file: OwnedFd) -> io::Result<Self> {
        let mut info = vfio_device_info { argsz: uapi::size::<vfio_device_info>(), ..Default::default() };
        // SAFETY: the argument is of the type of this request, and says its size.
        unsafe { uapi::call(&file, uapi::VFIO_DEVICE_GET_INFO, &raw mut info) }?;
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(io::Error::other("it is no PCI function"));
        }
        Ok(Self { file, flags: info.flags, regions: info.num_regions })
    }

    /// Whether it can be reset from outside.
    pub(super) fn can_reset(&self) -> bool {
        self.flags & VFIO_DEVICE_FLAGS_RESET != 0
    }

    /// Resets it, which takes 100 ms and more (PCI Express §6.6.2).
    pub(super) fn reset(&self) -> io::Result<()> {
        uapi::call_with(&self.file, uapi::VFIO_DEVICE_RESET, 0).map(drop)
    }

    /// Describes region `index` (`VFIO_PCI_…_REGION_INDEX`).
    pub(super) fn region(&self, index: u32) -> io::Result<Region> {
        if index >= self.regions {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut question = vec![0; size_of::<vfio_region_info>()];
        question.get_mut(8..12).into_iter().for_each(|field| field.copy_from_slice(&index.to_ne_bytes()));
        uapi::call_growing(&self.file, uapi::VFIO_DEVICE_GET_REGION_INFO, question)
            .map(|answer| parse_region(&answer))
    }

    /// Interrupts of kind `index` (`VFIO_PCI_…_IRQ_INDEX`) that there are.
    pub(super) fn interrupts(&self, index: u32) -> io::Result<u32> {
        let mut info = vfio_irq_info { argsz: uapi::size::<vfio_irq_info>(), index, ..Default::default() };
        // SAFETY: the argument is of the type of this request, and says its size.
        unsafe { uapi::call(&self.file, uapi::VFIO_DEVICE_GET_IRQ_INFO, &raw mut info) }?;
        Ok(info.count)
    }

    /// Has the first interrupts of kind `index` ring these bells. The kernel takes a reference of its own to each.
    pub(super) fn ring(&self, index: u32, bells: &[BorrowedFd<'_>]) -> io::Result<()> {
        let fds = bells.iter().map(|bell| bell.as_raw_fd() as u32);
        self.set(VFIO_IRQ_SET_DATA_EVENTFD, index, fds.collect())
    }

    /// Switches all interrupts of kind `index` off.
    pub(super) fn silence(&self, index: u32) -> io::Result<()> {
        self.set(VFIO_IRQ_SET_DATA_NONE, index, Vec::new())
    }

    /// `struct vfio_irq_set`: size, flags, kind, first, count, and a descriptor for each.
    fn set(&self, data: u32, index: u32, fds: Vec<u32>) -> io::Result<()> {
        let count = fds.len() as u32;
        let mut words = vec![0, data | VFIO_IRQ_SET_ACTION_TRIGGER, index, 0, count];
        words.extend(fds);
        let size = size_of_val(words.as_slice()) as u32;
        words.first_mut().into_iter().for_each(|argsz| *argsz = size);
        // SAFETY: the argument is laid out as this request reads it, and says its size.
        match unsafe { uapi::call(&self.file, uapi::VFIO_DEVICE_SET_IRQS, words.as_mut_ptr()) }? {
            0 => Ok(()),
            // The processors have fewer vectors to give.
            fewer => Err(io::Error::other(format!("the machine has only {fewer} interrupt vectors left"))),
        }
    }
}

impl AsFd for DeviceFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// `struct vfio_region_info`: size, flags, index, offset of the first capability, 64-bit size and offset.
fn parse_region(answer: &[u8]) -> Region {
    let mut region = Region {
        flags: word(answer, 4).unwrap_or_default(),
        size: quad(answer, 16).unwrap_or_default(),
        offset: quad(answer, 24).unwrap_or_default(),
        sparse: None,
    };
    if region.flags & VFIO_REGION_INFO_FLAG_CAPS != 0 {
        let first = word(answer, 12).unwrap_or_default();
        uapi::capabilities(answer, first, size_of::<vfio_region_info>(), |id, at| {
            if id == VFIO_REGION_INFO_CAP_SPARSE_MMAP {
                // Header, `u32` count, `u32` unused, then pairs of offset and size.
                let count = word(answer, at + 8).unwrap_or_default() as usize;
                let area =
                    |n: usize| Some((quad(answer, at + 16 + n * 16)?, quad(answer, at + 24 + n * 16)?));
                region.sparse = Some((0..count).map_while(area).collect());
            }
        });
    }
    region
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn a_region_is_described() {
        let region = parse_region(&words(&[32, 7, 2, 0, 0x4000, 0, 0, 2]));
        assert_eq!(region, Region { flags: 7, size: 0x4000, offset: 2 << 32, sparse: None });
        assert_eq!(parse_region(&[]), Region::default());
    }

    #[test]
    fn what_is_left_around_an_interrupt_table_is_found() {
        let head = [80, 7 | VFIO_REGION_INFO_FLAG_CAPS, 2, 32, 0x4000, 0, 0, 0];
        // Some other capability, then the list of two areas.
        let caps = [3 | 1 << 16, 40, 1 | 1 << 16, 0, 2, 0, 0, 0, 0x1000, 0, 0x3000, 0, 0x1000, 0];
        let region = parse_region(&words(&[&head[..], &caps].concat()));
        assert_eq!(region.sparse, Some(vec![(0, 0x1000), (0x3000, 0x1000)]));
        // A count that promises more than there is.
        let mut torn = words(&[&head[..], &caps].concat());
        torn.truncate(80);
        assert_eq!(parse_region(&torn).sparse, Some(vec![(0, 0x1000)]));
    }

    proptest! {
        #[test]
        fn no_answer_of_the_kernel_makes_it_stumble(answer in prop::collection::vec(prop_oneof![0u32..80, any::<u32>()], 0..40)) {
            let mut answer = answer;
            if let Some(flags) = answer.get_mut(1) {
                *flags |= VFIO_REGION_INFO_FLAG_CAPS;
            }
            parse_region(&words(&answer));
        }
    }
}
