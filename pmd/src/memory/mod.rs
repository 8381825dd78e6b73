//! Memory that devices reach by DMA.

pub mod dma;
pub mod guest;
pub(crate) mod physical;
pub mod pool;
pub mod posted;
pub mod sigbus;
pub mod slots;

pub use dma::{DmaAccess, DmaMap, DmaMemory, DmaSlice, Kept};
pub use guest::{GuestWindow, GuestWindows};
pub use pool::{BUFFER_SIZE, BufferPool};
pub use posted::{PostedBuffers, refill_of};
pub use slots::SlotBuffers;
