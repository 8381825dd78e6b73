//! Where the descriptors of frames that are sent go: into a ring in memory of the host, which the device reads, or straight
//! into the device, with the first bytes of each frame (a low latency queue).
//!
//! ```text
//!   host     [descriptor][descriptor][descriptor] …                                      16 bytes each
//!
//!   device   [descriptor descriptor header……… ][descriptor × 8 ][descriptor descriptor header…]
//!             └─ a frame's first entry: 128 ─┘  └─ its further ─┘
//! ```

use std::sync::Arc;

use super::descriptor::{self, Words};
use super::features::LlqLayout;
use crate::memory::DmaSlice;
use crate::registers::Registers;

/// Bytes of the widest entry.
const WIDEST: usize = 256;

/// A ring for descriptors.
#[derive(Debug)]
pub enum Submissions {
    /// In memory of the host; of so many bytes at most may be said that they are headers.
    Host {
        /// The ring.
        ring: DmaSlice,
        /// Bytes.
        max_header: u8,
    },
    /// In memory of the device.
    Device {
        /// The part of the BAR that is this ring.
        memory: Arc<dyn Registers>,
        /// What was agreed on.
        layout: LlqLayout,
    },
}

fn double(words: Words) -> [u64; 2] {
    let [a, b, c, d] = words.map(u64::from);
    [a | b << 32, c | d << 32]
}

impl Submissions {
    /// Whether every frame brings a meta descriptor.
    #[inline]
    pub fn meta_always(&self) -> bool {
        matches!(self, Self::Device { layout, .. } if layout.meta_always)
    }

    /// Entries between two doorbells, at most; 0 for any number.
    #[inline]
    pub fn burst(&self) -> u16 {
        match self {
            Self::Host { .. } => 0,
            Self::Device { layout, .. } => layout.burst,
        }
    }

    /// First bytes of a frame that go with its descriptors.
    #[inline]
    pub fn pushed(&self) -> u32 {
        match self {
            Self::Host { .. } => 0,
            Self::Device { layout, .. } => u32::from(layout.max_header()),
        }
    }

    /// Entries that a frame with so many descriptors takes.
    #[inline]
    pub fn entries(&self, descriptors: usize) -> u16 {
        match self {
            Self::Host { .. } => descriptors as u16,
            Self::Device { layout, .. } => layout.entries(descriptors),
        }
    }

    /// Writes a frame's descriptors, and the first bytes of it that are pushed, into entries from number `tail` on of
    /// `depth`.
    #[inline]
    pub fn write(&mut self, descriptors: &[Words], header: &[u8], tail: u16, depth: u16) {
        match self {
            Self::Host { ring, .. } => {
                for (n, words) in descriptors.iter().enumerate() {
                    let count = tail.wrapping_add(n as u16);
                    let [low, high] = double(descriptor::in_phase(*words, descriptor::phase(count, depth)));
                    let at = 2 * usize::from(count & (depth - 1));
                    ring.store(at + 1, high);
                    ring.store(at, low);
                }
            }
            Self::Device { memory, layout } => {
                let first = descriptors.len().min(usize::from(layout.before_header));
                let (first, rest) = descriptors.split_at(first);
                push(&**memory, layout, first, header, tail, depth);
                for (n, more) in rest.chunks(usize::from(layout.per_entry.max(1))).enumerate() {
                    push(&**memory, layout, more, &[], tail.wrapping_add(1 + n as u16), depth);
                }
            }
        }
    }
}

/// Writes one entry, whole.
#[inline]
fn push(
    memory: &dyn Registers,
    layout: &LlqLayout,
    descriptors: &[Words],
    header: &[u8],
    count: u16,
    depth: u16,
) {
    let mut entry = [0u64; WIDEST / 8];
    let phase = descriptor::phase(count, depth);
    for (words, place) in descriptors.iter().zip(entry.as_chunks_mut::<2>().0) {
        *place = double(descriptor::in_phase(*words, phase));
    }
    let behind = usize::from(layout.before_header) * 2;
    for (bytes, place) in header.chunks(8).zip(entry.iter_mut().skip(behind)) {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        *place = u64::from_ne_bytes(word);
    }
    let slot = u32::from(count & (depth - 1));
    let words = usize::from(layout.entry / 8).min(entry.len());
    memory.push(slot * u32::from(layout.entry), &entry[..words]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ena::double::DeviceMemory;

    #[test]
    fn a_frame_of_many_descriptors_takes_whole_entries_with_the_phase_of_each() {
        let memory = Arc::new(DeviceMemory::default());
        let layout = LlqLayout {
            queues: 1,
            depth: 4,
            entry: 128,
            before_header: 2,
            per_entry: 8,
            meta_always: false,
            burst: 0,
        };
        let mut submissions =
            Submissions::Device { memory: Arc::clone(&memory) as Arc<dyn Registers>, layout };
        assert_eq!((submissions.entries(3), submissions.pushed()), (2, 96));
        let descriptors: Vec<Words> = (1..=3).map(|n| [n, 0, 0, n << 8]).collect();
        submissions.write(&descriptors, b"headerbytes", 3, 4);
        let pushed = memory.pushed.lock().unwrap();
        let [(first, a), (second, b)] = &pushed[..] else { panic!("{pushed:?}") };
        assert_eq!((*first, *second, a.len(), b.len()), (3 * 128, 0, 16, 16));
        assert_eq!(a[0] & 0xffff_ffff, 1 | 1 << 24, "the last entry of the first lap");
        assert_eq!((a[2] & 0xffff_ffff, a[3] >> 32), (2 | 1 << 24, 2 << 8));
        assert_eq!(a[4].to_ne_bytes(), *b"headerby");
        assert_eq!((a[5] as u32).to_ne_bytes(), *b"tes\0");
        assert_eq!(b[0] & 0xffff_ffff, 3, "the first of the second");
        assert!(b[2..].iter().all(|word| *word == 0));
    }
}
