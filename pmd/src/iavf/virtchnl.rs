//! What VF and PF say to each other: virtchnl 1.1.
//!
//! Messages are little-endian structures. Layouts, numbers and exact lengths are those of Intel's published `virtchnl.h`,
//! whose PFs refuse a message of any other length. Lists are one element longer on the wire than what they hold, because
//! the structures that lengths are computed from end in an array of one.

use super::admin::LONGEST_MESSAGE;
use super::registers::{LONGEST_FRAME, MOST_PAIRS, RING};
use crate::device::Link;
use crate::mac::MacAddress;

/// What messages are about (`VIRTCHNL_OP_…`).
pub mod verb {
    #![allow(missing_docs, reason = "the names are those of virtchnl.h")]
    pub const VERSION: u32 = 1;
    pub const RESET_VF: u32 = 2;
    pub const GET_VF_RESOURCES: u32 = 3;
    pub const CONFIG_VSI_QUEUES: u32 = 6;
    pub const CONFIG_IRQ_MAP: u32 = 7;
    pub const ENABLE_QUEUES: u32 = 8;
    pub const DISABLE_QUEUES: u32 = 9;
    pub const ADD_ETH_ADDR: u32 = 10;
    pub const DEL_ETH_ADDR: u32 = 11;
    pub const ADD_VLAN: u32 = 12;
    pub const CONFIG_PROMISCUOUS_MODE: u32 = 14;
    pub const GET_STATS: u32 = 15;
    pub const EVENT: u32 = 17;
    pub const CONFIG_RSS_KEY: u32 = 23;
    pub const CONFIG_RSS_LUT: u32 = 24;
    pub const GET_RSS_HENA_CAPS: u32 = 25;
    pub const SET_RSS_HENA: u32 = 26;
    pub const DISABLE_VLAN_STRIPPING: u32 = 28;
    pub const GET_SUPPORTED_RXDIDS: u32 = 44;
    pub const GET_OFFLOAD_VLAN_V2_CAPS: u32 = 51;
    pub const ADD_VLAN_V2: u32 = 52;
    pub const DISABLE_VLAN_STRIPPING_V2: u32 = 55;
}

/// The PF's verdict on what makes no sense, or what the VF may not do (`VIRTCHNL_STATUS_ERR_PARAM`).
pub const REFUSED: i32 = -5;

/// What PFs may grant (`VIRTCHNL_VF_OFFLOAD_…`).
pub mod capability {
    /// Checksums and cutting of TCP.
    pub const L2: u32 = 1;
    /// Descriptors are written back by a timer, without interrupts.
    pub const WRITE_BACK: u32 = 1 << 5;
    /// Link speeds in Mbit/s.
    pub const ADVANCED_SPEED: u32 = 1 << 7;
    /// VLAN filters and stripping, newer messages.
    pub const VLAN_V2: u32 = 1 << 15;
    /// VLAN filters and stripping.
    pub const VLAN: u32 = 1 << 16;
    /// Interrupt 0 serves queues of a VF that polls, and goes on when it has interrupted.
    pub const POLLING: u32 = 1 << 17;
    /// The PF sets up RSS.
    pub const RSS_PF: u32 = 1 << 19;
    /// The VF chooses the format of receive descriptors.
    pub const FORMATS: u32 = 1 << 26;
    /// All that this driver asks for.
    pub const WANTED: u32 = L2 | WRITE_BACK | ADVANCED_SPEED | VLAN_V2 | VLAN | POLLING | RSS_PF | FORMATS;
}

/// Version of the protocol that is spoken here.
pub const VERSION: (u32, u32) = (1, 1);

/// A message under construction.
#[derive(Debug, Default)]
struct Words(Vec<u8>);

impl Words {
    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// The element that is never there.
    fn and_nothing(mut self, bytes: usize) -> Vec<u8> {
        self.0.resize(self.0.len() + bytes, 0);
        self.0
    }
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    data.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// A version (`virtchnl_version_info`).
pub fn version() -> Vec<u8> {
    Words::default().u32(VERSION.0).u32(VERSION.1).0
}

/// The PF's version, of exactly its length.
pub fn read_version(data: &[u8]) -> Option<(u32, u32)> {
    (data.len() == 8).then_some((u32_at(data, 0)?, u32_at(data, 4)?))
}

/// What the VF wants of the PF: capabilities.
pub fn resources(wanted: u32) -> Vec<u8> {
    Words::default().u32(wanted).0
}

/// What the PF has for the VF (`virtchnl_vf_resource`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// The number that the VF's messages name.
    pub vsi: u16,
    /// Queue pairs: at least one.
    pub pairs: u16,
    /// Interrupts, that for all else included.
    pub vectors: u16,
    /// Longest frame with FCS; the field is called an MTU and is none.
    pub longest_frame: u32,
    /// What was asked for and granted.
    pub capabilities: u32,
    /// Bytes of the RSS key and entries of its table.
    pub key: usize,
    /// See `key`.
    pub table: usize,
    /// The VF's address, as the PF sees it; `None` where it has none for it.
    pub mac: Option<MacAddress>,
}

/// Most bytes that are believed of an RSS key and of a table: what fits into a message.
const MOST_RSS: usize = 2048;
/// `virtchnl_vsi_type` of a VF.
const TYPE_SRIOV: u32 = 6;

/// Reads what the PF has; `None` where that makes no sense.
pub fn read_resources(data: &[u8]) -> Option<Resources> {
    let vsis = usize::from(u16_at(data, 0)?);
    let first = (0..vsis.min(LONGEST_MESSAGE)).map(|n| 20 + 16 * n);
    let vsi = first.into_iter().find(|at| u32_at(data, at + 4) == Some(TYPE_SRIOV))?;
    let mac = MacAddress(*data.get(vsi + 10..)?.first_chunk()?);
    let pairs = u16_at(data, vsi + 2)?.min(MOST_PAIRS);
    let frame = match u16_at(data, 6)? {
        0 => LONGEST_FRAME,
        longest => u32::from(longest).min(LONGEST_FRAME),
    };
    (pairs > 0 && frame >= 64).then_some(())?;
    Some(Resources {
        vsi: u16_at(data, vsi)?,
        pairs,
        vectors: u16_at(data, 4)?,
        longest_frame: frame,
        capabilities: u32_at(data, 8)? & capability::WANTED,
        key: (u32_at(data, 12)? as usize).min(MOST_RSS),
        table: (u32_at(data, 16)? as usize).min(MOST_RSS),
        mac: mac.is_valid_unicast().then_some(mac),
    })
}

/// One queue pair, as the PF is to set it up.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// Where the transmit ring is.
    pub transmit: u64,
    /// Where the receive ring is.
    pub receive: u64,
}

/// Rings of [`RING`] descriptors (`virtchnl_vsi_queue_config_info`): receive buffers of `buffer` bytes, frames of up to
/// `longest` bytes with FCS, descriptors of format `format`.
pub fn queues(vsi: u16, pairs: &[Pair], buffer: u32, longest: u32, format: u8) -> Vec<u8> {
    let mut words = Words::default().u16(vsi).u16(pairs.len() as u16).u32(0);
    for (number, pair) in (0..).zip(pairs) {
        words = words.u16(vsi).u16(number).u16(RING).u16(0).u64(pair.transmit).u64(0);
        words = words.u16(vsi).u16(number).u32(RING.into()).u16(0).u16(0).u32(buffer).u32(longest);
        words = words.bytes(&[0, format, 0, 0]).u64(pair.receive).u32(0).u32(0);
    }
    words.and_nothing(64)
}

/// Which queues each interrupt serves (`virtchnl_irq_map_info`), both ways of a pair by the same, as bit masks; timer 0.
pub fn interrupts(vsi: u16, map: &[(u16, u16)]) -> Vec<u8> {
    let mut words = Words::default().u16(map.len() as u16);
    for (vector, pairs) in map {
        words = words.u16(vsi).u16(*vector).u16(*pairs).u16(*pairs).u16(0).u16(0);
    }
    words.and_nothing(12)
}

/// The first `pairs` queue pairs, or none of them in particular (`virtchnl_queue_select`).
pub fn select(vsi: u16, pairs: u16) -> Vec<u8> {
    let mask = (1u32 << pairs.min(MOST_PAIRS)) - 1;
    Words::default().u16(vsi).u16(0).u32(mask).u32(mask).0
}

/// Addresses to receive (`virtchnl_ether_addr_list`): the VF's own, or others.
pub fn addresses(vsi: u16, own: bool, addresses: &[MacAddress]) -> Vec<u8> {
    let mut words = Words::default().u16(vsi).u16(addresses.len() as u16);
    for address in addresses {
        words = words.bytes(&address.0).bytes(&[if own { 1 } else { 2 }, 0]);
    }
    words.and_nothing(8)
}

/// VLANs to receive (`virtchnl_vlan_filter_list`).
pub fn vlans(vsi: u16, vlans: &[u16]) -> Vec<u8> {
    let words = Words::default().u16(vsi).u16(vlans.len() as u16);
    vlans.iter().fold(words, |words, vlan| words.u16(*vlan)).and_nothing(2)
}

/// All frames to stations (`unicast`) or to groups (`multicast`) (`virtchnl_promisc_info`).
pub fn promiscuous(vsi: u16, unicast: bool, multicast: bool) -> Vec<u8> {
    Words::default().u16(vsi).u16(u16::from(unicast) | u16::from(multicast) << 1).0
}

/// The RSS key (`virtchnl_rss_key`), or its table (`virtchnl_rss_lut`).
pub fn rss(vsi: u16, bytes: &[u8]) -> Vec<u8> {
    // Six bytes without an element, one of which is that of the array of one.
    Words::default().u16(vsi).u16(bytes.len() as u16).bytes(bytes).and_nothing(1)
}

/// Packet types that RSS looks at (`virtchnl_rss_hena`).
pub fn hashed(types: u64) -> Vec<u8> {
    Words::default().u64(types).0
}

/// The answer to `GET_RSS_HENA_CAPS` or `GET_SUPPORTED_RXDIDS`: a set of 64.
pub fn read_set(data: &[u8]) -> Option<u64> {
    (data.len() == 8).then(|| u64_at(data, 0))?
}

/// Which of a frame's tags something is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// The outer one, or the only one.
    Outer,
    /// The inner one, or the only one where the PF offers nothing else.
    Inner,
}

/// What a PF with the newer VLAN messages allows (`virtchnl_vlan_caps`), for tags with EtherType 0x8100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanSupport {
    /// Which tag is filtered on; `None` where none is.
    pub filter: Option<Tag>,
    /// Filters that there may be.
    pub most: u16,
    /// Tags are taken out of received frames unless the PF is told not to; of which tag that can be said.
    pub strip: Option<Tag>,
    /// What `strip` is told.
    pub strip_types: u32,
}

const TYPE_8100: u32 = 1;
const TYPES: u32 = 7;
const TOGGLE: u32 = 1 << 31;

/// Reads it.
pub fn read_vlan_support(data: &[u8]) -> Option<VlanSupport> {
    (data.len() == 40).then_some(())?;
    let pick = |at: usize, bits: u32| {
        let has = |at| u32_at(data, at).is_some_and(|word| word & bits == bits);
        [(Tag::Outer, at), (Tag::Inner, at + 4)].into_iter().find(|(_, at)| has(*at))
    };
    let strip = pick(16, TYPE_8100 | TOGGLE);
    Some(VlanSupport {
        filter: pick(0, TYPE_8100).map(|(tag, _)| tag),
        most: u16_at(data, 12)?,
        strip: strip.map(|(tag, _)| tag),
        strip_types: strip.and_then(|(_, at)| u32_at(data, at)).unwrap_or(0) & TYPES,
    })
}

/// VLANs to receive (`virtchnl_vlan_filter_list_v2`), by their tag with EtherType 0x8100.
pub fn vlans_v2(vsi: u16, tag: Tag, vlans: &[u16]) -> Vec<u8> {
    let mut words = Words::default().u16(vsi).u16(vlans.len() as u16).u32(0);
    for vlan in vlans {
        let one = u64::from(*vlan) | 0x8100 << 32;
        words = match tag {
            Tag::Inner => words.u64(one).u64(0),
            Tag::Outer => words.u64(0).u64(one),
        };
        words = words.u64(0).u64(0);
    }
    words.0
}

/// The EtherTypes of tags that something is switched off for (`virtchnl_vlan_setting`).
pub fn vlan_setting(vsi: u16, tag: Tag, types: u32) -> Vec<u8> {
    let words = Words::default();
    let words = match tag {
        Tag::Outer => words.u32(types).u32(0),
        Tag::Inner => words.u32(0).u32(types),
    };
    words.u16(vsi).u16(0).u32(0).0
}

/// What the PF counts for a VF (`virtchnl_eth_stats`), in this order.
pub const COUNTERS: [&str; 12] = [
    "rx_bytes",
    "rx_unicast",
    "rx_multicast",
    "rx_broadcast",
    "rx_discards",
    "rx_unknown_protocol",
    "tx_bytes",
    "tx_unicast",
    "tx_multicast",
    "tx_broadcast",
    "tx_discards",
    "tx_errors",
];

/// Reads the counters.
pub fn read_counters(data: &[u8]) -> Option<[u64; COUNTERS.len()]> {
    (data.len() == 8 * COUNTERS.len()).then_some(())?;
    let mut counters = [0; COUNTERS.len()];
    for (n, counter) in counters.iter_mut().enumerate() {
        *counter = u64_at(data, 8 * n)?;
    }
    Some(counters)
}

/// What the PF said without being asked (`virtchnl_pf_event`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The wire changed.
    Link(Link),
    /// The PF is about to reset the VF.
    ResetImpending,
    /// The PF's driver goes away.
    PfCloses,
}

/// Reads an event; `None` for one that means nothing here.
pub fn read_event(data: &[u8], advanced_speed: bool) -> Option<Event> {
    (data.len() >= 16).then_some(())?;
    match u32_at(data, 0)? {
        1 if *data.get(8)? == 0 => Some(Event::Link(Link::Down)),
        1 => {
            let speed = u32_at(data, 4)?;
            let speed =
                if advanced_speed { Some(speed).filter(|speed| *speed > 0) } else { named_speed(speed) };
            Some(Event::Link(Link::Up { speed }))
        }
        2 => Some(Event::ResetImpending),
        3 => Some(Event::PfCloses),
        _ => None,
    }
}

/// Mbit/s of a bit of `virtchnl_link_speed`.
fn named_speed(bit: u32) -> Option<u32> {
    const SPEEDS: [u32; 8] = [2_500, 100, 1_000, 10_000, 40_000, 20_000, 25_000, 5_000];
    (bit.is_power_of_two()).then(|| SPEEDS.get(bit.trailing_zeros() as usize).copied())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 0x77]);

    #[test]
    fn lengths_are_those_that_pfs_insist_on() {
        let pair = Pair { transmit: 1, receive: 2 };
        assert_eq!(version().len(), 8);
        assert_eq!(queues(1, &[pair; 3], 2048, 9728, 1).len(), 72 + 3 * 64);
        assert_eq!(interrupts(1, &[(1, 1), (2, 2)]).len(), 14 + 2 * 12);
        assert_eq!(select(1, 4).len(), 12);
        assert_eq!(addresses(1, true, &[MAC; 5]).len(), 12 + 5 * 8);
        assert_eq!(vlans(1, &[7, 8]).len(), 6 + 2 * 2);
        assert_eq!(promiscuous(1, true, true), [1, 0, 3, 0]);
        assert_eq!(rss(1, &[7; 52]).len(), 6 + 52 - 1);
        assert_eq!(vlans_v2(1, Tag::Outer, &[7, 8]).len(), 40 + 32);
        assert_eq!(vlan_setting(1, Tag::Inner, 1).len(), 16);
        assert_eq!(queues(1, &[pair; 16], 2048, 9728, 1).len(), 1096);
    }

    #[test]
    fn queues_are_where_the_header_file_has_them() {
        let message = queues(5, &[Pair { transmit: 0x1111, receive: 0x2222 }], 2048, 9728, 2);
        let word = |at| u16_at(&message, at);
        assert_eq!((word(0), word(2), word(8), word(12)), (Some(5), Some(1), Some(5), Some(1024)));
        assert_eq!((u64_at(&message, 16), u64_at(&message, 56)), (Some(0x1111), Some(0x2222)));
        assert_eq!(
            (u32_at(&message, 36), u32_at(&message, 44), u32_at(&message, 48)),
            (Some(1024), Some(2048), Some(9728))
        );
        assert_eq!(message[52..56], [0, 2, 0, 0]);
        assert_eq!(select(5, 3), [5, 0, 0, 0, 7, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(select(5, 0)[4..], [0; 8]);
        assert_eq!(interrupts(5, &[(1, 9)])[..14], [1, 0, 5, 0, 1, 0, 9, 0, 9, 0, 0, 0, 0, 0]);
    }

    fn resource(pairs: u16, longest: u16, capabilities: u32) -> Vec<u8> {
        let words = Words::default().u16(1).u16(pairs).u16(5).u16(longest).u32(capabilities).u32(52).u32(64);
        words.u16(9).u16(pairs).u32(6).u16(0).bytes(&MAC.0).0
    }

    #[test]
    fn resources_are_believed_as_far_as_they_make_sense() {
        let read = read_resources(&resource(4, 0, u32::MAX)).unwrap();
        let expected = Resources {
            vsi: 9,
            pairs: 4,
            vectors: 5,
            longest_frame: 9728,
            capabilities: capability::WANTED,
            key: 52,
            table: 64,
            mac: Some(MAC),
        };
        assert_eq!(read, expected);
        assert_eq!(read_resources(&resource(200, 1522, 1)).unwrap().pairs, 16);
        assert_eq!(read_resources(&resource(4, 1522, 1)).unwrap().longest_frame, 1522);
        assert_eq!(read_resources(&resource(0, 0, 1)), None);
        assert_eq!(read_resources(&resource(4, 10, 1)), None);
        assert_eq!(read_resources(&resource(4, 0, 1)[..35]), None);
    }

    #[test]
    fn events_in_both_encodings_of_speed() {
        let event = |code: u32, speed: u32, up: u32| Words::default().u32(code).u32(speed).u32(up).u32(0).0;
        let up = |speed| Some(Event::Link(Link::Up { speed }));
        assert_eq!(read_event(&event(1, 8, 1), false), up(Some(10_000)));
        assert_eq!(read_event(&event(1, 1, 1), false), up(Some(2_500)));
        assert_eq!(read_event(&event(1, 3, 1), false), up(None));
        assert_eq!(read_event(&event(1, 1 << 20, 1), false), up(None));
        assert_eq!(read_event(&event(1, 100_000, 1), true), up(Some(100_000)));
        assert_eq!(read_event(&event(1, 0, 1), true), up(None));
        assert_eq!(read_event(&event(1, 100_000, 0), true), Some(Event::Link(Link::Down)));
        assert_eq!(read_event(&event(2, 0, 0), true), Some(Event::ResetImpending));
        assert_eq!(read_event(&event(3, 0, 0), true), Some(Event::PfCloses));
        assert_eq!(read_event(&event(4, 0, 0), true), None);
    }

    #[test]
    fn vlan_support_prefers_the_outer_tag() {
        let support = |filter: [u32; 2], strip: [u32; 2]| {
            let words = Words::default().u32(filter[0]).u32(filter[1]).u32(1).u16(8).u16(0);
            let words = words.u32(strip[0]).u32(strip[1]).u64(0).u32(1).u32(0);
            read_vlan_support(&words.0).unwrap()
        };
        let both = support([1, 1], [TOGGLE | 3, TOGGLE | 1]);
        assert_eq!(
            (both.filter, both.most, both.strip, both.strip_types),
            (Some(Tag::Outer), 8, Some(Tag::Outer), 3)
        );
        let inner = support([0, 1], [1, TOGGLE | 1]);
        assert_eq!((inner.filter, inner.strip), (Some(Tag::Inner), Some(Tag::Inner)));
        assert_eq!(support([0, 0], [1, 1]).strip, None);
    }

    proptest! {
        #[test]
        fn nothing_that_a_pf_says_is_a_panic(data: Vec<u8>, advanced: bool) {
            read_version(&data);
            if let Some(resources) = read_resources(&data) {
                prop_assert!((1..=16).contains(&resources.pairs) && resources.longest_frame <= 9728);
                prop_assert!(rss(1, &vec![0; resources.key.max(resources.table)]).len() <= LONGEST_MESSAGE);
            }
            read_set(&data);
            read_vlan_support(&data);
            read_counters(&data);
            read_event(&data, advanced);
        }
    }
}
