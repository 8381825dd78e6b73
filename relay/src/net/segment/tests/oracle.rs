//! Frames as a guest's kernel leaves them, and what they must have become: field by field, by code that shares nothing
//! with the code under test.

use std::ptr::NonNull;

use pmd::frame::gather;
use pmd::{Checksum, Offload, Segment, Segmentation};

use pmd::net::packet::{TCP, UDP};

/// A frame, and where its parts are.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub bytes: Vec<u8>,
    pub v6: bool,
    pub udp: bool,
    pub network: usize,
    pub transport: usize,
    pub header: usize,
}

/// What a [`Sample`] is made of. Options and extensions are counted in words of 4 and of 8 bytes.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    pub v6: bool,
    pub udp: bool,
    pub tags: usize,
    pub ip_options: usize,
    pub tcp_options: usize,
    pub flags: u8,
    pub payload: Vec<u8>,
}

pub(super) const TCP_V4: Recipe =
    Recipe { v6: false, udp: false, tags: 0, ip_options: 0, tcp_options: 3, flags: 0x10, payload: vec![] };

/// Identification and sequence number, which are to wrap around.
const IDENTIFICATION: u16 = 0xfffe;
const SEQUENCE: u32 = 0xffff_ff00;

impl Recipe {
    pub fn bytes(self, n: usize) -> Self {
        Self { payload: (0..n).map(|i| (i * 7 + i / 251) as u8).collect(), ..self }
    }

    pub fn make(&self) -> Sample {
        let mut bytes = vec![2; 12];
        for tag in 0..self.tags {
            bytes.extend([0x81, 0, 0xe0, 5 + tag as u8]);
        }
        bytes.extend(if self.v6 { [0x86, 0xdd] } else { [8, 0] });
        let network = bytes.len();
        let protocol = if self.udp { UDP } else { TCP };
        let transport_header = if self.udp { 8 } else { 20 + 4 * self.tcp_options };
        let length = transport_header + self.payload.len();
        if self.v6 {
            bytes.extend([0x61, 2, 3, 4]);
            bytes.extend(((8 * self.ip_options + length) as u16).to_be_bytes());
            bytes.extend([if self.ip_options > 0 { 60 } else { protocol }, 64]);
            bytes.extend((0..32).map(|i| 0xa0 + i));
            if self.ip_options > 0 {
                bytes.extend([protocol, self.ip_options as u8 - 1]);
                bytes.extend(vec![0; 8 * self.ip_options - 2]);
            }
        } else {
            let header = 20 + 4 * self.ip_options;
            bytes.extend([0x40 | (header / 4) as u8, 0x0c]);
            bytes.extend(((header + length) as u16).to_be_bytes());
            bytes.extend(IDENTIFICATION.to_be_bytes());
            bytes.extend([0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            bytes.extend(vec![1; 4 * self.ip_options]);
            let sum = naive(&bytes[network..]).to_be_bytes();
            bytes[network + 10..network + 12].copy_from_slice(&sum);
        }
        let transport = bytes.len();
        bytes.extend([0x9c, 0x40, 0, 80]);
        let pseudo = !naive(&pseudo_header(&bytes, self.v6, network, protocol, length));
        if self.udp {
            bytes.extend((length as u16).to_be_bytes());
            bytes.extend(pseudo.to_be_bytes());
        } else {
            bytes.extend(SEQUENCE.to_be_bytes());
            bytes.extend([1, 2, 3, 4, (transport_header * 4) as u8, self.flags, 5, 6]);
            bytes.extend(pseudo.to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(vec![1; 4 * self.tcp_options]);
        }
        let header = bytes.len();
        bytes.extend(&self.payload);
        Sample { bytes, v6: self.v6, udp: self.udp, network, transport, header }
    }
}

fn pseudo_header(frame: &[u8], v6: bool, network: usize, protocol: u8, length: usize) -> Vec<u8> {
    let mut pseudo =
        if v6 { &frame[network + 8..network + 40] } else { &frame[network + 12..network + 20] }.to_vec();
    if v6 {
        pseudo.extend((length as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, protocol]);
    } else {
        pseudo.extend([0, protocol]);
        pseudo.extend((length as u16).to_be_bytes());
    }
    pseudo
}

impl Sample {
    pub fn checksum_at(&self) -> usize {
        self.transport + if self.udp { 6 } else { 16 }
    }

    pub fn checksum_only(&self) -> Offload {
        let offset = (self.checksum_at() - self.transport) as u16;
        Offload { checksum: Checksum::Partial { start: self.transport as u16, offset }, ..Offload::NONE }
    }

    pub fn cut(&self, size: u16) -> Offload {
        let segmentation = match (self.udp, self.v6) {
            (true, _) => Segmentation::Udp,
            (false, false) => Segmentation::TcpV4,
            (false, true) => Segmentation::TcpV6,
        };
        Offload { segmentation, segment_size: size, ..self.checksum_only() }
    }

    fn word(&self, frame: &[u8], at: usize) -> u16 {
        u16::from_be_bytes([frame[at], frame[at + 1]])
    }

    /// The transport checksum's sum, pseudo header and all; 0 when it is right.
    pub fn transport_sum(&self, frame: &[u8]) -> u16 {
        let length = frame.len() - self.transport;
        let protocol = if self.udp { UDP } else { TCP };
        let mut summed = pseudo_header(frame, self.v6, self.network, protocol, length);
        summed.extend(&frame[self.transport..]);
        naive(&summed)
    }

    /// Takes `frames` apart: they must be this frame, cut into parts of `size` bytes.
    pub fn check(&self, frames: &[(Vec<u8>, Offload)], size: usize, filled: bool) {
        let payload = &self.bytes[self.header..];
        assert_eq!(frames.len(), payload.len().div_ceil(size).max(1));
        let mut joined: Vec<u8> = Vec::new();
        for (n, (frame, offload)) in frames.iter().enumerate() {
            let (first, last) = (n == 0, n + 1 == frames.len());
            let part = &frame[self.header..];
            assert!(if last { part.len() <= size } else { part.len() == size });
            let mut expected = self.bytes[..self.header].to_vec();
            let mut expect = |at: usize, value: &[u8]| expected[at..at + value.len()].copy_from_slice(value);
            let be = |value: usize| (value as u16).to_be_bytes();
            if self.v6 {
                expect(self.network + 4, &be(frame.len() - self.network - 40));
            } else {
                expect(self.network + 2, &be(frame.len() - self.network));
                expect(self.network + 4, &IDENTIFICATION.wrapping_add(n as u16).to_be_bytes());
                assert_eq!(naive(&frame[self.network..self.transport]), 0);
                expect(self.network + 10, &frame[self.network + 10..][..2]);
            }
            if self.udp {
                expect(self.transport + 4, &be(frame.len() - self.transport));
            } else {
                expect(self.transport + 4, &SEQUENCE.wrapping_add(joined.len() as u32).to_be_bytes());
                let mut flags = self.bytes[self.transport + 13];
                flags &= if last { 0xff } else { !0x09 };
                flags &= if first { 0xff } else { !0x80 };
                expect(self.transport + 13, &[flags]);
            }
            expect(self.checksum_at(), &frame[self.checksum_at()..][..2]);
            assert_eq!(frame[..self.header], expected);
            if filled {
                assert_eq!(self.transport_sum(frame), 0);
                assert!(!self.udp || self.word(frame, self.checksum_at()) != 0);
                assert!(offload.is_done());
            } else {
                let length = frame.len() - self.transport;
                let protocol = if self.udp { UDP } else { TCP };
                let pseudo = !naive(&pseudo_header(frame, self.v6, self.network, protocol, length));
                assert_eq!(self.word(frame, self.checksum_at()), pseudo);
                assert_eq!(offload.checksum, self.checksum_only().checksum);
                assert_eq!(offload.segmentation, Segmentation::None);
            }
            assert_eq!(usize::from(offload.header_length), self.header);
            joined.extend(part);
        }
        assert_eq!(joined, payload);
    }
}

/// A guest's memory with a frame in it, in pieces.
pub(super) struct Memory(Vec<u8>, Vec<usize>);

impl Memory {
    pub fn new(bytes: &[u8], cuts: &[usize]) -> Self {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| (*cut).min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        Self(bytes.to_vec(), cuts)
    }

    pub fn segments(&mut self) -> Vec<Segment> {
        let start = NonNull::from(self.0.as_mut_slice()).cast::<u8>();
        // SAFETY: the pieces lie within the vector, which outlives their use and is written through them only.
        let whole = unsafe { Segment::new(start, self.0.len() as u32) };
        self.1.windows(2).map(|piece| whole.part(piece[0] as u32, (piece[1] - piece[0]) as u32)).collect()
    }
}

pub(super) fn contents(segments: &[Segment]) -> Vec<u8> {
    let mut bytes = vec![0; segments.iter().map(|segment| segment.len() as usize).sum()];
    gather(segments, &mut bytes);
    bytes
}

/// The checksum as RFC 1071 words it.
fn naive(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
