//! How far a device goes with what it does itself: what lies outside is done for it.

/// Bounds of what is left to a device, as it was started. Lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest headers, up to the payload, of a frame that leaves it anything to do.
    pub headers: u16,
    /// Longest frame that it cuts.
    pub cut: u32,
    /// Least and most payload of a segment.
    pub segment: (u16, u16),
    /// Longest segment, with its headers.
    pub segment_frame: u32,
}

impl Limits {
    /// Whatever can be asked for.
    pub const NONE: Self =
        Self { headers: u16::MAX, cut: u32::MAX, segment: (1, u16::MAX), segment_frame: u32::MAX };

    /// Whether a frame of `len` bytes can be cut into segments with so much payload, as far as that is known without its
    /// headers.
    #[inline]
    pub fn allow_cut(&self, len: u32, segment: u16) -> bool {
        len <= self.cut && (self.segment.0..=self.segment.1).contains(&segment)
    }

    /// Whether one whose headers are so long can.
    #[inline]
    pub fn allow_cut_behind(&self, headers: u16, len: u32, segment: u16) -> bool {
        headers <= self.headers
            && self.allow_cut(len, segment)
            && u32::from(headers) + u32::from(segment) <= self.segment_frame
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::NONE
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::frame::BURST_BYTES;
    use crate::offload::{Checksum, Offload, Segmentation};

    /// A frame, and what is left to a device.
    pub(crate) type Left = (Vec<u8>, Offload);

    /// TCP over IPv6 to be cut: headers of so many bytes, 74 and 4 for each that more are there, with a header of options
    /// before TCP's where they are longer than 78; so much payload.
    fn tcp(headers: u16, payload: u32, segment_size: u16) -> Left {
        let rest = usize::from(headers) - 54;
        let tcp = 20 + (rest - 20) % 8;
        let options = rest - tcp;
        let mut frame = vec![2; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, if options > 0 { 60 } else { 6 }, 64]);
        frame.extend([0xfd; 32]);
        if options > 0 {
            // PadN over all of it.
            frame.extend([6, (options / 8 - 1) as u8, 1, (options - 4) as u8]);
            frame.resize(frame.len() + options - 4, 0);
        }
        let start = frame.len() as u16;
        frame.resize(frame.len() + tcp, 0);
        frame[usize::from(start) + 12] = (tcp as u8 / 4) << 4;
        frame.resize(usize::from(headers) + payload as usize, 7);
        let checksum = Checksum::Partial { start, offset: 16 };
        let segmentation = Segmentation::TcpV6;
        (frame, Offload { checksum, segmentation, segment_size, header_length: headers, ..Offload::NONE })
    }

    /// Frames at the edges of what a device can be asked for by these limits: inside, and just outside.
    pub(crate) fn edges(limits: &Limits) -> (Vec<Left>, Vec<Left>) {
        // Headers are as long as 2 and a multiple of 4.
        let longest = (limits.headers.min(254) - 2) / 4 * 4 + 2;
        let (least, most) = limits.segment;
        let most = most.min((limits.segment_frame - 74) as u16);
        let cut = limits.cut.min(BURST_BYTES);
        let inside = vec![
            tcp(longest, 5000, 1000),
            tcp(74, 5000, least),
            tcp(74, 30_000, most),
            tcp(74, cut - 74, 1000),
            tcp(longest, cut - u32::from(longest), least),
        ];
        let mut outside = vec![tcp(74, 5000, least - 1), tcp(74, 30_000, most + 1)];
        outside.extend((limits.headers < 250).then(|| tcp(longest + 4, 5000, 1000)));
        outside.extend((cut < BURST_BYTES).then(|| tcp(74, cut - 73, 1000)));
        let allowed = |(frame, offload): &Left| {
            limits.allow_cut_behind(offload.header_length, frame.len() as u32, offload.segment_size)
        };
        assert!(inside.iter().all(allowed) && !outside.iter().any(allowed));
        (inside, outside)
    }

    #[test]
    fn each_bound_is_part_of_what_is_allowed() {
        let limits = Limits { headers: 240, cut: 65_557, segment: (64, 9668), segment_frame: 1518 };
        assert!(limits.allow_cut_behind(240, 65_557, 64) && limits.allow_cut_behind(54, 9000, 1464));
        for (headers, len, segment) in [(241, 9000, 64), (54, 65_558, 64), (54, 9000, 63), (54, 9000, 1465)] {
            assert!(!limits.allow_cut_behind(headers, len, segment), "{headers} {len} {segment}");
        }
        assert!(limits.allow_cut(9000, 9668) && !limits.allow_cut(9000, 9669));
        assert!(Limits::NONE.allow_cut_behind(u16::MAX, u32::MAX, u16::MAX));
        assert!(!Limits::NONE.allow_cut(9000, 0), "segments without payload");
    }
}
