//! When the other side wants to be told: event indices of split rings, event suppression structures of packed ones.
//!
//! Both sides of a ring decide alike, the device about interrupts and the driver about kicks: the other side names an
//! entry, and is told when that entry is among those that were just handed over.

use super::position::Position;

/// Whether an index that went from `old` to `new` passed `event`: whether entry `event` is one of `old..new` (virtio
/// 1.3, 2.7.10).
#[inline]
pub fn need_event(event: u16, new: u16, old: u16) -> bool {
    event.wrapping_sub(old) < new.wrapping_sub(old)
}

/// Whether a position that went from `old` to `new`, at most a lap, passed `event` in a packed ring of `size` (2.8.10).
///
/// An event outside the ring says nothing; telling once too often harms nobody.
#[inline]
pub fn need_packed_event(event: Position, new: Position, old: Position, size: u16) -> bool {
    event.slot >= size || old.distance_to(event, size) < old.distance_to(new, size)
}

/// `RING_EVENT_FLAGS_ENABLE`: tell always (2.8.10).
pub const ENABLE: u16 = 0;
/// `RING_EVENT_FLAGS_DISABLE`: never tell.
pub const DISABLE: u16 = 1;
/// `RING_EVENT_FLAGS_DESC`: tell at one descriptor. Only with `VIRTIO_F_EVENT_IDX`.
pub const AT_DESCRIPTOR: u16 = 2;
/// The other bits of the flags are reserved.
const FLAGS: u16 = 3;

/// Size of an event suppression structure in bytes, and its alignment.
pub const SUPPRESSION_SIZE: u64 = 4;

/// An event suppression structure (2.8.14): what one side of a packed ring wants to be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suppression {
    /// [`Position::bits`] of the descriptor to tell at.
    pub event: u16,
    /// [`ENABLE`], [`DISABLE`], [`AT_DESCRIPTOR`].
    pub flags: u16,
}

impl Suppression {
    /// From the structure as it lies in memory.
    #[inline]
    pub fn from_word(word: u32) -> Self {
        let word = u32::from_le(word);
        Self { event: word as u16, flags: (word >> 16) as u16 }
    }

    /// As it lies in memory.
    #[inline]
    pub fn word(self) -> u32 {
        (u32::from(self.flags) << 16 | u32::from(self.event)).to_le()
    }

    /// Whether the side that wrote this is to be told that a position went from `old` to `new` in a ring of `size`.
    /// Without an `old` it was never told of anything, so what it waits for may have passed already.
    #[inline]
    pub fn wants(self, event_idx: bool, old: Option<Position>, new: Position, size: u16) -> bool {
        match (self.flags & FLAGS, old) {
            (DISABLE, _) => false,
            (AT_DESCRIPTOR, Some(old)) if event_idx => {
                need_packed_event(Position::from_bits(self.event), new, old, size)
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_passes_the_entries_that_it_stepped_over() {
        for start in [0u16, 1, 100, 0x7ffe, 0x7fff, 0x8000, 0xff00, 0xfffe, 0xffff] {
            for steps in [0u16, 1, 2, 31, 32, 33, 256] {
                let passed: Vec<u16> = (0..steps).map(|n| start.wrapping_add(n)).collect();
                let new = start.wrapping_add(steps);
                for near in 0..1024u16 {
                    let event = start.wrapping_sub(512).wrapping_add(near);
                    assert_eq!(
                        need_event(event, new, start),
                        passed.contains(&event),
                        "{start} {steps} {event}"
                    );
                }
            }
        }
        for event in 0..=u16::MAX {
            assert!(!need_event(event, 7, 7), "nothing moved");
            assert_eq!(need_event(event, 6, 7), event != 6, "all but one");
        }
    }

    #[test]
    fn a_position_passes_the_slots_that_it_stepped_over() {
        for size in [2u16, 3, 7, 8, 16] {
            let line = 2 * size;
            let at = |n: u16| Position { slot: n % line % size, wrap: n % line < size };
            for start in 0..line {
                for steps in 0..=size {
                    let passed: Vec<Position> = (0..steps).map(|n| at(start + n)).collect();
                    let (old, new) = (at(start), at(start + steps));
                    for event in (0..line).map(at) {
                        assert_eq!(need_packed_event(event, new, old, size), passed.contains(&event));
                    }
                }
            }
        }
        let outside = Position { slot: 8, wrap: true };
        assert!(need_packed_event(outside, Position::START, Position::START, 8));
    }

    #[test]
    fn packed_and_split_agree_where_both_are_defined() {
        // A split ring of 32768 has a lap of its index every two laps of a packed ring of that size.
        let size = 32768;
        let at = |index: u16| Position { slot: index & 0x7fff, wrap: index & 0x8000 == 0 };
        for old in [0u16, 5, 0x7ff0, 0x8000, 0xffff] {
            for steps in [0u16, 1, 100, 0x8000] {
                let new = old.wrapping_add(steps);
                for event in (0..=u16::MAX).step_by(7) {
                    assert_eq!(
                        need_packed_event(at(event), at(new), at(old), size),
                        need_event(event, new, old),
                        "{event} {new} {old}"
                    );
                }
            }
        }
    }

    #[test]
    fn flags_come_before_events() {
        let (old, new) = (Position { slot: 2, wrap: true }, Position { slot: 4, wrap: true });
        let wants = |flags, event, event_idx, old| Suppression { event, flags }.wants(event_idx, old, new, 8);
        assert!(wants(ENABLE, 7, true, Some(old)) && !wants(DISABLE, 0x8002, true, Some(old)));
        assert!(!wants(DISABLE, 0x8002, true, None));
        assert!(
            wants(AT_DESCRIPTOR, 0x8002, true, Some(old)) && wants(AT_DESCRIPTOR, 0x8003, true, Some(old))
        );
        assert!(
            !wants(AT_DESCRIPTOR, 0x8004, true, Some(old)) && !wants(AT_DESCRIPTOR, 0x0002, true, Some(old))
        );
        assert!(wants(AT_DESCRIPTOR, 0x8004, false, Some(old)), "not negotiated: as if always");
        assert!(wants(AT_DESCRIPTOR, 0x8004, true, None), "for the first time: always");
        assert!(wants(3, 0x8004, true, Some(old)), "reserved: always");
        assert!(!wants(0xfff0 | DISABLE, 0, true, None), "reserved bits say nothing");
        let word = Suppression { event: 0x8123, flags: AT_DESCRIPTOR };
        assert_eq!(word.word().to_ne_bytes(), [0x23, 0x81, 2, 0]);
        assert_eq!(Suppression::from_word(word.word()), word);
    }
}
