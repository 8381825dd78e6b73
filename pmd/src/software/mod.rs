//! Devices without hardware.

mod buffers;
pub mod null;
pub mod packet;
pub mod pcap;
pub mod tap;
