//! What a model of a device is.

use std::fmt;

use crate::bus::Bus;
use crate::config::Config;

/// Bytes of a register access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Half,
    /// 32 bits.
    Word,
    /// 64 bits.
    Double,
}

impl Size {
    /// Of so many bytes; `None` where a processor makes no such access.
    pub fn of(bytes: usize) -> Option<Self> {
        Some(match bytes {
            1 => Self::Byte,
            2 => Self::Half,
            4 => Self::Word,
            8 => Self::Double,
            _ => return None,
        })
    }

    /// Bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
            Self::Double => 8,
        }
    }
}

/// A device. It does its work when it is talked to: a write to a doorbell sends what is in the ring before it returns.
pub trait Model: Send + fmt::Debug + 'static {
    /// Its configuration space after power-on.
    fn config(&self) -> Config;

    /// Widest address that it can put on the bus, in bits.
    fn dma_bits(&self) -> u32 {
        64
    }

    /// A read of `size` at `offset` of BAR `bar`, aligned and inside the BAR.
    fn read(&mut self, bus: &mut Bus, bar: u8, offset: u64, size: Size) -> u64;

    /// A write, likewise.
    fn write(&mut self, bus: &mut Bus, bar: u8, offset: u64, size: Size, value: u64);

    /// Time passes, or a frame has arrived: receives what is on the wire ([`Wire::take_arriving`](crate::Wire::take_arriving)),
    /// and does what the device does of itself (keep-alive). Called after every write and whenever a frame arrives; a frame
    /// that finds no descriptor is taken and counted as missed.
    fn poll(&mut self, bus: &mut Bus);

    /// As after power-on: by FLR.
    fn reset(&mut self, bus: &mut Bus);
}
