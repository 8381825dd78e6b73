//! What virtio-net adds to a frame: the [`header`] that says what is left to do for it, and the work itself
//! ([`segment`]) where the frame's next taker does not do it; and what is read off a frame to find its
//! way ([`hash`]).
//!
//! All of it is about bytes from strangers: whatever they hold, nothing here panics, reads outside a frame or makes more
//! of a frame than its payload and a header for each part.

pub mod hash;
pub mod header;
pub mod segment;
