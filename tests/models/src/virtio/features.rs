//! Feature bits (virtio 1.3, 5.1.3 and chapter 6), and what a driver may take.

#![allow(missing_docs, reason = "they have the names of the standard")]

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
pub const EVENT_IDX: u32 = 29;
pub const VERSION_1: u32 = 32;
pub const ACCESS_PLATFORM: u32 = 33;
pub const RING_PACKED: u32 = 34;
pub const IN_ORDER: u32 = 35;
pub const NOTIFICATION_DATA: u32 = 38;
pub const RSS: u32 = 60;
pub const SPEED_DUPLEX: u32 = 63;

/// What a driver has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken(pub u64);

impl Taken {
    pub fn has(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }

    /// What is wrong with taking these of the offered ones.
    pub fn fault(self, offered: u64) -> Option<String> {
        if self.0 & !offered != 0 {
            return Some(format!("features {:#x} are taken that were not offered", self.0 & !offered));
        }
        // 6.1: a driver must accept these when they are offered.
        let needed =
            [VERSION_1, ACCESS_PLATFORM].into_iter().find(|bit| offered >> bit & 1 != 0 && !self.has(*bit));
        if let Some(bit) = needed {
            return Some(format!("feature {bit} is not taken"));
        }
        let rests: [(u32, &[u32]); 12] = [
            (GUEST_TSO4, &[GUEST_CSUM]),
            (GUEST_TSO6, &[GUEST_CSUM]),
            (GUEST_ECN, &[GUEST_TSO4, GUEST_TSO6]),
            (HOST_TSO4, &[CSUM]),
            (HOST_TSO6, &[CSUM]),
            (HOST_ECN, &[HOST_TSO4, HOST_TSO6]),
            (CTRL_RX, &[CTRL_VQ]),
            (CTRL_VLAN, &[CTRL_VQ]),
            (GUEST_ANNOUNCE, &[CTRL_VQ]),
            (MQ, &[CTRL_VQ]),
            (CTRL_MAC_ADDR, &[CTRL_VQ]),
            (RSS, &[CTRL_VQ]),
        ];
        let alone = rests.iter().find(|(bit, on)| self.has(*bit) && !on.iter().any(|one| self.has(*one)));
        alone.map(|(bit, on)| format!("feature {bit} is taken without any of {on:?}"))
    }
}
