//! The device side of a guest's virtio rings.
//!
//! [`split`] and [`packed`] know the memory layout and nothing of Ethernet; what they have in common is
//! [`queue::Virtqueue`]. [`transmit`] and [`receive`] are the two uses that a network device makes of a ring: taking frames
//! out of it, and putting frames into it.

mod buffer;
pub mod chain;
pub mod event;
pub mod notify;
pub mod packed;
pub mod position;
pub mod queue;
pub mod receive;
pub mod split;
pub mod transmit;

pub use packed::PackedRing;
pub use receive::ReceiveRing;
pub use split::{RingConfig, RingError, SplitRing};
pub use transmit::TransmitRing;

#[cfg(test)]
mod operations;
#[cfg(test)]
mod tests;
