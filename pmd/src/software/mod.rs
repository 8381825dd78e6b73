//! Devices without hardware.

mod buffers;
pub mod null;
pub mod tap;
