//! Interrupts: 0 for all else, the others for queues; each has a register that lets it through, once.

use super::register;
use crate::bus::Bus;

/// Bits of VFINT_DYN_CTL.
const ENABLE: u32 = 1;
const TRIGGER: u32 = 1 << 2;
const WRITE_BACK: u32 = 1 << 30;
/// Reserved: 17 to 23, 27 to 29.
const RESERVED: u32 = 0x38fe_0000;
/// VFINT_ICR0 and its mask: the admin queue.
const ADMIN: u32 = 1 << 30;

#[derive(Clone, Copy, Debug, Default)]
struct Vector {
    control: u32,
    pending: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Interrupts {
    vectors: Vec<Vector>,
    causes: u32,
    mask: u32,
    /// Interrupt 0 goes on when it has interrupted.
    pub polling: bool,
}

impl Interrupts {
    /// So many, all masked.
    pub fn new(count: u16) -> Self {
        Self { vectors: vec![Vector::default(); usize::from(count)], ..Self::default() }
    }

    fn number(&self, offset: u64) -> Option<usize> {
        match offset {
            register::DYN_CTL0 => Some(0),
            _ => super::element(offset, register::DYN_CTLN, 16).map(|number| number + 1),
        }
    }

    /// A register of theirs.
    pub fn read(&mut self, offset: u64) -> Option<u32> {
        let intervals = (register::ITRN..register::ITRN + 0xc0).contains(&offset)
            || (register::ITR0..register::ITR0 + 12).contains(&offset);
        match offset {
            // Cleared by reading.
            register::ICR0 => Some(std::mem::take(&mut self.causes)),
            register::ICR0_ENA => Some(self.mask),
            register::STAT_CTL0 => Some(0),
            _ if intervals => Some(0),
            _ => {
                self.number(offset).map(|number| self.vectors.get(number).map_or(0, |vector| vector.control))
            }
        }
    }

    /// Writes a register of theirs; whether it is one.
    pub fn write(&mut self, bus: &mut Bus, offset: u64, value: u32) -> bool {
        match offset {
            register::ICR0_ENA => self.mask = value,
            register::STAT_CTL0 => {}
            _ if (register::ITRN..register::ITRN + 0xc0).contains(&offset) => {}
            _ if (register::ITR0..register::ITR0 + 12).contains(&offset) => {}
            _ => {
                let Some(number) = self.number(offset) else { return false };
                self.control(bus, number, value);
            }
        }
        true
    }

    fn control(&mut self, bus: &mut Bus, number: usize, value: u32) {
        if value & RESERVED != 0 {
            bus.broken(format!(
                "interrupt {number} is controlled with reserved bits {:#x}",
                value & RESERVED
            ));
        }
        let Some(vector) = self.vectors.get_mut(number) else {
            return bus.broken(format!("interrupt {number} is controlled, and there is none"));
        };
        vector.control = value & (ENABLE | WRITE_BACK);
        vector.pending |= value & TRIGGER != 0;
        self.fire(bus, number);
    }

    fn fire(&mut self, bus: &mut Bus, number: usize) {
        let automatic = !(number == 0 && self.polling);
        let Some(vector) = self.vectors.get_mut(number) else { return };
        if vector.pending && vector.control & ENABLE != 0 {
            vector.pending = false;
            if automatic {
                vector.control &= !ENABLE;
            }
            bus.raise(number as u16);
        }
    }

    /// Something happened that interrupt `vector` is for.
    pub fn cause(&mut self, bus: &mut Bus, vector: Option<u16>) {
        let Some(number) = vector.map(usize::from) else { return };
        if let Some(vector) = self.vectors.get_mut(number) {
            vector.pending = true;
        }
        self.fire(bus, number);
    }

    /// A message came.
    pub fn message(&mut self, bus: &mut Bus) {
        self.causes |= ADMIN;
        if self.mask & ADMIN != 0 {
            self.cause(bus, Some(0));
        }
    }

    /// Whether the interrupt has finished descriptors written back at once: because it may interrupt, or by its timer.
    pub fn fetches(&self, vector: Option<u16>) -> bool {
        let vector = vector.and_then(|number| self.vectors.get(usize::from(number)));
        vector.is_some_and(|vector| vector.control & (ENABLE | WRITE_BACK) != 0)
    }
}
