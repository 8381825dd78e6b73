//! Guests whose rings are written by hand: chains of all kinds, good and bad, in a ring of either layout that may stand
//! anywhere. What is made of the same [`Chain`]s twice is the same, byte by byte, so that two ways of serving it can be
//! compared.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;

use super::chain::{Access, INDIRECT, NEXT, WRITE};
use super::position::Position;
use super::{PackedRing, Ring, RingConfig, SplitRing};
use crate::driver::memory::GuestRam;
use crate::driver::packed::{PackedDescriptor, PackedDriver, write_packed_descriptor};
use crate::driver::queue::Layout;
use crate::driver::split::{Descriptor, DriverRing, write_descriptor};
use crate::guest::dirty_log::{DirtyLog, LOG_PAGE};
use crate::guest::memory::tests::memfd;
use crate::guest::memory::{GuestMemory, RegionDescription};
use crate::guest::space::AddressSpace;

pub(crate) const GPA: u64 = 0x10_0000;
pub(crate) const RAM: u64 = 2 << 20;
/// Rings and tables are below.
pub(crate) const BUFFERS: u64 = GPA + (1 << 17);
/// Here one mapping ends and the next begins.
pub(crate) const MIDDLE: u64 = GPA + RAM / 2;
const OUTSIDE: u64 = GPA + RAM;
/// Bytes of a dirty log that covers all memory.
const LOG: u64 = 0x1000;

/// What memory is filled with, over and over: no power of two fits its length.
static PATTERN: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..65_521u32).map(|n| (n.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect());

/// What a chain is like; it is for `len` bytes.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// One descriptor, as it should be.
    Plain,
    /// Several descriptors that share the bytes.
    Pieces(u16),
    /// A table with so many entries that share the bytes.
    Table(u16),
    /// One descriptor for the other direction.
    WrongDirection,
    /// One descriptor without bytes.
    Empty,
    /// One descriptor outside memory, or half outside.
    Outside {
        /// The beginning is inside.
        half: bool,
    },
    /// One descriptor that lies across the end of a mapping.
    Across,
    /// A head that the table does not have; in a packed ring a table of half an entry.
    BadHead,
}

impl Kind {
    /// Whether such a chain is a plain one.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Plain)
    }

    /// Descriptors that it takes in its ring.
    pub fn slots(&self) -> u16 {
        if let Self::Pieces(n) = self { *n } else { 1 }
    }

    /// Most of them plain; of at most `longest` descriptors.
    pub fn any(longest: u16) -> impl Strategy<Value = Self> {
        prop_oneof![
            60 => Just(Self::Plain),
            2 => (2..=longest.max(2)).prop_map(move |n| if longest < 2 { Self::Plain } else { Self::Pieces(n) }),
            2 => (1u16..4).prop_map(Self::Table),
            1 => Just(Self::WrongDirection),
            1 => Just(Self::Empty),
            1 => any::<bool>().prop_map(|half| Self::Outside { half }),
            1 => Just(Self::Across),
            1 => Just(Self::BadHead),
        ]
    }
}

/// A chain to be posted.
#[derive(Clone, Debug)]
pub(crate) struct Posted {
    pub kind: Kind,
    pub len: u32,
}

/// A virtqueue written by hand.
pub(crate) struct Queue {
    layout: Layout,
    size: u16,
    access: Access,
    /// The descriptor of a split ring that is written next, and the id of the next chain.
    next: u16,
    /// Descriptors of chains that the device has, the oldest first.
    posted: Vec<u16>,
    /// Where each descriptor's table is.
    tables: u64,
}

impl Queue {
    /// An empty ring of `size` descriptors, at slot `start` of any lap.
    pub fn new(ram: &mut GuestRam, packed: bool, size: u16, start: u16, access: Access) -> Self {
        let layout = if packed {
            let mut ring = PackedDriver::new(ram, size).unwrap();
            let at = Position { slot: start % size, wrap: (start / size).is_multiple_of(2) };
            // As if all slots had been used up to here.
            for slot in 0..size {
                let wrap = at.wrap == (slot < at.slot);
                let flags = Position { slot, wrap }.used_flags();
                ring.set(ram, slot, PackedDescriptor { flags, ..PackedDescriptor::default() });
            }
            (ring.next_available, ring.next_used) = (at, at);
            Layout::Packed(ring)
        } else {
            let mut ring = DriverRing::new(ram, size).unwrap();
            ram.write(ring.used + 2, &start.to_le_bytes());
            (ring.next_available, ring.next_used) = (start, start);
            ring.publish(ram);
            Layout::Split(ring)
        };
        let tables = ram.allocate(64 * u64::from(size), 16).unwrap();
        Self { layout, size, access, next: 0, posted: Vec::new(), tables }
    }

    /// The device's side of it.
    pub fn device(&self, ram: &GuestRam, space: &Arc<AddressSpace>) -> Ring {
        let config = |[descriptors, available, used]: [u64; 3], base| RingConfig {
            size: self.size,
            descriptors: ram.user_of(descriptors),
            available: ram.user_of(available),
            used: ram.user_of(used),
            base,
            indirect: true,
            event_idx: false,
            batches: false,
        };
        match &self.layout {
            Layout::Split(ring) => {
                let at = [ring.descriptors, ring.available, ring.used];
                SplitRing::new(&config(at, u32::from(ring.next_used)), space, None).unwrap().into()
            }
            Layout::Packed(ring) => {
                let at = [ring.descriptors, ring.driver_event, ring.device_event];
                PackedRing::new(&config(at, ring.base()), space, None).unwrap().into()
            }
        }
    }

    /// Descriptors that no chain is made of.
    pub fn room(&self) -> u16 {
        self.size - self.posted.iter().sum::<u16>()
    }

    /// Puts a chain with a buffer at `at` into the ring; `false` where there is no room for it.
    pub fn post(&mut self, ram: &GuestRam, chain: &Posted, at: u64) -> bool {
        let slots = chain.kind.slots();
        if slots > self.room() {
            return false;
        }
        let right = if self.access == Access::Write { WRITE } else { 0 };
        let len = chain.len;
        let one = |addr, len, flags| vec![(addr, len, flags)];
        let shared = |n: u16| -> Vec<(u64, u32, u16)> {
            let each = len / u32::from(n);
            let piece = |k: u16| {
                let begin = each * u32::from(k);
                let end = if k + 1 == n { len } else { begin + each };
                (at + u64::from(begin), end - begin, right)
            };
            (0..n).map(piece).collect()
        };
        let id = self.next;
        let table = self.tables + 64 * u64::from(id);
        let chain = match &chain.kind {
            Kind::Plain => one(at, len, right),
            Kind::Pieces(n) => shared(*n),
            Kind::Table(n) => {
                self.write_table(ram, table, &shared(*n));
                one(table, 16 * u32::from(*n), INDIRECT)
            }
            Kind::WrongDirection => one(at, len, right ^ WRITE),
            Kind::Empty => one(at, 0, right),
            Kind::Outside { half: true } => one(OUTSIDE - 8, len.max(9), right),
            Kind::Outside { half: false } => one(OUTSIDE, len, right),
            Kind::Across => one(MIDDLE - 7, len.max(8), right),
            Kind::BadHead => one(table, 8, INDIRECT),
        };
        let is_bad_head = matches!(chain[..], [(_, 8, INDIRECT)]);
        match &mut self.layout {
            Layout::Split(ring) => {
                let index = |n: usize| (id + n as u16) % self.size;
                for (n, (addr, len, flags)) in chain.iter().enumerate() {
                    let more = if n + 1 < chain.len() { NEXT } else { 0 };
                    let descriptor =
                        Descriptor { addr: *addr, len: *len, flags: flags | more, next: index(n + 1) };
                    ring.set(ram, index(n), descriptor);
                }
                ring.push(ram, if is_bad_head { id + self.size } else { id });
            }
            Layout::Packed(ring) => {
                let descriptor = |(addr, len, flags)| PackedDescriptor { addr, len, id: 0xdead, flags };
                let chain: Vec<_> = chain.into_iter().map(descriptor).collect();
                assert!(ring.push(ram, id, &chain), "as much room as was counted");
            }
        }
        self.next = (id + slots) % self.size;
        self.posted.push(slots);
        true
    }

    fn write_table(&self, ram: &GuestRam, table: u64, entries: &[(u64, u32, u16)]) {
        for (n, (addr, len, flags)) in entries.iter().enumerate() {
            let at = table + 16 * n as u64;
            let more = if n + 1 < entries.len() { NEXT } else { 0 };
            match self.layout {
                Layout::Split(_) => {
                    let next = n as u16 + 1;
                    write_descriptor(
                        ram,
                        at,
                        Descriptor { addr: *addr, len: *len, flags: flags | more, next },
                    );
                }
                Layout::Packed(_) => {
                    write_packed_descriptor(
                        ram,
                        at,
                        PackedDescriptor { addr: *addr, len: *len, id: 0, flags: *flags },
                    );
                }
            }
        }
    }

    /// Shows the device what was posted.
    pub fn publish(&mut self, ram: &GuestRam) {
        match &mut self.layout {
            Layout::Split(ring) => ring.publish(ram),
            Layout::Packed(ring) => _ = ring.publish(ram),
        }
    }

    /// Takes back what was used: ids and lengths.
    pub fn reap(&mut self, ram: &GuestRam) -> Vec<(u32, u32)> {
        let layout = &mut self.layout;
        let used: Vec<_> = std::iter::from_fn(|| match layout {
            Layout::Split(ring) => ring.pop(ram),
            Layout::Packed(ring) => ring.pop(ram).map(|(id, len)| (u32::from(id), len)),
        })
        .collect();
        // Chains are completed in their order here.
        self.posted.drain(..used.len());
        used
    }
}

/// Memory of two mappings, filled so that no two places look the same, and what is seen of it.
pub(crate) struct Memory {
    pub ram: GuestRam,
    pub space: Arc<AddressSpace>,
    log: Option<File>,
}

impl Memory {
    /// With a dirty log, if that is wanted; `lay_out` sets rings aside.
    pub fn new<T>(logged: bool, lay_out: impl FnOnce(&mut GuestRam) -> T) -> (Self, T) {
        let mut ram = GuestRam::new(GPA, RAM).unwrap();
        for at in (BUFFERS..GPA + RAM).step_by(PATTERN.len()) {
            ram.write(at, &PATTERN[..PATTERN.len().min((GPA + RAM - at) as usize)]);
        }
        let rings = lay_out(&mut ram);
        assert!(ram.allocate(0, 1).unwrap() <= BUFFERS, "room for the rings");
        let region = |start: u64, size| RegionDescription {
            gpa: GPA + start,
            size,
            user: ram.user() + start,
            offset: start,
        };
        let file = || ram.file().try_clone().unwrap();
        let half = RAM / 2;
        let memory = GuestMemory::map([(region(0, half), file()), (region(half, half), file())]).unwrap();
        let log = logged.then(|| memfd(LOG));
        let shared =
            log.as_ref().map(|file| Arc::new(DirtyLog::map(file.try_clone().unwrap(), LOG, 0).unwrap()));
        let space = Arc::new(AddressSpace::physical(Arc::new(memory), shared));
        (Self { ram, space, log }, rings)
    }

    /// All of it.
    pub fn bytes(&self) -> Vec<u8> {
        self.first(RAM)
    }

    /// All below the buffers.
    pub fn rings(&self) -> Vec<u8> {
        self.first(BUFFERS - GPA)
    }

    fn first(&self, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.ram.read(GPA, &mut bytes);
        bytes
    }

    /// Numbers of the pages that were marked since this was asked last; guest addresses count.
    pub fn marked(&self) -> Vec<u64> {
        let Some(file) = &self.log else { return Vec::new() };
        let mut bits = vec![0; LOG as usize];
        file.read_exact_at(&mut bits, 0).unwrap();
        file.write_all_at(&vec![0; LOG as usize], 0).unwrap();
        (0..8 * LOG).filter(|page| bits[(page / 8) as usize] >> (page % 8) & 1 != 0).collect()
    }
}

/// Numbers of the pages that differ.
pub(crate) fn changed(before: &[u8], after: &[u8]) -> Vec<u64> {
    let pages = before.chunks(LOG_PAGE as usize).zip(after.chunks(LOG_PAGE as usize));
    (GPA / LOG_PAGE..)
        .zip(pages)
        .filter(|(_, (before, after))| before != after)
        .map(|(page, _)| page)
        .collect()
}
