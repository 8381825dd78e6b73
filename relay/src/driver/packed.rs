//! The packed ring, driver side: every field can be written by hand, right or wrong.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use super::memory::GuestRam;
use crate::handshake;
use crate::ring::chain::DESCRIPTOR_SIZE;
use crate::ring::event::{DISABLE, SUPPRESSION_SIZE};

pub use crate::ring::chain::{INDIRECT, NEXT, WRITE};
pub use crate::ring::event::Suppression;
pub use crate::ring::packed::PackedDescriptor;
pub use crate::ring::position::{AVAIL, Position, USED};

/// A driver's packed ring in guest memory.
#[derive(Debug, Clone)]
pub struct PackedDriver {
    /// Number of descriptors.
    pub size: u16,
    /// Guest address of the descriptor ring.
    pub descriptors: u64,
    /// Guest address of the event suppression structure that the driver writes.
    pub driver_event: u64,
    /// Guest address of the event suppression structure that the device writes.
    pub device_event: u64,
    /// Where the next chain goes.
    pub next_available: Position,
    /// Where the next used descriptor is expected.
    pub next_used: Position,
    /// Whether event indices were negotiated.
    pub event_idx: bool,
    /// Slots that no chain is in.
    pub free: u16,
    /// Where the first chain begins that the device does not see yet, and its head's flags.
    first: Option<(Position, u16)>,
    /// Slots of the chain with a buffer id, by id.
    lengths: Vec<u16>,
    /// Where chains come back in order: ids of those that the device has.
    in_flight: Option<VecDeque<u16>>,
    /// The id and the length of the used descriptor that stands for the first ones of them.
    batch: Option<(u16, u32)>,
}

impl PackedDriver {
    /// Lays a ring of `size` descriptors out in `ram`.
    pub fn new(ram: &mut GuestRam, size: u16) -> io::Result<Self> {
        Ok(Self {
            size,
            descriptors: ram.allocate(DESCRIPTOR_SIZE as u64 * u64::from(size), 64)?,
            driver_event: ram.allocate(SUPPRESSION_SIZE, 64)?,
            device_event: ram.allocate(SUPPRESSION_SIZE, 64)?,
            next_available: Position::START,
            next_used: Position::START,
            event_idx: false,
            free: size,
            first: None,
            lengths: Vec::new(),
            in_flight: None,
            batch: None,
        })
    }

    /// Relies on chains coming back in the order in which they were pushed: one used descriptor may stand for several
    /// (virtio 1.3, 2.8.9). For a ring that was not used yet.
    pub fn expect_order(&mut self) {
        self.in_flight = Some(VecDeque::new());
    }

    /// Begins at the first slot again, as after a reset; the ring must have been emptied.
    pub fn begin_anew(&mut self) {
        (self.next_available, self.next_used) = (Position::START, Position::START);
        (self.free, self.first, self.batch) = (self.size, None, None);
        self.in_flight.iter_mut().for_each(VecDeque::clear);
    }

    /// The base of the ring as a front end tells it: available position below, used position above.
    pub fn base(&self) -> u32 {
        u32::from(self.next_used.bits()) << 16 | u32::from(self.next_available.bits())
    }

    /// Guest address of the descriptor in `slot`.
    pub fn descriptor_at(&self, slot: u16) -> u64 {
        self.descriptors + u64::from(slot) * DESCRIPTOR_SIZE as u64
    }

    /// Writes a descriptor of the ring, with all its flags.
    pub fn set(&self, ram: &GuestRam, slot: u16, descriptor: PackedDescriptor) {
        write_packed_descriptor(ram, self.descriptor_at(slot), descriptor);
    }

    /// Writes the flags of a descriptor of the ring, after all that was written before.
    pub fn set_flags(&self, ram: &GuestRam, slot: u16, flags: u16) {
        self.flags(ram, slot).store(flags.to_le(), Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Reads a descriptor of the ring.
    pub fn get(&self, ram: &GuestRam, slot: u16) -> PackedDescriptor {
        let mut bytes = [0; DESCRIPTOR_SIZE];
        ram.read(self.descriptor_at(slot), &mut bytes);
        let [addr, rest] = [0, 8].map(|at| {
            let mut half = [0; 8];
            half.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(half)
        });
        PackedDescriptor::from_halves(addr, rest)
    }

    /// Puts a chain into the ring; the device sees it after [`publish`](Self::publish). `false` when there are not
    /// enough free slots for it.
    ///
    /// Of the descriptors, addresses, lengths and the flags [`WRITE`] and [`INDIRECT`] are taken; `id` goes into the last.
    pub fn push(&mut self, ram: &GuestRam, id: u16, chain: &[PackedDescriptor]) -> bool {
        let Ok(slots) = u16::try_from(chain.len()) else { return false };
        if slots == 0 || slots > self.free {
            return false;
        }
        let mut at = self.next_available;
        for (n, descriptor) in chain.iter().enumerate() {
            let last = n + 1 == chain.len();
            let next = if last { 0 } else { NEXT };
            let flags = (descriptor.flags & (WRITE | INDIRECT)) | next | at.available_flags();
            let hidden = n == 0 && self.first.is_none();
            if hidden {
                self.first = Some((at, flags));
            }
            // The head that is shown last keeps the flags of a descriptor that is used.
            let shown = if hidden { self.get(ram, at.slot).flags } else { flags };
            let id = if last { id } else { descriptor.id };
            self.set(ram, at.slot, PackedDescriptor { id, flags: shown, ..*descriptor });
            at = at.advanced(1, self.size);
        }
        self.next_available = at;
        self.free -= slots;
        self.remember(id, slots);
        self.in_flight.iter_mut().for_each(|ids| ids.push_back(id));
        true
    }

    /// Notes that a used descriptor with this id stands for a chain of so many slots, one that was written by hand, say.
    pub fn remember(&mut self, id: u16, slots: u16) {
        let id = usize::from(id);
        if self.lengths.len() <= id {
            self.lengths.resize(id + 1, 1);
        }
        self.lengths[id] = slots;
    }

    /// Shows the device what was pushed; returns whether it wants to be kicked.
    pub fn publish(&mut self, ram: &GuestRam) -> bool {
        let Some((at, flags)) = self.first.take() else { return false };
        handshake::show(
            self,
            |ring| {
                ring.flags(ram, at.slot).store(flags.to_le(), Ordering::Release);
                true
            },
            |ring| {
                let new = ring.next_available;
                ring.device_suppression(ram).wants(ring.event_idx, Some(at), new, ring.size)
            },
        )
    }

    /// Takes the next chain that was used: the buffer id and the bytes written. The latter are not known of a chain that a
    /// later one's used descriptor stands for, and 0 then.
    ///
    /// # Panics
    /// When chains were to come back in order, and the device names one that it does not have.
    pub fn pop(&mut self, ram: &GuestRam) -> Option<(u16, u32)> {
        let last = self.batch.take().or_else(|| self.used(ram))?;
        let (id, len) = match &mut self.in_flight {
            None => last,
            Some(ids) => {
                let id = ids.pop_front();
                assert!(id == Some(last.0) || ids.contains(&last.0), "{last:?} is not in flight");
                match id {
                    Some(id) if id != last.0 => {
                        self.batch = Some(last);
                        (id, 0)
                    }
                    _ => last,
                }
            }
        };
        let slots = self.lengths.get(usize::from(id)).copied().unwrap_or(1);
        self.next_used = self.next_used.advanced(slots.min(self.size), self.size);
        self.free = self.free.saturating_add(slots).min(self.size);
        Some((id, len))
    }

    /// The used descriptor that is next, if it is there.
    fn used(&self, ram: &GuestRam) -> Option<(u16, u32)> {
        let at = self.next_used;
        let flags = u16::from_le(self.flags(ram, at.slot).load(Ordering::Acquire));
        if !at.is_used(flags) {
            return None;
        }
        let PackedDescriptor { id, len, .. } = self.get(ram, at.slot);
        Some((id, len))
    }

    /// Asks not to be interrupted (a driver that polls), or to be interrupted always.
    pub fn set_polling(&self, ram: &GuestRam, polling: bool) {
        self.set_driver_event(ram, Suppression { event: 0, flags: if polling { DISABLE } else { 0 } });
    }

    /// Writes the driver's event suppression structure.
    pub fn set_driver_event(&self, ram: &GuestRam, event: Suppression) {
        self.event(ram, self.driver_event).store(event.word(), Ordering::Relaxed);
        // What is used from here on is told of, what was used before is seen.
        fence(Ordering::SeqCst);
    }

    /// The device's event suppression structure.
    pub fn device_suppression(&self, ram: &GuestRam) -> Suppression {
        Suppression::from_word(self.event(ram, self.device_event).load(Ordering::Relaxed))
    }

    fn flags<'a>(&self, ram: &'a GuestRam, slot: u16) -> &'a AtomicU16 {
        let at = ram.at(self.descriptor_at(slot) + 14, 2);
        // SAFETY: inside the mapping, which outlives the borrow of `ram`, and 2-aligned since rings are.
        unsafe { AtomicU16::from_ptr(at.cast().as_ptr()) }
    }

    fn event<'a>(&self, ram: &'a GuestRam, structure: u64) -> &'a AtomicU32 {
        let at = ram.at(structure, SUPPRESSION_SIZE);
        // SAFETY: inside the mapping, which outlives the borrow of `ram`, and 4-aligned since these structures are.
        unsafe { AtomicU32::from_ptr(at.cast().as_ptr()) }
    }
}

/// Writes a descriptor anywhere in guest memory: into an indirect table, say.
pub fn write_packed_descriptor(ram: &GuestRam, gpa: u64, descriptor: PackedDescriptor) {
    let (addr, rest) = descriptor.halves();
    let mut bytes = [0; DESCRIPTOR_SIZE];
    bytes[..8].copy_from_slice(&addr.to_ne_bytes());
    bytes[8..].copy_from_slice(&rest.to_ne_bytes());
    ram.write(gpa, &bytes);
}
