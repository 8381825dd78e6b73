//! Sending through a packet socket: one `sendmmsg` a burst.

use std::io;
use std::sync::Arc;

use arrayvec::ArrayVec;

use super::VNET_HEADER;
use super::socket::Socket;
use crate::device::{Accepted, Completions, TransmitQueue};
use crate::frame::{BURST_FRAMES, BURST_SEGMENTS, Frames};
use crate::net_header;
use crate::offload::{Capabilities, Segmentation};

/// The sending side of `packet:IFNAME`.
#[derive(Debug)]
pub struct PacketTransmit {
    pub(super) socket: Arc<Socket>,
}

/// The kernel takes datagrams to be cut since Linux 6.2 and does not say so beforehand: we cut them.
const CAPABILITIES: Capabilities = Capabilities { udp: false, ..Capabilities::ALL };

impl TransmitQueue for PacketTransmit {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn transmit(&mut self, frames: Frames<'_>) -> Accepted {
        let frames = frames.take(BURST_FRAMES);
        let mut headers = ArrayVec::<[u8; net_header::LENGTH as usize], BURST_FRAMES>::new();
        headers.extend(frames.iter().map(|(frame, _)| net_header::write(frame.offload(), 0)));
        let mut pieces = ArrayVec::<libc::iovec, { BURST_FRAMES + BURST_SEGMENTS }>::new();
        let mut counts = ArrayVec::<usize, BURST_FRAMES>::new();
        for ((_, segments), header) in frames.iter().zip(&mut headers) {
            pieces.push(libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: VNET_HEADER });
            pieces.extend(segments.iter().map(|segment| libc::iovec {
                iov_base: segment.as_ptr().cast(),
                iov_len: segment.len() as usize,
            }));
            counts.push(segments.len() + 1);
        }
        let mut messages = ArrayVec::<libc::mmsghdr, BURST_FRAMES>::new();
        let mut rest = pieces.as_mut_slice();
        for count in counts {
            let (of_frame, others) = rest.split_at_mut(count);
            rest = others;
            // SAFETY: `msghdr` is plain data for which all zeros are valid.
            let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
            header.msg_iov = of_frame.as_mut_ptr();
            header.msg_iovlen = count as _;
            messages.push(libc::mmsghdr { msg_hdr: header, msg_len: 0 });
        }
        // SAFETY: messages, pieces and headers live through the call. All other pieces are segments, mapped until their
        // frames complete; the kernel only reads them, and answers EFAULT where a mapping has lost its pages.
        let sent = unsafe {
            libc::sendmmsg(
                self.socket.raw(),
                messages.as_mut_ptr(),
                messages.len() as u32,
                libc::MSG_DONTWAIT,
            )
        };
        match usize::try_from(sent) {
            Ok(sent) => Accepted::Copied(sent),
            Err(_) => after_failure(&io::Error::last_os_error(), frames),
        }
    }

    fn reclaim(&mut self, _done: &mut Completions) {}

    fn outstanding(&self) -> usize {
        0
    }

    fn abort(&mut self, _done: &mut Completions) {}
}

/// What becomes of the first of `frames`, which the kernel did not take.
#[cold]
fn after_failure(cause: &io::Error, frames: Frames<'_>) -> Accepted {
    let is_cut = |(frame, _): (&crate::Frame, _)| frame.offload().segmentation != Segmentation::None;
    match cause.raw_os_error() {
        // The socket's share of memory is under way, or a signal came.
        Some(libc::EAGAIN | libc::EINTR) => Accepted::Copied(0),
        // The interface's queue is full. Of a frame that was being cut a part may be on the wire, and nothing is sent
        // twice.
        Some(libc::ENOBUFS) if !frames.iter().next().is_some_and(is_cut) => Accepted::Copied(0),
        // The interface is down or gone, or the frame is none that it can send.
        _ => Accepted::Refused(1),
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;

    use super::*;
    use crate::frame::{Burst, Segment, Token};
    use crate::offload::{Checksum, Offload};

    #[test]
    fn a_full_queue_is_waited_for_but_nothing_is_sent_twice() {
        let mut bytes = [0u8; 60];
        // SAFETY: `bytes` outlives the burst.
        let segment = unsafe { Segment::new(NonNull::new(bytes.as_mut_ptr()).unwrap(), 60) };
        let tso = Offload {
            checksum: Checksum::Partial { start: 34, offset: 16 },
            segmentation: Segmentation::TcpV4,
            segment_size: 1448,
            ..Offload::NONE
        };
        let mut burst = Burst::new();
        assert!(burst.push(segment, Token(0)));
        burst.push_segment(segment).unwrap();
        assert!(burst.finish_frame_with(Token(1), tso));
        let after = |errno, frames| after_failure(&io::Error::from_raw_os_error(errno), frames);
        let (plain, cut) = (burst.frames(), burst.frames().skip(1));
        for errno in [libc::EAGAIN, libc::EINTR] {
            assert_eq!([after(errno, plain), after(errno, cut)], [Accepted::Copied(0); 2]);
        }
        assert_eq!(after(libc::ENOBUFS, plain), Accepted::Copied(0));
        assert_eq!(after(libc::ENOBUFS, cut), Accepted::Refused(1));
        for errno in [libc::ENETDOWN, libc::ENXIO, libc::EMSGSIZE, libc::EINVAL, libc::EFAULT] {
            assert_eq!(after(errno, plain), Accepted::Refused(1));
        }
    }
}
