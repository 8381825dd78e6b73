//! Doubles and helpers for tests that need more than one crate.

pub mod bed;
pub mod device;
pub mod flows;
pub mod frames;
pub mod messages;
pub mod process;
pub mod scene;
pub mod stand;
pub mod wait;
