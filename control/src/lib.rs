#![forbid(unsafe_code)]
//! The API of the daemon: types, client and server, and the `port_control` command line.

pub mod api;
mod daemon;
pub mod server;

pub use daemon::Daemon;
