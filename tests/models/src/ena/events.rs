//! Asynchronous events: what the device says of itself.

use std::time::Instant;

use super::Ena;
use crate::bus::Bus;

/// Bytes of an entry.
const ENTRY: usize = 64;
/// Groups.
pub(super) const LINK: u16 = 0;
pub(super) const KEEP_ALIVE: u16 = 4;

/// The ring.
#[derive(Debug, Default)]
pub(super) struct Events {
    pub base: u64,
    pub caps: u32,
    /// Groups that are told.
    pub groups: u32,
    /// What the driver has read, and the depth; none before it says so for the first time.
    head: Option<u16>,
    /// Events told so far.
    count: u16,
    pub last_keep_alive: Option<Instant>,
    /// There were events that the driver had not given back when it reset the device. Linux's driver may give them back
    /// still: its handler runs until the reset is over.
    pub are_late: bool,
}

impl Events {
    /// What is left after a reset.
    pub fn after_reset(&self) -> Self {
        let depth = self.caps as u16;
        let are_late = self.head.is_some_and(|head| head != self.count.wrapping_add(depth));
        Self { are_late, ..Self::default() }
    }
}

impl Ena {
    /// The driver gives entries back.
    pub(super) fn events_read(&mut self, bus: &mut Bus, head: u32) {
        let depth = self.events.caps & 0xffff;
        if depth == 0 && std::mem::take(&mut self.events.are_late) {
            return;
        }
        if !depth.is_power_of_two() || self.events.caps >> 16 != ENTRY as u32 {
            return bus.broken("events are enabled without a ring of 64-byte entries");
        }
        let expected = match self.events.head {
            None => head == depth,
            Some(_) => (head as u16).wrapping_sub(self.events.count) as u32 <= depth && head <= 0xffff,
        };
        if !expected {
            bus.broken(format!("events are read up to {head}, and {} were told", self.events.count));
        }
        let first = self.events.head.replace(head as u16).is_none();
        if first {
            self.events.last_keep_alive = Some(Instant::now());
            self.tell_link(bus);
        }
    }

    pub(super) fn tell_link(&mut self, bus: &mut Bus) {
        let up = u32::from(self.link);
        self.tell(bus, LINK, 0, &[up]);
    }

    /// Tells the driver something, unless it does not want to know it or has no entry for it.
    pub fn tell(&mut self, bus: &mut Bus, group: u16, syndrome: u16, words: &[u32]) {
        let Some(head) = self.events.head else { return };
        if self.events.groups >> group & 1 == 0 || head == self.events.count {
            return;
        }
        let depth = (self.events.caps & 0xffff) as u16;
        let mut entry = [0; ENTRY];
        entry[..2].copy_from_slice(&group.to_le_bytes());
        entry[2..4].copy_from_slice(&syndrome.to_le_bytes());
        for (word, place) in words.iter().zip(entry[16..].as_chunks_mut::<4>().0) {
            *place = word.to_le_bytes();
        }
        entry[4] = u8::from(self.events.count & depth == 0);
        let at = self.events.base + u64::from(self.events.count % depth) * ENTRY as u64;
        // The phase last.
        bus.dma_write(at + 8, &entry[8..]);
        bus.dma_write(at, &entry[..4]);
        bus.dma_write(at + 4, &entry[4..8]);
        self.events.count = self.events.count.wrapping_add(1);
        self.interrupt_admin(bus);
    }

    /// Says that it lives, when it is time to.
    pub(super) fn live(&mut self, bus: &mut Bus) {
        let (Some(every), Some(last)) = (self.settings.keep_alive, self.events.last_keep_alive) else {
            return;
        };
        if self.troubles.no_keep_alive || last.elapsed() < every {
            return;
        }
        self.events.last_keep_alive = Some(Instant::now());
        let [drops, send_drops, overruns] = [0, self.counters.send_drops, self.counters.overruns];
        let words = [drops, send_drops, overruns].map(|count| [count as u32, (count >> 32) as u32]);
        self.tell(bus, KEEP_ALIVE, 0, words.as_flattened());
    }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::*;
    use crate::model::Model as _;

    const DEPTH: u16 = 16;
    const CONTROL: u32 = 0x54;
    const HEAD: u32 = 0x40;

    /// Faults when events are given back twice while the device is reset, and so many of those told were not before.
    fn faults_in_a_reset(not_given_back: u16) -> [usize; 2] {
        let mut ena = Ena::new(Settings::newest());
        let mut bus = Bus::new(ena.config().vectors, ena.dma_bits());
        ena.events = Events {
            caps: (ENTRY as u32) << 16 | u32::from(DEPTH),
            head: Some(DEPTH),
            count: not_given_back,
            ..Events::default()
        };
        ena.write_register(&mut bus, CONTROL, 1);
        [1, 2].map(|_| {
            ena.write_register(&mut bus, HEAD, u32::from(DEPTH + not_given_back));
            bus.take_faults().len()
        })
    }

    #[test]
    fn events_told_before_a_reset_may_be_given_back_once_while_it_lasts() {
        let [first, second] = faults_in_a_reset(2);
        assert_eq!(first, 0);
        assert!(second > 0);
        assert!(faults_in_a_reset(0)[0] > 0, "there are none to give back");
    }
}
