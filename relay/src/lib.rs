//! The guest side of a relay, and the relay itself.
//!
//! ```text
//!   relay      brings guest and device together and apart
//!     ends     what of both is at home, and the lanes that are built from it
//!     lane     the hot loop: bursts from sources to sinks          path    from one source to one sink, and what waits
//!     turns    lanes of one worker share its time                  mailbox how lanes go to workers and come back
//!     roster   which of them are polled, and how often             rest    what rings for one that is not  (bells)
//!     zero_copy what a device is let into of the guest's memory
//!   guest      vhost-user sessions, and the memory that they share
//!   ring       the device side of split and packed rings
//!   net        what is in a frame: virtio-net header, checksums, segmentation, flows
//!   counters   what was carried, what was dropped and why
//!   driver     the other end of the rings: a guest's driver, for the demonstration and for tests
//! ```

mod announcement;
pub mod bells;
mod cable;
pub mod counters;
mod device_control;
pub mod driver;
pub mod ends;
pub mod guest;
pub mod handover;
mod handshake;
pub mod interrupt;
pub mod lane;
pub mod mailbox;
pub mod net;
pub mod path;
pub mod pause;
pub mod relay;
mod rest;
pub mod ring;
pub mod roster;
pub mod turns;
pub mod zero_copy;

pub use relay::Relay;
