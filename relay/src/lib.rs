//! The guest side of a relay, and the relay itself.
//!
//! [`guest`] speaks vhost-user and maps guest memory, [`ring`] works the virtio rings, [`lane`] moves bursts between a
//! ring and a device, and [`relay`] brings guest and device together and apart. [`driver`] is the other end of the
//! rings: what a guest's driver does, for the demonstration and for tests.

mod announcement;
pub mod counters;
mod device_control;
pub mod driver;
pub mod ends;
pub mod guest;
mod handover;
mod handshake;
pub mod interrupt;
pub mod lane;
pub mod mailbox;
pub mod net;
pub mod path;
pub mod relay;
pub mod ring;
pub mod turns;

pub use relay::Relay;
