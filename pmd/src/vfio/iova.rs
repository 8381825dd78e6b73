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
    /// First to last address of what may be lent at all.
    allowed: Vec<(u64, u64)>,
}

/// Nothing is lent below this address, so that 0, which a device may take for "no buffer", is no one's address.
const LOWEST: u64 = 0x10_0000;

impl IovaAllocator {
    /// An allocator over `ranges` (first to last byte, as in `VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE`), of which only
    /// addresses of at most `width` bits count: the narrowest of the devices that will use the space.
    pub fn new(ranges: &[RangeInclusive<u64>], width: u32) -> Self {
        let last = last_of(width);
        let mut allocator = Self { free: BTreeMap::new(), allowed: Vec::new() };
        for range in ranges {
            let (first, last) = ((*range.start()).max(LOWEST), (*range.end()).min(last));
            if first <= last {
                allocator.allowed.push((first, last));
                allocator.insert(first, last);
            }
        }
        allocator
    }

    /// Lends only what is in `ranges`, too, from now on: of devices that share a space each narrows it. What is lent stays lent.
    pub fn restrict(&mut self, ranges: &[RangeInclusive<u64>]) {
        let ranges: Vec<(u64, u64)> = ranges.iter().map(|range| (*range.start(), *range.end())).collect();
        self.allowed = self.allowed.iter().flat_map(|range| common(&ranges, *range)).collect();
        for (first, last) in std::mem::take(&mut self.free) {
            self.insert_allowed(first, last);
        }
    }

    /// A range of `len` bytes whose start is a multiple of `align` (a power of two); `None` where there is no such
    /// room, or `len` is 0. The lowest that fits, so that narrow devices are served as long as possible.
    pub fn allocate(&mut self, len: u64, align: u64) -> Option<u64> {
        self.allocate_below(len, align, u64::BITS)
    }

    /// The same, with addresses of at most `width` bits: those of the device that asks.
    pub fn allocate_below(&mut self, len: u64, align: u64, width: u32) -> Option<u64> {
        if len == 0 || !align.is_power_of_two() {
            return None;
        }
        let highest = last_of(width);
        let (first, last, start) = self.free.iter().find_map(|(&first, &last)| {
            let start = first.checked_next_multiple_of(align)?;
            (start.checked_add(len - 1)? <= last.min(highest)).then_some((first, last, start))
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
            self.insert_allowed(start, last);
        }
    }

    /// Adds what may be lent of a range.
    fn insert_allowed(&mut self, first: u64, last: u64) {
        for (first, last) in common(&self.allowed, (first, last)) {
            self.insert(first, last);
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

/// The last address of `width` bits.
fn last_of(width: u32) -> u64 {
    if width >= u64::BITS { u64::MAX } else { (1 << width) - 1 }
}

/// What `range` has in common with each of `ranges`.
fn common(ranges: &[(u64, u64)], range: (u64, u64)) -> Vec<(u64, u64)> {
    let both = ranges.iter().map(|(first, last)| ((*first).max(range.0), (*last).min(range.1)));
    both.filter(|(first, last)| first <= last).collect()
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

    #[test]
    fn each_device_is_lent_what_it_reaches() {
        let mut iova = IovaAllocator::new(&[0x100_0000..=u64::MAX], 64);
        assert_eq!(iova.allocate_below(1 << 39, 1 << 39, 40), Some(1 << 39));
        assert_eq!(iova.allocate_below(1 << 39, 1 << 39, 40), None, "above is only for wider ones");
        assert_eq!(iova.allocate_below(1 << 39, 1 << 39, 64), Some(1 << 40));
        assert_eq!(iova.allocate_below(0x1000, 0x1000, 24), None);
        assert_eq!(iova.allocate_below(0x1000, 0x1000, 25), Some(0x100_0000));
    }

    #[test]
    fn a_space_that_got_narrower_lends_only_what_is_left_and_takes_back_no_more() {
        let mut iova = IovaAllocator::new(&usual(), 39);
        let low = iova.allocate(0x20_0000, 0x20_0000).unwrap();
        let high = iova.allocate_below(0x1000, 1 << 35, 39).unwrap();
        iova.restrict(&[0..=0xffff, 0x30_0000..=0x4f_ffff]);
        assert_eq!((low, high), (0x20_0000, 1 << 35));
        assert_eq!(iova.allocate(0x10_0000, 0x1000), Some(0x40_0000), "what is lent is still lent");
        assert_eq!(iova.allocate(1, 1), None);
        iova.release(high, 0x1000);
        assert_eq!(iova.allocate(1, 1), None, "it lies outside now");
        iova.release(low, 0x20_0000);
        assert_eq!(iova.allocate(0x10_0000, 0x10_0000), Some(0x30_0000));
        assert_eq!(iova.allocate(1, 1), None);
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
