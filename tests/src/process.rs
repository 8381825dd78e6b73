//! What this process holds: descriptors, mappings, memory.

use std::fs;

/// What this process holds at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Holdings {
    /// Open descriptors.
    pub descriptors: usize,
    /// Mappings of memory.
    pub mappings: usize,
    /// Resident memory in KiB.
    pub resident: usize,
}

impl Holdings {
    /// Now.
    pub fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok());
        Self {
            descriptors: fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
            mappings: fs::read_to_string("/proc/self/maps").map_or(0, |maps| maps.lines().count()),
            resident: resident.unwrap_or(0),
        }
    }

    /// Whether nothing has piled up since `before`. Other tests of this process come and go meanwhile, so small
    /// differences say nothing: a leak of one descriptor, mapping or allocation a message is thousands.
    pub fn is_about(&self, before: &Self) -> bool {
        self.descriptors < before.descriptors + 300
            && self.mappings < before.mappings + 300
            && self.resident < before.resident + 64 * 1024
    }
}
