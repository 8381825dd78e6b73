//! The frame that tells a network where a guest is now, after it has moved from another host.
//!
//! A reverse ARP request (RFC 903) from the guest's address to everybody, as `VHOST_USER_SEND_RARP` asks for: switches
//! learn from its source address, nobody answers.

use std::ptr::NonNull;

use pmd::{Accepted, Burst, MacAddress, Segment, Transmit, TransmitQueue};

use crate::counters::{DirectionCounters, DropReason};
use crate::ring::ReceiveRing;
use crate::ring::queue::Chain;

/// Shortest Ethernet frame without FCS.
const LENGTH: usize = 60;

/// One announcement. Must live until a device that borrowed it has given it back.
#[derive(Debug)]
pub struct Announcement(NonNull<[u8; LENGTH]>);

// SAFETY: the allocation belongs to this value alone.
unsafe impl Send for Announcement {}

impl Announcement {
    /// The announcement of `mac`.
    pub fn new(mac: MacAddress) -> Self {
        let leaked = Box::leak(Box::new(frame(mac)));
        Self(NonNull::from(leaked))
    }

    fn burst(&self) -> Burst {
        let mut burst = Burst::new();
        // SAFETY: the allocation is `LENGTH` bytes long and lives as long as `self`; no reference to it exists.
        let segment = unsafe { Segment::new(self.0.cast(), LENGTH as u32) };
        // A chain of no slots is none of a guest: nobody waits for the token.
        burst.push(segment, Chain::default().token(0));
        burst
    }

    /// Sends it; `false` when the queue has no room now.
    pub fn send(&self, queue: &mut Transmit) -> bool {
        match queue.transmit(self.burst().frames()) {
            Accepted::Copied(n) | Accepted::Borrowed(n) | Accepted::Refused(n) => n > 0,
        }
    }

    /// Puts it into a guest's receive queue, or counts it as dropped when that has no room.
    pub fn deliver(&self, ring: &mut ReceiveRing, counters: &DirectionCounters) {
        counters.rx_frames.add(1);
        counters.rx_bytes.add(LENGTH as u64);
        if ring.deliver(self.burst().frames(), counters) == 0 {
            counters.count_drop(ring.pair(), DropReason::GuestQueueFull, 1);
        }
        ring.flush(counters);
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        // SAFETY: made by `Box::leak` of a box of this type, and freed here only.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

fn frame(mac: MacAddress) -> [u8; LENGTH] {
    let mut frame = [0; LENGTH];
    frame[..6].copy_from_slice(&[0xff; 6]);
    frame[6..12].copy_from_slice(&mac.0);
    // RARP; Ethernet, IPv4, their address lengths, operation 3: request reverse.
    frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac.0);
    frame[32..38].copy_from_slice(&mac.0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_reverse_request_from_and_about_the_guest() {
        let mac = MacAddress([0x52, 0x54, 0, 1, 2, 3]);
        let frame = frame(mac);
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], mac.0);
        assert_eq!(frame[12..14], [0x80, 0x35]);
        assert_eq!(frame[20..22], [0, 3]);
        assert_eq!((&frame[22..28], &frame[32..38]), (&mac.0[..], &mac.0[..]));
        assert_eq!((&frame[28..32], &frame[38..42]), (&[0; 4][..], &[0; 4][..]));
    }
}
