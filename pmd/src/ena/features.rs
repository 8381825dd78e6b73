//! What the device says of itself, and what is asked of it (`ena_admin_aq_feature_id` of ena-com).

use super::admin::{AdminError, AdminQueue, Command, Opcode, Reply};
use super::deal::LEAST_DEPTH;
use super::mmio::Mmio;
use super::tx::MOST_DESCRIPTORS;
use crate::mac::MacAddress;

/// Address, features, capabilities. Every device has it.
pub const DEVICE_ATTRIBUTES: u8 = 1;
/// Numbers and depths of queues.
pub const MAX_QUEUES: u8 = 2;
/// Time limits that the device wants.
pub const HINTS: u8 = 3;
/// Low latency queues.
pub const LLQ: u8 = 4;
/// Numbers and depths of queues, for each direction.
pub const MAX_QUEUES_EXT: u8 = 7;
/// Hash function and key.
pub const HASH_FUNCTION: u8 = 10;
/// Checksums and segmentation.
pub const OFFLOADS: u8 = 11;
/// Which hash goes to which queue.
pub const INDIRECTION: u8 = 12;
/// Longest packet.
pub const MTU: u8 = 14;
/// What of a packet is hashed.
pub const HASH_INPUT: u8 = 18;
/// Which events are told.
pub const EVENTS: u8 = 26;
/// Speed of the link.
pub const LINK: u8 = 27;
/// What the host says of itself.
pub const HOST_ATTRIBUTES: u8 = 28;

/// Where the value of a feature begins in a command; in a reply it begins with word 2.
pub const VALUE: usize = 5;
/// Word of a command with the feature's number.
const FEATURE: usize = 4;
/// The version of [`MAX_QUEUES_EXT`] that this driver knows.
const MAX_QUEUES_EXT_VERSION: u8 = 1;
/// The version of [`LLQ`] that this driver knows: it has the recommended size of an entry.
const LLQ_VERSION: u8 = 1;
/// The size of an entry of 256 bytes (`ENA_ADMIN_LIST_ENTRY_SIZE_256B`), as devices recommend it.
const WIDE: u8 = 4;
/// The device wants no such time limit.
const NO_LIMIT: u16 = u16::MAX;

/// A command that gets or sets a feature.
pub fn command(opcode: Opcode, feature: u8, version: u8) -> Command {
    Command::new(opcode).word(FEATURE, u32::from(feature) << 8 | u32::from(version) << 16)
}

/// Asks for a feature.
pub fn get(admin: &mut AdminQueue, mmio: &Mmio, feature: u8, version: u8) -> Result<Reply, AdminError> {
    admin.execute(mmio, command(Opcode::GetFeature, feature, version))
}

fn low(word: u32) -> u16 {
    word as u16
}

fn high(word: u32) -> u16 {
    (word >> 16) as u16
}

/// The device's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    features: u32,
    capabilities: u32,
    /// The address that its network gave it.
    pub mac: MacAddress,
    /// Longest packet, in bytes without Ethernet header.
    pub max_mtu: u32,
}

impl Attributes {
    /// From a reply.
    pub fn of(reply: &Reply) -> Self {
        let [a, b, c, d] = reply[8].to_le_bytes();
        let [e, f, ..] = reply[9].to_le_bytes();
        Self {
            features: reply[4],
            capabilities: reply[5],
            mac: MacAddress([a, b, c, d, e, f]),
            max_mtu: reply[10],
        }
    }

    /// Whether it has a feature.
    pub fn has(&self, feature: u8) -> bool {
        self.features >> feature & 1 != 0
    }

    /// Whether it counts what its network held up (`ENA_ADMIN_ENI_STATS`).
    pub fn counts_allowances(&self) -> bool {
        self.capabilities & 1 != 0
    }

    /// Whether it counts that as named metrics, too (`ENA_ADMIN_CUSTOMER_METRICS`).
    pub fn has_metrics(&self) -> bool {
        self.capabilities >> 2 & 1 != 0
    }

    /// Whether it promises that the reserved bits of completions are 0 (`ENA_ADMIN_CDESC_MBZ`).
    pub fn keeps_reserved_bits(&self) -> bool {
        self.capabilities >> 4 & 1 != 0
    }
}

/// How many queues there are, and how deep they may be. Those of the two directions are the same on older devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Queues each way.
    pub pairs: u32,
    /// Entries of a transmit queue in memory of the host, and of its completions.
    pub transmit_depth: u32,
    /// Entries of a receive queue.
    pub receive_depth: u32,
    /// Bytes that a descriptor in memory of the host may call headers.
    pub max_header: u32,
    /// Descriptors of a frame that is sent.
    pub transmit_descriptors: u16,
}

impl Limits {
    /// From a reply to [`MAX_QUEUES`].
    pub fn of(reply: &Reply) -> Self {
        let depth = reply[3].min(reply[5]);
        Self {
            pairs: reply[2].min(reply[4]),
            transmit_depth: depth,
            receive_depth: depth,
            max_header: reply[8],
            transmit_descriptors: low(reply[9]),
        }
    }

    /// From a reply to [`MAX_QUEUES_EXT`].
    pub fn of_extended(reply: &Reply) -> Self {
        Self {
            pairs: reply[3].min(reply[4]).min(reply[5]).min(reply[6]),
            transmit_depth: reply[7].min(reply[8]),
            receive_depth: reply[9].min(reply[10]),
            max_header: reply[11],
            transmit_descriptors: low(reply[12]),
        }
    }

    /// Asks for them.
    pub fn ask(admin: &mut AdminQueue, mmio: &Mmio, device: &Attributes) -> Result<Self, AdminError> {
        if !device.has(MAX_QUEUES_EXT) {
            return get(admin, mmio, MAX_QUEUES, 0).map(|reply| Self::of(&reply));
        }
        let reply = get(admin, mmio, MAX_QUEUES_EXT, MAX_QUEUES_EXT_VERSION)?;
        if reply[2] as u8 != MAX_QUEUES_EXT_VERSION {
            return Err(AdminError::Garbled);
        }
        Ok(Self::of_extended(&reply))
    }
}

/// How descriptors and headers lie in the memory of the device, as both sides agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LlqLayout {
    /// Queues that may lie there.
    pub queues: u32,
    /// Entries of each, at most.
    pub depth: u32,
    /// Bytes of an entry: 128, 192 or 256.
    pub entry: u16,
    /// Descriptors in front of the header in a frame's first entry.
    pub before_header: u16,
    /// Descriptors in each further entry.
    pub per_entry: u16,
    /// Every frame brings a meta descriptor: the device remembers none.
    pub meta_always: bool,
    /// Entries between two doorbells, at most; 0 for any number.
    pub burst: u16,
}

impl LlqLayout {
    /// The best that the device offers in a reply to [`LLQ`], and the command that asks for it; `None` where it offers
    /// nothing that this driver knows: headers in the entries. Narrow entries are quicker to push and more of them fit, so wide
    /// ones are taken where the device recommends them (as it does where headers are long), or has no others.
    pub fn choose(reply: &Reply) -> Option<(Self, Command)> {
        let first = |offered: u16, choices: &[(u16, u16)]| {
            choices.iter().find(|(bit, _)| offered & bit != 0).copied()
        };
        let (queues, mut depth) = (reply[2], reply[3]);
        let (location, _) = first(low(reply[4]), &[(1, 1)])?;
        let wide = match u32::from(high(reply[8])) {
            // Wide entries take the room of two.
            0 => depth / 2,
            wide => wide.min(depth),
        };
        let sizes = if (reply[8] >> 8) as u8 == WIDE && wide >= LEAST_DEPTH {
            [(4, 256), (1, 128), (2, 192)]
        } else {
            [(1, 128), (2, 192), (4, 256)]
        };
        let (size, entry) = first(low(reply[5]), &sizes)?;
        let (before, before_header) = first(low(reply[6]), &[(2, 2), (1, 1), (4, 4), (8, 8)])?;
        let (stride, many) = first(low(reply[7]), &[(2, 1), (1, 0)])?;
        if entry > 128 {
            depth = wide;
        }
        let (flags, burst) = (low(reply[9]), high(reply[9]));
        let layout = Self {
            queues,
            depth,
            entry,
            before_header,
            per_entry: if many == 1 { entry / 16 } else { 1 },
            meta_always: flags & 1 != 0,
            burst: if flags & 2 != 0 { burst / entry } else { 0 },
        };
        let both = 0b11;
        let command = command(Opcode::SetFeature, LLQ, 0)
            .word(VALUE + 2, u32::from(location) << 16)
            .word(VALUE + 3, u32::from(size) << 16)
            .word(VALUE + 4, u32::from(before) << 16)
            .word(VALUE + 5, u32::from(stride) << 16)
            .word(VALUE + 7, both);
        // A frame that is longer than what may come between two doorbells could never be sent.
        let longest = layout.entries(MOST_DESCRIPTORS);
        let usable = queues > 0 && before_header * 16 < entry && (flags & 2 == 0 || layout.burst >= longest);
        usable.then_some((layout, command))
    }

    /// Asks for it, and settles it; `None` where descriptors stay in memory of the host.
    pub fn agree(admin: &mut AdminQueue, mmio: &Mmio) -> Result<Option<Self>, AdminError> {
        let refused = |error| match error {
            AdminError::Refused { .. } => Ok(None),
            error => Err(error),
        };
        let reply = match get(admin, mmio, LLQ, LLQ_VERSION) {
            Ok(reply) => reply,
            Err(error) => return refused(error),
        };
        let Some((layout, command)) = Self::choose(&reply) else { return Ok(None) };
        admin.execute(mmio, command).map(|_| Some(layout)).or_else(refused)
    }

    /// Bytes of a frame that stand in its first entry, at most.
    pub fn max_header(&self) -> u16 {
        (self.entry - self.before_header * 16).min(u16::from(u8::MAX))
    }

    /// Entries of a frame with so many descriptors.
    pub fn entries(&self, descriptors: usize) -> u16 {
        let rest = descriptors.saturating_sub(usize::from(self.before_header)) as u16;
        1 + rest.div_ceil(self.per_entry.max(1))
    }
}

/// Checksums and segmentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    transmit: u32,
    receive: u32,
}

impl Offloads {
    /// From a reply.
    pub fn of(reply: &Reply) -> Self {
        Self { transmit: reply[2], receive: reply[3] }
    }

    fn sends(&self, bit: u32) -> bool {
        self.transmit >> bit & 1 != 0
    }

    /// Finishes checksums whose pseudo header is summed up, of TCP and UDP over both versions of IP.
    pub fn checksum(&self) -> bool {
        self.sends(1) && self.sends(3)
    }

    /// Cuts TCP over IPv4.
    pub fn tcp_v4(&self) -> bool {
        self.checksum() && self.sends(5)
    }

    /// Cuts TCP over IPv6.
    pub fn tcp_v6(&self) -> bool {
        self.checksum() && self.sends(6)
    }

    /// Cuts TCP with CWR.
    pub fn ecn(&self) -> bool {
        self.sends(7)
    }

    /// Checks the checksums of TCP and UDP over IPv4, and over IPv6.
    pub fn verifies(&self) -> [bool; 2] {
        [self.receive >> 1 & 1 != 0, self.receive >> 2 & 1 != 0]
    }
}

/// Time limits that the device wants, in milliseconds; `None` where it leaves them to the driver, and 0 where there shall be
/// none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Of a register read.
    pub read: Option<u16>,
    /// Between two keep-alives.
    pub keep_alive: Option<u16>,
    /// Of a frame that is sent.
    pub completion: Option<u16>,
    /// Of an admin command.
    pub admin: Option<u16>,
}

impl Hints {
    /// From three words, as the feature and the event that updates it have them.
    pub fn of(words: [u32; 3]) -> Self {
        let hint = |value: u16| match value {
            0 => None,
            NO_LIMIT => Some(0),
            value => Some(value),
        };
        Self {
            read: hint(low(words[0])),
            keep_alive: hint(high(words[0])),
            completion: hint(low(words[1])),
            admin: hint(low(words[2])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_a_device_offers_entries_have_room_for_descriptors_and_a_header(
            words in prop::collection::vec(prop_oneof![any::<u32>(), 0u32..16], 16)
        ) {
            let mut reply = [0; 16];
            reply.copy_from_slice(&words);
            if let Some((layout, _)) = LlqLayout::choose(&reply) {
                prop_assert!(layout.before_header * 16 + layout.max_header() <= layout.entry);
                prop_assert!(layout.max_header() > 0 && layout.per_entry > 0 && layout.entry <= 256);
                prop_assert!(layout.entries(7) >= 1 && layout.entries(7) <= 7);
            }
            let _ = (Limits::of(&reply), Limits::of_extended(&reply), Attributes::of(&reply));
        }
    }

    fn llq(entry: u16, before: u16, stride: u16, flags: u16, burst: u16) -> Reply {
        let mut reply = [0; 16];
        reply[2..10].copy_from_slice(&[
            8,
            1024,
            1,
            u32::from(entry),
            u32::from(before),
            u32::from(stride),
            0,
            u32::from(flags) | u32::from(burst) << 16,
        ]);
        reply
    }

    #[test]
    fn the_usual_layout_is_two_descriptors_and_96_bytes_of_header() {
        let (layout, _) = LlqLayout::choose(&llq(7, 0xf, 3, 3, 2048)).unwrap();
        assert_eq!((layout.entry, layout.before_header, layout.per_entry), (128, 2, 8));
        assert_eq!((layout.max_header(), layout.burst, layout.meta_always), (96, 16, true));
        assert_eq!([1, 2, 3, 10, 11].map(|n| layout.entries(n)), [1, 1, 2, 2, 3]);
    }

    #[test]
    fn wide_entries_are_taken_where_there_are_no_others() {
        let (layout, _) = LlqLayout::choose(&llq(4, 1, 1, 0, 0)).unwrap();
        assert_eq!((layout.entry, layout.depth, layout.max_header()), (256, 512, 240));
        assert_eq!((layout.burst, layout.entries(3)), (0, 3));
    }

    #[test]
    fn wide_entries_are_taken_where_they_are_recommended_and_leave_a_ring() {
        let recommending = |entries, depth, wide: u32| {
            let mut reply = llq(entries, 2, 2, 0, 0);
            (reply[3], reply[8]) = (depth, 1 | 4 << 8 | wide << 16);
            let (layout, _) = LlqLayout::choose(&reply).unwrap();
            (layout.entry, layout.depth, layout.max_header())
        };
        assert_eq!(recommending(5, 1024, 0), (256, 512, 224));
        assert_eq!(recommending(5, 1024, 1024), (256, 1024, 224));
        assert_eq!(recommending(1, 1024, 0), (128, 1024, 96), "but not offered");
        assert_eq!(recommending(5, 128, 0), (128, 128, 96), "a ring of 64 is too short");
    }

    #[test]
    fn a_layout_that_nobody_knows_is_none() {
        assert!(LlqLayout::choose(&llq(0, 2, 2, 0, 0)).is_none());
        assert!(LlqLayout::choose(&llq(1, 8, 2, 0, 0)).is_none(), "no room for a header");
        assert!(LlqLayout::choose(&llq(1, 2, 2, 2, 100)).is_none(), "no entry between doorbells");
        let mut headers_elsewhere = llq(1, 2, 2, 0, 0);
        headers_elsewhere[4] = 2;
        assert!(LlqLayout::choose(&headers_elsewhere).is_none());
    }

    #[test]
    fn hints_are_told_apart_from_none() {
        let hints = Hints::of([0xffff_0000, 5, 7]);
        let expected = Hints { read: None, keep_alive: Some(0), completion: Some(5), admin: Some(7) };
        assert_eq!(hints, expected);
    }
}
