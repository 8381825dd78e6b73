//! Counters of a relay, one block a direction.
//!
//! A block has one writer at a time, whoever has the lane that counts in it (a cable's lane counts in both), so adding is
//! a plain load and store; anybody may read. Nothing is ever reset: counters run from the start of the daemon, over all
//! devices and guests.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::lane::MOST_PAIRS;

/// A number that one thread adds to and any thread reads.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`; only the block's owner may call this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The present value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a frame went no further. The names are part of the statistics and metrics that users see.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of the statistics.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];

            /// The name that users see.
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)* }
            }
        }
    };
}

drop_reasons! {
    /// The guest had no free receive buffers for 1 ms, or the address of one was not translated for 100 ms.
    GuestQueueFull = "guest_queue_full",
    /// The frame is longer than the guest's receive buffer, and mergeable buffers were not negotiated.
    GuestBufferTooSmall = "guest_buffer_too_small",
    /// No guest is connected, or its receive queue is not running.
    VmNotConnected = "vm_not_connected",
    /// No device is attached, or it is not running.
    VfNotConnected = "vf_not_connected",
    /// The device took no frame for 100 ms.
    VfQueueFull = "vf_queue_full",
    /// The device cannot send: its interface is down.
    VfRefused = "vf_refused",
    /// Shorter than an Ethernet header.
    FrameTooShort = "frame_too_short",
    /// Longer than the device can send, or than any frame can be.
    FrameTooLong = "frame_too_long",
    /// A descriptor index outside the ring or table.
    BadDescriptorIndex = "bad_descriptor_index",
    /// A buffer or table outside the guest's memory.
    BadAddress = "bad_address",
    /// A malformed indirect table, or one where none may be.
    BadIndirect = "bad_indirect",
    /// A descriptor chain with more descriptors than the ring has, or than a burst holds; a loop above all.
    ChainTooLong = "chain_too_long",
    /// A chain without room for the virtio-net header.
    ChainTooShort = "chain_too_short",
    /// A buffer to be read in the receive queue, or one to be written in the transmit queue.
    WrongDirection = "wrong_direction",
    /// More buffers than can be handled together.
    TooManyBuffers = "too_many_buffers",
    /// A checksum or segmentation is asked for that was not negotiated, or that contradicts the frame.
    BadOffload = "bad_offload",
    /// Taken back from a device that did not finish it, or waiting when the device was removed.
    Aborted = "aborted",
}

/// Frames dropped, by reason.
type Drops = [Counter; DropReason::ALL.len()];

/// One direction's counters.
///
/// Aligned so that two blocks never share a cache line pair: the neighbour's owner is another core.
#[derive(Debug)]
#[repr(align(128))]
pub struct DirectionCounters {
    /// Frames taken from the source.
    pub rx_frames: Counter,
    /// Bytes of those frames, without FCS.
    pub rx_bytes: Counter,
    /// Frames handed to the sink.
    pub tx_frames: Counter,
    /// Bytes of those frames, without FCS.
    pub tx_bytes: Counter,
    /// Times the guest was interrupted.
    pub interrupts: Counter,
    /// Times an available index was out of reach and the ring was therefore taken as empty.
    pub bad_available_index: Counter,
    /// By queue pair of the guest.
    drops: [Drops; MOST_PAIRS],
    source: AtomicU64,
}

impl Default for DirectionCounters {
    fn default() -> Self {
        Self {
            rx_frames: Counter::default(),
            rx_bytes: Counter::default(),
            tx_frames: Counter::default(),
            tx_bytes: Counter::default(),
            interrupts: Counter::default(),
            bad_available_index: Counter::default(),
            drops: std::array::from_fn(|_| Drops::default()),
            source: AtomicU64::new(0),
        }
    }
}

impl DirectionCounters {
    /// Counts `frames` dropped for `reason` at a queue pair of the guest; at 0 where it is not known for which they were.
    #[inline]
    pub fn count_drop(&self, pair: u8, reason: DropReason, frames: u64) {
        if let Some(drops) = self.drops.get(usize::from(pair)) {
            drops[reason as usize].add(frames);
        }
    }

    /// Frames dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.iter().map(|drops| drops[reason as usize].get()).sum()
    }

    /// Frames dropped for `reason` at one queue pair.
    pub fn dropped_at(&self, pair: u8, reason: DropReason) -> u64 {
        self.drops.get(usize::from(pair)).map_or(0, |drops| drops[reason as usize].get())
    }

    /// Frames dropped for any reason.
    pub fn dropped_in_all(&self) -> u64 {
        self.drops.iter().flatten().map(Counter::get).sum()
    }

    /// Notes the source address of a frame (see [`pmd::MacAddress::to_u64`]).
    #[inline]
    pub fn note_source(&self, mac: u64) {
        if self.source.load(Ordering::Relaxed) != mac {
            self.source.store(mac, Ordering::Relaxed);
        }
    }

    /// Forgets the source address: its sender has gone.
    pub fn forget_source(&self) {
        self.source.store(0, Ordering::Relaxed);
    }

    /// Source address of a recent frame; `None` before the first.
    pub fn source(&self) -> Option<pmd::MacAddress> {
        let mac = self.source.load(Ordering::Relaxed);
        (mac != 0).then(|| pmd::MacAddress::from_u64(mac))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_name_and_counter() {
        let counters = DirectionCounters::default();
        for (n, reason) in DropReason::ALL.iter().enumerate() {
            counters.count_drop(0, *reason, n as u64);
            counters.count_drop(31, *reason, 1);
        }
        for (n, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(counters.dropped(*reason), n as u64 + 1);
            assert_eq!([0, 1, 31].map(|pair| counters.dropped_at(pair, *reason)), [n as u64, 0, 1]);
            assert!(DropReason::ALL.iter().filter(|other| other.name() == reason.name()).count() == 1);
        }
    }
}
