//! What the tests of this driver share.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::registers::Registers;

/// Registers that keep what is written to them.
#[derive(Debug, Default)]
pub(super) struct Plain {
    values: Mutex<HashMap<u32, (u32, usize)>>,
    reads: AtomicUsize,
}

impl Plain {
    /// Writes to a register so far.
    pub(super) fn writes(&self, offset: u32) -> usize {
        self.values.lock().unwrap().get(&offset).map_or(0, |(_, writes)| *writes)
    }

    /// Reads so far.
    pub(super) fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }
}

impl Registers for Plain {
    fn read(&self, offset: u32) -> u32 {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.values.lock().unwrap().get(&offset).map_or(0, |(value, _)| *value)
    }

    fn write(&self, offset: u32, value: u32) {
        let mut values = self.values.lock().unwrap();
        let (register, writes) = values.entry(offset).or_default();
        (*register, *writes) = (value, *writes + 1);
    }
}
