//! The PF's side of virtchnl.

use std::collections::BTreeSet;

use super::{Iavf, MOST_PAIRS, Options, Wrong};
use crate::bus::Bus;

/// What a PF may grant.
pub mod granted {
    /// Checksums and cutting.
    pub const L2: u32 = 1;
    /// Write-back by timer.
    pub const WRITE_BACK: u32 = 1 << 5;
    /// Speeds in Mbit/s.
    pub const ADVANCED_SPEED: u32 = 1 << 7;
    /// Newer VLAN messages.
    pub const VLAN_V2: u32 = 1 << 15;
    /// VLAN messages.
    pub const VLAN: u32 = 1 << 16;
    /// Interrupt 0 for queues.
    pub const POLLING: u32 = 1 << 17;
    /// RSS by the PF.
    pub const RSS_PF: u32 = 1 << 19;
    /// Formats of receive descriptors.
    pub const FORMATS: u32 = 1 << 26;
    /// What Linux's `ice` grants of these.
    pub const SERIES_800: u32 =
        L2 | WRITE_BACK | ADVANCED_SPEED | VLAN_V2 | VLAN | POLLING | RSS_PF | FORMATS;
    /// What Linux's `i40e` grants on an XL710.
    pub const SERIES_700: u32 = L2 | ADVANCED_SPEED | VLAN | POLLING | RSS_PF;
}
use granted::*;

/// What becomes of a wish to see everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promiscuous {
    /// It is granted.
    Granted,
    /// It is granted and not done, as Linux's PFs do with VFs that they do not trust.
    Pretended,
    /// Only all groups are granted.
    GroupsOnly,
    /// It is refused with this status.
    Refused(i32),
}

const PARAM: i32 = -5;
const NO_MEMORY: i32 = -18;
const MISMATCH: i32 = -38;
const NOT_SUPPORTED: i32 = -64;

/// The number by which the PF knows the VF's queues.
const VSI: u16 = 11;
/// Bytes of the RSS key, and entries of its table.
const KEY: u16 = 52;
const TABLE: u16 = 64;
/// Addresses that a VF has at most.
const MOST_ADDRESSES: usize = 18;
/// VLANs that a VF has at most.
const MOST_VLANS: usize = 16;
/// All packet types that there are: UDP, TCP, SCTP, others and fragments over IPv4 and IPv6, and all else.
const TYPES: u64 = 1 << 63 | 0x7a1e_8000_0000;
const TOGGLE: u32 = 1 << 31;
const IN_TAG1: u32 = 1 << 8;

/// How far VF and PF have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// They have not spoken.
    #[default]
    Fresh,
    /// They know each other's version.
    Versioned,
    /// The VF knows what it has.
    Known,
}

/// What the PF keeps for the VF; a reset clears it.
#[derive(Debug, Default)]
pub struct Vf {
    pub stage: Stage,
    /// What was granted.
    pub capabilities: u32,
    pub addresses: BTreeSet<[u8; 6]>,
    pub vlans: BTreeSet<u16>,
    pub unicast: bool,
    pub multicast: bool,
    /// Tags are taken out of received frames.
    pub strips: bool,
    pub key: Vec<u8>,
    pub table: Vec<u8>,
    pub hashed: u64,
    /// The interrupts of each pair: received, sent.
    pub vectors: [(Option<u16>, Option<u16>); MOST_PAIRS],
    /// As `virtchnl_eth_stats` has them.
    pub counters: [u64; 12],
}

impl Vf {
    pub fn new(options: &Options) -> Self {
        Self {
            addresses: options.mac.into_iter().collect(),
            strips: options.keeps_stripping,
            ..Self::default()
        }
    }

    /// Counts a frame, received or sent.
    pub fn count(&mut self, first: usize, frame: &[u8]) {
        let kind = match frame {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, ..] => 3,
            [first, ..] if first & 1 != 0 => 2,
            _ => 1,
        };
        self.counters[first] += frame.len() as u64;
        self.counters[first + kind] += 1;
    }
}

/// Positions of counters.
pub const RECEIVED: usize = 0;
pub const RECEIVE_DISCARDS: usize = 4;
pub const SENT: usize = 6;
pub const SEND_ERRORS: usize = 11;

pub fn word16(data: &[u8], at: usize) -> u16 {
    data.get(at..at + 2).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
}

pub fn word32(data: &[u8], at: usize) -> u32 {
    u32::from(word16(data, at)) | u32::from(word16(data, at + 2)) << 16
}

fn word64(data: &[u8], at: usize) -> u64 {
    u64::from(word32(data, at)) | u64::from(word32(data, at + 4)) << 32
}

/// A list of elements of `size` bytes behind `head` bytes, whose number is at byte `at`.
fn elements(data: &[u8], at: usize, head: usize, size: usize) -> impl Iterator<Item = &[u8]> {
    data.get(head..).unwrap_or_default().chunks_exact(size).take(usize::from(word16(data, at)))
}

/// The exact length of a message, as `virtchnl_vc_validate_vf_msg` has it; `None` for a message that no VF sends.
fn length(verb: u32, data: &[u8]) -> Option<usize> {
    let count = |at| usize::from(word16(data, at));
    let list = |least: usize, count: usize, size: usize| (count > 0).then_some(least + count * size);
    Some(match verb {
        1 => 8,
        2 | 25 | 27 | 28 | 44 | 51 => 0,
        3 => 4,
        6 => return list(72, count(2), 64),
        7 => return list(14, count(0), 12),
        8 | 9 | 15 => 12,
        10 | 11 => return list(12, count(2), 8),
        12 | 13 => return list(6, count(2), 2),
        14 => 4,
        23 | 24 if count(2) == 0 => 6,
        23 | 24 => 5 + count(2),
        26 => 8,
        52 | 53 => return list(8, count(2), 32),
        54..=59 => 16,
        _ => return None,
    })
}

type Answer = Result<Vec<u8>, i32>;

impl Iavf {
    /// Takes a message of the VF, and answers it.
    pub(super) fn hear(&mut self, bus: &mut Bus, verb: u32, data: &[u8]) {
        self.heard.push(verb);
        if verb == 2 {
            if !data.is_empty() {
                bus.broken("a reset has no argument");
            }
            return self.reset_soon();
        }
        let expected = length(verb, data);
        let answer = if expected != Some(data.len()) {
            bus.broken(format!("message {verb} of {} bytes, not {expected:?}", data.len()));
            Err(MISMATCH)
        } else if let Some((_, status)) = self.refuses.filter(|(refused, _)| *refused == verb) {
            Err(status)
        } else {
            self.answer(bus, verb, data)
        };
        if self.pf_silent {
            return;
        }
        let (status, data) = match answer {
            Ok(data) => (0, data),
            Err(status) => (status, Vec::new()),
        };
        self.tell(bus, verb, status, data);
        if status == 0 && matches!(verb, 3 | 8) {
            self.tell_link(bus);
        }
        self.poll_rings(bus);
    }

    fn poll_rings(&mut self, bus: &mut Bus) {
        self.receive_all(bus);
        self.write_back(bus);
    }

    /// Says what the wire does.
    pub(super) fn tell_link(&mut self, bus: &mut Bus) {
        if self.vf.stage < Stage::Known {
            return;
        }
        let speed = if self.vf.capabilities & ADVANCED_SPEED != 0 {
            self.options.speed
        } else {
            match self.options.speed {
                2_500 => 1,
                100 => 1 << 1,
                1_000 => 1 << 2,
                10_000 => 1 << 3,
                40_000 => 1 << 4,
                20_000 => 1 << 5,
                25_000 => 1 << 6,
                5_000 => 1 << 7,
                _ => 0,
            }
        };
        let mut wire = [0; 8];
        wire[..4].copy_from_slice(&u32::to_le_bytes(if self.link { speed } else { 0 }));
        wire[4] = u8::from(self.link);
        self.tell_event(bus, 1, wire);
    }

    pub(super) fn tell_event(&mut self, bus: &mut Bus, code: u32, data: [u8; 8]) {
        let severity = u32::from(code == 2) * 255;
        let event = [&code.to_le_bytes()[..], &data, &severity.to_le_bytes()].concat();
        self.tell(bus, 17, 0, event);
    }

    fn answer(&mut self, bus: &mut Bus, verb: u32, data: &[u8]) -> Answer {
        let due = match verb {
            1 => Stage::Fresh,
            3 => Stage::Versioned,
            _ => Stage::Known,
        };
        if self.vf.stage < due {
            bus.broken(format!("message {verb} comes too early: {:?}", self.vf.stage));
            return Err(PARAM);
        }
        let named = match verb {
            7 => word16(data, 2),
            54..=59 => word16(data, 8),
            1 | 3 | 25..=28 | 44 | 51 => VSI,
            _ => word16(data, 0),
        };
        if named != VSI {
            bus.broken(format!("message {verb} is about {named}, not the VF"));
            return Err(PARAM);
        }
        match verb {
            1 => self.version(data),
            3 => self.resources(data),
            6 => self.config_queues(bus, data),
            7 => self.map_interrupts(bus, data),
            8 | 9 => self.enable(bus, data, verb == 8),
            10 => self.add_addresses(data),
            11 => {
                for one in elements(data, 2, 4, 8) {
                    self.vf.addresses.remove(&one[..6]);
                }
                Ok(Vec::new())
            }
            12 | 13 => self.vlans(elements(data, 2, 4, 2).map(|one| word16(one, 0)), VLAN, verb == 12),
            14 => self.promiscuous(word16(data, 2)),
            15 => Ok(self.vf.counters.iter().flat_map(|counter| counter.to_le_bytes()).collect()),
            23..=26 => self.rss(bus, verb, data),
            27 | 28 => self.strip(VLAN, verb == 27),
            44 if self.vf.capabilities & FORMATS != 0 => Ok(self.options.formats.to_le_bytes().to_vec()),
            51 if self.vf.capabilities & VLAN_V2 != 0 => Ok(self.vlan_support()),
            52 | 53 => {
                let outer = elements(data, 2, 8, 32).map(|one| {
                    let strange = word64(one, 0) != 0 || word16(one, 12) != 0x8100 || word16(one, 8) > 4095;
                    if strange { u16::MAX } else { word16(one, 8) }
                });
                self.vlans(outer, VLAN_V2, verb == 52)
            }
            54 | 55 if word32(data, 0) == 1 && word32(data, 4) == 0 => self.strip(VLAN_V2, verb == 54),
            // Insertion is as the descriptors say, and always allowed.
            56 | 57 => Ok(Vec::new()),
            _ => {
                bus.broken(format!("message {verb} was not negotiated, or has strange contents"));
                Err(NOT_SUPPORTED)
            }
        }
    }

    fn version(&mut self, data: &[u8]) -> Answer {
        self.vf.stage = Stage::Versioned;
        let (major, minor) = self.options.version;
        Ok([major.to_le_bytes(), minor.min(word32(data, 4)).to_le_bytes()].concat())
    }

    fn resources(&mut self, data: &[u8]) -> Answer {
        let asked = word32(data, 0);
        if self.options.several_functions && asked & POLLING != 0 {
            return Err(PARAM);
        }
        let mut granted = self.options.capabilities & asked;
        if granted & VLAN_V2 != 0 {
            granted &= !VLAN;
        }
        self.vf.stage = Stage::Known;
        self.vf.capabilities = granted;
        // The 800 series' PF grants it and does nothing for it: interrupt 0 is not for queues there.
        self.interrupts.polling = granted & (POLLING | WRITE_BACK) == POLLING;
        let (told, pairs) = match self.wrong {
            Some(Wrong::TooGenerous) => (granted | 0x0010_0040, 200),
            _ => (granted, self.options.pairs),
        };
        let mut answer = Vec::new();
        for word in [1, pairs, self.options.vectors, self.options.max_mtu] {
            answer.extend(word.to_le_bytes());
        }
        let rss = if granted & RSS_PF != 0 { [KEY, TABLE] } else { [0, 0] };
        for word in [told, rss[0].into(), rss[1].into()] {
            answer.extend(word.to_le_bytes());
        }
        answer.extend(VSI.to_le_bytes());
        answer.extend(pairs.to_le_bytes());
        answer.extend(6u32.to_le_bytes());
        answer.extend([0, 0]);
        answer.extend(self.options.mac.unwrap_or_default());
        Ok(answer)
    }

    /// The longest frame with FCS.
    pub(super) fn longest(&self) -> usize {
        match self.options.max_mtu {
            0 => 9728,
            longest => longest.into(),
        }
    }

    fn config_queues(&mut self, bus: &mut Bus, data: &[u8]) -> Answer {
        if word16(data, 2) > self.options.pairs {
            bus.broken(format!(
                "{} queue pairs are set up, and the VF has {}",
                word16(data, 2),
                self.options.pairs
            ));
            return Err(PARAM);
        }
        for pair in elements(data, 2, 8, 64) {
            let (send, receive) = pair.split_at(24);
            let number = usize::from(word16(send, 2));
            let formats = if self.vf.capabilities & FORMATS != 0 { self.options.formats } else { 1 };
            let rules = [
                (number < usize::from(self.options.pairs), "the number of a pair"),
                ([word16(send, 0), word16(receive, 0)] == [VSI; 2], "whose it is"),
                (word16(receive, 2) == word16(send, 2), "different numbers in a pair"),
                (
                    (64..=4096).contains(&word16(send, 4)) && word16(send, 4).is_multiple_of(8),
                    "transmit length",
                ),
                (word16(send, 6) == 0 && word64(send, 16) == 0, "head write-back"),
                (word64(send, 8) != 0 && word64(send, 8).is_multiple_of(128), "where the transmit ring is"),
                (
                    (64..=4096).contains(&word32(receive, 4)) && word32(receive, 4).is_multiple_of(32),
                    "receive length",
                ),
                (word32(receive, 8) == 0 && word32(receive, 32) == 0, "header split"),
                (
                    (1024..=16256).contains(&word32(receive, 12)) && word32(receive, 12).is_multiple_of(128),
                    "size of buffers",
                ),
                ((64..16384).contains(&word32(receive, 16)), "longest frame"),
                (formats >> (receive[21] & 63) & 1 != 0, "format of receive descriptors"),
                (receive[20] == 0 && receive[22..24] == [0, 0] && word32(receive, 36) == 0, "reserved bytes"),
                (
                    word64(receive, 24) != 0 && word64(receive, 24).is_multiple_of(128),
                    "where the receive ring is",
                ),
            ];
            if let Some((_, rule)) = rules.iter().find(|(kept, _)| !kept) {
                bus.broken(format!("queue pair {number} is set up wrongly: {rule}"));
                return Err(PARAM);
            }
            if self.transmit[number].enabled || self.receive[number].enabled {
                bus.broken(format!("queue pair {number} is set up while it is on"));
                return Err(PARAM);
            }
            self.transmit[number].set_up(word64(send, 8), word16(send, 4).into());
            let longest = (word32(receive, 16) as usize).min(self.longest());
            let (ring, buffer) = (word64(receive, 24), word32(receive, 12) as usize);
            self.receive[number].set_up(ring, word32(receive, 4), buffer, longest, receive[21] == 2);
        }
        Ok(Vec::new())
    }

    fn map_interrupts(&mut self, bus: &mut Bus, data: &[u8]) -> Answer {
        for map in elements(data, 0, 2, 12) {
            let (vector, receive, send) = (word16(map, 2), word16(map, 4), word16(map, 6));
            if vector >= self.options.vectors || word16(map, 8) > 2 || word16(map, 10) > 2 {
                bus.broken(format!("interrupt {vector} or its timers are not there"));
                return Err(PARAM);
            }
            if vector == 0 && receive | send != 0 && !self.interrupts.polling {
                bus.broken("interrupt 0 is not for queues");
                return Err(PARAM);
            }
            for (number, vectors) in self.vf.vectors.iter_mut().enumerate() {
                if receive >> number & 1 != 0 {
                    vectors.0 = Some(vector);
                }
                if send >> number & 1 != 0 {
                    vectors.1 = Some(vector);
                }
            }
        }
        Ok(Vec::new())
    }

    fn enable(&mut self, bus: &mut Bus, data: &[u8], on: bool) -> Answer {
        let (receive, send) = (word32(data, 4), word32(data, 8));
        if (receive | send) >> self.options.pairs != 0 || receive | send == 0 {
            bus.broken(format!(
                "queues {receive:#x} and {send:#x} are switched, which are none, or too many"
            ));
            return Err(PARAM);
        }
        for number in 0..MOST_PAIRS {
            let (vectors, bit) = (self.vf.vectors[number], 1 << number);
            for (mask, ready, vector) in [
                (receive, self.receive[number].is_set_up(), vectors.0),
                (send, self.transmit[number].is_set_up(), vectors.1),
            ] {
                if on && mask & bit != 0 && (!ready || vector.is_none()) {
                    bus.broken(format!("queue {number} is switched on and not set up, or has no interrupt"));
                    return Err(PARAM);
                }
            }
            if receive & bit != 0 {
                self.receive[number].switch(bus, number, on);
            }
            if send & bit != 0 {
                self.transmit[number].switch(on);
            }
        }
        Ok(Vec::new())
    }

    fn add_addresses(&mut self, data: &[u8]) -> Answer {
        let mut addresses = self.vf.addresses.clone();
        for one in elements(data, 2, 4, 8) {
            let mac: [u8; 6] = one[..6].try_into().map_err(|_| PARAM)?;
            let foreign = mac[0] & 1 == 0 && Some(mac) != self.options.mac;
            if mac == [0; 6] || one[6] > 2 || one[7] != 0 || (foreign && self.options.fixed_mac) {
                return Err(PARAM);
            }
            addresses.insert(mac);
        }
        if addresses.len() > MOST_ADDRESSES {
            return Err(NO_MEMORY);
        }
        self.vf.addresses = addresses;
        Ok(Vec::new())
    }

    fn vlans(&mut self, vlans: impl Iterator<Item = u16>, by: u32, add: bool) -> Answer {
        if self.vf.capabilities & by == 0 {
            return Err(NOT_SUPPORTED);
        }
        let vlans: Vec<u16> = vlans.collect();
        if vlans.iter().any(|vlan| *vlan > 4095) {
            return Err(PARAM);
        }
        if add && self.vf.vlans.len() + vlans.len() > MOST_VLANS {
            return Err(NO_MEMORY);
        }
        for vlan in vlans {
            if add {
                self.vf.vlans.insert(vlan);
            } else {
                self.vf.vlans.remove(&vlan);
            }
        }
        Ok(Vec::new())
    }

    fn promiscuous(&mut self, flags: u16) -> Answer {
        let (unicast, multicast) = (flags & 1 != 0, flags & 2 != 0);
        match self.options.promiscuous {
            _ if flags > 3 => return Err(PARAM),
            Promiscuous::Pretended => return Ok(Vec::new()),
            Promiscuous::Refused(status) if flags != 0 => return Err(status),
            Promiscuous::GroupsOnly if unicast => return Err(PARAM),
            _ => {}
        }
        (self.vf.unicast, self.vf.multicast) = (unicast, multicast);
        Ok(Vec::new())
    }

    fn rss(&mut self, bus: &mut Bus, verb: u32, data: &[u8]) -> Answer {
        if self.vf.capabilities & RSS_PF == 0 {
            bus.broken("RSS was not negotiated");
            return Err(NOT_SUPPORTED);
        }
        let bytes = || data.get(4..4 + usize::from(word16(data, 2))).unwrap_or_default().to_vec();
        match verb {
            23 if word16(data, 2) == KEY => self.vf.key = bytes(),
            24 if word16(data, 2) == TABLE => {
                let table = bytes();
                if table.iter().any(|queue| u16::from(*queue) >= self.options.pairs) {
                    return Err(PARAM);
                }
                self.vf.table = table;
            }
            25 => return Ok(TYPES.to_le_bytes().to_vec()),
            26 if word64(data, 0) & !TYPES == 0 => self.vf.hashed = word64(data, 0),
            _ => {
                bus.broken(format!("RSS message {verb} is not of the PF's size"));
                return Err(PARAM);
            }
        }
        Ok(Vec::new())
    }

    fn strip(&mut self, by: u32, on: bool) -> Answer {
        if self.vf.capabilities & by == 0 || self.options.keeps_stripping {
            return Err(NOT_SUPPORTED);
        }
        self.vf.strips = on;
        Ok(Vec::new())
    }

    fn vlan_support(&self) -> Vec<u8> {
        let toggle = if self.options.keeps_stripping { 0 } else { TOGGLE };
        let words = [1, 0, 1, MOST_VLANS as u32, 1 | IN_TAG1 | toggle, 0, 1 | IN_TAG1 | TOGGLE, 0, 1, 0];
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Whether the PF's switch has a frame for the VF.
    pub(super) fn is_for_vf(&self, frame: &[u8]) -> bool {
        let Some(Ok(to)) = frame.get(..6).map(<[u8; 6]>::try_from) else { return false };
        let wanted = match to {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => true,
            [first, ..] if first & 1 != 0 => self.vf.multicast || self.vf.addresses.contains(&to),
            _ => self.vf.unicast || self.vf.addresses.contains(&to),
        };
        let vlan = (frame.get(12..14) == Some(&[0x81, 0]))
            .then(|| u16::from_be_bytes([frame[14], frame[15]]) & 0xfff);
        wanted && (!self.options.filters_vlans || vlan.is_none_or(|vlan| self.vf.vlans.contains(&vlan)))
    }
}
