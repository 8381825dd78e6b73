//! PCI functions through VFIO, on `vfio-ioctls`.
//!
//! ```text
//!   Bar ─────────┐
//!   DmaMemory ───┴─▶ Function ──▶ AddressSpace ──▶ VFIO container
//!   (queues hold these)  │        one per IOMMU group, shared by the group's functions
//!                        └── VFIO device
//! ```
//!
//! What a queue needs keeps its function open: BARs and DMA memory are unmapped first, then the device is closed, and
//! the IO address space goes last, which is the order that the kernel asks for.

pub mod bar;
pub mod container;
pub mod device;
pub mod iova;

pub use bar::Bar;
pub use container::AddressSpace;
pub use device::Function;
pub use iova::IovaAllocator;
