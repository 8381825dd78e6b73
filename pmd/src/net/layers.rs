//! How long the headers of a frame are, layer by layer: what NICs are told so that they fill in checksums and cut.

use super::packet::{self, TCP, UDP, Version};
use crate::offload::{Checksum, Offload, Segmentation};

/// What the transport layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// RFC 9293; its checksum is at byte 16 of its header.
    Tcp,
    /// RFC 768; its checksum is at byte 6.
    Udp,
}

impl Transport {
    /// Where the checksum stands in the header.
    pub fn checksum_at(self) -> u16 {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }

    /// Number of the protocol in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }
}

/// Lengths in bytes of a frame's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layers {
    /// Ethernet, VLAN tags included: 14, 18 or 22.
    pub l2: u8,
    /// IP, with options or extension headers: 20 and more.
    pub l3: u8,
    /// Transport: as it says itself (TCP), or 8 (UDP).
    pub l4: u8,
    /// Version of IP.
    pub version: Version,
    /// What is above it.
    pub transport: Transport,
}

impl Layers {
    /// Reads them off a frame's first bytes; `None` where these are not TCP or UDP in a whole IP packet, or the checksum
    /// that `offload` asks for is another one than that of this layer. A frame without a checksum to fill in has none.
    ///
    /// `headers` must be what is sent: a private copy, not what its owner may still change.
    #[inline]
    pub fn of(headers: &[u8], offload: &Offload) -> Option<Self> {
        let Checksum::Partial { start, offset } = offload.checksum else { return None };
        let ip = packet::parse(headers)?.ip.filter(|ip| !ip.fragment)?;
        let transport = match ip.protocol {
            TCP => Transport::Tcp,
            UDP => Transport::Udp,
            _ => return None,
        };
        if usize::from(start) != ip.transport || offset != transport.checksum_at() {
            return None;
        }
        let l4 = match transport {
            Transport::Tcp => headers.get(ip.transport + 12)? >> 4 << 2,
            Transport::Udp => 8,
        };
        let fits = match offload.segmentation {
            Segmentation::None => true,
            Segmentation::TcpV4 => transport == Transport::Tcp && ip.version == Version::V4,
            Segmentation::TcpV6 => transport == Transport::Tcp && ip.version == Version::V6,
            Segmentation::Udp => transport == Transport::Udp,
        };
        let l3 = u8::try_from(ip.transport - ip.network).ok()?;
        let layers = Self { l2: ip.network as u8, l3, l4, version: ip.version, transport };
        let shortest = if transport == Transport::Tcp { 20 } else { 8 };
        (fits && l4 >= shortest && layers.headers() <= headers.len()).then_some(layers)
    }

    /// Bytes before the payload.
    #[inline]
    pub fn headers(&self) -> usize {
        usize::from(self.l2) + usize::from(self.l3) + usize::from(self.l4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp_v4(words: u8) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        let mut tcp = vec![0; usize::from(words.max(5)) * 4];
        tcp[12] = words << 4;
        frame.extend(tcp);
        frame
    }

    fn partial(start: u16, offset: u16) -> Offload {
        Offload { checksum: Checksum::Partial { start, offset }, ..Offload::NONE }
    }

    #[test]
    fn lengths_are_those_of_the_headers() {
        let layers = Layers::of(&tcp_v4(8), &partial(34, 16)).unwrap();
        assert_eq!((layers.l2, layers.l3, layers.l4, layers.headers()), (14, 20, 32, 66));
        assert_eq!((layers.version, layers.transport), (Version::V4, Transport::Tcp));
    }

    #[test]
    fn a_checksum_elsewhere_and_a_cut_that_does_not_fit_are_none() {
        let frame = tcp_v4(5);
        assert!(Layers::of(&frame, &partial(34, 16)).is_some());
        for (start, offset) in [(34, 6), (33, 16), (0, 0), (u16::MAX, u16::MAX)] {
            assert_eq!(Layers::of(&frame, &partial(start, offset)), None);
        }
        assert_eq!(Layers::of(&frame, &Offload::NONE), None);
        assert_eq!(Layers::of(&frame[..50], &partial(34, 16)), None);
        assert_eq!(Layers::of(&tcp_v4(1), &partial(34, 16)), None, "a header of 4 bytes");
        let cut = |segmentation| Offload { segmentation, segment_size: 100, ..partial(34, 16) };
        assert!(Layers::of(&frame, &cut(Segmentation::TcpV4)).is_some());
        assert_eq!(Layers::of(&frame, &cut(Segmentation::TcpV6)), None);
        assert_eq!(Layers::of(&frame, &cut(Segmentation::Udp)), None);
    }
}
