//! Our split ring against rust-vmm's: the same memory, good or bad, means the same to both.
//!
//! Where they part on purpose:
//! - `NEXT` beside `INDIRECT` is refused here (virtio 1.3, 2.7.5.3.1) and passed over there.
//! - What one burst can hold is the longest chain here; there it is the ring or the table.
//! - Buffers outside memory, and those for the other direction, are refused here; there it is left to their user.
//! - A head outside the table is completed here, since the driver waits for it; there it cannot be.

use std::sync::Arc;

use pmd::frame::BURST_SEGMENTS;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::chain::{Access, Descriptor, INDIRECT, NEXT, Stop, WRITE};
use super::queue::{BadIndex, Virtqueue};
use super::{RingConfig, SplitRing};
use crate::counters::DropReason;
use crate::driver::memory::GuestRam;
use crate::driver::split::{DriverRing, write_descriptor};
use crate::guest::memory::{GuestMemory, RegionDescription};
use crate::guest::space::AddressSpace;

const GPA: u64 = 0x10_0000;
const RAM: u64 = 0x1_0000;
/// Here one mapping ends and another begins.
const MIDDLE: u64 = GPA + RAM / 2;
/// Entries of indirect tables; none of them lies across the middle.
const TABLES: u64 = GPA + 0x2000;
const ENTRIES: usize = 24;
/// A table with more entries than a burst has segments, each followed by the next.
const LONG_TABLE: u64 = GPA + 0x4000;
const LONG: usize = BURST_SEGMENTS + 50;

/// What a driver left in memory.
#[derive(Clone, Debug)]
struct Content {
    size: u16,
    /// Where both indices stand at first.
    start: u16,
    descriptors: Vec<Descriptor>,
    entries: Vec<Descriptor>,
    heads: Vec<u16>,
    /// How far the index is ahead of the heads.
    surplus: u16,
    access: Access,
    /// With what length each chain is completed.
    lengths: Vec<u32>,
}

fn buffer() -> impl Strategy<Value = (u64, u32)> {
    prop_oneof![
        16 => (GPA..GPA + RAM - 3000, 0u32..3000),
        3 => (MIDDLE - 64..MIDDLE + 64, 0u32..200),
        1 => (GPA - 32..GPA + 32, 0u32..64),
        1 => (GPA + RAM - 64..GPA + RAM + 64, 0u32..100),
        1 => any::<(u64, u32)>(),
    ]
}

fn table() -> impl Strategy<Value = (u64, u32)> {
    let entry = |n: u64| TABLES + 16 * n;
    prop_oneof![
        8 => (0..ENTRIES as u64, 1u32..8).prop_map(move |(n, len)| (entry(n), 16 * len)),
        2 => (0..ENTRIES as u64, 0u64..16, 0u32..100).prop_map(move |(n, by, len)| (entry(n) + by, len)),
        1 => (0..LONG as u32).prop_map(|short| (LONG_TABLE, 16 * (LONG as u32 - short))),
        1 => any::<(u64, u16)>().prop_map(|(addr, len)| (addr, 16 * u32::from(len))),
    ]
}

/// A descriptor in a table of so many entries.
fn descriptor(entries: u16) -> impl Strategy<Value = Descriptor> {
    let next = prop_oneof![20 => 0..entries, 1 => any::<u16>()];
    let write = prop::bool::weighted(0.05);
    let direct = (buffer(), prop::bool::weighted(0.7)).prop_map(|((addr, len), more)| Descriptor {
        addr,
        len,
        flags: if more { NEXT } else { 0 },
        next: 0,
    });
    let indirect = (table(), prop::bool::weighted(0.1)).prop_map(|((addr, len), more)| Descriptor {
        addr,
        len,
        flags: INDIRECT | if more { NEXT } else { 0 },
        next: 0,
    });
    (prop_oneof![5 => direct, 1 => indirect], next, write).prop_map(|(descriptor, next, write)| Descriptor {
        next,
        flags: descriptor.flags | if write { WRITE } else { 0 },
        ..descriptor
    })
}

fn content() -> impl Strategy<Value = Content> {
    let size = prop_oneof![Just(2u16), Just(4), Just(8), Just(32)];
    size.prop_flat_map(|size| {
        (
            prop_oneof![any::<u16>(), Just(0), Just(u16::MAX)],
            prop::collection::vec(descriptor(size), usize::from(size)),
            prop::collection::vec(descriptor(8), ENTRIES),
            prop::collection::vec(prop_oneof![20 => 0..size, 1 => any::<u16>()], 0..=usize::from(size)),
            prop_oneof![9 => Just(0), 1 => any::<u16>()],
            any::<bool>(),
            prop::collection::vec(any::<u32>(), usize::from(size)),
        )
            .prop_map(move |(start, descriptors, entries, heads, surplus, writes, lengths)| {
                // Most chains are for the direction that they are looked at in.
                let access = if writes { Access::Write } else { Access::Read };
                let turn =
                    |d: &Descriptor| Descriptor { flags: d.flags ^ if writes { WRITE } else { 0 }, ..*d };
                let [descriptors, entries] =
                    [descriptors, entries].map(|all: Vec<Descriptor>| all.iter().map(turn).collect());
                Content { size, start, descriptors, entries, heads, surplus, access, lengths }
            })
    })
}

/// Consecutive pieces put together: it does not matter where a buffer is cut.
fn joined(pieces: impl IntoIterator<Item = (u64, u32)>) -> Vec<(u64, u64)> {
    let mut whole: Vec<(u64, u64)> = Vec::new();
    for (at, len) in pieces.into_iter().filter(|(_, len)| *len > 0) {
        match whole.last_mut() {
            Some((start, length)) if start.wrapping_add(*length) == at => *length += u64::from(len),
            _ => whole.push((at, u64::from(len))),
        }
    }
    whole
}

/// Whether `pieces` begin with what was `seen`, of which the last may be cut.
fn begins_with(pieces: &[(u64, u64)], seen: &[(u64, u64)]) -> bool {
    let Some(((at, len), whole)) = seen.split_last() else { return true };
    let Some((before, [next, ..])) = pieces.split_at_checked(whole.len()) else { return false };
    before == whole && next.0 == *at && next.1 >= *len
}

/// What is to be visited of a chain that the oracle found, and whether all of it is good.
fn expected(chain: &[virtio_queue::desc::split::Descriptor], access: Access) -> (Vec<(u64, u32)>, bool) {
    let mut pieces = Vec::new();
    for descriptor in chain {
        let (addr, len) = (descriptor.addr().0, descriptor.len());
        if descriptor.is_write_only() != (access == Access::Write) {
            return (pieces, false);
        }
        let inside = if (GPA..GPA + RAM).contains(&addr) { GPA + RAM - addr } else { 0 };
        pieces.push((addr, len.min(inside as u32)));
        if u64::from(len) > inside {
            return (pieces, false);
        }
    }
    // A chain that ends because it is wrong ends in the middle.
    let whole = chain.last().is_some_and(|last| !last.has_next());
    (pieces, whole)
}

/// Whether the chain from `head` comes to a descriptor with both `NEXT` and `INDIRECT`.
fn goes_on_behind_a_table(content: &Content, head: u16) -> bool {
    let mut index = head;
    for _ in 0..content.size {
        let Some(descriptor) = content.descriptors.get(usize::from(index)) else { return false };
        if descriptor.flags & INDIRECT != 0 {
            return descriptor.flags & NEXT != 0;
        }
        index = descriptor.next;
    }
    false
}

fn compare(content: &Content) -> TestCaseResult {
    let mut ram = GuestRam::new(GPA, RAM).unwrap();
    let mut driver = DriverRing::new(&mut ram, content.size).unwrap();
    driver.next_available = content.start;
    for (n, descriptor) in content.descriptors.iter().enumerate() {
        driver.set(&ram, n as u16, *descriptor);
    }
    for (n, entry) in content.entries.iter().enumerate() {
        write_descriptor(&ram, TABLES + 16 * n as u64, *entry);
    }
    let direction = if content.access == Access::Write { WRITE } else { 0 };
    for n in 0..LONG as u16 {
        let flags = direction | if usize::from(n) + 1 < LONG { NEXT } else { 0 };
        let entry = Descriptor { addr: GPA + u64::from(n), len: 1, flags, next: n + 1 };
        write_descriptor(&ram, LONG_TABLE + 16 * u64::from(n), entry);
    }
    content.heads.iter().for_each(|head| driver.push(&ram, *head));
    driver.set_available_index(&ram, driver.next_available.wrapping_add(content.surplus));
    ram.write(driver.used + 2, &content.start.to_le_bytes());

    // The oracle's memory has the same content, and is its own.
    let theirs = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(GPA), RAM as usize)]).unwrap();
    let mut bytes = vec![0; RAM as usize];
    ram.read(GPA, &mut bytes);
    theirs.write_slice(&bytes, GuestAddress(GPA)).unwrap();
    let mut oracle = Queue::new(content.size).unwrap();
    oracle.try_set_desc_table_address(GuestAddress(driver.descriptors)).unwrap();
    oracle.try_set_avail_ring_address(GuestAddress(driver.available)).unwrap();
    oracle.try_set_used_ring_address(GuestAddress(driver.used)).unwrap();
    oracle.set_next_avail(content.start);
    oracle.set_next_used(content.start);
    oracle.set_ready(true);
    prop_assert!(oracle.is_valid(&theirs));

    let region = |start: u64, size| RegionDescription {
        gpa: GPA + start,
        size,
        user: ram.user() + start,
        offset: start,
    };
    let file = || ram.file().try_clone().unwrap();
    let half = MIDDLE - GPA;
    let memory = GuestMemory::map([(region(0, half), file()), (region(half, half), file())]).unwrap();
    let space = Arc::new(AddressSpace::physical(Arc::new(memory), None));
    let config = RingConfig {
        size: content.size,
        descriptors: ram.user_of(driver.descriptors),
        available: ram.user_of(driver.available),
        used: ram.user_of(driver.used),
        base: u32::from(content.start),
        indirect: true,
        event_idx: false,
        batches: false,
    };
    let mut ring = SplitRing::new(&config, &space, None).unwrap();

    let begun = ring.begin_burst(32);
    let Ok(chains) = oracle.iter(&theirs).map(|chains| chains.collect::<Vec<_>>()) else {
        prop_assert_eq!(begun, Err(BadIndex));
        prop_assert!(ring.next_chain(content.access, |_| Ok(())).is_none());
        return Ok(());
    };
    prop_assert_eq!(begun, Ok(()));
    for (n, theirs_chain) in chains.into_iter().enumerate() {
        let head = theirs_chain.head_index();
        let found: Vec<_> = theirs_chain.collect();
        let (pieces, good) = expected(&found, content.access);
        let pieces = joined(pieces);
        let mut seen = Vec::new();
        if ring.is_exhausted() {
            prop_assert_eq!(ring.begin_burst(1), Ok(()));
        }
        let (chain, walked) = ring
            .next_chain(content.access, |piece| {
                seen.push((piece.gpa, piece.segment.len()));
                Ok(())
            })
            .expect("as many chains as the oracle has");
        prop_assert_eq!((chain.id, chain.slots), (head, 1));
        let seen = joined(seen);
        match walked {
            Err(Stop::Malformed(DropReason::BadIndirect)) if goes_on_behind_a_table(content, head) => {
                prop_assert!(begins_with(&pieces, &seen), "{:?} {:?}", seen, pieces);
            }
            Err(Stop::Malformed(DropReason::ChainTooLong)) if found.len() > BURST_SEGMENTS => {
                prop_assert!(begins_with(&pieces, &seen), "{:?} {:?}", seen, pieces);
            }
            walked => {
                prop_assert_eq!(walked.is_ok(), good, "{:?} of {:?}", walked, found);
                prop_assert!(matches!(walked, Ok(()) | Err(Stop::Malformed(_))));
                prop_assert_eq!(seen, pieces);
            }
        }
        ring.take(chain);
        // No more fit into the used ring unseen than it has entries; nor did the driver make more available.
        if head < content.size {
            let len = content.lengths[n % content.lengths.len()];
            ring.complete(chain, len);
            oracle.add_used(&theirs, head, len).unwrap();
        }
    }
    prop_assert!(ring.next_chain(content.access, |_| Ok(())).is_none());
    ring.publish();
    let len = 6 + 8 * usize::from(content.size);
    let (mut ours, mut other) = (vec![0; len], vec![0; len]);
    ram.read(driver.used, &mut ours);
    theirs.read_slice(&mut other, GuestAddress(driver.used)).unwrap();
    prop_assert_eq!(ours, other);
    prop_assert_eq!(ring.base(), u32::from(oracle.next_avail()));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn the_same_memory_means_the_same_to_rust_vmm(content in content()) {
        compare(&content)?;
    }
}
