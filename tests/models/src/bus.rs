//! What a device has around it: memory that it reaches, interrupts, the wire; and what it has to complain of.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::ptr::NonNull;

use crate::fault::Fault;
use crate::wire::Wire;

/// Most faults that are kept: the first ones tell.
const MOST_FAULTS: usize = 100;

/// A piece of the driver's memory.
#[derive(Debug)]
struct Mapping {
    iova: u64,
    len: u64,
    ptr: NonNull<u8>,
    writable: bool,
}

// SAFETY: the bytes are only copied, by whoever has the bus; whoever mapped them keeps them there until it unmaps them.
unsafe impl Send for Mapping {}

/// An interrupt.
#[derive(Debug, Default)]
struct Vector {
    bell: Option<File>,
    /// It was raised while nobody listened.
    pending: bool,
}

/// The surroundings of a device.
#[derive(Debug)]
pub struct Bus {
    mappings: Vec<Mapping>,
    vectors: Vec<Vector>,
    /// Interrupts get lost.
    lose_interrupts: bool,
    raised: u64,
    master: bool,
    /// Mappings that lie side by side are one.
    joined: bool,
    bits: u32,
    faults: Vec<Fault>,
    /// The other end of its link.
    pub wire: Wire,
}

impl Bus {
    /// Surroundings of a device with so many interrupts, whose addresses have so many bits.
    pub fn new(vectors: u16, bits: u32) -> Self {
        Self {
            mappings: Vec::new(),
            vectors: (0..vectors).map(|_| Vector::default()).collect(),
            lose_interrupts: false,
            raised: 0,
            master: false,
            joined: false,
            bits,
            faults: Vec::new(),
            wire: Wire::default(),
        }
    }

    /// Lets the device reach `len` bytes at `ptr` as `iova`.
    ///
    /// # Safety
    /// The bytes must stay mapped until [`unmap`](Self::unmap), and nobody may have a reference to them.
    pub unsafe fn map(&mut self, iova: u64, len: u64, ptr: NonNull<u8>, writable: bool) {
        self.mappings.push(Mapping { iova, len, ptr, writable });
    }

    /// Takes back what lies in these bytes; how many mappings that were, with their pointers and lengths.
    pub fn unmap(&mut self, iova: u64, len: u64) -> Vec<(NonNull<u8>, u64)> {
        let end = iova.saturating_add(len);
        let inside = |mapping: &Mapping| mapping.iova >= iova && mapping.iova + mapping.len <= end;
        let gone = self.mappings.iter().filter(|m| inside(m)).map(|m| (m.ptr, m.len)).collect();
        self.mappings.retain(|mapping| !inside(mapping));
        gone
    }

    /// Mappings that there are.
    pub fn mappings(&self) -> usize {
        self.mappings.len()
    }

    /// Allows or forbids DMA.
    pub fn set_master(&mut self, master: bool) {
        self.master = master;
    }

    /// Has mappings that lie side by side count as one, as where an IOMMU brings a buffer page by page. Where a driver maps
    /// each buffer in one piece, what runs over its end stays a fault.
    pub fn join_mappings(&mut self) {
        self.joined = true;
    }

    /// Where the byte at `iova` is, and how many follow it in its mapping.
    fn place(&self, iova: u64, write: bool) -> Option<(NonNull<u8>, usize)> {
        let holds = |m: &&Mapping| iova >= m.iova && iova - m.iova < m.len && (m.writable || !write);
        let mapping = self.mappings.iter().find(holds)?;
        let at = iova - mapping.iova;
        // SAFETY: the byte is inside the mapping.
        Some((unsafe { mapping.ptr.add(at as usize) }, (mapping.len - at) as usize))
    }

    /// Calls `each` with the places of a range and which of its bytes these are; `false` where that is a fault.
    fn dma(
        &mut self,
        iova: u64,
        len: usize,
        write: bool,
        mut each: impl FnMut(NonNull<u8>, Range<usize>),
    ) -> bool {
        if !self.master {
            self.fault(Fault::NoBusMaster);
            return false;
        }
        if iova
            .checked_add((len as u64).saturating_sub(1))
            .is_none_or(|last| self.bits < 64 && last >> self.bits != 0)
        {
            self.fault(Fault::Width { iova, bits: self.bits });
            return false;
        }
        let mut done = 0;
        loop {
            let left = len - done;
            match self.place(iova + done as u64, write) {
                Some((place, room)) if room >= left || self.joined => {
                    let part = room.min(left);
                    each(place, done..done + part);
                    done += part;
                }
                _ => {
                    self.fault(Fault::Dma { iova, len: len as u64, write });
                    return false;
                }
            }
            if done == len {
                return true;
            }
        }
    }

    /// Reads memory by DMA; `false`, and zeros, where that is a fault.
    pub fn dma_read(&mut self, iova: u64, bytes: &mut [u8]) -> bool {
        let complete = self.dma(iova, bytes.len(), false, |place, range| {
            let part = &mut bytes[range];
            // SAFETY: the range is mapped, as was just found; foreign memory is only copied.
            unsafe { std::ptr::copy_nonoverlapping(place.as_ptr(), part.as_mut_ptr(), part.len()) };
        });
        if !complete {
            bytes.fill(0);
        }
        complete
    }

    /// Reads `len` bytes by DMA.
    pub fn dma_get(&mut self, iova: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.dma_read(iova, &mut bytes);
        bytes
    }

    /// Writes memory by DMA, in front of every write that follows; `false` where that is a fault.
    pub fn dma_write(&mut self, iova: u64, bytes: &[u8]) -> bool {
        std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
        self.dma(iova, bytes.len(), true, |place, range| {
            let part = &bytes[range];
            let aligned = |size: usize| part.len() == size && (place.as_ptr() as usize).is_multiple_of(size);
            // Words are written whole, as a device does: the driver looks at them all the time.
            // SAFETY: the range is mapped, as was just found; foreign memory is only copied.
            unsafe {
                match part.len() {
                    8 if aligned(8) => {
                        place.cast().write_volatile(u64::from_ne_bytes(part.try_into().unwrap_or_default()));
                    }
                    4 if aligned(4) => {
                        place.cast().write_volatile(u32::from_ne_bytes(part.try_into().unwrap_or_default()));
                    }
                    _ => std::ptr::copy_nonoverlapping(part.as_ptr(), place.as_ptr(), part.len()),
                }
            }
        })
    }

    /// Something was done that must not be done.
    pub fn fault(&mut self, fault: Fault) {
        if self.faults.len() < MOST_FAULTS {
            self.faults.push(fault);
        }
    }

    /// A rule of the specification was broken.
    pub fn broken(&mut self, rule: impl Into<String>) {
        self.fault(Fault::Rule(rule.into()));
    }

    /// What must not have been done, since the last call.
    pub fn take_faults(&mut self) -> Vec<Fault> {
        std::mem::take(&mut self.faults)
    }

    /// Raises an interrupt. The device's own masks are its own business.
    pub fn raise(&mut self, vector: u16) {
        if self.lose_interrupts {
            return;
        }
        self.raised += 1;
        let Some(vector) = self.vectors.get_mut(usize::from(vector)) else {
            return self.broken(format!("interrupt {vector} is one too many"));
        };
        match &mut vector.bell {
            // A bell that is full rings already.
            Some(bell) => drop(bell.write(&1u64.to_ne_bytes())),
            None => vector.pending = true,
        }
    }

    /// Has interrupt `vector` ring `bell`, or nothing; one that was raised while there was none rings now.
    pub fn listen(&mut self, vector: u16, bell: Option<File>) {
        let Some(entry) = self.vectors.get_mut(usize::from(vector)) else { return };
        entry.bell = bell;
        if entry.bell.is_some() && std::mem::take(&mut entry.pending) {
            self.raise(vector);
        }
    }

    /// Interrupts get lost, or no longer.
    pub fn lose_interrupts(&mut self, lose: bool) {
        self.lose_interrupts = lose;
    }

    /// Interrupts raised so far.
    pub fn raised(&self) -> u64 {
        self.raised
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_side_by_side_are_one_where_that_was_said() {
        let mut memory = [[1u8; 16], [2; 16]];
        let [first, second] = memory.each_mut().map(|part| NonNull::new(part.as_mut_ptr()).unwrap());
        let mut bus = Bus::new(1, 64);
        bus.set_master(true);
        // SAFETY: the array outlives the bus, and is used through it only.
        unsafe {
            bus.map(0x1000, 16, second, true);
            bus.map(0x0ff0, 16, first, true);
        }
        let mut bytes = [9; 4];
        assert!(!bus.dma_read(0xffe, &mut bytes));
        assert_eq!((bytes, bus.take_faults().len()), ([0; 4], 1));
        bus.join_mappings();
        assert!(bus.dma_read(0xffe, &mut bytes));
        assert_eq!(bytes, [1, 1, 2, 2]);
        assert!(bus.dma_write(0xffe, &[7; 4]));
        assert_eq!(bus.dma_get(0xffd, 6), [1, 7, 7, 7, 7, 2]);
        assert!(!bus.dma_write(0x100e, &[7; 4]), "past the end of both");
        assert_eq!(bus.take_faults(), [Fault::Dma { iova: 0x100e, len: 4, write: true }]);
    }
}
