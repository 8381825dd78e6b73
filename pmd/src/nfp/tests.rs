//! A double of registers that keeps what it is told.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::registers::{ALL_ONES, Registers};

/// Bytes at offsets, and how often they were written.
#[derive(Debug, Default)]
pub(crate) struct Words {
    bytes: Mutex<HashMap<u32, u8>>,
    /// How often each offset was written, and the sum of what was.
    written: Mutex<HashMap<u32, (usize, u32)>>,
    reads: AtomicUsize,
    gone: AtomicBool,
}

impl Words {
    pub fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Ordering::Relaxed);
    }

    pub fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    /// Writes to `offset` since the last [`take_sum`](Self::take_sum).
    pub fn writes(&self, offset: u32) -> usize {
        self.written.lock().unwrap().get(&offset).map_or(0, |(count, _)| *count)
    }

    /// The sum of what was written to `offset` since the last [`take_sum`](Self::take_sum).
    pub fn sum(&self, offset: u32) -> u32 {
        self.written.lock().unwrap().get(&offset).map_or(0, |(_, sum)| *sum)
    }

    pub fn take_sum(&self, offset: u32) -> u32 {
        self.written.lock().unwrap().get_mut(&offset).map_or(0, |(_, sum)| std::mem::take(sum))
    }

    fn load(&self, offset: u32, bytes: u32) -> u32 {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.gone.load(Ordering::Relaxed) {
            return ALL_ONES;
        }
        let there = self.bytes.lock().unwrap();
        let byte = |n| u32::from(there.get(&(offset + n)).copied().unwrap_or(0));
        (0..bytes).map(|n| byte(n) << (8 * n)).sum()
    }

    fn store(&self, offset: u32, bytes: u32, value: u32) {
        let mut there = self.bytes.lock().unwrap();
        there.extend((0..bytes).map(|n| (offset + n, (value >> (8 * n)) as u8)));
        let mut written = self.written.lock().unwrap();
        let (count, sum) = written.entry(offset).or_default();
        *count += 1;
        *sum = sum.wrapping_add(value);
    }
}

impl Registers for Words {
    fn read(&self, offset: u32) -> u32 {
        self.load(offset, 4)
    }

    fn write(&self, offset: u32, value: u32) {
        self.store(offset, 4, value);
    }

    fn read8(&self, offset: u32) -> u8 {
        self.load(offset, 1) as u8
    }

    fn read16(&self, offset: u32) -> u16 {
        self.load(offset, 2) as u16
    }

    fn write8(&self, offset: u32, value: u8) {
        self.store(offset, 1, u32::from(value));
    }

    fn write16(&self, offset: u32, value: u16) {
        self.store(offset, 2, u32::from(value));
    }
}
