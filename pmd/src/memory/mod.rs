//! Memory that devices reach by DMA.

pub mod dma;
pub mod pool;

pub use dma::{DmaMap, DmaMemory, DmaSlice};
pub use pool::{BUFFER_SIZE, BufferPool};
