//! What virtio-net adds to a frame.

pub mod header;
pub mod hash;
pub mod segment;
