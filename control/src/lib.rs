#![forbid(unsafe_code)]
//! The API of the daemon: types, client and server, and the `port_control` command line.

pub mod api;
pub mod cli;
pub mod client;
mod daemon;
pub mod server;

pub use daemon::Daemon;
