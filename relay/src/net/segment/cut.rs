//! The headers of the segments that a TCP or UDP packet is cut into.
//!
//! | field                          | first segment | those between | last segment |
//! |--------------------------------|---------------|---------------|--------------|
//! | IPv4 total, IPv6 payload, UDP length | its own | its own       | its own      |
//! | IPv4 identification            | as it was     | counts up     | counts up    |
//! | TCP sequence number            | as it was     | moves on by the payload before it | … |
//! | TCP CWR (RFC 3168, 6.1.2)      | as it was     | cleared       | cleared      |
//! | TCP FIN and PSH                | cleared       | cleared       | as they were |
//! | checksums                      | its own       | its own       | its own      |

use pmd::{Checksum, Offload, Segmentation};

use crate::counters::DropReason;
use pmd::net::checksum::{Sum, checksum};
use pmd::net::packet::{self, Ip, TCP, UDP, Version};

/// Bytes of an IP packet whose length fits its field.
const LONGEST: u32 = 65535;
/// Length of the fixed IPv6 header in bytes; the length field does not count it.
const IPV6_HEADER: usize = 40;
/// Length of the UDP header in bytes.
const UDP_HEADER: usize = 8;
/// Where the checksum is in the UDP and in the TCP header.
const UDP_CHECKSUM: usize = 6;
const TCP_CHECKSUM: usize = 16;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Which part of the payload a segment has, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// Its number, from 0.
    pub nth: u32,
    /// Payload before it.
    pub at: u32,
    /// Payload in it.
    pub length: u32,
    /// None comes after it.
    pub last: bool,
}

/// How a packet is cut, as read off the private copy of its headers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    ip: Ip,
    /// Bytes before the payload.
    header: usize,
    /// Fields that count on from what they were.
    identification: u16,
    sequence: u32,
    flags: u8,
}

impl Cut {
    /// Checks that `headers`, the first bytes of a frame of `len`, are such that it can be cut as `offload` says.
    pub fn of(headers: &[u8], len: u32, offload: &Offload) -> Result<Self, DropReason> {
        Self::read(headers, len, offload).ok_or(DropReason::BadOffload)
    }

    fn read(headers: &[u8], len: u32, offload: &Offload) -> Option<Self> {
        let ip = packet::parse(headers)?.ip?;
        let fits = match offload.segmentation {
            Segmentation::None => false,
            Segmentation::TcpV4 => (ip.version, ip.protocol) == (Version::V4, TCP),
            Segmentation::TcpV6 => (ip.version, ip.protocol) == (Version::V6, TCP),
            Segmentation::Udp => ip.protocol == UDP,
        };
        // A routed packet's pseudo header has another destination than its header (RFC 8200, 8.1).
        if !fits || ip.fragment || ip.routed || offload.segment_size == 0 {
            return None;
        }
        let transport = headers.get(ip.transport..)?;
        let (header, sequence, flags) = if ip.protocol == UDP {
            (UDP_HEADER, 0, 0)
        } else {
            let fixed: &[u8; 20] = transport.first_chunk()?;
            let &[_, _, _, _, a, b, c, d, .., data_offset, flags, _, _, _, _, _, _] = fixed;
            (usize::from(data_offset >> 4) * 4, u32::from_be_bytes([a, b, c, d]), flags)
        };
        let shortest = if ip.protocol == UDP { UDP_HEADER } else { 20 };
        if header < shortest || transport.len() < header {
            return None;
        }
        let cut = Self {
            ip,
            header: ip.transport + header,
            identification: u16::from_be_bytes(*headers.get(ip.network + 4..)?.first_chunk()?),
            sequence,
            flags,
        };
        if let Checksum::Partial { start, offset } = offload.checksum
            && (usize::from(start) != ip.transport || usize::from(offset) + ip.transport != cut.checksum_at())
        {
            return None;
        }
        let payload = len.checked_sub(cut.header as u32)?;
        let longest = (cut.header - ip.network) as u32 + payload.min(u32::from(offload.segment_size));
        (longest <= LONGEST).then_some(cut)
    }

    /// Bytes before the payload.
    #[inline]
    pub fn header(&self) -> usize {
        self.header
    }

    /// Where in the frame the transport header is.
    #[inline]
    pub fn transport(&self) -> usize {
        self.ip.transport
    }

    /// Where in the frame the transport checksum is.
    #[inline]
    pub fn checksum_at(&self) -> usize {
        self.ip.transport + if self.is_udp() { UDP_CHECKSUM } else { TCP_CHECKSUM }
    }

    /// Whether it is UDP that is cut, else it is TCP.
    #[inline]
    pub fn is_udp(&self) -> bool {
        self.ip.protocol == UDP
    }

    /// Makes `headers`, which may be those of another part, the headers of `part`, complete but for the transport
    /// checksum: that is 0. Returns the sum of the pseudo header.
    #[inline]
    pub fn write(&self, headers: &mut [u8], part: Part) -> Sum {
        let Ip { version, network, transport, protocol, .. } = self.ip;
        let length = (self.header - transport) as u32 + part.length;
        match version {
            Version::V4 => {
                let total = (transport - network) as u32 + length;
                put(headers, network + 2, (total as u16).to_be_bytes());
                put(headers, network + 4, self.identification.wrapping_add(part.nth as u16).to_be_bytes());
                put(headers, network + 10, [0; 2]);
                let sum = checksum(headers.get(network..transport).unwrap_or_default());
                put(headers, network + 10, sum);
            }
            Version::V6 => {
                let payload = (transport - network - IPV6_HEADER) as u32 + length;
                put(headers, network + 4, (payload as u16).to_be_bytes());
            }
        }
        if self.is_udp() {
            put(headers, transport + 4, (length as u16).to_be_bytes());
        } else {
            let not_first = if part.nth > 0 { CWR } else { 0 };
            let not_last = if part.last { 0 } else { FIN | PSH };
            put(headers, transport + 4, self.sequence.wrapping_add(part.at).to_be_bytes());
            put(headers, transport + 13, [self.flags & !(not_first | not_last)]);
        }
        put(headers, self.checksum_at(), [0; 2]);
        let addresses = headers.get(self.ip.addresses()).unwrap_or_default();
        Sum::of_pseudo_header(addresses, protocol, length)
    }
}

/// Writes `value` at `at`, where there is room for it.
#[inline]
pub(super) fn put<const N: usize>(headers: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(field) = headers.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *field = value;
    }
}
