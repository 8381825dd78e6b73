//! What is known of a device once features are agreed on, and what the operator should know of it.

use super::control::{self, Hash};
use super::features::*;
use super::registers::*;
use super::transport::Transport;
use crate::device::DeviceError;
use crate::mac::MacAddress;
use crate::memory::BUFFER_SIZE;
use crate::net_header::LENGTH;
use crate::vf::{Place, Wishes};

/// Bytes around an MTU: an Ethernet header and a VLAN tag.
const AROUND_MTU: u32 = 18;
/// Longest frame of a device that does not say what it takes: as long as other NICs' here.
const USUAL_LONGEST: u32 = 9728;
/// Least MTU of IPv4 (RFC 791): the standard allows no lesser (5.1.4.1).
const LEAST_MTU: u16 = 68;
/// Granule of buffers for a whole frame.
const LINE: u32 = 64;
/// Most pairs of queues that have numbers, the control queue's included.
const MOST_PAIRS: u16 = 0x7fff;
/// Kinds of packets that are hashed where the device can: IPv4, TCP and UDP over it, the same of IPv6 (5.1.6.4.3.3).
const HASH_TYPES: u32 = 0x3f;

/// What the device is, as of the last hand-shake.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// What was taken.
    pub features: Features,
    /// Its address.
    pub mac: MacAddress,
    /// Whether the device is to be told that address.
    pub tell_mac: bool,
    /// Whether it was drawn by lot.
    pub random: bool,
    /// Longest frame in bytes, a VLAN tag included.
    pub max_frame: u32,
    /// Pairs of queues that it has.
    pub pairs: u16,
    /// How it spreads flows, if it can be told.
    pub hash: Option<Hash>,
}

/// Whether a device that offers this can be driven at all.
pub fn check(offered: Features, place: &Place, physical_addresses: bool) -> Result<(), DeviceError> {
    if !offered.has(VERSION_1) {
        return Err(DeviceError::Unsupported(format!(
            "{place} is a legacy virtio device; in QEMU, give it disable-legacy=on"
        )));
    }
    if !offered.has(ACCESS_PLATFORM) && !physical_addresses {
        return Err(DeviceError::NotReady(format!(
            "{place} does not translate its addresses (VIRTIO_F_ACCESS_PLATFORM), so behind an IOMMU it would reach \
             memory of others; in QEMU, give the device iommu_platform=on"
        )));
    }
    Ok(())
}

/// That frames for other stations may not arrive.
pub fn promiscuous_notice(place: &Place, mac: MacAddress) -> String {
    format!(
        "{place}: the device refuses promiscuous mode, so only frames for {mac} and for groups may arrive; give the VM \
         that address, or the device the VM's: ip link set {} mac MAC",
        place.at_pf()
    )
}

impl Terms {
    /// Reads them off a device with these features. Where it has no address, one is drawn by lot and kept in `random`.
    pub fn read(
        transport: &Transport,
        features: Features,
        wishes: &Wishes,
        random: &mut Option<MacAddress>,
    ) -> Self {
        let (given, mtu, most_pairs, key, entries, types) = transport.configuration(|config| {
            let mac = std::array::from_fn(|n| config.byte(NET_MAC + n as u32));
            (
                MacAddress(mac),
                config.half(NET_MTU),
                config.half(NET_MAX_PAIRS),
                config.byte(NET_RSS_KEY_SIZE),
                config.half(NET_RSS_TABLE_LENGTH),
                config.word(NET_HASH_TYPES),
            )
        });
        let given = Some(given).filter(|mac| features.has(MAC) && mac.is_valid_unicast());
        let wished = wishes.mac.filter(|_| features.has(CTRL_MAC_ADDR) || given.is_none());
        let mac = wished.or(given).unwrap_or_else(|| *random.get_or_insert_with(MacAddress::random));
        let has_mtu = features.has(MTU) && mtu >= LEAST_MTU;
        let pairs = if features.has(MQ) { most_pairs.clamp(1, MOST_PAIRS) } else { 1 };
        let used = wishes.queue_pairs.get().min(pairs);
        // A power of two (5.1.6.5.6.1).
        let entries = entries.min(control::MOST_ENTRIES).checked_ilog2().map_or(0, |bits| 1 << bits);
        let key = key.min(control::MOST_KEY);
        let hash = Hash { types: types & HASH_TYPES, entries, pairs: used, key };
        let hashes = features.has(RSS) && used > 1 && hash.types != 0 && entries >= used && key > 0;
        Self {
            features,
            mac,
            tell_mac: features.has(CTRL_MAC_ADDR) && (wished.is_some() || given.is_none()),
            random: wished.or(given).is_none(),
            max_frame: match has_mtu {
                // Without it each of many buffers holds a whole frame.
                true if !features.has(MRG_RXBUF) => (u32::from(mtu) + AROUND_MTU).min(USUAL_LONGEST),
                true => u32::from(mtu) + AROUND_MTU,
                false => USUAL_LONGEST,
            },
            pairs,
            hash: hashes.then_some(hash),
        }
    }

    /// Bytes of a receive buffer: where the device does not spread frames over several, each holds a whole one.
    pub fn buffer(&self) -> u32 {
        if self.features.has(MRG_RXBUF) {
            BUFFER_SIZE
        } else {
            (LENGTH + self.max_frame).next_multiple_of(LINE).max(BUFFER_SIZE)
        }
    }

    /// What the operator should know, of who asked for `wishes`.
    pub fn notices(&self, place: &Place, wishes: &Wishes) -> Vec<String> {
        let Self { features, mac, pairs, .. } = *self;
        let Wishes { queue_pairs, mac: wished, vlans } = wishes;
        let mut notices = Vec::new();
        if self.random {
            notices.push(format!(
                "{place}: the device has no address; it uses {mac}, drawn by lot, until it is opened anew"
            ));
        }
        if let Some(wished) = wished.filter(|wished| *wished != mac) {
            notices.push(format!(
                "{place}: the device does not let its address be set, so it keeps {mac} instead of {wished}; set it \
                 where the device is made: ip link set {} mac {wished}, or mac={wished} in QEMU",
                place.at_pf()
            ));
        }
        if !features.has(CTRL_RX) {
            notices.push(promiscuous_notice(place, mac));
        }
        if queue_pairs.get() > pairs {
            notices.push(format!(
                "{place}: it has {pairs} of the {queue_pairs} queue pairs that were asked for"
            ));
        }
        if !vlans.is_empty() && !features.has(CTRL_VLAN) {
            notices.push(format!(
                "{place}: the device does not filter VLANs: the tags that pass are its own choice"
            ));
        }
        notices
    }
}
