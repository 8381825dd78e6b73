//! What a device has around it: memory that it reaches, interrupts, the wire; and what it has to complain of.

use std::fs::File;
use std::io::Write;
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

    fn find(&mut self, iova: u64, len: usize, write: bool) -> Option<NonNull<u8>> {
        if !self.master {
            self.fault(Fault::NoBusMaster);
            return None;
        }
        let len = len as u64;
        if iova.checked_add(len.saturating_sub(1)).is_none_or(|last| self.bits < 64 && last >> self.bits != 0)
        {
            self.fault(Fault::Width { iova, bits: self.bits });
            return None;
        }
        let holds = |m: &&Mapping| {
            iova >= m.iova
                && iova - m.iova <= m.len
                && len <= m.len - (iova - m.iova)
                && (m.writable || !write)
        };
        match self.mappings.iter().find(holds) {
            // SAFETY: the byte is inside the mapping.
            Some(mapping) => Some(unsafe { mapping.ptr.add((iova - mapping.iova) as usize) }),
            None => {
                self.fault(Fault::Dma { iova, len, write });
                None
            }
        }
    }

    /// Reads memory by DMA; `false`, and zeros, where that is a fault.
    pub fn dma_read(&mut self, iova: u64, bytes: &mut [u8]) -> bool {
        bytes.fill(0);
        let Some(ptr) = self.find(iova, bytes.len(), false) else { return false };
        // SAFETY: the range is mapped, as was just found; foreign memory is only copied.
        unsafe { std::ptr::copy_nonoverlapping(ptr.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        true
    }

    /// Reads `len` bytes by DMA.
    pub fn dma_get(&mut self, iova: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.dma_read(iova, &mut bytes);
        bytes
    }

    /// Writes memory by DMA, in front of every write that follows; `false` where that is a fault.
    pub fn dma_write(&mut self, iova: u64, bytes: &[u8]) -> bool {
        let Some(ptr) = self.find(iova, bytes.len(), true) else { return false };
        std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
        let aligned = |size: usize| bytes.len() == size && (ptr.as_ptr() as usize).is_multiple_of(size);
        // Words are written whole, as a device does: the driver looks at them all the time.
        // SAFETY: the range is mapped, as was just found; foreign memory is only copied.
        unsafe {
            match bytes.len() {
                8 if aligned(8) => {
                    ptr.cast().write_volatile(u64::from_ne_bytes(bytes.try_into().unwrap_or_default()));
                }
                4 if aligned(4) => {
                    ptr.cast().write_volatile(u32::from_ne_bytes(bytes.try_into().unwrap_or_default()));
                }
                _ => std::ptr::copy_nonoverlapping(bytes.as_ptr(), ptr.as_ptr(), bytes.len()),
            }
        }
        true
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
