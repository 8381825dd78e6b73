#![forbid(unsafe_code)]
//! The daemon: workers, placement, configuration, life cycle; and the demonstration.

pub mod demo;
pub mod watchdog;
pub mod worker;
