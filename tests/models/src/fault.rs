//! What a driver did that its device's specification forbids.

use std::fmt;

/// Something that silicon might forgive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// DMA to or from bytes that are not mapped for the device, or not for writing.
    Dma {
        /// First byte, as the device addresses it.
        iova: u64,
        /// Bytes.
        len: u64,
        /// It wanted to write.
        write: bool,
    },
    /// DMA while the driver had not allowed the function to master the bus.
    NoBusMaster,
    /// An address with more bits than the device has.
    Width {
        /// The address.
        iova: u64,
        /// Bits that the device has.
        bits: u32,
    },
    /// A register access that the device does not have: its place, its size, its alignment.
    Access {
        /// Number of the BAR.
        bar: u8,
        /// Bytes from its start.
        offset: u64,
        /// Bytes accessed.
        size: usize,
        /// It wanted to write.
        write: bool,
    },
    /// Anything else, in the words of the specification: a tail outside the ring, a reserved bit, a ring moved while it is
    /// enabled, a descriptor touched while the device owns it, a missing context descriptor.
    Rule(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = |write: &bool| if *write { "writes" } else { "reads" };
        match self {
            Self::Dma { iova, len, write } => {
                write!(f, "the device {} {len} bytes at {iova:#x}, which are not mapped for it", verb(write))
            }
            Self::NoBusMaster => f.write_str("DMA without being a bus master"),
            Self::Width { iova, bits } => write!(f, "{iova:#x} has more than {bits} bits"),
            Self::Access { bar, offset, size, write } => {
                write!(f, "the driver {} {size} bytes at {offset:#x} of BAR {bar}", verb(write))
            }
            Self::Rule(text) => f.write_str(text),
        }
    }
}
