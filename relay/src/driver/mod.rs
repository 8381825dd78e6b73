//! The driver side of virtio-net over vhost-user: what QEMU and a guest's driver do together.
//!
//! ```text
//!   nic        a network card: frames in and out, queue pairs
//!   frontend   what is negotiated, and where memory and rings are: QEMU's part
//!   queue      a virtqueue of either layout with its buffers: the driver's part
//!   split, packed, memory
//! ```
//!
//! [`nic::GuestNic`] is a whole network card seen from inside a guest: it connects to a vhost-user socket, shares a
//! piece of memory, and sends and receives frames. The demonstration and the benches run on it. [`split::DriverRing`]
//! and [`packed::PackedDriver`] write rings by hand, wrongly too, which is what the tests of hostile guests need.

pub mod frontend;
pub mod memory;
pub mod nic;
pub mod packed;
pub mod queue;
pub mod split;
