//! A virtio-net header and a frame, both by a stranger: read, and worked on for a taker who does less itself.

use std::ptr::NonNull;

use pmd::net::packet::{self, LOOKED_AT};
use pmd::{Burst, Capabilities, Segment, Segmentation, Token};
use relay::net::segment::{Emitted, Headers, Work};
use relay::net::{hash, header};

use crate::input::Input;

fn capabilities(bits: u8) -> Capabilities {
    let bit = |n: u8| bits & 1 << n != 0;
    Capabilities {
        checksum: bit(0),
        tcp_v4: bit(1),
        tcp_v6: bit(2),
        ecn: bit(3),
        udp: bit(4),
        by_header: bit(5),
        ..Capabilities::NONE
    }
}

fn contents(pieces: &[Segment]) -> Vec<u8> {
    let mut bytes = vec![0; pieces.iter().map(|piece| piece.len() as usize).sum()];
    pmd::frame::gather(pieces, &mut bytes);
    bytes
}

/// All frames that come of one, a burst at a time; `None` where the frame is refused.
fn frames(segments: &[Segment], offload: &pmd::Offload, taker: &Capabilities) -> Option<Vec<Vec<u8>>> {
    let mut work = Work::begin(segments, offload, taker).ok()?;
    let (mut burst, mut arena, mut all) = (Burst::new(), Headers::new(), Vec::new());
    loop {
        let emitted = work.emit(segments, &mut burst, &mut arena, Token(3));
        for (frame, pieces) in burst.frames().iter() {
            assert!(taker.cover(frame.offload()), "more is left than is taken");
            all.push(contents(pieces));
        }
        if emitted == Emitted::Finished {
            return Some(all);
        }
        assert!(!burst.is_empty(), "an empty burst takes a frame at least");
        burst.clear();
        arena.clear();
    }
}

/// Reads the input as a header and a frame.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (negotiated, taker) = (capabilities(input.u8()), capabilities(input.u8()));
    let cuts = [input.u8(), input.u8()].map(u32::from);
    let mut raw = [0; header::LENGTH as usize];
    raw.iter_mut().for_each(|byte| *byte = input.u8());
    let repeat = usize::from(input.u8() % 16) + 1;
    // A copy of the exact size, so that a look beyond it is seen; longer than what the fuzzer likes to make.
    let mut frame = input.rest().to_vec();
    let once = frame.len().min(1024);
    (1..repeat).for_each(|_| frame.extend_from_within(frame.len() - once..));
    frame.shrink_to_fit();

    packet::parse(&frame[..frame.len().min(LOOKED_AT)]);
    hash::queue_of(hash::flow_hash(&frame[..frame.len().min(LOOKED_AT)]), 3);
    let Some(start) = frame.first_mut().map(NonNull::from) else { return };
    let Ok(offload) = header::parse(&raw, frame.len() as u32, &negotiated) else { return };
    assert!(negotiated.cover(&offload), "more is left than was negotiated");
    header::write(&offload, 1);

    // SAFETY: the bytes of `frame`, which is not touched but through this while it is used.
    let whole = unsafe { Segment::new(start, frame.len() as u32) };
    let segments: Vec<_> =
        [whole.part(0, cuts[0]), whole.part(cuts[0], cuts[1]), whole.part(cuts[0] + cuts[1], u32::MAX)]
            .into_iter()
            .filter(|segment| segment.len() > 0)
            .collect();
    let Some(mut out) = frames(&segments, &offload, &taker) else { return };
    assert!(!out.is_empty());
    if crate::planted()
        && out.len() > 3
        && let Some(byte) = out[3].last_mut()
    {
        *byte ^= 1;
    }
    let size = usize::from(offload.segment_size);
    if out.len() == 1 {
        assert_eq!(out[0].len(), frame.len());
        return;
    }
    assert_ne!(offload.segmentation, Segmentation::None);
    let headers = out[0].len() - size;
    assert!(headers <= LOOKED_AT);
    let payload: Vec<u8> = out.iter().flat_map(|part| &part[headers..]).copied().collect();
    assert!(payload == frame[headers..], "the payload is another one");
    assert!(out.iter().all(|part| part.len() <= headers + size));
}
