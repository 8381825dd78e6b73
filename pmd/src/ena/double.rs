//! Doubles of what a queue writes to.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::registers::{Caching, Registers};

/// A register that remembers.
#[derive(Debug, Default)]
pub(crate) struct Doorbell {
    last: AtomicU32,
    writes: AtomicUsize,
    reads: AtomicUsize,
}

impl Doorbell {
    pub(crate) fn last(&self) -> u32 {
        self.last.load(Ordering::Relaxed)
    }

    pub(crate) fn writes(&self) -> usize {
        self.writes.load(Ordering::Relaxed)
    }

    pub(crate) fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }
}

impl Registers for Doorbell {
    fn read(&self, _offset: u32) -> u32 {
        self.reads.fetch_add(1, Ordering::Relaxed);
        0
    }

    fn write(&self, offset: u32, value: u32) {
        assert_eq!(offset, 0);
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.last.store(value, Ordering::Relaxed);
    }
}

/// Memory of a device, that entries are pushed to.
#[derive(Debug, Default)]
pub(crate) struct DeviceMemory {
    /// Offsets and words, in order.
    pub(crate) pushed: Mutex<Vec<(u32, Vec<u64>)>>,
}

impl Registers for DeviceMemory {
    fn read(&self, _offset: u32) -> u32 {
        panic!("device memory is not read")
    }

    fn write(&self, _offset: u32, _value: u32) {
        panic!("device memory is pushed to")
    }

    fn push(&self, offset: u32, words: &[u64]) {
        self.pushed.lock().unwrap().push((offset, words.to_vec()));
    }

    fn caching(&self) -> Caching {
        Caching::WriteCombining
    }
}
