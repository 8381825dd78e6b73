//! The device side of a guest's virtio rings.
//!
//! [`split`] knows the memory layout and nothing of Ethernet. [`transmit`] and [`receive`] are the two uses that a
//! network device makes of a ring: taking frames out of it, and putting frames into it.

pub mod chain;
pub mod notify;
pub mod queue;
pub mod receive;
pub mod split;
pub mod transmit;

pub use receive::ReceiveRing;
pub use split::{RingConfig, RingError, SplitRing};
pub use transmit::TransmitRing;

#[cfg(test)]
mod tests;
