//! Doubles and helpers for tests that need more than one crate.

pub mod answer;
pub mod device;
pub mod frames;
pub mod stand;
pub mod wait;
