//! PCI functions through VFIO: by group, by device file, or without an IOMMU.
//!
//! ```text
//!   Bar ─────────┐
//!   DmaMemory ───┴─▶ Function ──▶ AddressSpace ──▶ type1      a container, on `vfio-ioctls`
//!   (queues hold these)  │        one per IOMMU    iommufd    /dev/iommu
//!                        │        group            no_iommu   physical addresses
//!                        └── device_file
//! ```
//!
//! What a queue needs keeps its function open: BARs and DMA memory are unmapped first, then the device is closed, and
//! the IO address space goes last, which is the order that the kernel asks for. Nothing here panics or waits when the
//! function has left meanwhile.

mod access;
pub mod bar;
pub mod device;
mod device_file;
mod failure;
mod group;
mod iommufd;
pub mod iova;
mod no_iommu;
pub mod space;
mod token;
mod type1;
mod uapi;

pub use access::Access;
pub use bar::Bar;
pub use device::Function;
pub use iova::IovaAllocator;
pub use space::AddressSpace;
pub use token::{NoToken, VfToken};
