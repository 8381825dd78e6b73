//! The guest side: a front end's vhost-user connection and the memory that it shares.

pub mod memory;
mod sigbus;
