//! What guests do in a measurement: the kind of their rings, the size of their frames, how many queue pairs.

use std::fmt;

/// Rings that a guest negotiates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// Split, IN_ORDER: what DPDK's driver takes by default.
    Split,
    /// Packed, IN_ORDER.
    Packed,
    /// Split without IN_ORDER, as Linux has it.
    SplitAnyOrder,
    /// Packed without IN_ORDER, as Linux has it.
    PackedAnyOrder,
}

impl Ring {
    /// Whether it is packed.
    pub fn packed(self) -> bool {
        matches!(self, Self::Packed | Self::PackedAnyOrder)
    }

    /// Whether buffers come back in order.
    pub fn in_order(self) -> bool {
        matches!(self, Self::Split | Self::Packed)
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Split => "split",
            Self::Packed => "packed",
            Self::SplitAnyOrder => "split-any-order",
            Self::PackedAnyOrder => "packed-any-order",
        })
    }
}

/// What guests do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Their rings.
    pub ring: Ring,
    /// Bytes of a frame, without FCS.
    pub size: u32,
    /// Queue pairs of each guest.
    pub pairs: u32,
}

impl Load {
    /// The part of a cell's name that says it: RING.SIZE.PAIRS.
    pub fn name(&self) -> String {
        format!("{}.{}.{}", self.ring, self.size, self.pairs)
    }
}
