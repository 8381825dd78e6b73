//! The guest side: a front end's vhost-user connection and the memory that it shares.
//!
//! ```text
//!   endpoint    the thread that serves a relay's socket          socket, connector, watch   whose socket it is
//!   connection  whole messages, with a time limit                message, payload           what they may look like
//!   session     what each message changes                        features                   what is offered
//!   memory      regions, mapped; guarded (pmd::memory::sigbus)    iotlb, iotlb_miss          translations
//!   space       what a ring sees of memory, translations and log dirty_log
//!   positions   how far packed rings are, for a successor
//! ```

pub mod connection;
mod connector;
pub mod dirty_log;
pub mod endpoint;
pub mod features;
pub mod iotlb;
pub mod iotlb_miss;
pub mod memory;
pub mod message;
mod payload;
pub mod positions;
pub mod session;
pub mod socket;
pub mod space;
pub mod watch;
