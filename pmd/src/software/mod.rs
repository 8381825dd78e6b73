//! Devices without hardware.

pub mod null;
pub mod tap;
