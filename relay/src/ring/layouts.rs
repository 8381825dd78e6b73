//! Split and packed rings: what a driver does means the same in both layouts.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::chain::{Access, Stop};
use super::operations::{Model, Operation, Returns, TestDriver, operations, returns};
use super::packed::tests::{BUFFERS, GPA, Guest as PackedGuest, RAM, TABLES};
use super::queue::Virtqueue;
use super::{Ring, RingConfig, SplitRing};
use crate::counters::DropReason;
use crate::driver::memory::GuestRam;
use crate::driver::split::{Descriptor, DriverRing, INDIRECT, NEXT, write_descriptor};
use crate::guest::iotlb::Permission;
use crate::guest::iotlb_miss;
use crate::guest::memory::{GuestMemory, RegionDescription};
use crate::guest::space::AddressSpace;

/// A driver of a split ring. The descriptor whose index is a chain's id is its first; the others it takes from the upper
/// half of the table, in an order that gets confused with time.
struct SplitGuest {
    ram: GuestRam,
    ring: DriverRing,
    space: Arc<AddressSpace>,
    free: Vec<u16>,
    /// Further descriptors of the chains that the device has.
    rest: HashMap<u16, Vec<u16>>,
}

impl SplitGuest {
    fn new(size: u16, start: u16) -> Self {
        let mut ram = GuestRam::new(GPA, RAM).unwrap();
        let mut ring = DriverRing::new(&mut ram, size).unwrap();
        ram.write(ring.used + 2, &start.to_le_bytes());
        (ring.next_available, ring.next_used) = (start, start);
        ring.publish(&ram);
        let region = RegionDescription { gpa: GPA, size: RAM, user: ram.user(), offset: 0 };
        let memory = GuestMemory::map([(region, ram.file().try_clone().unwrap())]).unwrap();
        let space = Arc::new(AddressSpace::physical(Arc::new(memory), None));
        Self { ram, ring, space, free: (size / 2..size).collect(), rest: HashMap::new() }
    }

    fn device(&self) -> SplitRing {
        let config = RingConfig {
            size: self.ring.size,
            descriptors: self.ram.user_of(self.ring.descriptors),
            available: self.ram.user_of(self.ring.available),
            used: self.ram.user_of(self.ring.used),
            base: u32::from(self.ring.next_used),
            indirect: true,
            event_idx: false,
            batches: false,
        };
        SplitRing::new(&config, &self.space, None).unwrap()
    }
}

impl TestDriver for SplitGuest {
    fn push(&mut self, id: u16, buffers: &[(u64, u32)], indirect: bool) -> bool {
        let linked = |at: &[u16]| -> Vec<Descriptor> {
            let next = at.iter().copied().map(Some).skip(1).chain([None]);
            let entry = |((addr, len), next): (&(u64, u32), Option<u16>)| Descriptor {
                addr: *addr,
                len: *len,
                flags: if next.is_some() { NEXT } else { 0 },
                next: next.unwrap_or(0xdead),
            };
            buffers.iter().zip(next).map(entry).collect()
        };
        if indirect {
            let table = TABLES + 0x100 * u64::from(id);
            // From its first entry on in any order: here backwards.
            let places: Vec<u16> = std::iter::once(0).chain((1..buffers.len() as u16).rev()).collect();
            for (at, entry) in places.iter().zip(linked(&places)) {
                write_descriptor(&self.ram, table + 16 * u64::from(*at), entry);
            }
            let len = 16 * buffers.len() as u32;
            self.ring.set(&self.ram, id, Descriptor { addr: table, len, flags: INDIRECT, next: 0xdead });
            self.rest.insert(id, Vec::new());
        } else {
            let Some(left) = self.free.len().checked_sub(buffers.len() - 1) else { return false };
            let rest = self.free.split_off(left);
            let places: Vec<u16> = std::iter::once(id).chain(rest.iter().copied()).collect();
            for (at, entry) in places.iter().zip(linked(&places)) {
                self.ring.set(&self.ram, *at, entry);
            }
            self.rest.insert(id, rest);
        }
        self.ring.push(&self.ram, id);
        true
    }

    fn publish(&mut self) {
        self.ring.publish(&self.ram);
    }

    fn pop(&mut self) -> Option<(u16, u32)> {
        let (head, len) = self.ring.pop(&self.ram)?;
        let id = u16::try_from(head).unwrap();
        self.free.splice(0..0, self.rest.remove(&id).expect("came back once"));
        Some((id, len))
    }
}

/// A driver that has no more descriptors in its ring than either layout has room for.
struct Modest<D> {
    driver: D,
    room: usize,
    taken: HashMap<u16, usize>,
}

impl<D> Modest<D> {
    fn new(driver: D, room: usize) -> Self {
        Self { driver, room, taken: HashMap::new() }
    }
}

impl<D: TestDriver> TestDriver for Modest<D> {
    fn push(&mut self, id: u16, buffers: &[(u64, u32)], indirect: bool) -> bool {
        let slots = if indirect { 1 } else { buffers.len() };
        let Some(room) = self.room.checked_sub(slots) else { return false };
        assert!(self.driver.push(id, buffers, indirect), "there is room for {slots}");
        self.room = room;
        self.taken.insert(id, slots);
        true
    }

    fn publish(&mut self) {
        self.driver.publish();
    }

    fn pop(&mut self) -> Option<(u16, u32)> {
        let (id, len) = self.driver.pop()?;
        self.room += self.taken.remove(&id).expect("came back once");
        Some((id, len))
    }
}

/// Does the steps on a ring, with a model beside it; returns the model.
fn run(
    driver: &mut impl TestDriver,
    ring: &mut impl Virtqueue,
    returns: Returns,
    steps: &[Operation],
) -> Model {
    let mut model = Model::new(BUFFERS, 0..16, returns);
    steps.iter().for_each(|step| model.step(step, driver, ring));
    model.finish(driver, ring);
    model
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn in_a_split_ring_every_chain_arrives_whole_in_order_and_comes_back_once(
        size in prop_oneof![Just(32u16), Just(64), Just(256), Just(4096)],
        start: u16,
        returns in returns(),
        steps in operations(400, 6),
    ) {
        let mut guest = SplitGuest::new(size, start);
        let mut ring = guest.device();
        let model = run(&mut guest, &mut ring, returns, &steps);
        prop_assert_eq!(ring.base(), u32::from(guest.ring.next_available));
        prop_assert_eq!(ring.base(), u32::from(start.wrapping_add(model.returned as u16)));
        prop_assert_eq!(guest.free.len(), usize::from(size / 2));
    }

    #[test]
    fn a_packed_ring_and_a_split_ring_show_the_same(
        size in prop_oneof![Just(32u16), Just(64)],
        start: u16,
        in_order: bool,
        steps in operations(400, 6),
    ) {
        let returns = if in_order { Returns::InOrder } else { Returns::AnyOrder };
        let guest = SplitGuest::new(size, start);
        let mut ring = guest.device();
        let split = run(&mut Modest::new(guest, usize::from(size / 2)), &mut ring, returns, &steps);
        let guest = PackedGuest::new(size).with(returns);
        let mut ring = guest.device();
        let packed = run(&mut Modest::new(guest, usize::from(size / 2)), &mut ring, returns, &steps);
        prop_assert_eq!(split.trace, packed.trace);
        prop_assert_eq!(split.returned, packed.returned);
    }
}

/// A ring of either layout in which one chain of one buffer waits, who must be kept for it, and its memory.
fn with_a_chain(packed: bool) -> (Ring, Box<dyn std::any::Any>, Arc<AddressSpace>) {
    let chain = [(BUFFERS, 60)];
    if packed {
        let mut guest = PackedGuest::new(7);
        assert!(guest.push(3, &chain, false));
        guest.publish();
        let ring = guest.device();
        let space = Arc::clone(ring.space());
        (ring.into(), Box::new(guest), space)
    } else {
        let mut guest = SplitGuest::new(8, 0);
        assert!(guest.push(3, &chain, false));
        guest.publish();
        let ring = guest.device();
        let space = Arc::clone(ring.space());
        (ring.into(), Box::new(guest), space)
    }
}

fn walked(ring: &mut Ring) -> Result<(), Stop> {
    let walked = with_ring!(ring, ring => ring.next_chain(Access::Read, |_| Ok(())));
    walked.expect("a chain waits").1
}

#[test]
fn a_ring_knows_its_size() {
    assert_eq!([true, false].map(|packed| with_a_chain(packed).0.size()), [7, 8]);
}

#[test]
fn a_ring_looks_into_the_space_that_it_was_given_last() {
    for packed in [true, false] {
        let (mut ring, _guest, space) = with_a_chain(packed);
        assert_eq!(walked(&mut ring), Ok(()));
        ring.set_space(Arc::default());
        assert_eq!(walked(&mut ring), Err(Stop::Malformed(DropReason::BadAddress)));
        ring.set_space(space);
        assert_eq!(walked(&mut ring), Ok(()));
    }
}

#[test]
fn an_address_that_is_missing_is_reported_where_it_may_still_come() {
    for packed in [true, false] {
        let (mut ring, _guest, _) = with_a_chain(packed);
        let bell = iotlb_miss::wake().unwrap();
        let (reporter, reports) = iotlb_miss::miss_report(&bell);
        ring.report_misses(reporter);
        ring.set_space(Arc::default());
        assert_eq!(walked(&mut ring), Err(Stop::Unmapped));
        assert_eq!(reports.take(), Some((BUFFERS, Permission::Read)));
    }
}
