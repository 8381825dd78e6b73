//! The mailbox and the PF behind it.

use std::collections::BTreeSet;

use super::Wrong;
use crate::bus::Bus;

const CONTROL: u64 = 0x0c40;
const WORDS: u64 = 0x0800;
const WORDS_END: u64 = 0x0840;

const REQ: u32 = 1;
const ACK: u32 = 1 << 1;
const VFU: u32 = 1 << 2;
const PFSTS: u32 = 1 << 4;
const PFACK: u32 = 1 << 5;
const RSTI: u32 = 1 << 6;
const RSTD: u32 = 1 << 7;

const DONE: u32 = 1 << 31;
const REFUSED: u32 = 1 << 30;
const CLEAR_TO_SEND: u32 = 1 << 29;

/// SET_MAC, argument: takes all further addresses away.
const FILTER_CLEAR: u32 = 1;
/// SET_MAC, argument: adds one.
const FILTER_ADD: u32 = 2;

/// One message.
pub type Message = [u32; 16];

/// What the PF grants its VF, and how it misbehaves.
#[derive(Clone, Debug)]
pub struct Pf {
    /// The VF's address; none gives it zeros and a refusal.
    pub mac: Option<[u8; 6]>,
    /// The VF may not take another one.
    pub keeps_mac: bool,
    /// Longest frame, with FCS, that the VF may have.
    pub longest: u32,
    /// It may have all frames to stations.
    pub grants_unicast: bool,
    /// It may have all frames to groups.
    pub grants_multicast: bool,
    /// It may have VLANs.
    pub grants_vlans: bool,
    /// Tagged frames arrive only of VLANs that the VF has asked for.
    pub filters_vlans: bool,
    /// Tags are taken off what is received.
    pub strips_tags: bool,
    /// Frames go to the VF's queues by flow.
    pub spreads: bool,
    /// The wire is up.
    pub link: bool,
    /// It does not answer.
    pub silent: bool,
    /// What it was told, in order.
    pub heard: Vec<Message>,
    /// What the VF has taken.
    pub(super) taken: Taken,
}

/// What a VF has asked for since its last reset.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken {
    /// It has said that it has reset itself.
    pub ready: bool,
    pub mac: [u8; 6],
    /// Further addresses.
    pub more: BTreeSet<[u8; 6]>,
    pub longest: u32,
    pub unicast: bool,
    pub multicast: bool,
    pub hashes: BTreeSet<u16>,
    pub vlans: BTreeSet<u16>,
}

impl Default for Pf {
    fn default() -> Self {
        Self {
            mac: Some([0x52, 0x54, 0, 0, 0, 2]),
            keeps_mac: false,
            longest: 9728,
            grants_unicast: false,
            grants_multicast: true,
            grants_vlans: true,
            filters_vlans: true,
            strips_tags: true,
            spreads: true,
            link: true,
            silent: false,
            heard: Vec::new(),
            taken: Taken::default(),
        }
    }
}

impl Pf {
    /// The VF was reset: it has nothing but what every VF has.
    pub(super) fn forget(&mut self) {
        self.taken = Taken { longest: 1522, ..Taken::default() };
    }

    /// VLANs that the VF has.
    pub fn vlans(&self) -> Vec<u16> {
        self.taken.vlans.iter().copied().collect()
    }

    fn answer(&mut self, bus: &mut Bus, words: &mut Message) {
        self.heard.push(*words);
        let (verb, argument) = (words[0] & 0xffff, words[0] >> 16 & 0xff);
        if verb != 1 && !self.taken.ready {
            // A VF that the PF does not know has to begin anew.
            words[0] |= REFUSED;
            return;
        }
        let address = |words: &Message| {
            let [a, b, c, d] = words[1].to_le_bytes();
            let [e, f, ..] = words[2].to_le_bytes();
            [a, b, c, d, e, f]
        };
        let granted = match verb {
            1 => {
                self.forget();
                self.taken.ready = true;
                self.taken.mac = self.mac.unwrap_or_default();
                let [a, b, c, d, e, f] = self.taken.mac;
                words[1] = u32::from_le_bytes([a, b, c, d]);
                words[2] = u32::from_le_bytes([e, f, 0, 0]);
                self.mac.is_some()
            }
            2 => {
                let wanted = address(words);
                let granted = wanted[0] & 1 == 0 && wanted != [0; 6] && !self.keeps_mac;
                match argument {
                    0 if granted => self.taken.mac = wanted,
                    FILTER_CLEAR => self.taken.more.clear(),
                    FILTER_ADD if granted => _ = self.taken.more.insert(wanted),
                    0 | FILTER_ADD => {}
                    _ => bus.broken(format!("SET_MAC {argument}")),
                }
                granted || argument == FILTER_CLEAR
            }
            3 => {
                if argument > 30 {
                    bus.broken(format!("{argument} hashes in one message"));
                }
                let hash = |n: usize| (words[1 + n / 2] >> (16 * (n % 2)) & 0xffff) as u16;
                self.taken.hashes = (0..argument.min(30) as usize).map(hash).collect();
                if self.taken.hashes.iter().any(|hash| *hash > 0xfff) {
                    bus.broken("a hash of more than 12 bits");
                }
                true
            }
            4 => {
                let vlan = words[1];
                // Linux's driver asks for VLAN 0, which is priority without VLAN.
                if vlan > 4094 || argument > 1 {
                    bus.broken(format!("SET_VLAN {argument} {vlan}"));
                }
                if self.grants_vlans && argument == 1 {
                    self.taken.vlans.insert(vlan as u16);
                } else if self.grants_vlans {
                    self.taken.vlans.remove(&(vlan as u16));
                }
                self.grants_vlans
            }
            5 => {
                let granted = words[1] <= self.longest;
                if granted {
                    self.taken.longest = words[1];
                }
                granted
            }
            6 => {
                let (unicast, multicast) = (argument & 1 != 0, argument & 2 != 0);
                let granted = (!unicast || self.grants_unicast) && (!multicast || self.grants_multicast);
                if granted {
                    (self.taken.unicast, self.taken.multicast) = (unicast, multicast);
                }
                granted
            }
            other => {
                bus.broken(format!("message {other:#x}"));
                false
            }
        };
        words[0] |= if granted { DONE } else { REFUSED };
        // Linux's PF does not say it to a VF that has reset itself, and Linux's VF does not expect it.
        if verb != 1 {
            words[0] |= CLEAR_TO_SEND;
        }
    }
}

/// The mailbox (8.14.3 and 8.14.4).
#[derive(Debug, Default)]
pub struct Mailbox {
    words: Message,
    /// The VF has the words.
    taken: bool,
    /// PFSTS, PFACK and RSTD, which a read clears, and RSTI.
    told: u32,
}

impl Mailbox {
    /// Whether it has a register there.
    pub fn has(offset: u64) -> bool {
        offset == CONTROL || (WORDS..WORDS_END).contains(&offset)
    }

    /// The PF is in reset.
    pub fn reset_begins(&mut self) {
        *self = Self { told: RSTI, ..Self::default() };
    }

    /// It is not any more.
    pub fn reset_ends(&mut self) {
        self.told = RSTD;
    }

    /// The PF says something of its own.
    pub fn say(&mut self, word: u32) {
        if !self.taken {
            self.words[0] = word;
            self.told |= PFSTS;
        }
    }

    /// A read.
    pub fn read(&mut self, bus: &mut Bus, offset: u64) -> u32 {
        if offset == CONTROL {
            let told = self.told;
            self.told &= RSTI;
            return told | if self.taken { VFU } else { 0 };
        }
        if !self.taken {
            bus.broken("the mailbox is read without being taken (VFU)");
        }
        self.words[(offset - WORDS) as usize / 4]
    }

    /// A write; whether the PF has news for it.
    pub fn write(
        &mut self,
        bus: &mut Bus,
        offset: u64,
        value: u32,
        pf: &mut Pf,
        wrong: Option<Wrong>,
    ) -> bool {
        if offset != CONTROL {
            if !self.taken {
                bus.broken("the mailbox is written without being taken (VFU)");
            }
            self.words[(offset - WORDS) as usize / 4] = value;
            return false;
        }
        if value & !(REQ | ACK | VFU) != 0 {
            bus.broken(format!("V2PMAILBOX is set to {value:#x}"));
        }
        if value & (REQ | ACK) != 0 && !self.taken {
            bus.broken("a message in a mailbox that was not taken (VFU)");
        }
        self.taken = value & VFU != 0;
        if value & REQ == 0 || self.told & RSTI != 0 || pf.silent {
            return false;
        }
        if wrong != Some(Wrong::NoAcknowledgement) {
            self.told |= PFACK;
        }
        pf.answer(bus, &mut self.words);
        match wrong {
            Some(Wrong::BothAnswers) => self.words[0] |= DONE | REFUSED,
            Some(Wrong::OtherAnswer) => self.words[0] ^= 0x40,
            _ => {}
        }
        self.told |= PFSTS;
        true
    }
}
