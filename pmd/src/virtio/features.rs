//! Feature bits, and which of those that a device offers are taken.

use crate::offload::{Capabilities, Limits};

/// Feature bits: of the network device (virtio 1.3, 5.1.3), then reserved ones (chapter 6).
pub const CSUM: u32 = 0;
pub const GUEST_CSUM: u32 = 1;
pub const MTU: u32 = 3;
pub const MAC: u32 = 5;
pub const GUEST_TSO4: u32 = 7;
pub const GUEST_TSO6: u32 = 8;
pub const GUEST_ECN: u32 = 9;
pub const HOST_TSO4: u32 = 11;
pub const HOST_TSO6: u32 = 12;
pub const HOST_ECN: u32 = 13;
pub const MRG_RXBUF: u32 = 15;
pub const STATUS: u32 = 16;
pub const CTRL_VQ: u32 = 17;
pub const CTRL_RX: u32 = 18;
pub const CTRL_VLAN: u32 = 19;
pub const GUEST_ANNOUNCE: u32 = 21;
pub const MQ: u32 = 22;
pub const CTRL_MAC_ADDR: u32 = 23;
pub const GUEST_USO4: u32 = 54;
pub const GUEST_USO6: u32 = 55;
pub const HOST_USO: u32 = 56;
pub const RSS: u32 = 60;
pub const SPEED_DUPLEX: u32 = 63;
pub const EVENT_IDX: u32 = 29;
pub const VERSION_1: u32 = 32;
pub const ACCESS_PLATFORM: u32 = 33;
pub const RING_PACKED: u32 = 34;
pub const IN_ORDER: u32 = 35;
pub const ORDER_PLATFORM: u32 = 36;
pub const NOTIFICATION_DATA: u32 = 38;

/// Taken wherever they are offered, and what they rest on is taken, too. SR_IOV is not among them: it lets a driver make
/// functions out of a physical one, which is the host's business.
const WELCOME: [u32; 26] = [
    VERSION_1,
    ACCESS_PLATFORM,
    RING_PACKED,
    IN_ORDER,
    ORDER_PLATFORM,
    NOTIFICATION_DATA,
    EVENT_IDX,
    CSUM,
    HOST_TSO4,
    HOST_TSO6,
    HOST_ECN,
    HOST_USO,
    MRG_RXBUF,
    GUEST_CSUM,
    GUEST_TSO4,
    GUEST_TSO6,
    GUEST_ECN,
    GUEST_USO4,
    GUEST_USO6,
    MTU,
    MAC,
    STATUS,
    SPEED_DUPLEX,
    CTRL_VQ,
    CTRL_RX,
    CTRL_MAC_ADDR,
];

/// Each bit with those of which one must be there, too (5.1.3.1). Frames that have still to be cut are longer than a buffer,
/// so that they need merged ones.
const RESTS_ON: [(u32, &[u32]); 19] = [
    (HOST_TSO4, &[CSUM]),
    (HOST_TSO6, &[CSUM]),
    (HOST_USO, &[CSUM]),
    (HOST_ECN, &[HOST_TSO4, HOST_TSO6]),
    (GUEST_TSO4, &[GUEST_CSUM]),
    (GUEST_TSO4, &[MRG_RXBUF]),
    (GUEST_TSO6, &[GUEST_CSUM]),
    (GUEST_TSO6, &[MRG_RXBUF]),
    (GUEST_USO4, &[GUEST_CSUM]),
    (GUEST_USO4, &[MRG_RXBUF]),
    (GUEST_USO6, &[GUEST_CSUM]),
    (GUEST_USO6, &[MRG_RXBUF]),
    (GUEST_ECN, &[GUEST_TSO4, GUEST_TSO6]),
    (CTRL_RX, &[CTRL_VQ]),
    (CTRL_VLAN, &[CTRL_VQ]),
    (GUEST_ANNOUNCE, &[CTRL_VQ]),
    (MQ, &[CTRL_VQ]),
    (CTRL_MAC_ADDR, &[CTRL_VQ]),
    (RSS, &[MQ]),
];

/// A set of feature bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// Whether `bit` is among them.
    #[inline]
    pub fn has(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }

    fn without(self, bit: u32) -> Self {
        Self(self.0 & !(1 << bit))
    }

    /// What is taken of the offered ones. `many_queues` and `vlans` are only asked for by who needs them: a device that
    /// was asked to filter VLANs passes only those that it was told.
    pub fn taken(self, many_queues: bool, vlans: bool) -> Self {
        let mut wanted: u64 = WELCOME.iter().map(|bit| 1 << bit).sum();
        wanted |=
            u64::from(vlans) << CTRL_VLAN | u64::from(many_queues) << MQ | u64::from(many_queues) << RSS;
        if self.has(STATUS) {
            wanted |= 1 << GUEST_ANNOUNCE;
        }
        let mut taken = Self(self.0 & wanted);
        for (bit, any_of) in RESTS_ON {
            if !any_of.iter().any(|one| taken.has(*one)) {
                taken = taken.without(bit);
            }
        }
        taken
    }

    /// What the device does for frames that are sent.
    pub fn capabilities(self) -> Capabilities {
        Capabilities {
            checksum: self.has(CSUM),
            tcp_v4: self.has(HOST_TSO4),
            tcp_v6: self.has(HOST_TSO6),
            ecn: self.has(HOST_ECN),
            udp: self.has(HOST_USO),
            limits: Limits { cut: super::tx::LONGEST, ..Limits::NONE },
            ..Capabilities::NONE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_taken_without_what_it_rests_on() {
        for (bit, any_of) in RESTS_ON {
            let offered = any_of.iter().fold(Features(u64::MAX), |offered, one| offered.without(*one));
            assert!(!offered.taken(true, true).has(bit), "{bit} without {any_of:?}");
        }
        let all = Features(u64::MAX).taken(true, true);
        assert!(RESTS_ON.iter().all(|(bit, _)| all.has(*bit)));
        // SR_IOV, RING_RESET, CTRL_RX_EXTRA, HASH_REPORT, INDIRECT_DESC and what nobody knows yet.
        assert!([37, 40, 20, 57, 28, 41].iter().all(|bit| !all.has(*bit)));
        assert_eq!(Features(0).taken(true, true), Features(0));
    }

    #[test]
    fn filters_and_many_queues_are_only_for_those_who_want_them() {
        let taken = Features(u64::MAX).taken(false, false);
        assert!(!taken.has(MQ) && !taken.has(RSS) && !taken.has(CTRL_VLAN));
    }
}
