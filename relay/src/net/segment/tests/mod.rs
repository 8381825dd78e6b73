//! Frames are worked on, and what comes out is taken apart again and compared with what went in.

mod oracle;

use std::ptr::NonNull;

use pmd::Limits;
use pmd::frame::BURST_FRAMES;
use proptest::prelude::*;

use self::oracle::{Memory, Recipe, TCP_V4, contents};
use super::*;

/// Emits all of a frame, a cleared burst at a time, with `taken` frames of something else in each burst before.
fn emit_all(mut work: Work, segments: &[Segment], taken: usize) -> Vec<(Vec<u8>, Offload)> {
    let mut other = [0; 60];
    // SAFETY: the array outlives the bursts and is not touched.
    let other = unsafe { Segment::new(NonNull::from(&mut other).cast(), 60) };
    let (mut burst, mut arena, mut out) = (Burst::new(), Headers::new(), Vec::new());
    loop {
        (0..taken).for_each(|_| assert!(burst.push(other, Token(0))));
        let emitted = work.emit(segments, &mut burst, &mut arena, Token(7));
        let ours = burst.frames().skip(taken);
        for (frame, pieces) in ours.iter() {
            assert_eq!(frame.token(), Token(7));
            out.push((contents(pieces), *frame.offload()));
        }
        if emitted == Emitted::Finished {
            assert_eq!(work.emit(segments, &mut burst, &mut arena, Token(8)), Emitted::Finished);
            return out;
        }
        assert!(!ours.is_empty(), "an empty burst takes a frame at least");
        let pieces: usize = burst.frames().iter().map(|(_, pieces)| pieces.len()).sum();
        if burst.room() > 0 && pieces < BURST_SEGMENTS {
            assert!(burst.push(other, Token(0)), "nothing of the frame that did not fit is left");
            assert_eq!(burst.frames().iter().last().map(|(frame, _)| frame.len()), Some(60));
        }
        burst.clear();
        arena.clear();
    }
}

fn run(
    bytes: &[u8],
    cuts: &[usize],
    offload: &Offload,
    capabilities: &Capabilities,
) -> Result<Vec<(Vec<u8>, Offload)>, DropReason> {
    let mut memory = Memory::new(bytes, cuts);
    let segments = memory.segments();
    Ok(emit_all(Work::begin(&segments, offload, capabilities)?, &segments, 0))
}

fn refused(bytes: &[u8], offload: &Offload) {
    for capabilities in [Capabilities::NONE, Capabilities::ALL] {
        assert_eq!(run(bytes, &[], offload, &capabilities), Err(DropReason::BadOffload), "{offload:?}");
    }
}

const CHECKSUM: Capabilities = Capabilities { checksum: true, ..Capabilities::NONE };

#[test]
fn tcp_over_ipv4_is_cut() {
    let sample = TCP_V4.bytes(4000).make();
    let frames = run(&sample.bytes, &[], &sample.cut(1448), &Capabilities::NONE).unwrap();
    assert_eq!(frames.iter().map(|(frame, _)| frame.len()).collect::<Vec<_>>(), [1514, 1514, 66 + 1104]);
    sample.check(&frames, 1448, true);
}

#[test]
fn fin_and_psh_are_on_the_last_segment_and_cwr_on_the_first() {
    let sample = Recipe { flags: 0x80 | 0x10 | 0x08 | 0x01, ..TCP_V4 }.bytes(300).make();
    let offload = Offload { ecn: true, ..sample.cut(100) };
    let frames = run(&sample.bytes, &[], &offload, &Capabilities::NONE).unwrap();
    let flags: Vec<u8> = frames.iter().map(|(frame, _)| frame[sample.transport + 13]).collect();
    assert_eq!(flags, [0x90, 0x10, 0x19]);
    sample.check(&frames, 100, true);
}

#[test]
fn udp_is_cut_into_datagrams() {
    for v6 in [false, true] {
        let sample = Recipe { udp: true, v6, ..TCP_V4 }.bytes(2500).make();
        let frames = run(&sample.bytes, &[3, 40, 700], &sample.cut(1200), &Capabilities::NONE).unwrap();
        assert_eq!(frames.len(), 3);
        sample.check(&frames, 1200, true);
    }
}

#[test]
fn a_taker_of_checksums_gets_pseudo_header_sums() {
    let sample = Recipe { v6: true, tags: 1, ..TCP_V4 }.bytes(5000).make();
    sample.check(&run(&sample.bytes, &[], &sample.cut(1400), &CHECKSUM).unwrap(), 1400, false);
}

#[test]
fn a_packet_within_one_segment_comes_out_whole() {
    for n in [0, 1, 1448] {
        let sample = Recipe { flags: 0x99, ..TCP_V4 }.bytes(n).make();
        let frames = run(&sample.bytes, &[], &sample.cut(1448), &Capabilities::NONE).unwrap();
        sample.check(&frames, 1448, true);
    }
}

#[test]
fn a_checksum_is_filled_in_wherever_pieces_begin() {
    for n in [0, 1, 17, 200, 1448] {
        for udp in [false, true] {
            let sample = Recipe { udp, tags: 2, ..TCP_V4 }.bytes(n).make();
            for cuts in [&[][..], &[1, 2, 15, 71], &[sample.header, sample.header + 1], &[255, 257]] {
                let frames = run(&sample.bytes, cuts, &sample.checksum_only(), &Capabilities::NONE).unwrap();
                let [(frame, offload)] = &frames[..] else { panic!("{} frames", frames.len()) };
                assert_eq!((sample.transport_sum(frame), *offload), (0, Offload::NONE));
                let mut same = frame.clone();
                let field = sample.checksum_at()..sample.checksum_at() + 2;
                same[field.clone()].copy_from_slice(&sample.bytes[field]);
                assert_eq!(same, sample.bytes);
            }
        }
    }
}

#[test]
fn a_udp_checksum_of_zero_goes_out_as_all_ones() {
    let mut sample = Recipe { udp: true, ..TCP_V4 }.bytes(600).make();
    // Whatever the checksum would be, these two bytes of payload make it 0.
    let (field, payload) = (sample.checksum_at(), sample.header);
    sample.bytes[payload..payload + 2].fill(0);
    let mut unsummed = sample.bytes.clone();
    unsummed[field..field + 2].fill(0);
    let sum = sample.transport_sum(&unsummed);
    sample.bytes[payload..payload + 2].copy_from_slice(&sum.to_be_bytes());
    let filled = run(&sample.bytes, &[], &sample.checksum_only(), &Capabilities::NONE).unwrap();
    assert_eq!(filled[0].0[field..field + 2], [0xff, 0xff]);
    let cut = run(&sample.bytes, &[], &sample.cut(600), &Capabilities::NONE).unwrap();
    assert_eq!(cut[0].0[field..field + 2], [0xff, 0xff]);
}

#[test]
fn a_covered_frame_comes_out_as_it_is_with_an_exact_header_length() {
    let sample = TCP_V4.bytes(9000).make();
    let offload = Offload { header_length: 1, ..sample.cut(1448) };
    let frames = run(&sample.bytes, &[30, 4000], &offload, &Capabilities::ALL).unwrap();
    let exact = Offload { header_length: sample.header as u16, ..offload };
    assert_eq!(frames, [(sample.bytes.clone(), exact)]);
    for offload in [Offload::NONE, sample.checksum_only()] {
        let frames = run(&sample.bytes, &[30, 4000], &offload, &Capabilities::ALL).unwrap();
        assert_eq!(frames, [(sample.bytes.clone(), offload)]);
    }
}

#[test]
fn a_frame_of_64_kib_is_cut_over_many_bursts() {
    let sample = TCP_V4.bytes(65_535 - 52).make();
    for taken in [0, 1, 31] {
        let mut memory = Memory::new(&sample.bytes, &[66, 4096, 8192, 8193, 30_000]);
        let segments = memory.segments();
        let work = Work::begin(&segments, &sample.cut(48), &Capabilities::NONE).unwrap();
        let frames = emit_all(work, &segments, taken);
        assert!(frames.len() > 1000);
        sample.check(&frames, 48, true);
    }
}

#[test]
fn payload_is_borrowed_and_headers_are_not() {
    let sample = TCP_V4.bytes(3000).make();
    let mut memory = Memory::new(&sample.bytes, &[]);
    let segments = memory.segments();
    let guest = segments[0].as_ptr() as usize..segments[0].as_ptr() as usize + sample.bytes.len();
    let (mut burst, mut arena) = (Burst::new(), Headers::new());
    let mut work = Work::begin(&segments, &sample.cut(1448), &Capabilities::NONE).unwrap();
    assert_eq!(work.emit(&segments, &mut burst, &mut arena, Token(0)), Emitted::Finished);
    for (_, pieces) in burst.frames().iter() {
        let at: Vec<bool> = pieces.iter().map(|piece| guest.contains(&(piece.as_ptr() as usize))).collect();
        assert_eq!((at, pieces[0].len() as usize), (vec![false, true], sample.header));
    }
    assert_eq!(arena.room(), BURST_FRAMES - 3);
}

#[test]
fn a_frame_of_as_many_pieces_as_a_burst_holds_is_refused_and_one_of_fewer_gets_on() {
    let sample = TCP_V4.bytes(4000).make();
    let cuts: Vec<usize> = (1..BURST_SEGMENTS).map(|n| sample.bytes.len() - n).collect();
    for offload in [sample.cut(4000), sample.cut(500), sample.checksum_only()] {
        let fits = run(&sample.bytes, &cuts[1..], &offload, &Capabilities::NONE).unwrap();
        assert!(fits.iter().all(|(frame, _)| sample.transport_sum(frame) == 0));
        let too_many = run(&sample.bytes, &cuts, &offload, &Capabilities::NONE);
        assert_eq!(too_many, Err(DropReason::TooManyBuffers));
    }
}

/// The checksum began past the end of the packet, and a host that summed it up wrote there.
#[test]
fn cve_2024_11614_a_checksum_beyond_the_frame_is_refused() {
    let sample = TCP_V4.bytes(20).make();
    let len = sample.bytes.len() as u16;
    for (start, offset) in
        [(len - 1, 0), (len, 0), (34, len - 34 - 1), (65535, 65535), (0, 65535), (65535, 1)]
    {
        let offload = Offload { checksum: Checksum::Partial { start, offset }, ..Offload::NONE };
        refused(&sample.bytes, &offload);
        refused(&sample.bytes, &Offload { checksum: offload.checksum, ..sample.cut(10) });
    }
}

/// A host read `csum_start` once to check it and once more to use it, and the guest wrote in between. Here, once work has
/// begun, no header in the guest's memory is looked at again.
#[test]
fn dpdk_285e6b8b18_headers_are_sent_as_they_were_checked() {
    let sample = TCP_V4.bytes(60_000).make();
    for offload in [sample.cut(1448), sample.checksum_only()] {
        let mut memory = Memory::new(&sample.bytes, &[]);
        let segments = memory.segments();
        let mut work = Work::begin(&segments, &offload, &Capabilities::NONE).unwrap();
        let (mut burst, mut arena) = (Burst::new(), Headers::new());
        segments[0].copy_from(&vec![0xff; sample.checksum_at() + 2]);
        let _ = work.emit(&segments, &mut burst, &mut arena, Token(0));
        let (_, pieces) = burst.frames().iter().next().unwrap();
        let frame = contents(pieces);
        assert_eq!(sample.transport_sum(&frame), 0);
        assert_eq!(frame[..14], sample.bytes[..14]);
    }
}

#[test]
fn a_checksum_field_behind_the_private_bytes_is_refused() {
    let sample = TCP_V4.bytes(1000).make();
    let at = |start, offset| Offload { checksum: Checksum::Partial { start, offset }, ..Offload::NONE };
    refused(&sample.bytes, &at(240, 16));
    assert!(run(&sample.bytes, &[], &at(240, 14), &Capabilities::NONE).is_ok());
}

#[test]
fn what_contradicts_the_headers_is_refused() {
    let tcp = TCP_V4.bytes(3000).make();
    let udp = Recipe { udp: true, ..TCP_V4 }.bytes(3000).make();
    let tcp_v6 = Recipe { v6: true, ..TCP_V4 }.bytes(3000).make();
    let cut = tcp.cut(1000);
    refused(&tcp_v6.bytes, &Offload { segmentation: Segmentation::TcpV4, ..tcp_v6.cut(1000) });
    refused(&tcp.bytes, &Offload { segmentation: Segmentation::TcpV6, ..cut });
    refused(&tcp.bytes, &Offload { segmentation: Segmentation::Udp, ..cut });
    refused(&udp.bytes, &Offload { segmentation: Segmentation::TcpV4, ..udp.cut(1000) });
    refused(&tcp.bytes, &Offload { segment_size: 0, ..cut });
    for (start, offset) in [(34, 6), (33, 17), (38, 12)] {
        refused(&tcp.bytes, &Offload { checksum: Checksum::Partial { start, offset }, ..cut });
    }
    let changed = |at: usize, value: u8| {
        let mut bytes = tcp.bytes.clone();
        bytes[at] = value;
        bytes
    };
    refused(&changed(12, 0x12), &cut); // No IP.
    refused(&changed(14, 0x44), &cut); // An IP header of 16 bytes.
    refused(&changed(20, 0x20), &cut); // More fragments to come.
    refused(&changed(21, 1), &cut); // A fragment.
    refused(&changed(34 + 12, 0x40), &cut); // A TCP header of 16 bytes.
    refused(&tcp.bytes[..tcp.header - 1], &cut); // Headers longer than the frame.
    let routed = {
        let mut bytes = Recipe { v6: true, ip_options: 1, ..TCP_V4 }.bytes(3000).make();
        bytes.bytes[14 + 6] = 43;
        bytes.bytes[14 + 40 + 3] = 1;
        bytes
    };
    refused(&routed.bytes, &routed.cut(1000));
    let long_headers = Recipe { v6: true, ip_options: 24, ..TCP_V4 }.bytes(3000).make();
    refused(&long_headers.bytes, &long_headers.cut(1000));
    let long_segment = TCP_V4.bytes(70_000).make();
    refused(&long_segment.bytes, &long_segment.cut(65_500));
}

#[test]
fn a_frame_longer_than_a_burst_is_refused() {
    let frame = vec![0; BURST_BYTES as usize + 1];
    assert_eq!(run(&frame, &[], &Offload::NONE, &Capabilities::NONE), Err(DropReason::FrameTooLong));
}

#[test]
fn segments_that_are_fewer_than_before_end_the_work() {
    let sample = TCP_V4.bytes(4000).make();
    let mut memory = Memory::new(&sample.bytes, &[2000]);
    let segments = memory.segments();
    let mut work = Work::begin(&segments, &sample.cut(1000), &Capabilities::NONE).unwrap();
    let (mut burst, mut arena) = (Burst::new(), Headers::new());
    assert_eq!(work.emit(&segments[..1], &mut burst, &mut arena, Token(0)), Emitted::Finished);
    assert_eq!(burst.len(), 1);
}

fn recipes() -> impl Strategy<Value = Recipe> {
    (
        any::<(bool, bool, u8)>(),
        0usize..3,
        0usize..=10,
        0usize..=10,
        prop::collection::vec(any::<u8>(), 0..6000),
    )
        .prop_map(|((v6, udp, flags), tags, ip_options, tcp_options, payload)| Recipe {
            v6,
            udp,
            tags,
            ip_options,
            tcp_options,
            flags,
            payload,
        })
}

fn offloads() -> impl Strategy<Value = Offload> {
    let segmentation = prop::sample::select(vec![
        Segmentation::None,
        Segmentation::TcpV4,
        Segmentation::TcpV6,
        Segmentation::Udp,
    ]);
    (segmentation, any::<(bool, u16, u16)>(), any::<u8>(), 0u16..400, 0u16..40, 0u16..2000, any::<u16>())
        .prop_map(|(segmentation, (ecn, far_start, far_offset), kind, start, offset, size, header_length)| {
            let checksum = match kind {
                0..16 => Checksum::Unknown,
                16..32 => Checksum::Valid,
                32..64 => Checksum::Partial { start: far_start, offset: far_offset },
                _ => Checksum::Partial { start, offset },
            };
            Offload { checksum, segmentation, ecn, segment_size: size, header_length }
        })
}

/// Limits that exclude much and allow some.
fn limits() -> impl Strategy<Value = Limits> {
    let narrow = (40u16..160, 0u32..6000, 0u16..300, 0u16..2000, 60u32..2200).prop_map(
        |(headers, cut, least, range, segment_frame)| Limits {
            headers,
            cut,
            segment: (least, least + range),
            segment_frame,
        },
    );
    prop_oneof![Just(Limits::NONE), narrow]
}

fn capabilities() -> impl Strategy<Value = Capabilities> {
    let bools = any::<[bool; 6]>();
    (bools, limits()).prop_map(|([checksum, tcp_v4, tcp_v6, ecn, udp, by_header], limits)| Capabilities {
        checksum,
        tcp_v4,
        tcp_v6,
        ecn,
        udp,
        by_header,
        limits,
    })
}

proptest! {
    #[test]
    fn any_packet_is_cut_right(
        recipe in recipes(),
        size in 1u16..2000,
        cuts in prop::collection::vec(0usize..6200, 0..8),
        fill: bool,
    ) {
        let sample = recipe.make();
        let capabilities = if fill { Capabilities::NONE } else { CHECKSUM };
        let frames = run(&sample.bytes, &cuts, &sample.cut(size), &capabilities).unwrap();
        sample.check(&frames, usize::from(size), fill);
    }

    #[test]
    fn whatever_is_asked_for_no_more_comes_out_than_payload_and_a_header_each(
        recipe in recipes(),
        noise in prop::collection::vec((0usize..120, any::<u8>()), 0..4),
        length in prop::option::of(0usize..400),
        asked in offloads(),
        apt: bool,
        capabilities in capabilities(),
        cuts in prop::collection::vec(0usize..6200, 0..8),
    ) {
        let sample = recipe.make();
        let mut bytes = sample.bytes.clone();
        for (at, value) in noise {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(length.unwrap_or(bytes.len()));
        let offload = if apt { sample.cut(asked.segment_size.max(1)) } else { asked };
        if let Ok(frames) = run(&bytes, &cuts, &offload, &capabilities) {
            let total: usize = frames.iter().map(|(frame, _)| frame.len()).sum();
            prop_assert!(total <= bytes.len() + (frames.len() - 1) * LOOKED_AT);
            prop_assert!(frames.iter().all(|(_, left)| capabilities.cover(left)));
            let limits = capabilities.limits;
            for (frame, left) in frames.iter().filter(|(_, left)| left.segmentation != Segmentation::None) {
                prop_assert!(limits.allow_cut(frame.len() as u32, left.segment_size), "outside {limits:?}");
                let behind =
                    limits.allow_cut_behind(left.header_length, frame.len() as u32, left.segment_size);
                prop_assert!(!capabilities.by_header || behind, "outside {limits:?}");
            }
            for (frame, left) in frames.iter().filter(|(_, left)| capabilities.by_header && !left.is_done()) {
                let layers = Layers::of(&frame[..frame.len().min(LOOKED_AT)], left);
                prop_assert_eq!(layers.map(|layers| layers.headers()), Some(usize::from(left.header_length)));
                prop_assert!(left.header_length <= limits.headers);
                let one_segment = usize::from(left.header_length) + usize::from(left.segment_size);
                prop_assert!(left.segmentation == Segmentation::None || frame.len() > one_segment);
            }
            if frames.len() > 1 {
                let longest = LOOKED_AT + usize::from(offload.segment_size);
                prop_assert!(frames.iter().all(|(frame, _)| frame.len() <= longest));
                prop_assert!(frames.len() <= bytes.len().div_ceil(usize::from(offload.segment_size)));
            } else {
                prop_assert_eq!(frames[0].0.len(), bytes.len());
            }
        }
    }

    #[test]
    fn any_bytes_with_any_offload_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        offload in offloads(),
        capabilities in capabilities(),
        cuts in prop::collection::vec(0usize..600, 0..8),
    ) {
        if let Ok(frames) = run(&bytes, &cuts, &offload, &capabilities) {
            let total: usize = frames.iter().map(|(frame, _)| frame.len()).sum();
            prop_assert!(total <= bytes.len() + (frames.len() - 1) * LOOKED_AT);
        }
    }
}
