//! The split ring, driver side: every field can be written by hand, right or wrong.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::memory::GuestRam;
use crate::ring::chain::DESCRIPTOR_SIZE;

pub use crate::ring::chain::{Descriptor, INDIRECT, NEXT, WRITE};

/// A driver's split ring in guest memory.
#[derive(Debug, Clone)]
pub struct DriverRing {
    /// Number of descriptors.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// The driver's copy of `avail.idx`.
    pub next_available: u16,
    /// Used entries that the driver has seen.
    pub next_used: u16,
}

impl DriverRing {
    /// Lays a ring of `size` descriptors out in `ram`.
    pub fn new(ram: &mut GuestRam, size: u16) -> io::Result<Self> {
        let entries = u64::from(size);
        Ok(Self {
            size,
            descriptors: ram.allocate(16 * entries, 16)?,
            available: ram.allocate(6 + 2 * entries, 64)?,
            used: ram.allocate(6 + 8 * entries, 64)?,
            next_available: 0,
            next_used: 0,
        })
    }

    /// Guest address of descriptor `index` in this ring's table.
    pub fn descriptor_at(&self, index: u16) -> u64 {
        self.descriptors + u64::from(index) * DESCRIPTOR_SIZE as u64
    }

    /// Writes a descriptor of the ring's table.
    pub fn set(&self, ram: &GuestRam, index: u16, descriptor: Descriptor) {
        write_descriptor(ram, self.descriptor_at(index), descriptor);
    }

    /// Puts a head into the available ring; the device sees it after [`publish`](Self::publish).
    pub fn push(&mut self, ram: &GuestRam, head: u16) {
        let slot = u64::from(self.next_available & (self.size - 1));
        ram.write(self.available + 4 + 2 * slot, &head.to_le_bytes());
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Shows the device what was pushed.
    pub fn publish(&self, ram: &GuestRam) {
        self.set_available_index(ram, self.next_available);
    }

    /// Stores any available index.
    pub fn set_available_index(&self, ram: &GuestRam, index: u16) {
        self.index(ram, self.available).store(index.to_le(), Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Sets the available ring's flags (1: the driver does not want to be interrupted).
    pub fn set_flags(&self, ram: &GuestRam, flags: u16) {
        ram.write(self.available, &flags.to_le_bytes());
        fence(Ordering::SeqCst);
    }

    /// Names the used entry at which the driver wants to be interrupted (`VIRTIO_F_EVENT_IDX`).
    pub fn set_used_event(&self, ram: &GuestRam, event: u16) {
        ram.write(self.available + 4 + 2 * u64::from(self.size), &event.to_le_bytes());
        fence(Ordering::SeqCst);
    }

    /// The available entry at which the device wants to be kicked (`VIRTIO_F_EVENT_IDX`).
    pub fn available_event(&self, ram: &GuestRam) -> u16 {
        let mut event = [0; 2];
        ram.read(self.used + 4 + 8 * u64::from(self.size), &mut event);
        u16::from_le_bytes(event)
    }

    /// The used ring's flags (1: the device does not want to be kicked).
    pub fn used_flags(&self, ram: &GuestRam) -> u16 {
        let mut flags = [0; 2];
        ram.read(self.used, &mut flags);
        u16::from_le_bytes(flags)
    }

    /// The device's used index.
    pub fn used_index(&self, ram: &GuestRam) -> u16 {
        u16::from_le(self.index(ram, self.used).load(Ordering::Acquire))
    }

    /// Takes the next used entry: the chain's head and the bytes written to it.
    pub fn pop(&mut self, ram: &GuestRam) -> Option<(u32, u32)> {
        if self.used_index(ram) == self.next_used {
            return None;
        }
        let slot = u64::from(self.next_used & (self.size - 1));
        let mut entry = [0; 8];
        ram.read(self.used + 4 + 8 * slot, &mut entry);
        self.next_used = self.next_used.wrapping_add(1);
        let [a, b, c, d, e, f, g, h] = entry;
        Some((u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])))
    }

    fn index<'a>(&self, ram: &'a GuestRam, ring: u64) -> &'a AtomicU16 {
        let at = ram.at(ring + 2, 2);
        // SAFETY: inside the mapping, which outlives the borrow of `ram`, and 2-aligned since rings are.
        unsafe { AtomicU16::from_ptr(at.cast().as_ptr()) }
    }
}

/// Writes a descriptor anywhere in guest memory: into an indirect table, say.
pub fn write_descriptor(ram: &GuestRam, gpa: u64, descriptor: Descriptor) {
    let Descriptor { addr, len, flags, next } = descriptor;
    let mut bytes = [0; DESCRIPTOR_SIZE];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    ram.write(gpa, &bytes);
}
