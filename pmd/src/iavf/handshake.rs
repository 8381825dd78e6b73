//! What VF and PF agree on after every reset: version, resources, addresses, VLANs, RSS.

use std::hash::{BuildHasher, Hasher, RandomState};

use super::admin::AdminError;
use super::channel::{Channel, ChannelError};
use super::descriptor::Format;
use super::registers::*;
use super::virtchnl::{self as words, Resources, VERSION, capability, verb};
use crate::intel::groups::groups;
use crate::mac::MacAddress;

/// Groups that the VF asks for by address, in case its promiscuous mode is granted and means nothing: PFs give a VF that
/// they do not trust few addresses (18).
const GROUPS: usize = 10;

/// What the PF granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What the PF has for the VF.
    pub resources: Resources,
    /// The VF's address.
    pub mac: MacAddress,
    /// Whether the PF had none for it and `mac` was drawn by lot.
    pub random_mac: bool,
    /// Format of receive descriptors.
    pub format: Format,
    /// Queue pairs that are used.
    pub pairs: u16,
    /// What was wished for and refused.
    pub refused: Vec<Refusal>,
}

/// Something that the PF does not grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This address.
    Mac(MacAddress),
    /// Frames for all stations.
    Unicast,
    /// Frames for all groups.
    Multicast,
    /// As many queue pairs.
    Pairs,
    /// To spread frames over queue pairs.
    Rss,
    /// Frames of these VLANs.
    Vlans,
    /// Write-back without interrupts.
    WriteBack,
}

/// What the driver brings along.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What the operator wants.
    pub wishes: &'a crate::vf::Wishes,
    /// The random address of an earlier hand-shake, which is kept.
    pub random_mac: Option<MacAddress>,
}

/// Whether a refusal is one that can be lived with.
fn granted(answer: Result<Vec<u8>, ChannelError>) -> Result<bool, ChannelError> {
    match answer {
        Ok(_) => Ok(true),
        Err(ChannelError::Refused(..) | ChannelError::Admin(AdminError::Refused(_))) => Ok(false),
        Err(cause) => Err(cause),
    }
}

/// Resets the VF, and agrees with the PF on everything but the rings.
pub fn shake(channel: &mut Channel, request: Request<'_>) -> Result<Grant, ChannelError> {
    channel.wait_for_reset(channel.patience().reset)?;
    greet(channel)?;
    channel.reset()?;
    greet(channel)?;

    let mut get = |wanted| channel.ask(verb::GET_VF_RESOURCES, &words::resources(wanted));
    let answer = match get(capability::WANTED) {
        // A PF that shares its port with others refuses everything to a VF that wants to be polled.
        Err(ChannelError::Refused(..)) => get(capability::WANTED & !capability::POLLING)?,
        answer => answer?,
    };
    let resources = words::read_resources(&answer).ok_or(ChannelError::Nonsense(verb::GET_VF_RESOURCES))?;
    channel.set_advanced_speed(resources.capabilities & capability::ADVANCED_SPEED != 0);
    let mut refused = Vec::new();
    let has = |capability| resources.capabilities & capability != 0;

    let format = if has(capability::FORMATS) { choose_format(channel)? } else { Format::Legacy };
    let (mac, random_mac) = address(channel, resources, request, &mut refused)?;
    receive_groups(channel, resources.vsi, mac, &mut refused)?;
    if has(capability::VLAN_V2) {
        vlans_v2(channel, resources.vsi, &request.wishes.vlans, &mut refused)?;
    } else {
        vlans(channel, resources, &request.wishes.vlans, &mut refused)?;
    }
    let pairs = spread(channel, resources, request.wishes.queue_pairs.get(), &mut refused)?;
    if !has(capability::WRITE_BACK) && !has(capability::POLLING) {
        refused.push(Refusal::WriteBack);
    }
    Ok(Grant { resources, mac, random_mac, format, pairs, refused })
}

/// Opens the way and settles the version.
fn greet(channel: &mut Channel) -> Result<(), ChannelError> {
    channel.open()?;
    let answer = channel.ask(verb::VERSION, &words::version())?;
    match words::read_version(&answer).ok_or(ChannelError::Nonsense(verb::VERSION))? {
        // A PF of 1.0 does not hear what is asked for, and grants what it has.
        (major, _) if major == VERSION.0 => Ok(()),
        (major, minor) => Err(ChannelError::Version(major, minor)),
    }
}

fn choose_format(channel: &mut Channel) -> Result<Format, ChannelError> {
    let answer = channel.ask(verb::GET_SUPPORTED_RXDIDS, &[])?;
    let formats = words::read_set(&answer).ok_or(ChannelError::Nonsense(verb::GET_SUPPORTED_RXDIDS))?;
    let offered = |format: Format| formats >> format.id() & 1 != 0;
    // The legacy format may be used without being offered, but not by PFs that offer others only.
    Ok(if offered(Format::Flexible) { Format::Flexible } else { Format::Legacy })
}

fn address(
    channel: &mut Channel,
    resources: Resources,
    request: Request<'_>,
    refused: &mut Vec<Refusal>,
) -> Result<(MacAddress, bool), ChannelError> {
    let mut ask =
        |mac| granted(channel.ask(verb::ADD_ETH_ADDR, &words::addresses(resources.vsi, true, &[mac])));
    if let Some(mac) = request.wishes.mac.filter(|mac| Some(*mac) != resources.mac) {
        if ask(mac)? {
            if let Some(old) = resources.mac {
                // Its frames are for somebody else now; a PF that keeps it does no harm.
                granted(channel.ask(verb::DEL_ETH_ADDR, &words::addresses(resources.vsi, false, &[old])))?;
            }
            return Ok((mac, false));
        }
        refused.push(Refusal::Mac(mac));
    }
    if let Some(mac) = resources.mac {
        // It is there already, for PFs that remember; others want to hear it.
        ask(mac)?;
        return Ok((mac, false));
    }
    let mac = request.random_mac.unwrap_or_else(MacAddress::random);
    if !ask(mac)? {
        return Err(ChannelError::Refused(verb::ADD_ETH_ADDR, words::REFUSED));
    }
    Ok((mac, true))
}

fn receive_groups(
    channel: &mut Channel,
    vsi: u16,
    mac: MacAddress,
    refused: &mut Vec<Refusal>,
) -> Result<(), ChannelError> {
    let common: Vec<MacAddress> = groups(mac).take(GROUPS).collect();
    granted(channel.ask(verb::ADD_ETH_ADDR, &words::addresses(vsi, false, &common)))?;
    let mut promiscuous = |unicast, multicast| {
        let message = words::promiscuous(vsi, unicast, multicast);
        granted(channel.ask(verb::CONFIG_PROMISCUOUS_MODE, &message))
    };
    // A PF that refuses one mode refuses the message, so the lesser wish is a message of its own.
    if !promiscuous(true, true)? {
        refused.push(Refusal::Unicast);
        if !promiscuous(false, true)? {
            refused.push(Refusal::Multicast);
        }
    }
    Ok(())
}

fn vlans(
    channel: &mut Channel,
    resources: Resources,
    wanted: &[u16],
    refused: &mut Vec<Refusal>,
) -> Result<(), ChannelError> {
    if resources.capabilities & capability::VLAN == 0 {
        // A PF that keeps the VF in a VLAN of its own offers nothing, and takes its tag out without telling.
        if !wanted.is_empty() {
            refused.push(Refusal::Vlans);
        }
        return Ok(());
    }
    // Tags are wanted in frames; what is taken out all the same is put back.
    granted(channel.ask(verb::DISABLE_VLAN_STRIPPING, &[]))?;
    if !wanted.is_empty() && !granted(channel.ask(verb::ADD_VLAN, &words::vlans(resources.vsi, wanted)))? {
        refused.push(Refusal::Vlans);
    }
    Ok(())
}

fn vlans_v2(
    channel: &mut Channel,
    vsi: u16,
    wanted: &[u16],
    refused: &mut Vec<Refusal>,
) -> Result<(), ChannelError> {
    let answer = channel.ask(verb::GET_OFFLOAD_VLAN_V2_CAPS, &[])?;
    let support =
        words::read_vlan_support(&answer).ok_or(ChannelError::Nonsense(verb::GET_OFFLOAD_VLAN_V2_CAPS))?;
    if let Some(tag) = support.strip {
        // Tags are wanted in frames; what is taken out all the same is put back.
        let message = words::vlan_setting(vsi, tag, support.strip_types);
        granted(channel.ask(verb::DISABLE_VLAN_STRIPPING_V2, &message))?;
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let asked = match support.filter {
        Some(tag) if wanted.len() <= usize::from(support.most) => {
            granted(channel.ask(verb::ADD_VLAN_V2, &words::vlans_v2(vsi, tag, wanted)))?
        }
        _ => false,
    };
    if !asked {
        refused.push(Refusal::Vlans);
    }
    Ok(())
}

/// How many queue pairs are used, after the PF has been told to spread frames over them.
fn spread(
    channel: &mut Channel,
    resources: Resources,
    wanted: u16,
    refused: &mut Vec<Refusal>,
) -> Result<u16, ChannelError> {
    // Each pair has an interrupt of its own; one is for all else.
    let most = resources.pairs.min(resources.vectors.saturating_sub(1)).max(1);
    if wanted > most {
        refused.push(Refusal::Pairs);
    }
    let pairs = wanted.clamp(1, most.min(MOST_PAIRS));
    if resources.capabilities & capability::RSS_PF == 0 || resources.key == 0 || resources.table == 0 {
        if pairs > 1 {
            refused.push(Refusal::Rss);
        }
        return Ok(1);
    }
    let key = random_bytes(resources.key);
    let table: Vec<u8> = (0..resources.table).map(|n| (n % usize::from(pairs)) as u8).collect();
    let types = match channel.ask(verb::GET_RSS_HENA_CAPS, &[]) {
        Ok(answer) => words::read_set(&answer).ok_or(ChannelError::Nonsense(verb::GET_RSS_HENA_CAPS))?,
        answer => {
            granted(answer)?;
            0
        }
    };
    let messages = [
        (verb::CONFIG_RSS_KEY, words::rss(resources.vsi, &key)),
        (verb::CONFIG_RSS_LUT, words::rss(resources.vsi, &table)),
        (verb::SET_RSS_HENA, words::hashed(types)),
    ];
    for (verb, message) in messages {
        if !granted(channel.ask(verb, &message))? {
            if pairs > 1 {
                refused.push(Refusal::Rss);
            }
            return Ok(1);
        }
    }
    Ok(pairs)
}

/// A key that nobody outside can guess, so that nobody can steer flows into one queue.
fn random_bytes(count: usize) -> Vec<u8> {
    // The standard library seeds its hash maps from the kernel's random numbers.
    let words = std::iter::repeat_with(|| RandomState::new().build_hasher().finish().to_le_bytes());
    words.flatten().take(count).collect()
}
