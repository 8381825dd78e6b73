//! The virtio-net header (virtio 1.3, section 5.1.6; Linux's `virtio_net_hdr`): how a frame's [`Offload`] is written down
//! before the frame itself, in a guest's ring, in a virtio device's, and at a kernel tap.
//!
//! ```text
//!  0      1         2         4          6            8             10
//!  flags  gso_type  hdr_len   gso_size   csum_start   csum_offset   num_buffers      little-endian
//! ```
//!
//! What was written is checked against what may be left and against the length of the frame here; whether it fits the
//! frame's own headers is checked by whoever does the work. Legacy guests write the fields in their own byte order, which
//! is taken to be little-endian too.

use thiserror::Error;

use crate::offload::{Capabilities, Checksum, Offload, Segmentation};

/// Length of the header in bytes with `VIRTIO_F_VERSION_1` or `VIRTIO_NET_F_MRG_RXBUF`.
pub const LENGTH: u32 = 12;
/// Length of the header in bytes for a legacy guest without mergeable buffers: no `num_buffers`.
pub const LEGACY_LENGTH: u32 = 10;

/// Bytes of payload from which a guest may have a frame cut into any number of segments. Linux takes no smaller MSS
/// from a peer (`TCP_MIN_SND_MSS`).
pub const SMALL_SEGMENT: u16 = 48;
/// Into so many segments a guest may have a frame cut however small they are: TCP options leave as little as 8 bytes of
/// that MSS, and datagrams of any size can be sent in so large batches (Linux's `UDP_MAX_SEGMENTS`).
pub const SMALL_SEGMENTS: u32 = 128;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM` and so on (virtio 1.3, 5.1.6).
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Length of the smallest TCP header and of the UDP header in bytes.
const TCP_HEADER: u16 = 20;
const UDP_HEADER: u16 = 8;

/// A header that asks for what may not be left, or contradicts its frame.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the virtio-net header asks for an offload that cannot be done")]
pub struct BadHeader;

/// The header before a frame that leaves nothing to be done, in one buffer.
pub const PLAIN: [u8; LENGTH as usize] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Whether a driver's header leaves anything to be done, by its first two bytes.
#[inline(always)]
pub fn asks_for_something([flags, gso_type]: [u8; 2]) -> bool {
    flags & NEEDS_CSUM != 0 || gso_type != GSO_NONE
}

/// What a driver leaves to be done for a frame of `frame_len` bytes.
///
/// `header` is a private copy. `negotiated` is what may be left. `DATA_VALID` says nothing here: a driver must not set it
/// (5.1.6.2.1), and another guest should not believe it. Neither does `RSC_INFO`.
#[inline]
pub fn parse(
    header: &[u8; LENGTH as usize],
    frame_len: u32,
    negotiated: &Capabilities,
) -> Result<Offload, BadHeader> {
    let &[flags, gso_type, l0, l1, s0, s1, c0, c1, o0, o1, _, _] = header;
    if !asks_for_something([header[0], header[1]]) {
        return Ok(Offload::NONE);
    }
    let (start, offset) = (u16::from_le_bytes([c0, c1]), u16::from_le_bytes([o0, o1]));
    // Segmentation without a checksum to fill in makes no sense, and the standard forbids it (5.1.6.2.1).
    if flags & NEEDS_CSUM == 0 || u32::from(start) + u32::from(offset) + 2 > frame_len {
        return Err(BadHeader);
    }
    let (segmentation, transport_header) = match gso_type & !GSO_ECN {
        GSO_NONE => (Segmentation::None, 0),
        GSO_TCPV4 => (Segmentation::TcpV4, TCP_HEADER),
        GSO_TCPV6 => (Segmentation::TcpV6, TCP_HEADER),
        GSO_UDP_L4 => (Segmentation::Udp, UDP_HEADER),
        _ => return Err(BadHeader),
    };
    let ecn = gso_type & GSO_ECN != 0;
    let size = u16::from_le_bytes([s0, s1]);
    let offload = Offload {
        checksum: Checksum::Partial { start, offset },
        segmentation,
        ecn,
        segment_size: if segmentation == Segmentation::None { 0 } else { size },
        header_length: u16::from_le_bytes([l0, l1]),
    };
    if !negotiated.cover(&offload) || ecn && matches!(segmentation, Segmentation::None | Segmentation::Udp) {
        return Err(BadHeader);
    }
    if segmentation == Segmentation::None {
        return Ok(offload);
    }
    let payload = frame_len.saturating_sub(u32::from(start) + u32::from(transport_header));
    if size == 0 || size < SMALL_SEGMENT && payload.div_ceil(u32::from(size)) > SMALL_SEGMENTS {
        return Err(BadHeader);
    }
    if frame_len <= u32::from(size) {
        return Ok(Offload { segmentation: Segmentation::None, ecn: false, segment_size: 0, ..offload });
    }
    Ok(offload)
}

/// What a device (the kernel behind a tap, say) leaves to be done, and what it says of the checksum.
#[inline]
pub fn parse_of_device(header: &[u8; LENGTH as usize], frame_len: u32) -> Result<Offload, BadHeader> {
    let offload = parse(header, frame_len, &Capabilities::ALL)?;
    let valid = header[0] & DATA_VALID != 0 && offload.checksum == Checksum::Unknown;
    Ok(if valid { Offload { checksum: Checksum::Valid, ..offload } } else { offload })
}

/// The header of a frame that leaves `offload` to its taker and is spread over `buffers` chains. The taker must have
/// agreed to what it says.
#[inline]
pub fn write(offload: &Offload, buffers: u16) -> [u8; LENGTH as usize] {
    let mut header = plain(buffers);
    let mut header_length = offload.header_length;
    let (gso_type, transport_header) = match offload.segmentation {
        Segmentation::None => (GSO_NONE, 0),
        Segmentation::TcpV4 => (GSO_TCPV4, TCP_HEADER),
        Segmentation::TcpV6 => (GSO_TCPV6, TCP_HEADER),
        Segmentation::Udp => (GSO_UDP_L4, UDP_HEADER),
    };
    match offload.checksum {
        Checksum::Unknown => {}
        Checksum::Valid => header[0] = DATA_VALID,
        Checksum::Partial { start, offset } => {
            header[0] = NEEDS_CSUM;
            header[6..8].copy_from_slice(&start.to_le_bytes());
            header[8..10].copy_from_slice(&offset.to_le_bytes());
            // Guests take in so many bytes at first and expect the headers among them (5.1.6.4.1).
            header_length = header_length.max(start.saturating_add(transport_header));
        }
    }
    if offload.segmentation != Segmentation::None {
        header[1] = if offload.ecn { gso_type | GSO_ECN } else { gso_type };
        header[2..4].copy_from_slice(&header_length.to_le_bytes());
        header[4..6].copy_from_slice(&offload.segment_size.to_le_bytes());
    }
    header
}

/// The header of a frame that needs nothing: no checksum, no segmentation.
pub fn plain(buffers: u16) -> [u8; LENGTH as usize] {
    let mut header = [0; LENGTH as usize];
    header[10..].copy_from_slice(&buffers.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BAD: Result<Offload, BadHeader> = Err(BadHeader);

    /// A header with these flags, GSO type, GSO size, checksum start and offset.
    fn raw(flags: u8, gso_type: u8, size: u16, start: u16, offset: u16) -> [u8; 12] {
        let mut header = [0; 12];
        (header[0], header[1]) = (flags, gso_type);
        header[2..4].copy_from_slice(&66u16.to_le_bytes());
        header[4..6].copy_from_slice(&size.to_le_bytes());
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
        header
    }

    fn partial(start: u16, offset: u16) -> Offload {
        Offload { checksum: Checksum::Partial { start, offset }, header_length: 66, ..Offload::NONE }
    }

    fn tso(size: u16) -> Offload {
        Offload { segmentation: Segmentation::TcpV4, segment_size: size, ..partial(34, 16) }
    }

    #[test]
    fn a_guest_leaves_what_it_negotiated() {
        let all = &Capabilities::ALL;
        assert_eq!(parse(&[0; 12], 60, &Capabilities::NONE), Ok(Offload::NONE));
        assert_eq!(parse(&raw(1, 0, 9, 34, 16), 60, all), Ok(partial(34, 16)));
        assert_eq!(parse(&raw(1, 1, 1448, 34, 16), 9000, all), Ok(tso(1448)));
        assert_eq!(parse(&raw(1, 0x81, 1448, 34, 16), 9000, all), Ok(Offload { ecn: true, ..tso(1448) }));
        let v6 = Offload { segmentation: Segmentation::TcpV6, segment_size: 1428, ..partial(54, 16) };
        assert_eq!(parse(&raw(1, 4, 1428, 54, 16), 9000, all), Ok(v6));
        let uso = Offload { segmentation: Segmentation::Udp, segment_size: 1200, ..partial(34, 6) };
        assert_eq!(parse(&raw(1, 5, 1200, 34, 6), 9000, all), Ok(uso));
    }

    #[test]
    fn what_was_not_negotiated_is_refused() {
        let all = Capabilities::ALL;
        for (header, negotiated) in [
            (raw(1, 0, 0, 34, 16), Capabilities { checksum: false, ..all }),
            (raw(1, 1, 1448, 34, 16), Capabilities { tcp_v4: false, ..all }),
            (raw(1, 4, 1448, 54, 16), Capabilities { tcp_v6: false, ..all }),
            (raw(1, 5, 1448, 34, 6), Capabilities { udp: false, ..all }),
            (raw(1, 0x81, 1448, 34, 16), Capabilities { ecn: false, ..all }),
        ] {
            assert!(parse(&header, 9000, &all).is_ok());
            assert_eq!(parse(&header, 9000, &negotiated), BAD);
        }
    }

    #[test]
    fn ufo_and_unknown_segmentation_are_refused() {
        for gso_type in [2, 3, 6, 0x20, 0x40, 0x80, 0x83, 0x85, 0xff] {
            assert_eq!(parse(&raw(1, gso_type, 1000, 34, 6), 9000, &Capabilities::ALL), BAD, "{gso_type:#x}");
        }
    }

    #[test]
    fn segmentation_needs_a_checksum_to_fill_in() {
        assert_eq!(parse(&raw(0, 1, 1448, 34, 16), 9000, &Capabilities::ALL), BAD);
    }

    /// The checksum began past the end of the packet, and a host that summed it up wrote there.
    #[test]
    fn cve_2024_11614_a_checksum_beyond_the_frame_is_refused() {
        for (start, offset) in [(34, 25), (34, 65535), (65535, 65535), (60, 0), (59, 0), (65535, 16)] {
            assert_eq!(
                parse(&raw(1, 0, 0, start, offset), 60, &Capabilities::ALL),
                BAD,
                "{start} + {offset}"
            );
        }
        assert!(parse(&raw(1, 0, 0, 58, 0), 60, &Capabilities::ALL).is_ok());
        assert_eq!(parse(&raw(1, 0, 0, 0, 0), 1, &Capabilities::ALL), BAD);
    }

    #[test]
    fn no_frame_is_cut_into_thousands_of_segments() {
        let tcp = |size, len| parse(&raw(1, 1, size, 34, 16), len, &Capabilities::ALL);
        assert_eq!(tcp(0, 9000), BAD);
        assert_eq!(tcp(1, 9000), BAD);
        assert_eq!(tcp(47, 65_000), BAD);
        assert_eq!(tcp(48, 65_000), Ok(tso(48)));
        assert_eq!(tcp(8, 54 + 128 * 8), Ok(tso(8)));
        assert_eq!(tcp(8, 54 + 128 * 8 + 1), BAD);
    }

    #[test]
    fn a_frame_within_one_segment_is_not_cut() {
        assert_eq!(parse(&raw(1, 0x81, 1448, 34, 16), 1448, &Capabilities::ALL), Ok(partial(34, 16)));
        assert_eq!(parse(&raw(1, 1, 1448, 34, 16), 1449, &Capabilities::ALL), Ok(tso(1448)));
    }

    #[test]
    fn flags_that_only_a_device_sets_say_nothing() {
        assert_eq!(parse(&raw(2 | 4 | 0xf8, 0, 0, 9, 9), 60, &Capabilities::ALL), Ok(Offload::NONE));
    }

    #[test]
    fn a_guest_is_told_what_is_left_to_it() {
        assert_eq!(write(&Offload::NONE, 3), plain(3));
        let valid = Offload { checksum: Checksum::Valid, ..Offload::NONE };
        assert_eq!(write(&valid, 1), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(write(&partial(34, 16), 1), [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0]);
        let ecn = Offload { ecn: true, ..tso(1448) };
        assert_eq!(write(&ecn, 0x102), [1, 0x81, 66, 0, 0xa8, 5, 34, 0, 16, 0, 2, 1]);
        let no_hint = Offload { header_length: 0, ..tso(1448) };
        assert_eq!(write(&no_hint, 1)[2..4], [54, 0]);
    }

    #[test]
    fn a_device_may_say_that_it_checked_the_checksum() {
        let valid = Offload { checksum: Checksum::Valid, ..Offload::NONE };
        assert_eq!(parse_of_device(&raw(2, 0, 0, 0, 0), 60), Ok(valid));
        assert_eq!(parse_of_device(&raw(3, 0, 0, 34, 16), 60), Ok(partial(34, 16)));
        assert_eq!(parse_of_device(&[0; 12], 60), Ok(Offload::NONE));
    }

    proptest! {
        #[test]
        fn any_header_is_refused_or_bounded(header: [u8; 12], len: u32, small_len in 0u32..70_000, small: bool) {
            let len = if small { small_len } else { len };
            if let Ok(offload) = parse(&header, len, &Capabilities::ALL) {
                if let Checksum::Partial { start, offset } = offload.checksum {
                    prop_assert!(u64::from(start) + u64::from(offset) + 2 <= u64::from(len));
                }
                if offload.segmentation == Segmentation::None {
                    prop_assert!(offload.segment_size == 0 && !offload.ecn);
                } else {
                    prop_assert!(!offload.is_done() && offload.segment_size > 0);
                    prop_assert!(u32::from(offload.segment_size) < len);
                    let has_checksum = matches!(offload.checksum, Checksum::Partial { .. });
                    prop_assert!(has_checksum);
                }
            }
        }

        /// What one guest leaves, another is told in the same words.
        #[test]
        fn a_header_survives_the_way(
            gso_type in prop::sample::select(vec![0u8, 1, 4, 5, 0x81, 0x84]),
            size in 48u16..1500, start in 14u16..200, offset in 0u16..20,
        ) {
            let header = raw(1, gso_type, size, start, offset);
            let offload = parse(&header, 65_000, &Capabilities::ALL).unwrap();
            prop_assert_eq!(parse(&write(&offload, 1), 65_000, &Capabilities::ALL).map(|again| Offload {
                header_length: offload.header_length, ..again
            }), Ok(offload));
        }
    }
}
