//! The words that VF and PF exchange through their mailbox: 16 of 32 bits, the first names the message.
//!
//! The verbs are conventions of the drivers, not of the silicon; the values are those of Intel's published base code
//! (`e1000_mbx.h`).

use crate::mac::MacAddress;

/// Words in the mailbox.
pub const WORDS: usize = 16;
/// One message.
pub type Message = [u32; WORDS];

/// Set by the PF: the request was carried out.
pub const ACK: u32 = 1 << 31;
/// Set by the PF: the request was refused.
pub const NACK: u32 = 1 << 30;
/// Set by the PF while it listens to this VF; a message without it asks for a new hand-shake.
pub const CLEAR_TO_SEND: u32 = 1 << 29;
/// Bits that say which message it is.
const VERB: u32 = 0xffff;
/// Where a verb keeps its argument.
const ARGUMENT_SHIFT: u32 = 16;

/// Verbs of the VF.
pub mod verb {
    /// The VF has reset itself; the answer carries its MAC address.
    pub const RESET: u32 = 0x01;
    /// The VF takes a MAC address.
    pub const SET_MAC: u32 = 0x02;
    /// Hashes of the multicast groups to receive.
    pub const SET_MULTICAST: u32 = 0x03;
    /// A VLAN whose tagged frames are to be received, or no longer.
    pub const SET_VLAN: u32 = 0x04;
    /// Longest frame to receive.
    pub const SET_LONGEST_FRAME: u32 = 0x05;
    /// Promiscuous modes.
    pub const SET_PROMISCUOUS: u32 = 0x06;
}

/// Most hashes in one [`multicast`] message.
pub const MAX_HASHES: usize = (WORDS - 1) * 2;

/// What the PF said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Carried out.
    Granted,
    /// Refused.
    Refused,
}

/// Reads the answer to a message with `verb`; `None` where this is the answer to another one, or no answer.
pub fn answer(verb: u32, reply: &Message) -> Option<Answer> {
    if reply[0] & VERB != verb {
        return None;
    }
    match (reply[0] & ACK != 0, reply[0] & NACK != 0) {
        (true, false) => Some(Answer::Granted),
        (false, true) => Some(Answer::Refused),
        _ => None,
    }
}

/// A message without arguments.
pub fn plain(verb: u32) -> Message {
    let mut message = [0; WORDS];
    message[0] = verb;
    message
}

/// Words 1 and 2 of a message as a MAC address.
pub fn mac_of(message: &Message) -> MacAddress {
    MacAddress::from_u64(u64::from(message[1]) | u64::from(message[2]) << 32)
}

/// Asks for `mac` as the VF's own.
pub fn set_mac(mac: MacAddress) -> Message {
    let mut message = plain(verb::SET_MAC);
    message[1] = mac.to_u64() as u32;
    message[2] = (mac.to_u64() >> 32) as u32;
    message
}

/// Asks for the tagged frames of a VLAN.
pub fn add_vlan(vlan: u16) -> Message {
    let mut message = plain(verb::SET_VLAN | 1 << ARGUMENT_SHIFT);
    message[1] = u32::from(vlan);
    message
}

/// Asks to receive frames of up to `bytes` bytes, FCS included.
pub fn longest_frame(bytes: u32) -> Message {
    let mut message = plain(verb::SET_LONGEST_FRAME);
    message[1] = bytes;
    message
}

/// Asks for all frames to stations (`unicast`) or to groups (`multicast`).
pub fn promiscuous(unicast: bool, multicast: bool) -> Message {
    let argument = u32::from(unicast) | u32::from(multicast) << 1;
    plain(verb::SET_PROMISCUOUS | argument << ARGUMENT_SHIFT)
}

/// Asks for the groups with these hashes; those over [`MAX_HASHES`] are left out.
pub fn multicast(hashes: &[u16]) -> Message {
    let hashes = &hashes[..hashes.len().min(MAX_HASHES)];
    let mut message = plain(verb::SET_MULTICAST | (hashes.len() as u32) << ARGUMENT_SHIFT);
    for (n, hash) in hashes.iter().enumerate() {
        message[1 + n / 2] |= u32::from(*hash) << (16 * (n % 2));
    }
    message
}

/// Hash of a multicast group: address bits 47 to 36, the upper twelve of the last two bytes on the wire (82576 data
/// sheet, multicast table array with RCTL.MO = 0).
pub fn multicast_hash(group: MacAddress) -> u16 {
    u16::from_le_bytes([group.0[4], group.0[5]]) >> 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        assert_eq!(plain(verb::RESET)[..3], [1, 0, 0]);
        assert_eq!(set_mac(MacAddress([0x52, 0x54, 0, 0xaa, 0xbb, 0xcc]))[..3], [2, 0xaa00_5452, 0xccbb]);
        assert_eq!(add_vlan(4000)[..2], [0x0001_0004, 4000]);
        assert_eq!(longest_frame(9728)[..2], [5, 9728]);
        assert_eq!(promiscuous(true, true)[0], 0x0003_0006);
        assert_eq!(promiscuous(false, true)[0], 0x0002_0006);
        assert_eq!(multicast(&[0x111, 0x222, 0x333])[..3], [0x0003_0003, 0x0222_0111, 0x0333]);
        assert_eq!(multicast(&[7; 99])[0], 0x001e_0003);
        assert_eq!(multicast(&[7; 99])[WORDS - 1], 0x0007_0007);
    }

    #[test]
    fn answers() {
        let reply = |word| {
            let mut message = plain(word);
            message[1..3].copy_from_slice(&[0x0000_5452, 0x1110]);
            message
        };
        assert_eq!(answer(verb::RESET, &reply(1 | ACK)), Some(Answer::Granted));
        assert_eq!(answer(verb::RESET, &reply(1 | NACK | CLEAR_TO_SEND)), Some(Answer::Refused));
        assert_eq!(answer(verb::RESET, &reply(2 | ACK)), None);
        assert_eq!(answer(verb::RESET, &reply(1)), None);
        assert_eq!(answer(verb::RESET, &reply(1 | ACK | NACK)), None);
        assert_eq!(mac_of(&reply(0)).to_string(), "52:54:00:00:10:11");
    }

    #[test]
    fn hashes_are_the_upper_twelve_bits() {
        assert_eq!(multicast_hash(MacAddress([0x33, 0x33, 0xff, 0, 0, 0x10])), 0x100);
        assert_eq!(multicast_hash(MacAddress([0x01, 0, 0x5e, 0, 0xab, 0xcd])), 0xcda);
    }
}
