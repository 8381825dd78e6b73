//! What a frame leaves to whoever sends it on: a checksum to fill in, a segmentation to do.
//!
//! The fields mean what those of the virtio-net header mean (virtio 1.3, 5.1.6), which Linux's `virtio_net_hdr` and the
//! descriptors of NICs share. A frame that leaves nothing to do has [`Offload::NONE`].

pub(crate) mod limits;

pub use limits::Limits;

/// How a frame that is longer than the wire takes is to be cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Segmentation {
    /// Not at all.
    #[default]
    None,
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP datagrams of equal length (USO), over IPv4 or IPv6.
    Udp,
}

/// State of the transport checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Checksum {
    /// Nobody looked at it: it is as it came, and complete.
    #[default]
    Unknown,
    /// Checked and found right (by a NIC, say): the receiver need not look again.
    Valid,
    /// Only the pseudo header is summed up. The sum from byte `start` of the frame to its end is still to be put at
    /// `start + offset`.
    Partial {
        /// First byte of the frame that is summed.
        start: u16,
        /// Where, behind `start`, the 16-bit sum goes.
        offset: u16,
    },
}

/// What is left to do for one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Offload {
    /// Its transport checksum.
    pub checksum: Checksum,
    /// How it is to be cut.
    pub segmentation: Segmentation,
    /// The first segment alone carries the CWR flag (TCP with ECN).
    pub ecn: bool,
    /// Payload bytes of each segment (the last may have fewer); 0 without segmentation.
    pub segment_size: u16,
    /// Bytes before the payload, as the sender says: a hint, to be checked against the headers.
    pub header_length: u16,
}

impl Offload {
    /// Nothing to do.
    pub const NONE: Self = Self {
        checksum: Checksum::Unknown,
        segmentation: Segmentation::None,
        ecn: false,
        segment_size: 0,
        header_length: 0,
    };

    /// Whether the frame can be sent on as it is.
    #[inline]
    pub fn is_done(&self) -> bool {
        self.segmentation == Segmentation::None && !matches!(self.checksum, Checksum::Partial { .. })
    }
}

/// What an end of a relay does itself, so that nobody has to do it before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Takes frames with [`Checksum::Partial`].
    pub checksum: bool,
    /// Cuts TCP over IPv4.
    pub tcp_v4: bool,
    /// Cuts TCP over IPv6.
    pub tcp_v6: bool,
    /// Cuts TCP frames that have CWR set.
    pub ecn: bool,
    /// Cuts UDP.
    pub udp: bool,
    /// Reads the frame's headers to do so, as NICs do, instead of trusting [`Offload`] alone. Frames that leave something
    /// to it have their headers in one piece that nobody changes any more, checked, with an exact
    /// [`header_length`](Offload::header_length); checksums are left to it only where
    /// [`Layers`](crate::net::layers::Layers) finds them, and cuts only where they make more than one segment.
    pub by_header: bool,
    /// How far it goes. It is given nothing that lies outside; bounds of headers are those of ends that read them
    /// ([`by_header`](Self::by_header)).
    pub limits: Limits,
}

impl Capabilities {
    /// Does nothing itself.
    pub const NONE: Self = Self {
        checksum: false,
        tcp_v4: false,
        tcp_v6: false,
        ecn: false,
        udp: false,
        by_header: false,
        limits: Limits::NONE,
    };
    /// Does everything itself.
    pub const ALL: Self =
        Self { checksum: true, tcp_v4: true, tcp_v6: true, ecn: true, udp: true, ..Self::NONE };

    /// Whether what `offload` leaves to be done is done by it, as far as its [`limits`](Self::limits) reach.
    #[inline]
    pub fn cover(&self, offload: &Offload) -> bool {
        let segmentation = match offload.segmentation {
            Segmentation::None => true,
            Segmentation::TcpV4 => self.tcp_v4 && (self.ecn || !offload.ecn),
            Segmentation::TcpV6 => self.tcp_v6 && (self.ecn || !offload.ecn),
            Segmentation::Udp => self.udp,
        };
        segmentation && (self.checksum || !matches!(offload.checksum, Checksum::Partial { .. }))
    }

    /// Whether nothing has to be looked at before a frame of `len` bytes with `offload` is handed over.
    #[inline]
    pub fn take_as_is(&self, offload: &Offload, len: u32) -> bool {
        let is_within =
            || offload.segmentation == Segmentation::None || self.limits.allow_cut(len, offload.segment_size);
        offload.is_done() || (self.cover(offload) && !self.by_header && is_within())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_takes_what_it_can_do_itself() {
        let partial = Offload { checksum: Checksum::Partial { start: 34, offset: 16 }, ..Offload::NONE };
        let tso = Offload { segmentation: Segmentation::TcpV4, segment_size: 1448, ..partial };
        let ecn = Offload { ecn: true, ..tso };
        assert!(Capabilities::NONE.cover(&Offload::NONE) && Offload::NONE.is_done());
        for offload in [partial, tso, ecn] {
            assert!(!Capabilities::NONE.cover(&offload) && !offload.is_done());
            assert!(Capabilities::ALL.cover(&offload));
        }
        let checksum = Capabilities { checksum: true, ..Capabilities::NONE };
        assert!(checksum.cover(&partial) && !checksum.cover(&tso));
        let tcp = Capabilities { tcp_v4: true, ..checksum };
        assert!(tcp.cover(&tso) && !tcp.cover(&ecn));
        assert!(!tcp.cover(&Offload { segmentation: Segmentation::TcpV6, ..tso }));
        assert!(!tcp.cover(&Offload { segmentation: Segmentation::Udp, ..tso }));
    }

    #[test]
    fn what_lies_outside_an_ends_limits_is_looked_at_first() {
        let partial = Offload { checksum: Checksum::Partial { start: 34, offset: 16 }, ..Offload::NONE };
        let tso = Offload { segmentation: Segmentation::TcpV4, segment_size: 1448, ..partial };
        let limits = Limits { cut: 60_000, ..Limits::NONE };
        let end = Capabilities { limits, ..Capabilities::ALL };
        assert!(end.take_as_is(&tso, 60_000) && !end.take_as_is(&tso, 60_001));
        assert!(end.take_as_is(&partial, 60_001) && end.take_as_is(&Offload::NONE, 60_001));
        let reader = Capabilities { by_header: true, ..end };
        assert!(reader.take_as_is(&Offload::NONE, 60) && !reader.take_as_is(&partial, 60));
    }
}
