//! What VF and PF agree on after every reset: the VF's address, its longest frame, and what it receives.

use std::thread;
use std::time::Duration;

use super::mailbox::{Mailbox, MailboxError};
use super::registers::*;
use crate::intel::mailbox::{self as words, Answer, MAX_HASHES, multicast_hash, verb};
use crate::mac::MacAddress;
use crate::registers::{ALL_ONES, Registers};

/// Between the VF's reset and its first message, as Intel's drivers wait.
const AFTER_RESET: Duration = Duration::from_millis(10);
/// Longest frame of a usual network: 1500 bytes, header, VLAN tag.
const USUAL_FRAME: u32 = 1518;

/// What the PF granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The VF's address.
    pub mac: MacAddress,
    /// Whether the PF had none for it and `mac` was drawn by lot.
    pub random_mac: bool,
    /// Longest frame in bytes, without FCS.
    pub max_frame: u32,
    /// Whether frames for other stations arrive.
    pub unicast_promiscuous: bool,
    /// Whether frames for all groups arrive, not only for those of [`groups`].
    pub multicast_promiscuous: bool,
}

/// Why nothing was agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disagreement {
    /// The PF was not reached.
    Mailbox(MailboxError),
    /// The PF had no address for the VF, and refused this one.
    MacRefused(MacAddress),
}

impl From<MailboxError> for Disagreement {
    fn from(error: MailboxError) -> Self {
        Self::Mailbox(error)
    }
}

/// What the driver brings along.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// The random address of an earlier hand-shake, which is kept.
    pub random_mac: Option<MacAddress>,
    /// Receive groups by hash although the PF would grant them all: see [`groups`].
    pub hashed_groups: bool,
}

/// Resets the VF and shakes hands with the PF.
pub fn shake(
    registers: &dyn Registers,
    mailbox: &mut Mailbox,
    wishes: Wishes,
) -> Result<Grant, Disagreement> {
    let control = registers.read(CTRL);
    if control == ALL_ONES {
        return Err(MailboxError::Gone.into());
    }
    registers.write(CTRL, control | CTRL_RST);
    mailbox.restart()?;
    thread::sleep(AFTER_RESET.min(mailbox.patience().interval * mailbox.patience().looks));
    registers.write(EIMC, ALL_ONES);

    let (mac, random_mac) = address(mailbox, wishes.random_mac)?;
    let max_frame = longest_frame(mailbox)?;
    let hashes = group_hashes(mac);
    mailbox.ask(verb::SET_MULTICAST, &words::multicast(&hashes))?;
    let multicast = !wishes.hashed_groups;
    let mut granted = (true, multicast);
    // A PF that refuses one mode refuses the message, so the lesser wish is a message of its own.
    if promiscuous(mailbox, true, multicast)? == Answer::Refused {
        granted.0 = false;
        granted.1 = multicast && promiscuous(mailbox, false, true)? == Answer::Granted;
    }
    let (unicast_promiscuous, multicast_promiscuous) = granted;
    Ok(Grant { mac, random_mac, max_frame, unicast_promiscuous, multicast_promiscuous })
}

fn address(mailbox: &mut Mailbox, earlier: Option<MacAddress>) -> Result<(MacAddress, bool), Disagreement> {
    let (answer, reply) = mailbox.ask(verb::RESET, &words::plain(verb::RESET))?;
    let given = words::mac_of(&reply);
    if answer == Answer::Granted && given.is_valid_unicast() {
        return Ok((given, false));
    }
    let mac = earlier.unwrap_or_else(MacAddress::random);
    match mailbox.ask(verb::SET_MAC, &words::set_mac(mac))? {
        (Answer::Granted, _) => Ok((mac, true)),
        (Answer::Refused, _) => Err(Disagreement::MacRefused(mac)),
    }
}

fn longest_frame(mailbox: &mut Mailbox) -> Result<u32, MailboxError> {
    for longest in [LONGEST_FRAME, USUAL_FRAME + FCS] {
        if mailbox.ask(verb::SET_LONGEST_FRAME, &words::longest_frame(longest))?.0 == Answer::Granted {
            return Ok(longest - FCS);
        }
    }
    // What every PF receives without being asked.
    Ok(USUAL_FRAME)
}

fn promiscuous(mailbox: &mut Mailbox, unicast: bool, multicast: bool) -> Result<Answer, MailboxError> {
    let message = words::promiscuous(unicast, multicast);
    Ok(mailbox.ask(message[0] & 0xffff, &message)?.0)
}

/// Groups to receive where the PF does not grant all of them. IPv6 finds its neighbours through groups that are made
/// of the last three bytes of the sought address (RFC 4291 §2.7.1); here are those of addresses made of the VF's MAC,
/// and of the low numbers that people give to hosts.
pub fn groups(mac: MacAddress) -> impl Iterator<Item = MacAddress> {
    let solicited = |low: [u8; 3]| MacAddress([0x33, 0x33, 0xff, low[0], low[1], low[2]]);
    let named = [
        // All nodes, all routers, MLDv2 routers, mDNS, DHCPv6 relays, LLMNR.
        MacAddress([0x33, 0x33, 0, 0, 0, 0x01]),
        MacAddress([0x33, 0x33, 0, 0, 0, 0x02]),
        MacAddress([0x33, 0x33, 0, 0, 0, 0x16]),
        MacAddress([0x33, 0x33, 0, 0, 0, 0xfb]),
        MacAddress([0x33, 0x33, 0, 1, 0, 2]),
        MacAddress([0x33, 0x33, 0, 1, 0, 3]),
        // All hosts, IGMPv3 routers, mDNS.
        MacAddress([0x01, 0x00, 0x5e, 0, 0, 0x01]),
        MacAddress([0x01, 0x00, 0x5e, 0, 0, 0x16]),
        MacAddress([0x01, 0x00, 0x5e, 0, 0, 0xfb]),
        solicited([mac.0[3], mac.0[4], mac.0[5]]),
    ];
    named.into_iter().chain((1..=u8::MAX).map(move |host| solicited([0, 0, host])))
}

/// Hashes of the first of [`groups`], as many different ones as one message holds.
fn group_hashes(mac: MacAddress) -> Vec<u16> {
    let mut hashes = Vec::with_capacity(MAX_HASHES);
    for hash in groups(mac).map(multicast_hash) {
        if hashes.len() < MAX_HASHES && !hashes.contains(&hash) {
            hashes.push(hash);
        }
    }
    hashes
}

#[cfg(test)]
mod tests {
    use super::super::double::{Double, IMPATIENT};
    use super::*;
    use std::sync::Arc;

    fn agree(double: &Arc<Double>, wishes: Wishes) -> Result<Grant, Disagreement> {
        let mut mailbox = Mailbox::new(Arc::clone(double) as Arc<dyn Registers>, IMPATIENT);
        shake(&**double, &mut mailbox, wishes)
    }

    #[test]
    fn a_generous_pf() {
        let double = Double::new();
        double.set(|pf| pf.unicast_promiscuous = true);
        let agreed = Grant {
            mac: double.mac(),
            random_mac: false,
            max_frame: 9724,
            unicast_promiscuous: true,
            multicast_promiscuous: true,
        };
        assert_eq!(agree(&double, Wishes::default()), Ok(agreed));
        assert!(double.heard(verb::SET_MAC).is_empty());
    }

    #[test]
    fn a_pf_that_refuses_unicast_promiscuous_mode_still_gives_all_groups() {
        let double = Double::new();
        let agreed = agree(&double, Wishes::default()).unwrap();
        assert_eq!((agreed.unicast_promiscuous, agreed.multicast_promiscuous), (false, true));
        let modes: Vec<u32> =
            double.heard(verb::SET_PROMISCUOUS).iter().map(|message| message[0] >> 16).collect();
        assert_eq!(modes, [3, 2]);
    }

    #[test]
    fn a_pf_that_refuses_everything_gets_the_groups_by_hash() {
        let double = Double::new();
        double.set(|pf| (pf.multicast_promiscuous, pf.longest) = (false, 0));
        let agreed = agree(&double, Wishes::default()).unwrap();
        assert_eq!((agreed.multicast_promiscuous, agreed.max_frame), (false, USUAL_FRAME));
        let message = double.heard(verb::SET_MULTICAST)[0];
        assert_eq!(message[0], 0x001e_0003);
        let hashes: Vec<u16> =
            message[1..].iter().flat_map(|word| [*word as u16, (word >> 16) as u16]).collect();
        let mac = double.mac().0;
        for group in [
            [0x33, 0x33, 0, 0, 0, 1],
            [0x33, 0x33, 0xff, mac[3], mac[4], mac[5]],
            [0x33, 0x33, 0xff, 0, 0, 9],
        ] {
            assert!(hashes.contains(&multicast_hash(MacAddress(group))), "{group:x?}");
        }
    }

    #[test]
    fn groups_by_hash_when_wished() {
        let double = Double::new();
        let agreed = agree(&double, Wishes { hashed_groups: true, ..Wishes::default() }).unwrap();
        assert!(!agreed.multicast_promiscuous);
        assert!(double.heard(verb::SET_PROMISCUOUS).iter().all(|message| message[0] >> 16 & 2 == 0));
    }

    #[test]
    fn without_an_address_one_is_drawn_and_kept() {
        let double = Double::new();
        double.set(|pf| pf.no_mac = true);
        let first = agree(&double, Wishes::default()).unwrap();
        assert!(first.random_mac && first.mac.is_valid_unicast() && first.mac.0[0] & 2 != 0);
        assert_eq!(words::mac_of(&double.heard(verb::SET_MAC)[0]), first.mac);
        let wishes = Wishes { random_mac: Some(first.mac), ..Wishes::default() };
        assert_eq!(agree(&double, wishes).unwrap().mac, first.mac);
        assert_ne!(agree(&double, Wishes::default()).unwrap().mac, first.mac);
    }

    #[test]
    fn pf_problems_are_told_apart() {
        let double = Double::new();
        double.set(|pf| pf.silent = true);
        assert_eq!(agree(&double, Wishes::default()), Err(MailboxError::Silent.into()));
        double.set(|pf| pf.control |= MAILBOX_RSTI);
        assert_eq!(agree(&double, Wishes::default()), Err(MailboxError::PfInReset.into()));
        double.set(|pf| pf.gone = true);
        assert_eq!(agree(&double, Wishes::default()), Err(MailboxError::Gone.into()));
    }
}
