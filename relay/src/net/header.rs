//! The virtio-net header in a guest's rings (see [`pmd::net_header`] for the header itself).

use pmd::{Capabilities, Segment};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
};

pub use pmd::net_header::{LEGACY_LENGTH, LENGTH, PLAIN, asks_for_something, parse, plain, write};

/// A header, copied: nothing in it changes any more.
pub type RawHeader = [u8; LENGTH as usize];

/// What a guest that negotiated `features` may leave to the host: `VIRTIO_NET_F_CSUM` and `VIRTIO_NET_F_HOST_*`.
pub fn left_to_host(features: u64) -> Capabilities {
    let has = |bit: u32| features & 1 << bit != 0;
    Capabilities {
        checksum: has(VIRTIO_NET_F_CSUM),
        tcp_v4: has(VIRTIO_NET_F_HOST_TSO4),
        tcp_v6: has(VIRTIO_NET_F_HOST_TSO6),
        ecn: has(VIRTIO_NET_F_HOST_ECN),
        udp: has(VIRTIO_NET_F_HOST_USO),
        ..Capabilities::NONE
    }
}

/// What may be left to a guest that negotiated `features`: `VIRTIO_NET_F_GUEST_*`.
///
/// USO is one thing here and two there; it is left to guests that take it over both versions of IP, as Linux offers it.
pub fn left_to_guest(features: u64) -> Capabilities {
    let has = |bit: u32| features & 1 << bit != 0;
    Capabilities {
        checksum: has(VIRTIO_NET_F_GUEST_CSUM),
        tcp_v4: has(VIRTIO_NET_F_GUEST_TSO4),
        tcp_v6: has(VIRTIO_NET_F_GUEST_TSO6),
        ecn: has(VIRTIO_NET_F_GUEST_ECN),
        udp: has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6),
        ..Capabilities::NONE
    }
}

/// Copies `header` over `pieces`, which may cut it anywhere.
pub fn scatter(header: &[u8], pieces: &[Segment]) {
    let mut rest = header;
    for piece in pieces {
        let n = piece.copy_from(rest);
        rest = &rest[n..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_those_of_the_standard() {
        let bits = |bits: &[u32]| bits.iter().fold(0u64, |all, bit| all | 1 << bit);
        assert_eq!(left_to_host(bits(&[0, 11, 12, 13, 56])), Capabilities::ALL);
        assert_eq!(left_to_guest(bits(&[1, 7, 8, 9, 54, 55])), Capabilities::ALL);
        assert_eq!(left_to_host(!bits(&[0, 11, 12, 13, 56])), Capabilities::NONE);
        assert_eq!(left_to_guest(!bits(&[1, 7, 8, 9, 54])), Capabilities::NONE);
        assert_eq!(left_to_guest(!bits(&[1, 7, 8, 9, 55])), Capabilities::NONE);
    }
}
