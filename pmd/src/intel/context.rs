//! What is done to a frame before the device works on it, and the two contexts that a queue keeps meanwhile.

use super::descriptor::{Context, Manner};
use crate::net::checksum::Sum;
use crate::net::layers::{Layers, Transport};
use crate::net::packet::Version;
use crate::offload::{Offload, Segmentation};

/// The contexts that the device has of a queue. It keeps them until they are overwritten (82576 data sheet, chapter 7.2.2.2),
/// so a flow of frames of one kind needs one once.
#[derive(Debug, Default)]
pub struct Contexts {
    slots: [Option<Context>; 2],
    /// The slot that was used last.
    last: u8,
}

impl Contexts {
    /// The slot that has `context`.
    #[inline]
    pub fn find(&self, context: Context) -> Option<u8> {
        (0..).zip(&self.slots).find(|(_, slot)| **slot == Some(context)).map(|(slot, _)| slot)
    }

    /// Notes that `slot` is used.
    #[inline]
    pub fn touch(&mut self, slot: u8) {
        self.last = slot;
    }

    /// Puts `context` where it displaces the one that was not used last; which slot that is.
    #[inline]
    pub fn put(&mut self, context: Context) -> u8 {
        self.last ^= 1;
        self.slots[usize::from(self.last & 1)] = Some(context);
        self.last
    }
}

/// Most bytes of headers of a frame that is cut (82599 data sheet, chapter 7.2.4).
pub const LONGEST_HEADERS: u16 = 240;

/// What the device is asked to do with one frame that leaves it something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Bytes of the headers.
    pub headers: u32,
    /// What its data descriptors say.
    pub manner: Manner,
    /// What they refer to.
    pub context: Context,
}

impl Task {
    /// Reads the headers, the first bytes of a frame of `len` bytes, and makes them what the device
    /// wants to find. `None` where it cannot do what `offload` says, or a segment would be longer than `max_frame` bytes.
    ///
    /// Of a frame that is to be cut, the device wants the lengths and the checksum of the IPv4 header to be 0, and a pseudo
    /// header's sum without the length in the place of the TCP checksum: it adds what each segment has.
    #[inline]
    pub fn of(headers: &mut [u8], offload: &Offload, len: u32, max_frame: u32) -> Option<Self> {
        let layers = Layers::of(headers, offload)?;
        let length = layers.headers() as u32;
        match offload.segmentation {
            Segmentation::None => (len <= max_frame).then(|| Self {
                headers: length,
                manner: Manner::checksum(len),
                context: Context::of(&layers, 0),
            }),
            Segmentation::Udp => None,
            Segmentation::TcpV4 | Segmentation::TcpV6 => {
                let size = offload.segment_size;
                let payload = len.checked_sub(length).filter(|payload| *payload > 0)?;
                if size == 0
                    || length > u32::from(LONGEST_HEADERS)
                    || length + payload.min(u32::from(size)) > max_frame
                {
                    return None;
                }
                prepare_cut(headers, &layers)?;
                let manner = Manner::cut(payload, layers.version == Version::V4);
                Some(Self { headers: length, manner, context: Context::of(&layers, size) })
            }
        }
    }
}

/// Fills in the checksum that `offload` leaves in a whole frame; whether there is one of TCP or UDP to be filled in.
#[inline]
pub fn fill_checksum(frame: &mut [u8], offload: &Offload) -> bool {
    let Some(layers) = Layers::of(frame, offload) else { return false };
    let start = usize::from(layers.l2) + usize::from(layers.l3);
    let at = start + usize::from(layers.transport.checksum_at());
    let mut sum = Sum::new();
    sum.add(frame.get(start..).unwrap_or_default());
    let checksum = if layers.transport == Transport::Udp { sum.finish_nonzero() } else { sum.finish() };
    frame.get_mut(at..at + 2).map(|field| field.copy_from_slice(&checksum)).is_some()
}

fn prepare_cut(headers: &mut [u8], layers: &Layers) -> Option<()> {
    let (ip, tcp) = (usize::from(layers.l2), usize::from(layers.l2) + usize::from(layers.l3));
    let addresses = match layers.version {
        Version::V4 => {
            headers.get_mut(ip + 2..ip + 4)?.fill(0);
            headers.get_mut(ip + 10..ip + 12)?.fill(0);
            ip + 12..ip + 20
        }
        Version::V6 => {
            headers.get_mut(ip + 4..ip + 6)?.fill(0);
            ip + 8..ip + 40
        }
    };
    let sum = Sum::of_pseudo_header(headers.get(addresses)?, layers.transport.number(), 0);
    let at = tcp + usize::from(layers.transport.checksum_at());
    headers.get_mut(at..at + 2)?.copy_from_slice(&sum.partial());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::Checksum;

    fn tcp(v6: bool) -> Vec<u8> {
        let mut frame = vec![2; 12];
        if v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0x12, 0x34, 6, 64]);
            frame.extend([0; 31].into_iter().chain([1]));
        } else {
            frame.extend([8, 0, 0x45, 0, 0x12, 0x34, 0, 0, 0x40, 0, 64, 6, 0xab, 0xcd]);
            frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        }
        frame.extend([0, 9, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0x55, 0x55, 0, 0]);
        frame
    }

    fn cut(v6: bool, segment_size: u16) -> Offload {
        Offload {
            checksum: Checksum::Partial { start: if v6 { 54 } else { 34 }, offset: 16 },
            segmentation: if v6 { Segmentation::TcpV6 } else { Segmentation::TcpV4 },
            segment_size,
            ..Offload::NONE
        }
    }

    #[test]
    fn a_frame_to_be_cut_gets_the_headers_that_the_device_wants() {
        let mut frame = tcp(false);
        let task = Task::of(&mut frame, &cut(false, 1448), 9000, 1518).unwrap();
        assert_eq!((task.headers, task.manner), (54, Manner::cut(8946, true)));
        assert_eq!((&frame[16..18], &frame[24..26]), (&[0, 0][..], &[0, 0][..]));
        // 0a00 + 0001 + 0a00 + 0002 + 6
        assert_eq!(frame[50..52], [0x14, 0x09]);
        let mut frame = tcp(true);
        let task = Task::of(&mut frame, &cut(true, 1428), 9000, 1518).unwrap();
        assert_eq!((task.headers, task.manner), (74, Manner::cut(8926, false)));
        assert_eq!((&frame[18..20], &frame[70..72]), (&[0, 0][..], &[0, 7][..]));
    }

    #[test]
    fn headers_of_whole_frames_stay_as_they_are() {
        let mut frame = tcp(false);
        let offload = Offload { segmentation: Segmentation::None, segment_size: 0, ..cut(false, 0) };
        let task = Task::of(&mut frame, &offload, 54, 1518).unwrap();
        assert_eq!((task.manner, frame), (Manner::checksum(54), tcp(false)));
        assert_eq!(Task::of(&mut tcp(false), &offload, 1519, 1518), None, "too long");
    }

    #[test]
    fn a_short_frame_is_summed_up_here() {
        let mut frame = tcp(false);
        // The sum of the pseudo header is left in the field.
        let pseudo = Sum::of_pseudo_header(&frame[26..34], 6, 20).partial();
        frame[50..52].copy_from_slice(&pseudo);
        let offload = Offload { segmentation: Segmentation::None, segment_size: 0, ..cut(false, 0) };
        assert!(fill_checksum(&mut frame, &offload));
        let mut sum = Sum::of_pseudo_header(&frame[26..34], 6, 20);
        sum.add(&frame[34..]);
        assert_eq!(sum.partial(), [0xff, 0xff]);
        assert!(!fill_checksum(&mut frame[..50], &offload));
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let of = |offload: Offload, len| Task::of(&mut tcp(false), &offload, len, 1518);
        assert!(of(cut(false, 1464), 9000).is_some());
        assert_eq!(of(cut(false, 1465), 9000), None, "a segment that is too long");
        assert!(of(cut(false, 1465), 1000).is_some(), "one that is not so long after all");
        assert_eq!(of(cut(false, 1000), 54), None, "no payload");
        assert_eq!(of(cut(false, 1000), 20), None, "shorter than its headers");
        assert_eq!(of(cut(false, 0), 9000), None);
        assert_eq!(of(cut(true, 1000), 9000), None, "not IPv6");
        assert_eq!(of(Offload { segmentation: Segmentation::Udp, ..cut(false, 1000) }, 9000), None);
    }

    #[test]
    fn the_context_that_was_not_used_last_goes() {
        let layers = Layers::of(&tcp(false), &cut(false, 1)).unwrap();
        let [a, b, c] = [100, 200, 300].map(|size| Context::of(&layers, size));
        let mut contexts = Contexts::default();
        assert_eq!(contexts.find(a), None);
        let first = contexts.put(a);
        let second = contexts.put(b);
        assert_eq!((contexts.find(a), contexts.find(b)), (Some(first), Some(second)));
        contexts.touch(first);
        assert_eq!(contexts.put(c), second);
        assert_eq!((contexts.find(a), contexts.find(b), contexts.find(c)), (Some(first), None, Some(second)));
    }
}
