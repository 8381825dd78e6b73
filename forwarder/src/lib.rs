#![forbid(unsafe_code)]
//! The daemon: configuration, workers, placement, life cycle.

pub mod config;
