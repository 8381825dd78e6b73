//! TCP and UDP packets, and a checker of checksums that shares no code with ours: RFC 1071 word by word.

/// Version of the Internet protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ip {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What is above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP with its smallest header.
    Tcp,
    /// UDP.
    Udp,
}

impl Ip {
    /// Bytes before the transport header.
    pub fn transport_at(self) -> usize {
        match self {
            Ip::V4 => 34,
            Ip::V6 => 54,
        }
    }
}

impl Transport {
    /// Bytes of the header.
    pub fn header(self) -> usize {
        match self {
            Transport::Tcp => 20,
            Transport::Udp => 8,
        }
    }

    /// Where the checksum stands in it.
    pub fn checksum_at(self) -> usize {
        match self {
            Transport::Tcp => 16,
            Transport::Udp => 6,
        }
    }

    fn number(self) -> u8 {
        match self {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        }
    }
}

/// The one's complement sum of 16-bit words, the last filled up with 0.
fn sum(bytes: &[u8], start: u16) -> u16 {
    let mut sum = u32::from(start);
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo(ip: Ip, frame: &[u8], protocol: u8, length: usize) -> u16 {
    let addresses = match ip {
        Ip::V4 => &frame[26..34],
        Ip::V6 => &frame[22..54],
    };
    let sum = sum(addresses, 0);
    self::sum(&(length as u32).to_be_bytes(), self::sum(&[0, protocol], sum))
}

/// A frame with a packet in it, from port `port`, with all checksums.
pub fn packet(ip: Ip, transport: Transport, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = partial(ip, transport, port, payload);
    let at = ip.transport_at();
    let field = at + transport.checksum_at();
    let checksum = match !sum(&frame[at..], 0) {
        0 if transport == Transport::Udp => 0xffff,
        checksum => checksum,
    };
    frame[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// The same with the sum of the pseudo header in place of the transport checksum, as a driver leaves it to a device.
pub fn partial(ip: Ip, transport: Transport, port: u16, payload: &[u8]) -> Vec<u8> {
    let length = transport.header() + payload.len();
    let mut frame = vec![0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1];
    match ip {
        Ip::V4 => {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend(((20 + length) as u16).to_be_bytes());
            frame.extend([0x12, 0x34, 0x40, 0, 64, transport.number(), 0, 0]);
            frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            let checksum = !sum(&frame[14..34], 0);
            frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        }
        Ip::V6 => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((length as u16).to_be_bytes());
            frame.extend([transport.number(), 64]);
            for last in [1, 2] {
                frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
            }
        }
    }
    frame.extend(port.to_be_bytes());
    frame.extend(2000u16.to_be_bytes());
    let sum = pseudo(ip, &frame, transport.number(), length);
    match transport {
        Transport::Tcp => {
            frame.extend([0, 0, 0x10, 0, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff]);
            frame.extend(sum.to_be_bytes());
            frame.extend([0, 0]);
        }
        Transport::Udp => {
            frame.extend((length as u16).to_be_bytes());
            frame.extend(sum.to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

/// What a whole packet says.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    /// TCP sequence number; 0 for UDP.
    pub sequence: u32,
    /// TCP flags; 0 for UDP.
    pub flags: u8,
    /// What is behind the transport header.
    pub payload: Vec<u8>,
}

/// Checks the lengths and every checksum of a frame that has no bytes behind its packet.
pub fn check(frame: &[u8]) -> Result<Seen, String> {
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let (ip, protocol, length) = match word(12) {
        0x0800 => {
            if sum(&frame[14..34], 0) != 0xffff {
                return Err("IPv4 header checksum".to_owned());
            }
            (Ip::V4, frame[23], usize::from(word(16)) - 20)
        }
        0x86dd => (Ip::V6, frame[20], usize::from(word(18))),
        other => return Err(format!("ethertype {other:#x}")),
    };
    let at = ip.transport_at();
    if frame.len() != at + length {
        return Err(format!("{} bytes, and its headers say {}", frame.len(), at + length));
    }
    if sum(&frame[at..], pseudo(ip, frame, protocol, length)) != 0xffff {
        return Err("transport checksum".to_owned());
    }
    match protocol {
        6 => Ok(Seen {
            sequence: u32::from(word(at + 4)) << 16 | u32::from(word(at + 6)),
            flags: frame[at + 13],
            payload: frame[at + 20..].to_vec(),
        }),
        17 if usize::from(word(at + 4)) == length => {
            Ok(Seen { sequence: 0, flags: 0, payload: frame[at + 8..].to_vec() })
        }
        other => Err(format!("protocol {other}, or a UDP length that is not the packet's")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_right_and_a_changed_one_is_not() {
        for ip in [Ip::V4, Ip::V6] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let good = packet(ip, transport, 1, b"hello");
                assert_eq!(check(&good).map(|seen| seen.payload), Ok(b"hello".to_vec()));
                assert!(check(&partial(ip, transport, 1, b"hello")).is_err());
                let last = good.len() - 1;
                let changed = [&good[..last], b"x"].concat();
                assert_eq!(check(&changed), Err("transport checksum".to_owned()));
            }
        }
    }

    #[test]
    fn the_checksum_of_an_example_is_that_of_others() {
        // An IPv4 header from RFC 1071's readers everywhere: 4500 0073 0000 4000 4011 b861 c0a8 0001 c0a8 00c7.
        let header =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(!sum(&header, 0), 0xb861);
    }
}
