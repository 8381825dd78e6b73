//! Extended interrupts: causes, masks, and which queue has which vector (8.14: EICR, EIMS, EIMC, EIAC, EIAM, VTIVAR).

use crate::bus::Bus;

const EICS: u64 = 0x1520;
const EIMS: u64 = 0x1524;
const EIMC: u64 = 0x1528;
const EIAC: u64 = 0x152c;
const EIAM: u64 = 0x1530;
const EICR: u64 = 0x1580;
const IVAR: u64 = 0x1700;
/// Vectors of a VF.
const VECTORS: u32 = 0b111;
const VALID: u32 = 1 << 7;

/// The interrupt unit.
#[derive(Debug, Default)]
pub struct Interrupts {
    causes: u32,
    enabled: u32,
    cleared: u32,
    masked: u32,
    vectors: u32,
}

impl Interrupts {
    /// Whether it has a register there.
    pub fn has(offset: u64) -> bool {
        matches!(offset, EICS | EIMS | EIMC | EIAC | EIAM | EICR | IVAR)
    }

    /// A read.
    pub fn read(&mut self, offset: u64) -> u32 {
        match offset {
            EIMS => self.enabled,
            EIAC => self.cleared,
            EIAM => self.masked,
            EICR => std::mem::take(&mut self.causes),
            IVAR => self.vectors,
            _ => 0,
        }
    }

    /// A write.
    pub fn write(&mut self, bus: &mut Bus, offset: u64, value: u32) {
        // Drivers write ones to clear everything there is.
        if value & !VECTORS != 0 && matches!(offset, EIMS | EIAC | EIAM) {
            bus.broken(format!("vectors {value:#x}, of which a VF has 3"));
        }
        match offset {
            EICS => self.raise(bus, value),
            EIMS => {
                self.enabled |= value & VECTORS;
                self.raise(bus, 0);
            }
            EIMC => self.enabled &= !value,
            EIAC => self.cleared = value,
            EIAM => self.masked = value,
            EICR => self.causes &= !value,
            _ => {
                let bad = value.to_le_bytes().iter().any(|entry| entry & 0x7c != 0 || entry & 3 == 3);
                if bad {
                    bus.broken(format!("VTIVAR is {value:#x}"));
                }
                self.vectors = value;
            }
        }
    }

    fn raise(&mut self, bus: &mut Bus, causes: u32) {
        self.causes |= causes;
        let now = self.causes & self.enabled;
        for vector in (0..3).filter(|vector| now >> vector & 1 != 0) {
            bus.raise(vector);
        }
        self.causes &= !(now & self.cleared);
        self.enabled &= !(now & self.masked);
    }

    fn cause(&mut self, bus: &mut Bus, entry: usize) {
        let entry = self.vectors >> (8 * entry) & 0xff;
        if entry & VALID != 0 {
            self.raise(bus, 1 << (entry & 3));
        }
    }

    /// A frame was received.
    pub fn received(&mut self, bus: &mut Bus, queue: usize) {
        self.cause(bus, 2 * queue);
    }

    /// A frame was sent.
    pub fn transmitted(&mut self, bus: &mut Bus, queue: usize) {
        self.cause(bus, 2 * queue + 1);
    }
}
