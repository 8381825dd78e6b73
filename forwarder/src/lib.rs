#![forbid(unsafe_code)]
//! The daemon: workers, placement, configuration, life cycle; and the demonstration.

pub mod config;
pub mod daemon;
pub mod demo;
pub mod device;
pub mod guests;
pub mod metrics;
pub mod placement;
pub mod service;
mod state;
pub mod watchdog;
pub mod worker;
