//! Poll-mode devices: the outside ends of a relay.
//!
//! Everything here is seen through two kinds of handle. A [`Device`] is the slow side (mailbox, link, statistics) and
//! lives on a control thread of its own. Its queues ([`Receive`], [`Transmit`]) are the fast side and are owned by
//! exactly one polling worker each. Frames travel between the two ends of a relay in a [`Burst`].
//!
//! This crate knows PCI, VFIO, DMA memory and NIC registers. It knows nothing of the virtio rings of guests.

mod copy;
pub mod device;
pub mod ena;
pub mod frame;
pub mod iavf;
pub mod igbvf;
pub mod intel;
pub mod ixgbevf;
pub mod mac;
pub mod memory;
pub mod net;
pub mod net_header;
pub mod nfp;
pub mod offload;
pub mod pci;
pub mod prefetch;
pub mod registers;
pub mod software;
pub mod vf;
pub mod vfio;
pub mod virtio;

pub use device::{
    Accepted, Armed, Completions, Device, DeviceError, DeviceEvent, DeviceStatistics, Identity, Link, Queues,
    Receive, ReceiveQueue, Transmit, TransmitQueue,
};
pub use frame::{Burst, Frame, Frames, Segment, Token};
pub use mac::MacAddress;
pub use offload::{Capabilities, Checksum, Limits, Offload, Segmentation};
pub use pci::Address;
pub use registers::{Caching, Registers};
pub use vf::{VfOptions, open_vf};
