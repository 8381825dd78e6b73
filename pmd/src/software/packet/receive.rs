//! Receiving from the ring of a packet socket, without a system call but for frames that no slot has room for.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::VNET_HEADER;
use super::socket::{Filled, Ring};
use crate::device::{Armed, ReceiveQueue};
use crate::frame::{BURST_FRAMES, Burst, MIN_FRAME, Segment, Token};
use crate::net_header;
use crate::offload::{Checksum, Offload};
use crate::software::buffers::Buffers;

/// Long frames that can be on their way to the guest at once.
pub(super) const LONG_FRAMES: u32 = 64;
/// Where a long frame begins in its buffer: behind its virtio-net header, with room to put a VLAN tag in.
const LONG_FRAME_AT: usize = 16;
/// Room for a long frame: 65535 bytes and an Ethernet header with tags. Only what is used of it takes memory.
const LONGEST_FRAME: usize = 65535 + 14 + 8;
/// Bytes before a VLAN tag: the two addresses.
const BEFORE_TAG: usize = 12;
/// Bytes of a VLAN tag.
const TAG: usize = 4;

/// The receiving side of `packet:IFNAME`.
#[derive(Debug)]
pub struct PacketReceive {
    pub(super) ring: Ring,
    /// The slot that the kernel fills next, not reduced to their number.
    next: u32,
    long: Buffers,
    long_free: Vec<u32>,
    faulty: Arc<AtomicU64>,
}

impl PacketReceive {
    /// `None` without memory. Frames that contradict what the kernel says of them are counted in `faulty`.
    pub(super) fn new(ring: Ring, faulty: Arc<AtomicU64>) -> Option<Self> {
        let long = Buffers::new(LONG_FRAMES, LONG_FRAME_AT + LONGEST_FRAME)?;
        Some(Self { ring, next: 0, long, long_free: (0..LONG_FRAMES).collect(), faulty })
    }

    /// What is done with the frame that `filled` describes. A slot whose frame is lent stays ours.
    fn take(&mut self, number: u32, filled: &Filled, burst: &mut Burst) -> Next {
        let room = self.ring.slot_size().saturating_sub(filled.at);
        if filled.at < VNET_HEADER + TAG || filled.here as usize > room || filled.len < MIN_FRAME {
            self.faulty.fetch_add(1, Ordering::Relaxed);
            return Next::Skip;
        }
        let is_long = filled.here < filled.len;
        let (begin, token) = match is_long {
            false => {
                // SAFETY: `at` is inside the slot.
                (unsafe { self.ring.slot(number).add(filled.at) }, Token(number & (self.ring.slots() - 1)))
            }
            true => match self.read_long(filled) {
                Ok(buffer) => {
                    // SAFETY: a buffer is longer than that.
                    (
                        unsafe { self.long.buffer(buffer).add(LONG_FRAME_AT) },
                        Token(self.ring.slots() + buffer),
                    )
                }
                Err(next) => return next,
            },
        };
        // SAFETY: `filled.len` bytes at `begin`, with the header before them, lie in a slot or a buffer that is ours until
        // `release`.
        let lent = unsafe { frame_at(begin, filled) };
        match lent {
            Some((frame, offload)) if burst.push_segment(frame).is_ok() => {
                burst.finish_frame_with(token, offload);
                if is_long {
                    self.long_free.pop();
                    return Next::Skip;
                }
                Next::Keep
            }
            Some(_) => Next::Wait,
            None => {
                self.faulty.fetch_add(1, Ordering::Relaxed);
                Next::Skip
            }
        }
    }

    /// Reads a frame that has no room in its slot from the socket, where the kernel has queued it; the number of the
    /// buffer, which is the last of those that are free.
    fn read_long(&mut self, filled: &Filled) -> Result<u32, Next> {
        if !filled.queued {
            // There were too many.
            self.ring.socket.count_missed(1);
            return Err(Next::Skip);
        }
        let Some(&number) = self.long_free.last() else { return Err(Next::Wait) };
        let offset = LONG_FRAME_AT - VNET_HEADER;
        // SAFETY: the offset is inside the buffer.
        let begin = unsafe { self.long.buffer(number).add(offset) };
        let room = self.long.size() - offset;
        // SAFETY: the buffer has so much room behind the offset, is on the free list, and so nobody points into it.
        let len = unsafe {
            libc::recv(
                self.ring.socket.raw(),
                begin.as_ptr().cast(),
                room,
                libc::MSG_DONTWAIT | libc::MSG_TRUNC,
            )
        };
        match usize::try_from(len) {
            Ok(len) if len == VNET_HEADER + filled.len as usize && len <= room => Ok(number),
            Ok(_) => {
                self.faulty.fetch_add(1, Ordering::Relaxed);
                Err(Next::Skip)
            }
            Err(_) if std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock => {
                self.ring.socket.count_missed(1);
                Err(Next::Skip)
            }
            // An error of the interface, which is told once. The frame is still there.
            Err(_) => Err(Next::Wait),
        }
    }
}

/// What is to happen with a slot.
enum Next {
    /// Its frame was lent.
    Keep,
    /// It is done with.
    Skip,
    /// It is looked at again later.
    Wait,
}

/// The frame at `begin` with its VLAN tag back in place, and what it leaves to do; `None` if that contradicts it.
///
/// # Safety
/// Behind `begin` there are `filled.len` bytes and before it [`VNET_HEADER`], as the kernel wrote them, and nobody else
/// uses them. They must stay until the frame is done with.
#[inline]
unsafe fn frame_at(begin: NonNull<u8>, filled: &Filled) -> Option<(Segment, Offload)> {
    let mut header = [0; net_header::LENGTH as usize];
    // SAFETY: so many bytes are before the frame.
    let before = unsafe { Segment::new(begin.sub(VNET_HEADER), VNET_HEADER as u32) };
    before.copy_to(&mut header);
    let offload = net_header::parse_of_device(&header, filled.len).ok()?;
    // SAFETY: the caller's promise.
    let bare = unsafe { Segment::new(begin, filled.len) };
    let Some(tag) = filled.tag else { return Some((bare, offload)) };
    let mut head = [0; BEFORE_TAG + TAG];
    bare.copy_to(&mut head[..BEFORE_TAG]);
    head[BEFORE_TAG..].copy_from_slice(&tag);
    // SAFETY: the header, which was read, is longer than the tag.
    let tagged = unsafe { Segment::new(begin.sub(TAG), filled.len + TAG as u32) };
    tagged.copy_from(&head);
    Some((tagged, behind_tag(offload)))
}

/// `offload` of a frame into which a tag was put: what is counted from its start is further away.
fn behind_tag(offload: Offload) -> Offload {
    let checksum = match offload.checksum {
        Checksum::Partial { start, offset } => {
            Checksum::Partial { start: start.saturating_add(TAG as u16), offset }
        }
        other => other,
    };
    let header_length = match offload.header_length {
        0 => 0,
        length => length.saturating_add(TAG as u16),
    };
    Offload { checksum, header_length, ..offload }
}

impl ReceiveQueue for PacketReceive {
    fn receive(&mut self, burst: &mut Burst) {
        // Faulty frames take no room, and may come as fast as they are looked at.
        for _ in 0..BURST_FRAMES {
            if burst.room() == 0 {
                return;
            }
            let number = self.next;
            let Some(filled) = self.ring.filled(number) else { return };
            match self.take(number, &filled, burst) {
                Next::Keep => self.ring.keep(number),
                Next::Skip => self.ring.give_back(number),
                Next::Wait => return,
            }
            self.next = number.wrapping_add(1);
        }
    }

    fn release(&mut self, token: Token) {
        match token.0.checked_sub(self.ring.slots()) {
            None => self.ring.give_back(token.0),
            Some(long) => {
                debug_assert!(long < LONG_FRAMES && !self.long_free.contains(&long));
                self.long_free.push(long);
            }
        }
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.socket.as_fd())
    }

    /// A packet socket rings for each frame anyway, when its slot is filled.
    fn arm(&mut self) -> Armed {
        match self.ring.filled(self.next) {
            Some(_) => Armed::Ready,
            None => Armed::Rings,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::Segmentation;

    /// What `frame_at` makes of a frame that follows `header` and had `tag`.
    fn frame(header: [u8; VNET_HEADER], tag: Option<[u8; 4]>) -> Option<(Vec<u8>, Offload)> {
        let mut slot = header.to_vec();
        slot.extend(1..=60);
        // SAFETY: the header is before the frame, and the slot outlives the segment.
        let (segment, offload) = unsafe {
            let begin = NonNull::new(slot.as_mut_ptr()).unwrap().add(VNET_HEADER);
            frame_at(begin, &Filled { at: 76, len: 60, here: 60, queued: false, tag })?
        };
        let mut bytes = vec![0; segment.len() as usize];
        segment.copy_to(&mut bytes);
        Some((bytes, offload))
    }

    const PLAIN: [u8; VNET_HEADER] = [0; VNET_HEADER];
    /// TCP over IPv4 in segments of 20 bytes; checksum from byte 14 of the frame on, at byte 30.
    const SEGMENTS: [u8; VNET_HEADER] = [1, 1, 34, 0, 20, 0, 14, 0, 16, 0];

    #[test]
    fn a_tag_that_the_kernel_took_out_is_put_back_behind_the_addresses() {
        let (bare, _) = frame(PLAIN, None).unwrap();
        assert!(bare == (1..=60).collect::<Vec<u8>>());
        let (tagged, offload) = frame(PLAIN, Some([0x88, 0xa8, 0xe0, 0x65])).unwrap();
        assert_eq!(
            (&tagged[..12], &tagged[12..16], &tagged[16..]),
            (&bare[..12], &[0x88, 0xa8, 0xe0, 0x65][..], &bare[12..])
        );
        assert_eq!(offload, Offload::NONE);
    }

    #[test]
    fn what_a_tagged_frame_leaves_to_do_is_behind_the_tag() {
        let (_, bare) = frame(SEGMENTS, None).unwrap();
        assert_eq!(bare.checksum, Checksum::Partial { start: 14, offset: 16 });
        assert_eq!((bare.segmentation, bare.segment_size, bare.header_length), (Segmentation::TcpV4, 20, 34));
        let (_, tagged) = frame(SEGMENTS, Some([0x81, 0, 0, 7])).unwrap();
        let checksum = Checksum::Partial { start: 18, offset: 16 };
        assert_eq!(tagged, Offload { checksum, header_length: 38, ..bare });
    }

    #[test]
    fn a_header_that_contradicts_its_frame_makes_it_none() {
        assert!(frame([1, 0, 0, 0, 0, 0, 50, 0, 16, 0], None).is_none());
    }
}
