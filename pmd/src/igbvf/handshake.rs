//! What VF and PF agree on after every reset: the VF's address, its longest frame, and what it receives.

use std::thread;
use std::time::Duration;

use super::registers::*;
use crate::intel::agreement::{Address, Disagreement, ask_for_vlans, settle_address};
use crate::intel::family::FCS;
use crate::intel::groups::group_hashes;
use crate::intel::mailbox::{Mailbox, MailboxError};
use crate::intel::message::{self as words, Answer, verb};
use crate::mac::MacAddress;
use crate::registers::{ALL_ONES, Registers};
use crate::vf::Wishes;

/// Between the VF's reset and its first message, as Intel's drivers wait.
const AFTER_RESET: Duration = Duration::from_millis(10);
/// Longest frame of a usual network: 1500 bytes, header, VLAN tag.
const USUAL_FRAME: u32 = 1518;

/// What the PF granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The VF's address.
    pub address: Address,
    /// VLANs that were wished for and refused.
    pub refused_vlans: Vec<u16>,
    /// Longest frame in bytes, without FCS.
    pub max_frame: u32,
    /// Whether frames for other stations arrive.
    pub unicast_promiscuous: bool,
    /// Whether frames for all groups arrive, not only for those of
    /// [`groups`](crate::intel::groups::groups).
    pub multicast_promiscuous: bool,
}

/// What is wanted of the PF.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Address and VLANs.
    pub wishes: &'a Wishes,
    /// The random address of an earlier hand-shake, which is kept.
    pub random_mac: Option<MacAddress>,
    /// Receive groups by hash although the PF would grant them all: see [`groups`](crate::intel::groups::groups).
    pub hashed_groups: bool,
    /// Longest frame of the port in bytes, with FCS.
    pub longest_frame: u32,
}

/// Resets the VF and shakes hands with the PF.
pub fn shake(
    registers: &dyn Registers,
    mailbox: &mut Mailbox,
    wanted: &Wanted<'_>,
) -> Result<Grant, Disagreement> {
    let control = registers.read(CTRL);
    if control == ALL_ONES {
        return Err(MailboxError::Gone.into());
    }
    registers.write(CTRL, control | CTRL_RST);
    mailbox.restart()?;
    thread::sleep(AFTER_RESET.min(mailbox.patience().interval * mailbox.patience().looks));
    registers.write(EIMC, ALL_ONES);

    let (answer, reply) = mailbox.ask(verb::RESET, &words::plain(verb::RESET))?;
    let given = words::mac_of(&reply);
    let given = (answer == Answer::Granted && given.is_valid_unicast()).then_some(given);
    let address = settle_address(mailbox, given, wanted.wishes.mac, wanted.random_mac)?;
    let max_frame = longest_frame(mailbox, wanted.longest_frame)?;
    let refused_vlans = ask_for_vlans(mailbox, &wanted.wishes.vlans)?;
    mailbox.ask(verb::SET_MULTICAST, &words::multicast(&group_hashes(address.mac)))?;
    let multicast = !wanted.hashed_groups;
    let mut granted = (true, multicast);
    // A PF that refuses one mode refuses the message, so the lesser wish is a message of its own.
    if promiscuous(mailbox, true, multicast)? == Answer::Refused {
        granted.0 = false;
        granted.1 = multicast && promiscuous(mailbox, false, true)? == Answer::Granted;
    }
    let (unicast_promiscuous, multicast_promiscuous) = granted;
    Ok(Grant { address, refused_vlans, max_frame, unicast_promiscuous, multicast_promiscuous })
}

fn longest_frame(mailbox: &mut Mailbox, longest: u32) -> Result<u32, MailboxError> {
    for longest in [longest, USUAL_FRAME + FCS] {
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

#[cfg(test)]
mod tests {
    use super::super::double::{Double, IMPATIENT};
    use super::*;
    use crate::intel::mailbox::bit::RSTI;
    use crate::intel::message::multicast_hash;
    use std::num::NonZero;
    use std::sync::Arc;

    const WISHES: Wishes = Wishes { queue_pairs: NonZero::<u16>::MIN, mac: None, vlans: Vec::new() };

    fn wanted(wishes: &Wishes) -> Wanted<'_> {
        Wanted { wishes, random_mac: None, hashed_groups: false, longest_frame: RINGS.longest_frame }
    }

    fn agree(double: &Arc<Double>, wanted: Wanted<'_>) -> Result<Grant, Disagreement> {
        let mut mailbox = Mailbox::new(Arc::clone(double) as Arc<dyn Registers>, MAILBOX, IMPATIENT);
        shake(&**double, &mut mailbox, &wanted)
    }

    #[test]
    fn a_generous_pf() {
        let double = Double::new();
        double.set(|pf| pf.unicast_promiscuous = true);
        let agreed = Grant {
            address: Address { mac: double.mac(), random: false, refused: None },
            refused_vlans: Vec::new(),
            max_frame: 9724,
            unicast_promiscuous: true,
            multicast_promiscuous: true,
        };
        assert_eq!(agree(&double, wanted(&WISHES)), Ok(agreed));
        assert!(double.heard(verb::SET_MAC).is_empty());
    }

    #[test]
    fn a_pf_that_refuses_unicast_promiscuous_mode_still_gives_all_groups() {
        let double = Double::new();
        let agreed = agree(&double, wanted(&WISHES)).unwrap();
        assert_eq!((agreed.unicast_promiscuous, agreed.multicast_promiscuous), (false, true));
        let modes: Vec<u32> =
            double.heard(verb::SET_PROMISCUOUS).iter().map(|message| message[0] >> 16).collect();
        assert_eq!(modes, [3, 2]);
    }

    #[test]
    fn a_pf_that_refuses_everything_gets_the_groups_by_hash() {
        let double = Double::new();
        double.set(|pf| (pf.multicast_promiscuous, pf.longest) = (false, 0));
        let agreed = agree(&double, wanted(&WISHES)).unwrap();
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
        let agreed = agree(&double, Wanted { hashed_groups: true, ..wanted(&WISHES) }).unwrap();
        assert!(!agreed.multicast_promiscuous);
        assert!(double.heard(verb::SET_PROMISCUOUS).iter().all(|message| message[0] >> 16 & 2 == 0));
    }

    #[test]
    fn without_an_address_one_is_drawn_and_kept() {
        let double = Double::new();
        double.set(|pf| pf.no_mac = true);
        let first = agree(&double, wanted(&WISHES)).unwrap();
        assert!(
            first.address.random && first.address.mac.is_valid_unicast() && first.address.mac.0[0] & 2 != 0
        );
        assert_eq!(words::mac_of(&double.heard(verb::SET_MAC)[0]), first.address.mac);
        let wishes = WISHES;
        let again = Wanted { random_mac: Some(first.address.mac), ..wanted(&wishes) };
        assert_eq!(agree(&double, again).unwrap().address.mac, first.address.mac);
        assert_ne!(agree(&double, wanted(&WISHES)).unwrap().address.mac, first.address.mac);
    }

    #[test]
    fn an_address_that_is_wanted_is_asked_for_and_one_that_is_refused_is_told() {
        let double = Double::new();
        let wished = MacAddress([0x52, 0x54, 0, 0, 0, 0x77]);
        let wishes = Wishes { mac: Some(wished), ..WISHES };
        let agreed = agree(&double, wanted(&wishes)).unwrap();
        assert_eq!(
            (agreed.address.mac, agreed.address.refused, agreed.address.random),
            (wished, None, false)
        );
        double.set(|pf| pf.keeps_mac = true);
        let agreed = agree(&double, wanted(&wishes)).unwrap();
        assert_eq!((agreed.address.mac, agreed.address.refused), (double.mac(), Some(wished)));
        let own = Wishes { mac: Some(double.mac()), ..WISHES };
        assert_eq!(agree(&double, wanted(&own)).unwrap().address.refused, None, "it has it already");
        double.set(|pf| pf.no_mac = true);
        assert!(matches!(agree(&double, wanted(&wishes)), Err(Disagreement::MacRefused(_))));
    }

    #[test]
    fn vlans_are_asked_for_one_by_one() {
        let double = Double::new();
        double.set(|pf| pf.refused_vlan = 8);
        let agreed = agree(&double, wanted(&Wishes { vlans: vec![7, 8, 4094], ..WISHES })).unwrap();
        let asked: Vec<_> =
            double.heard(verb::SET_VLAN).iter().map(|message| (message[0] >> 16, message[1])).collect();
        assert_eq!((asked, agreed.refused_vlans), (vec![(1, 7), (1, 8), (1, 4094)], vec![8]));
    }

    #[test]
    fn pf_problems_are_told_apart() {
        let double = Double::new();
        double.set(|pf| pf.silent = true);
        assert_eq!(agree(&double, wanted(&WISHES)), Err(MailboxError::Silent.into()));
        double.set(|pf| pf.control |= RSTI);
        assert_eq!(agree(&double, wanted(&WISHES)), Err(MailboxError::PfInReset.into()));
        double.set(|pf| pf.gone = true);
        assert_eq!(agree(&double, wanted(&WISHES)), Err(MailboxError::Gone.into()));
    }
}
