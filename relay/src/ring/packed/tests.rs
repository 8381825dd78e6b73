//! The packed ring against a driver's side written by hand: well-behaved first, hostile after.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::*;
use crate::driver::memory::GuestRam;
use crate::driver::packed::{AVAIL, PackedDriver, USED, write_packed_descriptor};
use crate::guest::memory::{GuestMemory, RegionDescription};
use crate::guest::space::AddressSpace;
use crate::ring::notify::Call;
use crate::ring::operations::{Model, Operation, Returns, TestDriver, operations, returns};

pub(in crate::ring) const GPA: u64 = 0x10_0000;
pub(in crate::ring) const RAM: u64 = 2 << 20;
/// Buffers of the tests are from here on; rings and tables are below.
pub(in crate::ring) const BUFFERS: u64 = GPA + (1 << 20);
pub(in crate::ring) const TABLES: u64 = GPA + 0x9_0000;
const OUTSIDE: u64 = GPA + RAM;

pub(in crate::ring) struct Guest {
    pub(in crate::ring) ram: GuestRam,
    pub(in crate::ring) ring: PackedDriver,
    pub(in crate::ring) space: Arc<AddressSpace>,
    event_idx: bool,
    batches: bool,
}

impl Guest {
    pub(in crate::ring) fn new(size: u16) -> Self {
        let mut ram = GuestRam::new(GPA, RAM).unwrap();
        let ring = PackedDriver::new(&mut ram, size).unwrap();
        let region = RegionDescription { gpa: GPA, size: RAM, user: ram.user(), offset: 0 };
        let memory = GuestMemory::map([(region, ram.file().try_clone().unwrap())]).unwrap();
        let space = Arc::new(AddressSpace::physical(Arc::new(memory), None));
        Self { ram, ring, space, event_idx: false, batches: false }
    }

    /// Its device may give chains back so.
    pub(in crate::ring) fn with(mut self, returns: Returns) -> Self {
        self.batches = returns == Returns::InBatches;
        if returns != Returns::AnyOrder {
            self.ring.expect_order();
        }
        self
    }

    pub(super) fn config(&self) -> RingConfig {
        RingConfig {
            size: self.ring.size,
            descriptors: self.ram.user_of(self.ring.descriptors),
            available: self.ram.user_of(self.ring.driver_event),
            used: self.ram.user_of(self.ring.device_event),
            base: self.ring.base(),
            indirect: true,
            event_idx: self.event_idx,
            batches: self.batches,
        }
    }

    pub(in crate::ring) fn device(&self) -> PackedRing {
        PackedRing::new(&self.config(), &self.space, None).unwrap()
    }

    /// Makes a chain available.
    fn post(&mut self, id: u16, chain: &[(u64, u32, u16)]) {
        let chain: Vec<_> = chain.iter().map(|(addr, len, flags)| descriptor(*addr, *len, *flags)).collect();
        assert!(self.ring.push(&self.ram, id, &chain), "no room");
        self.ring.publish(&self.ram);
    }

    pub(super) fn popped(&mut self) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| self.ring.pop(&self.ram)).collect()
    }

    /// Writes an indirect table and returns the descriptor for it.
    fn table(&self, at: u64, entries: &[PackedDescriptor]) -> (u64, u32, u16) {
        for (n, entry) in entries.iter().enumerate() {
            write_packed_descriptor(&self.ram, at + 16 * n as u64, *entry);
        }
        (at, 16 * entries.len() as u32, INDIRECT)
    }
}

pub(super) fn descriptor(addr: u64, len: u32, flags: u16) -> PackedDescriptor {
    PackedDescriptor { addr, len, id: 0xdead, flags }
}

/// What a look at the next chain finds: the chain, what became of the walk, and the pieces.
type Found = (Chain, Result<(), Stop>, Vec<(u64, u32)>);

fn look(ring: &mut PackedRing, access: Access) -> Option<Found> {
    let mut pieces = Vec::new();
    let (chain, walked) = ring.next_chain(access, |piece| {
        pieces.push((piece.gpa, piece.segment.len()));
        Ok(())
    })?;
    Some((chain, walked, pieces))
}

/// Takes and completes what waits, as a transmit queue does; returns ids of good and of bad chains.
fn drain(ring: &mut PackedRing) -> (Vec<u16>, Vec<(u16, DropReason)>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    ring.begin_burst(32).unwrap();
    while let Some((chain, walked, _)) = look(ring, Access::Read) {
        ring.take(chain);
        match walked {
            Ok(()) => good.push(chain.id),
            Err(Stop::Malformed(reason)) => bad.push((chain.id, reason)),
            Err(stop) => panic!("{stop:?}"),
        }
        ring.complete(chain, 0);
    }
    ring.publish();
    (good, bad)
}

#[test]
fn a_chain_is_taken_completed_and_published() {
    let mut guest = Guest::new(8);
    let mut ring = guest.device();
    assert_eq!(look(&mut ring, Access::Read), None);
    guest.post(5, &[(BUFFERS, 12, 0), (BUFFERS + 0x100, 0, 0), (BUFFERS + 0x200, 60, 0)]);
    let (chain, walked, pieces) = look(&mut ring, Access::Read).unwrap();
    assert_eq!((chain, walked), (Chain { id: 5, slots: 3 }, Ok(())));
    assert_eq!(pieces, [(BUFFERS, 12), (BUFFERS + 0x200, 60)], "the empty buffer is left out");
    assert_eq!(look(&mut ring, Access::Read).unwrap().0, chain, "it goes on waiting");
    ring.take(chain);
    assert_eq!(look(&mut ring, Access::Read), None);
    ring.publish();
    assert_eq!(guest.popped(), [], "taken, not completed");
    ring.complete(chain, 0);
    assert_eq!(guest.popped(), [], "completed, not published");
    ring.publish();
    assert_eq!(guest.popped(), [(5, 0)]);
    assert_eq!(guest.ring.base(), ring.base());
}

#[test]
fn a_piece_is_the_memory_that_its_address_names() {
    let mut guest = Guest::new(8);
    let mut ring = guest.device();
    guest.ram.write(BUFFERS, b"payload");
    guest.post(0, &[(BUFFERS, 7, 0)]);
    let mut bytes = [0; 7];
    ring.next_chain(Access::Read, |piece| {
        assert_eq!(piece.segment.copy_to(&mut bytes), 7);
        Ok(())
    });
    assert_eq!(&bytes, b"payload");
}

#[test]
fn buffers_are_cut_where_mappings_end() {
    let mut ram = GuestRam::new(GPA, RAM).unwrap();
    let mut driver = PackedDriver::new(&mut ram, 8).unwrap();
    let region = |start: u64, size| RegionDescription {
        gpa: GPA + start,
        size,
        user: ram.user() + start,
        offset: start,
    };
    let file = || ram.file().try_clone().unwrap();
    let half = RAM / 2;
    let memory = GuestMemory::map([(region(0, half), file()), (region(half, half), file())]).unwrap();
    let config = RingConfig {
        size: 8,
        descriptors: ram.user_of(driver.descriptors),
        available: ram.user_of(driver.driver_event),
        used: ram.user_of(driver.device_event),
        base: driver.base(),
        indirect: true,
        ..RingConfig::default()
    };
    let mut ring =
        PackedRing::new(&config, &Arc::new(AddressSpace::physical(Arc::new(memory), None)), None).unwrap();
    driver.push(&ram, 1, &[descriptor(GPA + half - 10, 30, WRITE)]);
    // A table whose second entry lies across.
    let table = GPA + half - 24;
    driver.push(&ram, 2, &[descriptor(table, 32, INDIRECT)]);
    driver.publish(&ram);
    let (chain, walked, pieces) = look(&mut ring, Access::Write).unwrap();
    assert_eq!((chain.id, walked), (1, Ok(())));
    assert_eq!(pieces, [(GPA + half - 10, 10), (GPA + half, 20)]);
    ring.take(chain);
    write_packed_descriptor(&ram, table, descriptor(BUFFERS, 5, WRITE));
    let (chain, walked, _) = look(&mut ring, Access::Write).unwrap();
    assert_eq!((chain.id, walked), (2, Err(Stop::Malformed(DropReason::BadAddress))));
}

#[test]
fn what_was_written_says_so() {
    let mut guest = Guest::new(4);
    let mut ring = guest.device();
    for (id, len) in [(1, 1514), (2, 0), (3, u32::MAX)] {
        guest.post(id, &[(BUFFERS, 2048, WRITE)]);
        let (chain, walked, _) = look(&mut ring, Access::Write).unwrap();
        assert_eq!(walked, Ok(()));
        ring.take(chain);
        ring.complete(chain, len);
    }
    ring.publish();
    let used: Vec<_> = (0..3).map(|slot| guest.ring.get(&guest.ram, slot)).collect();
    let flags: Vec<_> = used.iter().map(|descriptor| descriptor.flags).collect();
    assert_eq!(flags, [AVAIL | USED | WRITE, AVAIL | USED, AVAIL | USED | WRITE]);
    assert_eq!(used.iter().map(|d| d.addr).collect::<Vec<_>>(), [BUFFERS; 3], "nobody's business");
    assert_eq!(guest.popped(), [(1, 1514), (2, 0), (3, u32::MAX)]);
    for id in [4, 5] {
        guest.post(id, &[(BUFFERS, 2048, WRITE)]);
        let (chain, ..) = look(&mut ring, Access::Write).unwrap();
        ring.take(chain);
        ring.complete(chain, 64);
    }
    ring.publish();
    assert_eq!(guest.ring.get(&guest.ram, 0).flags, WRITE, "on the second lap used is zero");
    assert_eq!(guest.popped(), [(4, 64), (5, 64)]);
}

#[test]
fn the_first_used_descriptor_of_a_burst_appears_last() {
    let mut guest = Guest::new(8);
    let mut ring = guest.device();
    for id in 0..3 {
        guest.post(id, &[(BUFFERS, 60, 0), (BUFFERS, 60, 0)]);
    }
    let before: Vec<_> = (0..8).map(|slot| guest.ring.get(&guest.ram, slot)).collect();
    let taken: Vec<Chain> = std::iter::from_fn(|| {
        let (chain, ..) = look(&mut ring, Access::Read)?;
        ring.take(chain);
        Some(chain)
    })
    .collect();
    for chain in &taken {
        ring.complete(*chain, 0);
    }
    assert_eq!(guest.ring.get(&guest.ram, 0), before[0]);
    assert_eq!(guest.ring.get(&guest.ram, 2).flags, AVAIL | USED);
    ring.publish_quietly();
    for skipped in [1, 3, 5, 6, 7] {
        assert_eq!(guest.ring.get(&guest.ram, skipped), before[usize::from(skipped)], "left alone");
    }
    assert_eq!(guest.popped(), [(0, 0), (1, 0), (2, 0)]);
    assert!(!ring.publish(), "nothing new");
}

#[test]
fn chains_may_be_completed_in_any_order() {
    let mut guest = Guest::new(7);
    let mut ring = guest.device();
    for lap in 0..20 {
        guest.post(10, &[(BUFFERS, 60, 0)]);
        guest.post(11, &[(BUFFERS, 60, 0), (BUFFERS, 60, 0), (BUFFERS, 60, 0)]);
        guest.post(12, &[(BUFFERS, 60, 0), (BUFFERS, 60, 0)]);
        let taken: Vec<Chain> = std::iter::from_fn(|| {
            let (chain, ..) = look(&mut ring, Access::Read)?;
            ring.take(chain);
            Some(chain)
        })
        .collect();
        assert_eq!(taken.iter().map(|chain| chain.id).collect::<Vec<_>>(), [10, 11, 12], "lap {lap}");
        for chain in [taken[1], taken[2], taken[0]] {
            ring.complete(chain, u32::from(chain.slots));
        }
        ring.publish();
        assert_eq!(guest.popped(), [(11, 3), (12, 2), (10, 1)], "lap {lap}");
    }
}

#[test]
fn a_ring_of_any_size_wraps_around() {
    for size in [2, 3, 7, 255, 256, 32768] {
        let mut guest = Guest::new(size);
        let mut ring = guest.device();
        let mut n = 0u32;
        let laps = if size > 1000 { 3 } else { 50 };
        while n < laps * u32::from(size) {
            let slots = (n % 3 + 1).min(u32::from(size));
            let chain = vec![(BUFFERS + u64::from(n % 999), 60, 0); slots as usize];
            guest.post(n as u16, &chain);
            let (chain, walked, pieces) = look(&mut ring, Access::Read).unwrap();
            assert_eq!((chain, walked), (Chain { id: n as u16, slots: slots as u16 }, Ok(())));
            assert_eq!(pieces, vec![(BUFFERS + u64::from(n % 999), 60); slots as usize]);
            assert_eq!(drain(&mut ring), (vec![n as u16], vec![]));
            assert_eq!(guest.popped(), [(n as u16, 0)], "size {size}");
            n += slots;
        }
    }
}

#[test]
fn a_full_ring_comes_back_whole_lap_after_lap() {
    for size in [2, 3, 7, 255, 256, 32768] {
        let mut guest = Guest::new(size);
        let mut ring = guest.device();
        for lap in 0..5 {
            for id in 0..size {
                assert!(guest.ring.push(&guest.ram, id, &[descriptor(BUFFERS, 60, 0)]));
            }
            assert!(!guest.ring.push(&guest.ram, 0, &[descriptor(BUFFERS, 60, 0)]), "full");
            guest.ring.publish(&guest.ram);
            let ids: Vec<u16> = (0..size).collect();
            assert_eq!(drain(&mut ring), (ids, vec![]), "size {size} lap {lap}");
            assert_eq!(guest.popped().len(), usize::from(size));
            assert_eq!(ring.base(), guest.ring.base());
        }
    }
}

#[test]
fn what_is_put_back_is_taken_again_over_the_wrap() {
    for size in [3, 7, 8] {
        let mut guest = Guest::new(size);
        let mut ring = guest.device();
        for lap in 0..4 * size {
            guest.post(1, &[(BUFFERS, 60, 0)]);
            guest.post(2, &[(BUFFERS, 61, 0), (BUFFERS, 62, 0)]);
            for _ in 0..3 {
                let (first, ..) = look(&mut ring, Access::Read).unwrap();
                ring.take(first);
                let (second, ..) = look(&mut ring, Access::Read).unwrap();
                ring.take(second);
                assert_eq!((first, second), (Chain { id: 1, slots: 1 }, Chain { id: 2, slots: 2 }));
                assert_eq!(look(&mut ring, Access::Read), None);
                let before = ring.base();
                ring.put_back(second.slots);
                assert_eq!(look(&mut ring, Access::Read).unwrap().0, second, "size {size} lap {lap}");
                ring.take(second);
                assert_eq!(ring.base(), before);
                ring.put_back(first.slots + second.slots);
            }
            assert_eq!(drain(&mut ring), (vec![1, 2], vec![]));
            assert_eq!(guest.popped(), [(1, 0), (2, 0)]);
        }
    }
}

#[test]
fn a_ring_goes_on_from_its_base() {
    let mut guest = Guest::new(7);
    let mut ring = guest.device();
    for id in 0..40 {
        guest.post(id, &[(BUFFERS, 60, 0), (BUFFERS, 60, 0), (BUFFERS, 60, 0)]);
        assert_eq!(drain(&mut ring), (vec![id], vec![]));
        assert_eq!(guest.popped(), [(id, 0)]);
        assert_eq!(ring.base(), guest.ring.base());
        ring = guest.device();
        assert_eq!(ring.base(), guest.ring.base(), "round trip");
        // Front ends that keep 16 bits of it.
        let base = guest.ring.base() & 0xffff;
        ring = PackedRing::new(&RingConfig { base, ..guest.config() }, &guest.space, None).unwrap();
        assert_eq!(ring.base(), guest.ring.base());
    }
}

#[test]
fn what_was_in_flight_when_a_ring_went_is_taken_again() {
    let mut guest = Guest::new(4);
    let mut ring = guest.device();
    guest.post(1, &[(BUFFERS, 60, 0), (BUFFERS, 60, 0), (BUFFERS, 60, 0)]);
    assert_eq!(drain(&mut ring), (vec![1], vec![]));
    guest.popped();
    guest.post(2, &[(BUFFERS, 60, 0), (BUFFERS, 60, 0)]);
    let (chain, ..) = look(&mut ring, Access::Read).unwrap();
    ring.take(chain);
    assert_eq!(
        ring.base(),
        0x8003_0001,
        "used at slot 3 of the first lap, available at slot 1 of the second"
    );
    let config = RingConfig { base: ring.base(), ..guest.config() };
    let mut again = PackedRing::new(&config, &guest.space, None).unwrap();
    assert_eq!(drain(&mut again), (vec![2], vec![]));
    assert_eq!(guest.popped(), [(2, 0)]);
}

#[test]
fn tables_are_read_from_their_start_to_their_end() {
    let mut guest = Guest::new(4);
    let mut ring = guest.device();
    // Flags and ids of entries mean nothing, but for the direction; the direction of the table means nothing.
    let noise = [0, NEXT, INDIRECT, AVAIL, USED, NEXT | INDIRECT | USED];
    let entries: Vec<_> = noise
        .iter()
        .enumerate()
        .map(|(n, flags)| descriptor(BUFFERS + n as u64, 10, WRITE | flags))
        .collect();
    let (addr, len, flags) = guest.table(TABLES, &entries);
    guest.post(0, &[(addr, len, flags)]);
    guest.post(1, &[(addr, len, flags | WRITE)]);
    // Tables need not be aligned.
    let odd = guest.table(TABLES + 0x1001, &entries);
    guest.post(2, &[odd]);
    for id in 0..3 {
        let (chain, walked, pieces) = look(&mut ring, Access::Write).unwrap();
        assert_eq!((chain, walked), (Chain { id, slots: 1 }, Ok(())));
        assert_eq!(pieces, (0..6).map(|n| (BUFFERS + n, 10)).collect::<Vec<_>>());
        ring.take(chain);
    }
}

#[test]
fn a_visitor_may_end_the_walk_and_the_chain_is_known_all_the_same() {
    let mut guest = Guest::new(8);
    let mut ring = guest.device();
    guest.post(77, &[(BUFFERS, 1, 0), (BUFFERS + 1, 1, 0), (OUTSIDE, 1, INDIRECT), (BUFFERS + 3, 1, 0)]);
    for stop in [Stop::Enough, Stop::Unmapped, Stop::Malformed(DropReason::FrameTooLong)] {
        let mut visits = 0;
        let found = ring.next_chain(Access::Read, |_| {
            visits += 1;
            if visits == 2 { Err(stop) } else { Ok(()) }
        });
        assert_eq!((found, visits), (Some((Chain { id: 77, slots: 4 }, Err(stop))), 2));
    }
}

fn interrupted_guest(event_idx: bool) -> (Guest, PackedRing, std::os::fd::OwnedFd) {
    use rustix::event::{EventfdFlags, eventfd};
    let mut guest = Guest::new(4);
    guest.event_idx = event_idx;
    guest.ring.event_idx = event_idx;
    let call = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let ours = Call::new(call.try_clone().unwrap(), Arc::default()).unwrap();
    let ring = PackedRing::new(&guest.config(), &guest.space, Some(ours)).unwrap();
    (guest, ring, call)
}

fn one_more(guest: &mut Guest, ring: &mut PackedRing) -> bool {
    guest.post(1, &[(BUFFERS, 60, 0)]);
    let (chain, ..) = look(ring, Access::Read).unwrap();
    ring.take(chain);
    ring.complete(chain, 0);
    let interrupted = ring.publish();
    assert_eq!(guest.popped(), [(1, 0)]);
    interrupted
}

#[test]
fn a_driver_is_interrupted_as_it_asked_for() {
    let (mut guest, mut ring, call) = interrupted_guest(false);
    assert!(one_more(&mut guest, &mut ring));
    assert_eq!(rustix::io::read(&call, &mut [0; 8]), Ok(8));
    guest.ring.set_polling(&guest.ram, true);
    assert!(!one_more(&mut guest, &mut ring));
    assert!(rustix::io::read(&call, &mut [0; 8]).is_err());
    guest.ring.set_driver_event(&guest.ram, Suppression { event: 0, flags: AT_DESCRIPTOR });
    assert!(one_more(&mut guest, &mut ring), "not negotiated: as if always");
    ring.set_call(None);
    assert!(!one_more(&mut guest, &mut ring));
}

#[test]
fn a_driver_is_interrupted_at_the_descriptor_that_it_named() {
    let (mut guest, mut ring, _call) = interrupted_guest(true);
    let name = |guest: &Guest, position: Position| {
        guest.ring.set_driver_event(&guest.ram, Suppression { event: position.bits(), flags: AT_DESCRIPTOR });
    };
    name(&guest, Position { slot: 3, wrap: true });
    assert!(one_more(&mut guest, &mut ring), "for the first time: always");
    for lap in 0..20 {
        let event = guest.ring.next_used.advanced(2, 4);
        name(&guest, event);
        let got: Vec<bool> = (0..4).map(|_| one_more(&mut guest, &mut ring)).collect();
        assert_eq!(got, [false, false, true, false], "lap {lap}");
        // Three at a time over the one that was named.
        name(&guest, guest.ring.next_used.advanced(1, 4));
        for id in 0..3 {
            guest.post(id, &[(BUFFERS, 60, 0)]);
            let (chain, ..) = look(&mut ring, Access::Read).unwrap();
            ring.take(chain);
            ring.complete(chain, 0);
        }
        assert!(ring.publish(), "lap {lap}");
        assert_eq!(guest.popped().len(), 3);
    }
    name(&guest, guest.ring.next_used.retreated(1, 4));
    assert!(!one_more(&mut guest, &mut ring));
    guest.post(1, &[(BUFFERS, 60, 0)]);
    let (chain, ..) = look(&mut ring, Access::Read).unwrap();
    ring.take(chain);
    ring.complete(chain, 0);
    ring.publish_quietly();
    assert_eq!(guest.popped(), [(1, 0)]);
    assert!(one_more(&mut guest, &mut ring), "what was passed in silence may be what it waits for");
}

#[test]
fn a_device_is_kicked_as_it_asked_for() {
    for event_idx in [false, true] {
        let mut guest = Guest::new(5);
        guest.event_idx = event_idx;
        guest.ring.event_idx = event_idx;
        let mut ring = guest.device();
        let kicked = |guest: &mut Guest| {
            assert!(guest.ring.push(&guest.ram, 0, &[descriptor(BUFFERS, 60, 0)]));
            guest.ring.publish(&guest.ram)
        };
        assert!(kicked(&mut guest));
        drain(&mut ring);
        ring.disable_kicks();
        for _ in 0..20 {
            guest.popped();
            assert!(!kicked(&mut guest));
            drain(&mut ring);
        }
        for _ in 0..20 {
            guest.popped();
            ring.enable_kicks();
            assert!(kicked(&mut guest));
            assert_eq!(kicked(&mut guest), !event_idx, "one is enough");
            drain(&mut ring);
        }
    }
}

#[test]
fn a_chain_waits_for_others_but_not_if_it_came_while_its_reader_fell_asleep() {
    let mut guest = Guest::new(5);
    let mut ring = guest.device();
    let mut give = || {
        assert!(guest.ring.push(&guest.ram, 0, &[descriptor(BUFFERS, 60, 0)]));
        guest.ring.publish(&guest.ram);
    };
    give();
    assert!(!ring.is_ripe(), "others may follow");
    eventually_ripe(&mut ring);
    drain(&mut ring);
    assert!(!ring.enable_kicks() && ring.is_ripe(), "an empty ring costs no wait");
    give();
    assert!(ring.enable_kicks() && ring.is_ripe());
}

fn eventually_ripe(ring: &mut PackedRing) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(2);
    while !ring.is_ripe() {
        assert!(std::time::Instant::now() < end, "it never is");
    }
}

#[test]
fn a_ring_that_is_not_where_it_can_be_is_refused() {
    let guest = Guest::new(8);
    let good = guest.config();
    let refuse = |config: RingConfig| PackedRing::new(&config, &guest.space, None).unwrap_err();
    for size in [0, 1, 32769, u16::MAX] {
        assert_eq!(refuse(RingConfig { size, ..good }), RingError::PackedSize(size));
    }
    for base in [8, 0x8008, 0x7fff, 0x8008_8000, 0x8000_0000 | 9, u32::MAX] {
        assert_eq!(refuse(RingConfig { base, ..good }), RingError::Base { base, size: 8 });
    }
    for config in [
        RingConfig { descriptors: good.descriptors + 8, ..good },
        RingConfig { available: good.available + 2, ..good },
        RingConfig { used: good.used + 1, ..good },
    ] {
        assert!(matches!(refuse(config), RingError::Alignment { .. }));
    }
    let end = guest.ram.user() + RAM;
    for config in [
        RingConfig { descriptors: end - 112, ..good },
        RingConfig { descriptors: end, ..good },
        RingConfig { descriptors: 0, ..good },
        RingConfig { available: end, ..good },
        RingConfig { used: u64::MAX - 3, ..good },
    ] {
        assert!(matches!(refuse(config), RingError::OutsideMemory { .. }), "{config:x?}");
    }
}

#[test]
fn a_ring_may_end_where_its_region_ends() {
    for size in [2, 3, 255] {
        let mut guest = Guest::new(size);
        guest.ring.descriptors = GPA + RAM - 16 * u64::from(size);
        let mut ring = guest.device();
        for id in 0..3 * size {
            guest.post(id, &[(GPA + RAM - 60, 60, 0)]);
            ring.begin_burst(32).unwrap();
            assert!(guest.ring.free < size);
            // The buffer may lie over the ring: it is only looked at.
            assert_eq!(drain(&mut ring), (vec![id], vec![]));
            assert_eq!(guest.popped(), [(id, 0)]);
        }
    }
}

#[test]
fn a_malformed_chain_is_reported_whole_and_passed_over() {
    let good = [(BUFFERS, 60, 0)];
    type Case<'a> = (&'a [(u64, u32, u16)], DropReason);
    let cases: &[Case<'_>] = &[
        (&[(OUTSIDE, 72, 0)], DropReason::BadAddress),
        (&[(OUTSIDE - 1, 72, 0)], DropReason::BadAddress),
        (&[(GPA - 1, 72, 0)], DropReason::BadAddress),
        (&[(u64::MAX, 72, 0)], DropReason::BadAddress),
        (&[(BUFFERS, u32::MAX, 0)], DropReason::BadAddress),
        (&[(BUFFERS, 72, 0), (OUTSIDE, 72, 0), (BUFFERS, 72, 0)], DropReason::BadAddress),
        (&[(BUFFERS, 72, WRITE)], DropReason::WrongDirection),
        (&[(BUFFERS, 0, WRITE)], DropReason::WrongDirection),
        (&[(BUFFERS, 72, 0), (BUFFERS, 72, WRITE)], DropReason::WrongDirection),
        (&[(TABLES, 0, INDIRECT)], DropReason::BadIndirect),
        (&[(TABLES, 15, INDIRECT)], DropReason::BadIndirect),
        (&[(TABLES, 17, INDIRECT)], DropReason::BadIndirect),
        (&[(TABLES, u32::MAX, INDIRECT)], DropReason::BadIndirect),
        (&[(TABLES, 16, INDIRECT), (BUFFERS, 72, 0)], DropReason::BadIndirect),
        (&[(BUFFERS, 72, 0), (TABLES, 16, INDIRECT)], DropReason::BadIndirect),
        (&[(TABLES, 16 * 513, INDIRECT)], DropReason::ChainTooLong),
        (&[(TABLES, u32::MAX - 15, INDIRECT)], DropReason::ChainTooLong),
        (&[(OUTSIDE, 16, INDIRECT)], DropReason::BadAddress),
        (&[(OUTSIDE - 8, 16, INDIRECT)], DropReason::BadAddress),
        (&[(OUTSIDE - 16, 32, INDIRECT)], DropReason::BadAddress),
        (&[(u64::MAX - 15, 32, INDIRECT)], DropReason::BadAddress),
    ];
    for (chain, reason) in cases {
        let mut guest = Guest::new(8);
        let mut ring = guest.device();
        for _ in 0..5 {
            guest.post(1, &good);
            guest.post(2, chain);
            guest.post(3, &good);
            assert_eq!(drain(&mut ring), (vec![1, 3], vec![(2, *reason)]), "{chain:x?}");
            assert_eq!(guest.popped(), [(1, 0), (2, 0), (3, 0)], "every chain comes back once: {chain:x?}");
        }
        assert!(!ring.is_broken());
    }
}

#[test]
fn without_the_feature_there_are_no_tables() {
    let mut guest = Guest::new(8);
    let config = RingConfig { indirect: false, ..guest.config() };
    let mut ring = PackedRing::new(&config, &guest.space, None).unwrap();
    let table = guest.table(TABLES, &[descriptor(BUFFERS, 60, 0)]);
    guest.post(1, &[table]);
    assert_eq!(drain(&mut ring), (vec![], vec![(1, DropReason::BadIndirect)]));
}

#[test]
fn a_table_of_tables_is_a_table_of_buffers() {
    let mut guest = Guest::new(8);
    let mut ring = guest.device();
    let table = guest.table(TABLES, &[descriptor(TABLES, 16, INDIRECT | NEXT)]);
    guest.post(1, &[table]);
    assert_eq!(look(&mut ring, Access::Read).unwrap().2, [(TABLES, 16)]);
}

/// CVE-2020-10725: a back end that handled four descriptors at once trusted their lengths.
#[test]
fn one_bad_descriptor_among_four_spoils_itself_alone() {
    for at in 0..4u16 {
        for (bad, reason) in [
            ((BUFFERS, 0, 0), None),
            ((OUTSIDE, 60, 0), Some(DropReason::BadAddress)),
            ((OUTSIDE, 0, 0), None),
            ((BUFFERS, u32::MAX, 0), Some(DropReason::BadAddress)),
            ((BUFFERS, 60, WRITE), Some(DropReason::WrongDirection)),
            ((BUFFERS, 60, INDIRECT), Some(DropReason::BadIndirect)),
        ] {
            // The batch begins at the start of a cache line, across two, and across the wrap.
            for lead in [0, 2, 5] {
                let mut guest = Guest::new(8);
                let mut ring = guest.device();
                for _ in 0..lead {
                    guest.post(9, &[(BUFFERS, 60, 0)]);
                }
                drain(&mut ring);
                guest.popped();
                for n in 0..4 {
                    let chain = if n == at { bad } else { (BUFFERS, 60, 0) };
                    assert!(guest.ring.push(&guest.ram, n, &[descriptor(chain.0, chain.1, chain.2)]));
                }
                guest.ring.publish(&guest.ram);
                let (good, spoilt) = drain(&mut ring);
                assert_eq!(spoilt, reason.map(|reason| (at, reason)).into_iter().collect::<Vec<_>>());
                assert_eq!(good.len() + spoilt.len(), 4);
                assert_eq!(guest.popped(), [(0, 0), (1, 0), (2, 0), (3, 0)]);
            }
        }
    }
}

#[test]
fn an_id_is_given_back_as_it_is() {
    let mut guest = Guest::new(3);
    let mut ring = guest.device();
    for id in [3, 0x7fff, 0x8000, u16::MAX] {
        guest.post(id, &[(BUFFERS, 60, 0)]);
        assert_eq!(drain(&mut ring), (vec![id], vec![]));
        assert_eq!(guest.popped(), [(id, 0)]);
    }
}

#[test]
fn a_chain_without_an_end_breaks_the_ring() {
    for size in [2, 7, 256, 512, 513, 32768] {
        let mut guest = Guest::new(size);
        let mut ring = guest.device();
        guest.post(1, &[(BUFFERS, 60, 0)]);
        for slot in 0..size {
            let at = guest.ring.next_available;
            let flags = NEXT | at.available_flags();
            if slot > 0 {
                guest.ring.set(&guest.ram, slot, descriptor(BUFFERS, 1, flags));
            }
        }
        let (first, ..) = look(&mut ring, Access::Read).unwrap();
        ring.take(first);
        let endless = Some((Chain { id: 0, slots: 0 }, Err(Stop::Malformed(DropReason::ChainTooLong))));
        for _ in 0..3 {
            ring.begin_burst(32).unwrap();
            let found = look(&mut ring, Access::Read).map(|(chain, walked, _)| (chain, walked));
            assert_eq!(found, endless, "until it is taken");
            assert_eq!(ring.visited, u32::from(size - 1).min(512), "a bounded number of looks");
        }
        // What was taken before is completed, or put back, all the same.
        ring.take(Chain { id: 0, slots: 0 });
        assert!(ring.is_broken());
        ring.complete(first, 0);
        ring.complete(Chain { id: 0, slots: 0 }, 0);
        ring.publish();
        assert_eq!(guest.popped(), [(1, 0)]);
        ring.begin_burst(32).unwrap();
        assert_eq!((look(&mut ring, Access::Read), ring.visited), (None, 0), "not walked again");
        assert_eq!(ring.base(), guest.ring.base(), "it stands before the chain without an end");
    }
}

#[test]
fn the_longest_chain_that_can_be_handled_is_handled() {
    for (size, longest) in [(2, 2), (7, 7), (600, 512)] {
        let mut guest = Guest::new(size);
        let mut ring = guest.device();
        guest.post(1, &vec![(BUFFERS, 1, 0); longest]);
        assert_eq!(drain(&mut ring), (vec![1], vec![]));
    }
    let mut guest = Guest::new(2);
    let mut ring = guest.device();
    let table = guest.table(TABLES, &[descriptor(BUFFERS, 1, 0); 512]);
    guest.post(1, &[table]);
    assert_eq!(drain(&mut ring), (vec![1], vec![]), "a table may be longer than the ring");
}

#[test]
fn no_more_is_in_flight_than_the_ring_has() {
    let mut guest = Guest::new(3);
    let mut ring = guest.device();
    for id in 0..3 {
        guest.post(id, &[(BUFFERS, 60, 0)]);
    }
    let taken: Vec<Chain> = std::iter::from_fn(|| {
        let (chain, ..) = look(&mut ring, Access::Read)?;
        ring.take(chain);
        Some(chain)
    })
    .collect();
    assert_eq!(taken.len(), 3);
    // The driver makes available again what it has not got back.
    let lapped = Position { wrap: false, ..Position::START };
    for slot in 0..3 {
        guest.ring.set(&guest.ram, slot, descriptor(BUFFERS, 60, lapped.available_flags()));
    }
    assert_eq!(look(&mut ring, Access::Read), None);
    ring.complete(taken[0], 0);
    // One slot is free: a chain of two would reach into what is in flight.
    guest.ring.set(&guest.ram, 0, descriptor(BUFFERS, 60, NEXT | lapped.available_flags()));
    let (chain, walked, _) = look(&mut ring, Access::Read).unwrap();
    assert_eq!((chain.slots, walked), (0, Err(Stop::Malformed(DropReason::ChainTooLong))));
}

#[test]
fn long_chains_for_nothing_exhaust_a_burst() {
    let mut guest = Guest::new(4096);
    let mut ring = guest.device();
    for id in 0..8 {
        guest.post(id, &vec![(BUFFERS, 0, 0); 100]);
    }
    ring.begin_burst(32).unwrap();
    let mut looks = 0;
    while !ring.is_exhausted() {
        let (chain, ..) = look(&mut ring, Access::Read).unwrap();
        ring.take(chain);
        looks += 1;
    }
    assert_eq!(looks, 3);
    ring.begin_burst(32).unwrap();
    assert!(!ring.is_exhausted());
    // A walk that is given up early costs as much, since the id stands at the end.
    for _ in 0..3 {
        ring.next_chain(Access::Write, |_| Ok(()));
    }
    assert!(ring.is_exhausted());
    let table = guest.table(TABLES, &[descriptor(BUFFERS, 0, 0); 100]);
    let mut guest = Guest::new(8);
    guest.table(TABLES, &[descriptor(BUFFERS, 0, 0); 100]);
    let mut ring = guest.device();
    for id in 0..8 {
        guest.post(id, &[table]);
    }
    ring.begin_burst(32).unwrap();
    for _ in 0..3 {
        assert!(!ring.is_exhausted());
        let (chain, ..) = look(&mut ring, Access::Read).unwrap();
        ring.take(chain);
    }
    assert!(ring.is_exhausted(), "entries of tables count too");
}

#[test]
fn descriptors_that_change_between_looks_change_nothing_that_was_seen() {
    let mut guest = Guest::new(8);
    let mut ring = guest.device();
    guest.post(3, &[(BUFFERS, 10, 0), (BUFFERS + 0x100, 20, 0)]);
    let (mut seen, mut first) = (Vec::new(), true);
    let found = ring.next_chain(Access::Read, |piece| {
        seen.push((piece.gpa, piece.segment.len()));
        if std::mem::take(&mut first) {
            // What was read once is not read again; what comes is read as it is by then.
            guest.ring.set(&guest.ram, 0, descriptor(OUTSIDE, u32::MAX, INDIRECT));
            guest.ring.set(&guest.ram, 1, PackedDescriptor { id: 4, ..descriptor(BUFFERS, 30, 0) });
        }
        Ok(())
    });
    assert_eq!(found, Some((Chain { id: 4, slots: 2 }, Ok(()))));
    assert_eq!(seen, [(BUFFERS, 10), (BUFFERS, 30)]);
    // The head was withdrawn, too: no chain waits, and what was found can be taken or left.
    assert_eq!(look(&mut ring, Access::Read), None);
    ring.take(Chain { id: 4, slots: 2 });
    ring.complete(Chain { id: 4, slots: 2 }, 0);
    ring.publish();
    guest.ring.remember(4, 2);
    assert_eq!(guest.popped(), [(4, 0)]);
}

#[test]
fn a_driver_that_writes_at_random_harms_itself_alone() {
    use std::sync::atomic::AtomicBool;
    let guest = Guest::new(64);
    let mut ring = guest.device();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (stop, space, config) = (&stop, &guest.space, guest.config());
        let (driver, ram) = (guest.ring.clone(), guest.ram);
        scope.spawn(move || {
            let mut random = 0x9e37_79b9_7f4a_7c15u64;
            while !stop.load(Ordering::Relaxed) {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let bits = (random >> 20) as u32;
                let len = [0, 16, 64, 8192, u32::MAX][bits as usize % 5];
                let addr = GPA + u64::from(bits) % (RAM + 0x1000);
                let flags = (random >> 33) as u16 & (NEXT | WRITE | INDIRECT | AVAIL | USED);
                let id = (random >> 48) as u16;
                driver.set(&ram, (bits % 64) as u16, PackedDescriptor { addr, len, id, flags });
            }
        });
        let start = std::time::Instant::now();
        let mut chains = 0;
        while start.elapsed() < std::time::Duration::from_millis(300) {
            ring.begin_burst(32).unwrap();
            for _ in 0..32 {
                let found = ring.next_chain(Access::Read, |piece| {
                    let len = u64::from(piece.segment.len());
                    assert!(len > 0 && piece.gpa >= GPA && piece.gpa + len <= GPA + RAM);
                    Ok(())
                });
                let Some((chain, walked)) = found else { break };
                assert!(chain.slots > 0 || walked == Err(Stop::Malformed(DropReason::ChainTooLong)));
                assert!(chain.slots <= 64);
                ring.take(chain);
                match chains % 3 {
                    0 => ring.put_back(chain.slots),
                    _ => ring.complete(chain, 7),
                }
                chains += 1;
            }
            ring.publish();
            if ring.is_broken() {
                ring = PackedRing::new(&config, space, None).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(chains > 0);
    });
}

impl TestDriver for Guest {
    fn push(&mut self, id: u16, buffers: &[(u64, u32)], indirect: bool) -> bool {
        let chain: Vec<_> = buffers.iter().map(|(addr, len)| descriptor(*addr, *len, 0)).collect();
        if !indirect {
            return self.ring.push(&self.ram, id, &chain);
        }
        let table = TABLES + 0x100 * u64::from(id % 0x400);
        let (addr, len, flags) = self.table(table, &chain);
        self.ring.push(&self.ram, id, &[descriptor(addr, len, flags)])
    }

    fn publish(&mut self) {
        self.ring.publish(&self.ram);
    }

    fn pop(&mut self) -> Option<(u16, u32)> {
        self.ring.pop(&self.ram)
    }
}

fn sizes() -> impl Strategy<Value = u16> {
    prop_oneof![Just(2), Just(3), Just(7), Just(8), Just(255), Just(256), Just(32768), 2u16..64]
}

fn run(size: u16, returns: Returns, start: Position, steps: &[Operation]) -> TestCaseResult {
    let mut guest = Guest::new(size).with(returns);
    // As the laps before leave it.
    for slot in 0..size {
        let left = Position { slot, wrap: start.wrap == (slot < start.slot) };
        guest.ring.set(&guest.ram, slot, descriptor(0, 0, left.used_flags()));
    }
    (guest.ring.next_available, guest.ring.next_used) = (start, start);
    let mut ring = guest.device();
    let mut model = Model::new(BUFFERS, 0..size.min(1000), returns);
    for step in steps {
        model.step(step, &mut guest, &mut ring);
    }
    model.finish(&mut guest, &mut ring);
    prop_assert_eq!(ring.base(), guest.ring.base());
    prop_assert_eq!(guest.ring.free, size);
    prop_assert!(!ring.is_broken());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_chain_arrives_whole_in_order_and_comes_back_once(
        size in sizes(),
        returns in returns(),
        // Not only rings that are about to wrap for the first time.
        back in 0u16..6,
        wrap: bool,
        steps in operations(400, 6),
    ) {
        let start = Position { slot: 0, wrap }.retreated(back.min(size - 1), size);
        run(size, returns, start, &steps)?;
    }
}

/// Sleeps until the eventfd is written to.
fn sleep(eventfd: &std::os::fd::OwnedFd) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
    let mut waiting = [PollFd::new(eventfd, PollFlags::IN)];
    assert_eq!(poll(&mut waiting, Some(&limit)), Ok(1), "nobody told us");
    rustix::io::read(eventfd, &mut [0; 8]).unwrap();
}

#[test]
fn two_threads_that_sleep_when_idle_wake_each_other_and_see_what_the_other_wrote() {
    use rustix::event::{EventfdFlags, eventfd};
    const CHAINS: u32 = 20_000;
    for (size, event_idx) in [(2, false), (2, true), (7, true), (64, false), (64, true)] {
        let mut guest = Guest::new(size);
        (guest.event_idx, guest.ring.event_idx) = (event_idx, event_idx);
        let fresh = || eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let (call, kick) = (fresh(), fresh());
        let ours = Call::new(call.try_clone().unwrap(), Arc::default()).unwrap();
        let mut ring = PackedRing::new(&guest.config(), &guest.space, Some(ours)).unwrap();
        let kicked = kick.try_clone().unwrap();
        let driver = std::thread::spawn(move || {
            let Guest { ram, mut ring, .. } = guest;
            let mut ids: Vec<u16> = (0..size).collect();
            let (mut sent, mut back) = (0, 0);
            while back < CHAINS {
                let mut idle = true;
                while sent < CHAINS
                    && let Some(id) = ids.pop()
                {
                    let at = BUFFERS + 64 * u64::from(id);
                    ram.write(at, &sent.to_le_bytes());
                    let slots = 1 + sent as usize % 3 % usize::from(size);
                    // The number is in the last buffer; the others are noise before it.
                    let mut chain = vec![descriptor(BUFFERS - 64, 1, 0); slots];
                    chain[slots - 1] = descriptor(at, 4, 0);
                    if !ring.push(&ram, id, &chain) {
                        ids.push(id);
                        break;
                    }
                    sent += 1;
                    idle = false;
                    if sent % 5 == 0 {
                        break;
                    }
                }
                if ring.publish(&ram) {
                    rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
                }
                let mut reap = |ring: &mut PackedDriver| {
                    let before = back;
                    while let Some((id, len)) = ring.pop(&ram) {
                        assert_eq!(len, back, "in order, and written before it was used");
                        ids.push(id);
                        back += 1;
                    }
                    back > before
                };
                if !reap(&mut ring) && idle {
                    let flags = if event_idx { AT_DESCRIPTOR } else { ENABLE };
                    ring.set_driver_event(&ram, Suppression { event: ring.next_used.bits(), flags });
                    if !reap(&mut ring) {
                        sleep(&call);
                    }
                    ring.set_polling(&ram, true);
                }
            }
        });
        let mut number = 0;
        ring.disable_kicks();
        while number < CHAINS {
            let burst = |ring: &mut PackedRing, number: &mut u32| {
                let before = *number;
                ring.begin_burst(8).unwrap();
                for _ in 0..8 {
                    let mut bytes = [0; 4];
                    let found = ring.next_chain(Access::Read, |piece| {
                        piece.segment.copy_to(&mut bytes);
                        Ok(())
                    });
                    let Some((chain, walked)) = found else { break };
                    assert_eq!((walked, u32::from_le_bytes(bytes)), (Ok(()), *number));
                    ring.take(chain);
                    ring.complete(chain, *number);
                    *number += 1;
                }
                ring.publish();
                *number > before
            };
            if !burst(&mut ring, &mut number) {
                if !ring.enable_kicks() {
                    sleep(&kicked);
                }
                ring.disable_kicks();
            }
        }
        driver.join().unwrap();
    }
}
