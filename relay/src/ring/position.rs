//! A place in a packed ring: a slot, and which lap it is.
//!
//! ```text
//!   slot   0 1 2 … size-1 │ 0 1 2 … size-1 │ 0 …
//!   wrap   1 1 1 …      1 │ 0 0 0 …      0 │ 1 …
//! ```
//!
//! A descriptor is available where its AVAIL flag equals the wrap counter of the lap and USED does not, and used where
//! both equal it (virtio 1.3, 2.8.1). Two laps later a slot looks the same again.

/// `VIRTQ_DESC_F_AVAIL` (2.8.1).
pub const AVAIL: u16 = 1 << 7;
/// `VIRTQ_DESC_F_USED`.
pub const USED: u16 = 1 << 15;

/// A slot and the wrap counter of its lap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The slot.
    pub slot: u16,
    /// The wrap counter.
    pub wrap: bool,
}

impl Position {
    /// Where both sides of a fresh ring are.
    pub const START: Self = Self { slot: 0, wrap: true };

    /// From the form that event structures and vhost-user have: bits 0–14 the slot, bit 15 the wrap counter.
    #[inline]
    pub fn from_bits(bits: u16) -> Self {
        Self { slot: bits & 0x7fff, wrap: bits & 0x8000 != 0 }
    }

    /// The inverse of [`from_bits`](Self::from_bits).
    #[inline]
    pub fn bits(self) -> u16 {
        self.slot | u16::from(self.wrap) << 15
    }

    /// The position `slots` further on in a ring of `size`; neither `slots` nor this slot may be more than that.
    #[inline]
    pub fn advanced(self, slots: u16, size: u16) -> Self {
        debug_assert!(slots <= size && self.slot < size);
        let to_end = size - self.slot;
        if slots < to_end {
            Self { slot: self.slot + slots, wrap: self.wrap }
        } else {
            Self { slot: slots - to_end, wrap: !self.wrap }
        }
    }

    /// The next position in a ring of `size`.
    #[inline]
    pub fn next(self, size: u16) -> Self {
        let slot = self.slot + 1;
        if slot == size { Self { slot: 0, wrap: !self.wrap } } else { Self { slot, ..self } }
    }

    /// The position `slots` further back in a ring of `size`; neither `slots` nor this slot may be more than that.
    #[inline]
    pub fn retreated(self, slots: u16, size: u16) -> Self {
        debug_assert!(slots <= size && self.slot < size);
        if slots <= self.slot {
            Self { slot: self.slot - slots, wrap: self.wrap }
        } else {
            Self { slot: size - (slots - self.slot), wrap: !self.wrap }
        }
    }

    /// Slots from `self` on to `other` in a ring of `size`, below twice the size.
    #[inline]
    pub fn distance_to(self, other: Self, size: u16) -> u32 {
        let size = u32::from(size);
        let line = |position: Self| u32::from(position.slot) + if position.wrap { 0 } else { size };
        let (from, to) = (line(self), line(other));
        if to >= from { to - from } else { to + 2 * size - from }
    }

    /// AVAIL and USED of a descriptor that is available here.
    #[inline]
    pub fn available_flags(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    /// AVAIL and USED of a descriptor that is used here.
    #[inline]
    pub fn used_flags(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }

    /// Whether a descriptor with these flags is available here.
    #[inline]
    pub fn is_available(self, flags: u16) -> bool {
        flags & (AVAIL | USED) == self.available_flags()
    }

    /// Whether a descriptor with these flags is used here.
    #[inline]
    pub fn is_used(self, flags: u16) -> bool {
        flags & (AVAIL | USED) == self.used_flags()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_back_and_forth_agree_with_counting() {
        for size in [2, 3, 7, 8] {
            let on_the_line = |n: u32| Position {
                slot: (n % u32::from(size)) as u16,
                wrap: (n / u32::from(size)).is_multiple_of(2),
            };
            for n in 0..2 * u32::from(size) {
                assert_eq!(on_the_line(n).next(size), on_the_line(n + 1));
                for step in 0..=size {
                    let (from, to) = (on_the_line(n), on_the_line(n + u32::from(step)));
                    assert_eq!(from.advanced(step, size), to);
                    assert_eq!(to.retreated(step, size), from);
                    assert_eq!(from.distance_to(to, size), u32::from(step));
                }
                for far in 0..2 * u32::from(size) {
                    assert_eq!(on_the_line(n).distance_to(on_the_line(n + far), size), far);
                }
            }
        }
    }

    #[test]
    fn the_largest_ring_has_room_in_the_arithmetic() {
        let last = Position { slot: 32767, wrap: true };
        assert_eq!(last.advanced(32768, 32768), Position { slot: 32767, wrap: false });
        assert_eq!(last.retreated(32768, 32768), Position { slot: 32767, wrap: false });
        assert_eq!(last.distance_to(Position { slot: 32766, wrap: true }, 32768), 65535);
    }

    #[test]
    fn bits_are_a_round_trip() {
        for bits in 0..=u16::MAX {
            assert_eq!(Position::from_bits(bits).bits(), bits);
        }
        assert_eq!(Position::START.bits(), 0x8000);
    }

    #[test]
    fn flags_tell_available_from_used_from_stale() {
        let (now, next) = (Position::START, Position { wrap: false, ..Position::START });
        assert!(!now.is_available(0) && !now.is_used(0), "fresh memory");
        for (a, b) in [(now, next), (next, now)] {
            assert!(a.is_available(a.available_flags()) && a.is_used(a.used_flags()));
            assert!(!a.is_used(a.available_flags()) && !a.is_available(a.used_flags()));
            assert!(
                !a.is_available(b.available_flags()) && !a.is_used(b.used_flags()),
                "left from the lap before"
            );
        }
    }
}
