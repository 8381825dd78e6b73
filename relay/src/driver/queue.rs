//! One virtqueue of a driver over either layout, with the buffers and indirect tables that belong to it.
//!
//! A buffer is known by its id. What a chain is made of is a list of [`Piece`]s; where its descriptors stand follows from
//! the id in a split ring and from the order of the chains in a packed one.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{Ordering, fence};

use vhost::VringConfigData;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::memory::GuestRam;
use super::packed::{PackedDescriptor, PackedDriver, Suppression, write_packed_descriptor};
use super::split::{Descriptor, DriverRing, INDIRECT, NEXT, write_descriptor};
use crate::ring::event::{AT_DESCRIPTOR, need_event};

/// A piece of a buffer: its guest address and length in bytes.
pub type Piece = (u64, u32);

/// Most pieces of a chain that is not written by hand.
pub const MOST_PIECES: usize = 4;

/// What a queue is like.
#[derive(Clone, Copy, Debug)]
pub struct QueueOptions {
    /// Descriptors in the ring.
    pub size: u16,
    /// Bytes of each buffer.
    pub buffer: u32,
    /// Descriptors of the ring that each chain may need.
    pub descriptors: u16,
    /// Whether the ring is packed.
    pub packed: bool,
    /// Whether chains lie in tables of their own.
    pub indirect: bool,
    /// Whether chains come back in the order in which they were made available.
    pub in_order: bool,
    /// Whether kicks and interrupts are asked for by index.
    pub event_idx: bool,
}

/// A ring of either layout, to write to by hand too.
#[derive(Debug)]
pub enum Layout {
    /// Three areas.
    Split(DriverRing),
    /// One area and two event suppression structures.
    Packed(PackedDriver),
}

/// A virtqueue as its driver has it.
#[derive(Debug)]
pub struct DriverQueue {
    layout: Layout,
    options: QueueOptions,
    buffers: u64,
    tables: u64,
    /// Buffers that no chain is made of; with `in_order` the first is the next.
    free: VecDeque<u16>,
    /// Buffers that the device has, with `in_order`.
    in_flight: VecDeque<u16>,
    /// Available index of a split ring when it was last shown.
    shown: u16,
    polling: bool,
    /// Interrupts the driver.
    pub call: EventFd,
    /// Kicks the device.
    pub kick: EventFd,
}

impl DriverQueue {
    /// Lays a queue out in `ram`, with all its buffers free.
    pub fn new(ram: &mut GuestRam, options: QueueOptions) -> io::Result<Self> {
        let ids = options.size / options.descriptors;
        let layout = layout(ram, &options)?;
        Ok(Self {
            layout,
            options,
            buffers: ram.allocate(u64::from(ids) * u64::from(options.buffer), 4096)?,
            tables: ram.allocate(Self::TABLE * u64::from(ids), 64)?,
            free: ids_of(&options),
            in_flight: VecDeque::new(),
            shown: 0,
            polling: false,
            call: EventFd::new(EFD_NONBLOCK)?,
            kick: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Bytes of an indirect table.
    const TABLE: u64 = 16 * MOST_PIECES as u64;

    /// Bytes of guest memory that a queue with these options takes, at most.
    pub fn footprint(options: &QueueOptions) -> u64 {
        let (size, ids) = (u64::from(options.size), u64::from(options.size / options.descriptors));
        26 * size + ids * (u64::from(options.buffer) + Self::TABLE) + 0x4000
    }

    /// Forgets all that was under way: a fresh ring with `size` descriptors, at most as many as in the beginning.
    pub fn renew(&mut self, ram: &mut GuestRam, size: u16) -> io::Result<()> {
        self.options.size = size;
        self.layout = layout(ram, &self.options)?;
        self.free = ids_of(&self.options);
        self.in_flight.clear();
        self.shown = 0;
        self.set_polling(ram, self.polling);
        Ok(())
    }

    /// The ring, to write to by hand.
    pub fn layout(&mut self) -> &mut Layout {
        &mut self.layout
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.options.size
    }

    /// A whole buffer.
    pub fn buffer(&self, id: u16) -> Piece {
        (self.buffers + u64::from(id) * u64::from(self.options.buffer), self.options.buffer)
    }

    /// Buffers that can be had.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// A buffer to fill; `None` when the device has all of them.
    pub fn take(&mut self) -> Option<u16> {
        // The buffer that came back last is the one that the caches still know.
        if self.options.in_order { self.free.pop_front() } else { self.free.pop_back() }
    }

    /// A buffer is no longer used.
    pub fn give_back(&mut self, id: u16) {
        self.free.push_back(id);
    }

    /// Makes a chain of `pieces`, all of them read or all of them written by the device (`access` is
    /// [`WRITE`](super::split::WRITE) then). The device sees it after [`flush`](Self::flush).
    ///
    /// # Panics
    /// With more pieces than a chain of this queue may have: an error in the caller.
    pub fn push(&mut self, ram: &GuestRam, id: u16, pieces: &[Piece], access: u16) {
        let QueueOptions { indirect, descriptors, in_order, .. } = self.options;
        assert!(indirect && pieces.len() <= MOST_PIECES || pieces.len() <= usize::from(descriptors));
        let table = self.tables + Self::TABLE * u64::from(id);
        let table_piece = (table, 16 * pieces.len() as u32);
        match &mut self.layout {
            Layout::Split(ring) => {
                let first = id * descriptors;
                let chain = |first: u16| {
                    pieces.iter().enumerate().map(move |(n, (addr, len))| {
                        let next = first + n as u16 + 1;
                        let more = if n + 1 < pieces.len() { NEXT } else { 0 };
                        Descriptor { addr: *addr, len: *len, flags: access | more, next }
                    })
                };
                if indirect {
                    for (n, descriptor) in chain(0).enumerate() {
                        write_descriptor(ram, table + 16 * n as u64, descriptor);
                    }
                    let (addr, len) = table_piece;
                    ring.set(ram, first, Descriptor { addr, len, flags: INDIRECT, next: 0 });
                } else {
                    for (index, descriptor) in (first..).zip(chain(first)) {
                        ring.set(ram, index, descriptor);
                    }
                }
                ring.push(ram, first);
            }
            Layout::Packed(ring) => {
                let one = |&(addr, len): &Piece, flags| PackedDescriptor { addr, len, id, flags };
                let mut chain = [PackedDescriptor::default(); MOST_PIECES];
                let mut n = pieces.len();
                chain.iter_mut().zip(pieces).for_each(|(slot, piece)| *slot = one(piece, access));
                if indirect {
                    for (at, descriptor) in (table..).step_by(16).zip(&chain[..n]) {
                        write_packed_descriptor(ram, at, *descriptor);
                    }
                    (chain[0], n) = (one(&table_piece, INDIRECT), 1);
                }
                let there = ring.push(ram, id, &chain[..n]);
                assert!(there, "each buffer has room in the ring");
            }
        }
        if in_order {
            self.in_flight.push_back(id);
        }
    }

    /// Shows the device what was pushed, and kicks it if it wants that.
    pub fn flush(&mut self, ram: &GuestRam) {
        let wanted = match &mut self.layout {
            Layout::Packed(ring) => ring.publish(ram),
            Layout::Split(ring) => {
                ring.publish(ram);
                let before = std::mem::replace(&mut self.shown, ring.next_available);
                if self.options.event_idx {
                    need_event(ring.available_event(ram), ring.next_available, before)
                } else {
                    ring.used_flags(ram) & 1 == 0
                }
            }
        };
        if wanted {
            let _ = self.kick.write(1);
        }
    }

    /// Takes back a buffer that the device is done with: its id and the bytes written to it.
    ///
    /// # Panics
    /// When it was another's turn and `in_order` was negotiated: that is what such a driver relies on.
    pub fn pop(&mut self, ram: &GuestRam) -> Option<(u16, u32)> {
        let (id, len) = match &mut self.layout {
            Layout::Split(ring) => {
                let (head, len) = ring.pop(ram)?;
                (head as u16 / self.options.descriptors, len)
            }
            Layout::Packed(ring) => ring.pop(ram)?,
        };
        if self.options.in_order {
            assert_eq!(Some(id), self.in_flight.pop_front(), "a chain came back out of order");
        }
        Some((id, len))
    }

    /// Asks not to be interrupted (a driver that polls), or to be interrupted again.
    pub fn set_polling(&mut self, ram: &GuestRam, polling: bool) {
        self.polling = polling;
        match &mut self.layout {
            Layout::Split(ring) if self.options.event_idx => {
                ring.set_used_event(ram, ring.next_used.wrapping_sub(u16::from(polling)));
            }
            Layout::Split(ring) => ring.set_flags(ram, u16::from(polling)),
            Layout::Packed(ring) if self.options.event_idx && !polling => {
                let event = ring.next_used.bits();
                ring.set_driver_event(ram, Suppression { event, flags: AT_DESCRIPTOR });
            }
            Layout::Packed(ring) => ring.set_polling(ram, polling),
        }
    }

    /// After taking back: with event indices, asks for an interrupt when the next chain is used.
    pub fn rearm(&mut self, ram: &GuestRam) {
        if self.options.event_idx && !self.polling {
            self.set_polling(ram, false);
            fence(Ordering::SeqCst);
        }
    }

    /// Where the ring goes on, as a front end tells it: what the device took and did not use it takes again.
    pub fn base(&self) -> u16 {
        match &self.layout {
            Layout::Split(ring) => ring.next_used,
            Layout::Packed(ring) => ring.next_used.bits(),
        }
    }

    /// Where the ring is, as a front end tells it.
    pub fn addresses(&self, ram: &GuestRam) -> VringConfigData {
        let (descriptors, available, used) = match &self.layout {
            Layout::Split(ring) => (ring.descriptors, ring.available, ring.used),
            Layout::Packed(ring) => (ring.descriptors, ring.driver_event, ring.device_event),
        };
        VringConfigData {
            queue_max_size: self.options.size,
            queue_size: self.options.size,
            flags: 0,
            desc_table_addr: ram.user_of(descriptors),
            used_ring_addr: ram.user_of(used),
            avail_ring_addr: ram.user_of(available),
            log_addr: None,
        }
    }
}

/// All buffers, in such an order that the first to be taken is buffer 0.
fn ids_of(options: &QueueOptions) -> VecDeque<u16> {
    let ids = 0..options.size / options.descriptors;
    if options.in_order { ids.collect() } else { ids.rev().collect() }
}

fn layout(ram: &mut GuestRam, options: &QueueOptions) -> io::Result<Layout> {
    Ok(if options.packed {
        let mut ring = PackedDriver::new(ram, options.size)?;
        ring.event_idx = options.event_idx;
        if options.in_order {
            ring.expect_order();
        }
        Layout::Packed(ring)
    } else {
        Layout::Split(DriverRing::new(ram, options.size)?)
    })
}
