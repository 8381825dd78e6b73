//! What virtio-net adds to a frame.

pub mod header;
