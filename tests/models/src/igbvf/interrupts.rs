//! Extended interrupts: causes, masks, and which queue has which vector (8.14: EICR, EIMS, EIMC, EIAC, EIAM, VTEITR, VTIVAR).

use crate::bus::Bus;

const EICS: u64 = 0x1520;
const EIMS: u64 = 0x1524;
const EIMC: u64 = 0x1528;
const EIAC: u64 = 0x152c;
const EIAM: u64 = 0x1530;
const EICR: u64 = 0x1580;
const EITR: u64 = 0x1680;
const EITR_END: u64 = 0x168c;
const IVAR: u64 = 0x1700;
const IVAR_MISC: u64 = 0x1740;
/// Vectors of a VF.
const VECTORS: u32 = 0b111;
const VALID: u32 = 1 << 7;
/// EITR: the interval, whose two lowest bits do not count, and that the counter stays as it is.
const EITR_BITS: u32 = 0x7fff | 1 << 31;

/// The interrupt unit.
#[derive(Debug, Default)]
pub struct Interrupts {
    causes: u32,
    enabled: u32,
    cleared: u32,
    masked: u32,
    vectors: u32,
    /// Of the mailbox.
    misc: u32,
    /// Shortest times between two interrupts, which this model does not keep.
    moderation: [u32; 3],
    /// See [`of_port`](Self::of_port).
    summed: Option<Summed>,
}

/// Entries of the port's IVAR, to which those of a VF are added bit by bit, as QEMU's 82576 does (10.0): neither
/// another driver of the VF nor a reset of it clears them.
#[derive(Clone, Copy, Debug)]
struct Summed {
    /// The port's number of the VF's vector 0.
    first: u32,
    entries: [u32; 4],
}

impl Interrupts {
    /// Those of a VF that keeps its entries in the port's IVAR, where its vector 0 has the number `first`.
    pub fn of_port(first: u32) -> Self {
        Self { summed: Some(Summed { first, entries: [0; 4] }), ..Self::default() }
    }

    /// The VF was reset.
    pub fn reset(&mut self) {
        *self = Self { summed: self.summed, ..Self::default() };
    }

    /// Whether it has a register there.
    pub fn has(offset: u64) -> bool {
        matches!(offset, EICS | EIMS | EIMC | EIAC | EIAM | EICR | EITR..EITR_END | IVAR | IVAR_MISC)
    }

    /// A read.
    pub fn read(&mut self, offset: u64) -> u32 {
        match offset {
            EIMS => self.enabled,
            EIAC => self.cleared,
            EIAM => self.masked,
            EICR => std::mem::take(&mut self.causes),
            IVAR => self.vectors,
            IVAR_MISC => self.misc,
            EITR..EITR_END => self.moderation[(offset - EITR) as usize / 4],
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
            EICS => {
                self.enabled |= value & self.masked;
                self.raise(bus, value);
            }
            EIMS => {
                self.enabled |= value & VECTORS;
                self.raise(bus, 0);
            }
            EIMC => self.enabled &= !value,
            EIAC => self.cleared = value,
            EIAM => self.masked = value,
            EICR => self.causes &= !value,
            EITR..EITR_END => {
                if value & !EITR_BITS != 0 {
                    bus.broken(format!("VTEITR is {value:#x}"));
                }
                self.moderation[(offset - EITR) as usize / 4] = value & 0x7ffc;
            }
            IVAR_MISC => {
                if value & !(VALID | 3) != 0 || value & 3 == 3 {
                    bus.broken(format!("VTIVAR_MISC is {value:#x}"));
                }
                self.misc = value;
            }
            _ => {
                let bad = value.to_le_bytes().iter().any(|entry| entry & 0x7c != 0 || entry & 3 == 3);
                if bad {
                    bus.broken(format!("VTIVAR is {value:#x}"));
                }
                self.vectors = value;
                if let Some(Summed { first, entries }) = &mut self.summed {
                    for (sum, entry) in entries.iter_mut().zip(value.to_le_bytes().map(u32::from)) {
                        if entry & VALID != 0 {
                            *sum |= VALID | (*first + (entry & 3));
                        }
                    }
                }
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
        let own = self.vectors >> (8 * entry) & 0xff;
        let (entry, first) = self.summed.map_or((own, 0), |summed| (summed.entries[entry], summed.first));
        // Below and above are the vectors of others.
        let vector = (entry & !VALID).wrapping_sub(first);
        if entry & VALID != 0 && vector < 3 {
            self.raise(bus, 1 << vector);
        }
    }

    /// The PF has read the mailbox, or written to it.
    pub fn mail(&mut self, bus: &mut Bus) {
        if self.misc & VALID != 0 {
            self.raise(bus, 1 << (self.misc & 3));
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
