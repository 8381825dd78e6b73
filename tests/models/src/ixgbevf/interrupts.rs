//! Causes, masks and vectors of the VF (82599 data sheet, chapter 7.3): three vectors, one cause bit each.

use crate::bus::Bus;

/// Vectors of a VF.
pub const VECTORS: u16 = 3;
const ALL: u32 = (1 << VECTORS) - 1;
/// IVAR: this cause has a vector.
const VALID: u8 = 0x80;

/// The interrupt registers.
#[derive(Debug, Default)]
pub struct Interrupts {
    pub cause: u32,
    pub mask: u32,
    pub auto_clear: u32,
    pub auto_mask: u32,
    /// For two queues each: receive and transmit of the even one, then of the odd one.
    pub vectors: [u32; 4],
    pub misc: u32,
    pub moderation: [u32; VECTORS as usize],
    /// Causes that have sent their message and stand since.
    told: u32,
    /// None is ever sent.
    pub mute: bool,
}

impl Interrupts {
    fn happen(&mut self, bus: &mut Bus, entry: u8) {
        if entry & VALID != 0 {
            self.cause |= 1 << (entry & 3) & ALL;
            self.fire(bus);
        }
    }

    /// Receive queue `queue` has a frame.
    pub fn received(&mut self, bus: &mut Bus, queue: usize) {
        self.happen(bus, (self.vectors[queue / 2] >> (16 * (queue % 2))) as u8);
    }

    /// Transmit queue `queue` has written something back.
    pub fn transmitted(&mut self, bus: &mut Bus, queue: usize) {
        self.happen(bus, (self.vectors[queue / 2] >> (16 * (queue % 2) + 8)) as u8);
    }

    /// The mailbox has news.
    pub fn mail(&mut self, bus: &mut Bus) {
        self.happen(bus, self.misc as u8);
    }

    /// Sends what may be sent.
    fn fire(&mut self, bus: &mut Bus) {
        let hit = self.cause & self.mask & !self.told;
        for vector in (0..VECTORS).filter(|vector| hit >> vector & 1 != 0) {
            if !self.mute {
                bus.raise(vector);
            }
        }
        self.told |= hit;
        self.clear(hit & self.auto_clear);
        self.mask &= !(hit & self.auto_mask);
    }

    fn clear(&mut self, causes: u32) {
        self.cause &= !causes;
        self.told &= !causes;
    }

    /// Reads VTEICR, which clears it.
    pub fn take_causes(&mut self) -> u32 {
        let causes = self.cause;
        self.clear(causes);
        causes
    }

    /// Writes VTEICR: ones clear.
    pub fn clear_causes(&mut self, causes: u32) {
        self.clear(causes);
    }

    /// Writes VTEICS.
    pub fn set_causes(&mut self, bus: &mut Bus, causes: u32) {
        self.cause |= causes & ALL;
        self.fire(bus);
    }

    /// Writes VTEIMS: what came while it was masked is sent now.
    pub fn unmask(&mut self, bus: &mut Bus, vectors: u32) {
        self.told &= !(vectors & !self.mask);
        self.mask |= vectors & ALL;
        self.fire(bus);
    }

    /// Writes an IVAR register.
    pub fn set_vectors(&mut self, bus: &mut Bus, index: usize, value: u32) {
        if value & !0x8383_8383 != 0 {
            bus.broken(format!(
                "VTIVAR[{index}] = {value:#x}: a VF has three vectors, and the other bits are reserved"
            ));
        }
        self.vectors[index] = value;
    }

    /// Writes IVAR_MISC.
    pub fn set_misc(&mut self, bus: &mut Bus, value: u32) {
        if value & !0x83 != 0 {
            bus.broken(format!("VTIVAR_MISC = {value:#x}: reserved bits"));
        }
        self.misc = value;
    }

    /// As after a reset of the VF.
    pub fn reset(&mut self) {
        *self = Self { mute: self.mute, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> (Interrupts, Bus) {
        (Interrupts { vectors: [0x8281_8180, 0, 0, 0], ..Interrupts::default() }, Bus::new(VECTORS, 64))
    }

    #[test]
    fn a_vector_masks_and_clears_itself_where_it_is_told_to() {
        let (mut interrupts, mut bus) = both();
        (interrupts.auto_clear, interrupts.auto_mask) = (1, 1);
        interrupts.unmask(&mut bus, 1);
        for _ in 0..3 {
            interrupts.received(&mut bus, 0);
        }
        assert_eq!((bus.raised(), interrupts.mask, interrupts.cause), (1, 0, 1));
        interrupts.unmask(&mut bus, 1);
        assert_eq!((bus.raised(), interrupts.mask, interrupts.cause), (2, 0, 0));
    }

    #[test]
    fn a_cause_that_stands_is_told_once() {
        let (mut interrupts, mut bus) = both();
        interrupts.unmask(&mut bus, 7);
        interrupts.transmitted(&mut bus, 1);
        interrupts.transmitted(&mut bus, 1);
        assert_eq!((bus.raised(), interrupts.take_causes()), (1, 4));
        interrupts.transmitted(&mut bus, 1);
        assert_eq!(bus.raised(), 2);
        interrupts.received(&mut bus, 2);
        assert_eq!(bus.raised(), 2, "a queue without a vector");
    }
}
