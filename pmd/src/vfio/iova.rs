//! Addresses that devices see.
//!
//! An IO address space has holes: the MSI window (`0xfee0_0000` to `0xfeef_ffff` on x86), regions that firmware
//! reserved, and whatever lies above the address width of the IOMMU or the device. The kernel lists what is left; this
//! allocator never leaves that list.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Lends out ranges of IO virtual addresses.
#[derive(Debug)]
pub struct IovaAllocator {
    /// First to last address of each free range; ranges neither overlap nor touch.
    free: BTreeMap<u64, u64>,
}

/// Nothing is lent below this address, so that 0, which a device may take for "no buffer", is no one's address.
const LOWEST: u64 = 0x10_0000;

impl IovaAllocator {
    /// An allocator over `ranges` (first to last byte, as in `VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE`), of which only
    /// addresses of at most `width` bits count: the narrowest of the devices that will use the space.
    pub fn new(ranges: &[RangeInclusive<u64>], width: u32) -> Self {
        let last = if width >= u64::BITS { u64::MAX } else { (1 << width) - 1 };
        let mut allocator = Self { free: BTreeMap::new() };
        for range in ranges {
            let (first, last) = ((*range.start()).max(LOWEST), (*range.end()).min(last));
            if first <= last {
                allocator.insert(first, last);
            }
        }
        allocator
    }

    /// A range of `len` bytes whose start is a multiple of `align` (a power of two); `None` where there is no such
    /// room, or `len` is 0. The lowest that fits, so that narrow devices are served as long as possible.
    pub fn allocate(&mut self, len: u64, align: u64) -> Option<u64> {
        if len == 0 || !align.is_power_of_two() {
            return None;
        }
        let (first, last, start) = self.free.iter().find_map(|(&first, &last)| {
            let start = first.checked_next_multiple_of(align)?;
            (start.checked_add(len - 1)? <= last).then_some((first, last, start))
        })?;
        self.free.remove(&first);
        if first < start {
            self.free.insert(first, start - 1);
        }
        let end = start + (len - 1);
        if end < last {
            self.free.insert(end + 1, last);
        }
        Some(start)
    }

    /// Takes back what [`allocate`](Self::allocate) lent.
    pub fn release(&mut self, start: u64, len: u64) {
        if let Some(last) = len.checked_sub(1).and_then(|more| start.checked_add(more)) {
            self.insert(start, last);
        }
    }

    /// Adds a range, merged with those it overlaps or touches.
    fn insert(&mut self, mut first: u64, mut last: u64) {
        let neighbours: Vec<u64> = self
            .free
            .range(..=last.saturating_add(1))
            .filter(|&(_, &end)| end.saturating_add(1) >= first)
            .map(|(&start, _)| start)
            .collect();
        for start in neighbours {
            if let Some(end) = self.free.remove(&start) {
                (first, last) = (first.min(start), last.max(end));
            }
        }
        self.free.insert(first, last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MSI: RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

    fn usual() -> Vec<RangeInclusive<u64>> {
        vec![0..=*MSI.start() - 1, *MSI.end() + 1..=u64::MAX]
    }

    #[test]
    fn the_msi_window_is_never_lent() {
        let mut iova = IovaAllocator::new(&usual(), 32);
        let mut total = 0;
        while let Some(start) = iova.allocate(0x40_0000, 0x1000) {
            assert!(start + 0x3f_ffff < *MSI.start() || start > *MSI.end());
            total += 0x40_0000u64;
        }
        assert!(total > 0xff00_0000 - 0x100_0000);
    }

    #[test]
    fn the_address_width_of_the_device_is_kept() {
        let mut iova = IovaAllocator::new(&usual(), 22);
        assert_eq!(iova.allocate(0x10_0000, 0x10_0000), Some(0x10_0000));
        assert_eq!(iova.allocate(0x20_0000, 0x1000), Some(0x20_0000));
        assert_eq!(iova.allocate(1, 1), None);
    }

    #[test]
    fn odd_requests_get_nothing() {
        let mut iova = IovaAllocator::new(&usual(), 64);
        assert_eq!(iova.allocate(0, 1), None);
        assert_eq!(iova.allocate(1, 3), None);
        assert_eq!(iova.allocate(u64::MAX, 1), None);
        assert_eq!(IovaAllocator::new(&[], 64).allocate(1, 1), None);
        assert!(IovaAllocator::new(&[u64::MAX - 1..=u64::MAX], 64).allocate(2, 1).is_some());
    }

    proptest! {
        #[test]
        fn loans_never_overlap_and_everything_comes_back(
            steps in prop::collection::vec((1u64..0x20_0000, 0u32..22, any::<prop::sample::Index>(), any::<bool>()), 1..200)
        ) {
            let ranges = [0x1000..=0x7f_ffff, *MSI.start()..=*MSI.end()];
            let mut iova = IovaAllocator::new(&ranges, 39);
            let fresh = iova.free.clone();
            let mut lent: Vec<(u64, u64)> = Vec::new();
            for (len, align, pick, give_back) in steps {
                if give_back && !lent.is_empty() {
                    let (start, len) = lent.swap_remove(pick.index(lent.len()));
                    iova.release(start, len);
                } else if let Some(start) = iova.allocate(len, 1 << align) {
                    prop_assert_eq!(start % (1 << align), 0);
                    prop_assert!(ranges.iter().any(|r| r.contains(&start) && r.contains(&(start + len - 1))));
                    prop_assert!(lent.iter().all(|&(s, l)| start + len <= s || s + l <= start));
                    lent.push((start, len));
                }
            }
            for (start, len) in lent {
                iova.release(start, len);
            }
            prop_assert_eq!(iova.free, fresh);
        }
    }
}
