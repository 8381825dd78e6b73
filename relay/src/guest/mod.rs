//! The guest side: a front end's vhost-user connection and the memory that it shares.

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
mod sigbus;
pub mod socket;
pub mod space;
pub mod watch;
