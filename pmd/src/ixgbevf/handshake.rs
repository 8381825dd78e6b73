//! What VF and PF agree on after every reset: a language, the VF's address, its queues, its longest frame, and what it receives.

use std::thread;
use std::time::Duration;

use super::message::{self, Api, Mode, verb};
use super::registers::*;
use crate::intel::agreement::{Address, Disagreement, ask_for_vlans, granted, settle_address};
use crate::intel::family::{FCS, VECTORS};
use crate::intel::groups::group_hashes;
use crate::intel::mailbox::{Mailbox, MailboxError};
use crate::intel::message::{self as words, Answer, CLEAR_TO_SEND, verb as common};
use crate::mac::MacAddress;
use crate::registers::{ALL_ONES, Registers};
use crate::vf::Wishes;

/// Between the VF's reset and its first message, as Intel's drivers wait.
const AFTER_RESET: Duration = Duration::from_millis(50);
/// Longest frame of a usual network with FCS and without tag, in bytes.
const USUAL_FRAME: u32 = 1518;
/// Bytes of a VLAN tag, which these devices do not count among a frame's.
const TAG: u32 = 4;

/// What the PF granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What they speak.
    pub api: Api,
    /// The VF's address.
    pub address: Address,
    /// VLANs that were wished for and refused.
    pub refused_vlans: Vec<u16>,
    /// Queue pairs.
    pub pairs: u16,
    /// Longest frame in bytes, without FCS, a VLAN tag included.
    pub max_frame: u32,
    /// What the VF receives beside its own frames.
    pub mode: Mode,
}

/// Resets the VF and shakes hands with the PF. `random_mac` is the random address of an earlier hand-shake, which is kept.
pub fn shake(
    registers: &dyn Registers,
    mailbox: &mut Mailbox,
    wishes: &Wishes,
    random_mac: Option<MacAddress>,
) -> Result<Grant, Disagreement> {
    if registers.read(VFSTATUS) == ALL_ONES {
        return Err(MailboxError::Gone.into());
    }
    registers.write(VTEIMC, (1 << VECTORS) - 1);
    registers.write(VFCTRL, VFCTRL_RST);
    thread::sleep(AFTER_RESET.min(mailbox.patience().interval * mailbox.patience().looks));
    mailbox.restart()?;

    let (answer, reply) = mailbox.ask(common::RESET, &words::plain(common::RESET))?;
    // Clear to send comes with all answers but this one.
    if reply[0] & CLEAR_TO_SEND != 0 {
        return Err(Disagreement::NoReset);
    }
    let given = words::mac_of(&reply);
    let given = (answer == Answer::Granted && given.is_valid_unicast()).then_some(given);

    let api = negotiate(mailbox)?;
    let address = settle_address(mailbox, given, wishes.mac, random_mac)?;
    let max_frame = longest_frame(mailbox)?.ok_or(Disagreement::NoFrames)?;
    let mut pairs = 1;
    if api >= Api::V11 {
        let (answer, reply) = mailbox.ask(verb::GET_QUEUES, &words::plain(verb::GET_QUEUES))?;
        pairs = if answer == Answer::Granted { message::queue_pairs(&reply) } else { 1 };
    }
    let refused_vlans = ask_for_vlans(mailbox, &wishes.vlans)?;
    mailbox.ask(common::SET_MULTICAST, &words::multicast(&group_hashes(address.mac)))?;
    let mode = mode(mailbox, api)?;
    Ok(Grant { api, address, refused_vlans, pairs, max_frame, mode })
}

fn negotiate(mailbox: &mut Mailbox) -> Result<Api, MailboxError> {
    for api in Api::NEWEST_FIRST {
        if granted(mailbox, verb::NEGOTIATE, &message::negotiate(api))? {
            return Ok(api);
        }
    }
    // A PF that knows nothing of versions.
    Ok(Api::V10)
}

/// Longest frame in bytes, without FCS, a VLAN tag included. Always asked for: the PF of an 82599 with jumbo frames does not let
/// a VF receive before it has (`ixgbe_set_vf_lpe` of Linux's PF driver, whose every refusal switches the VF's receiver off).
fn longest_frame(mailbox: &mut Mailbox) -> Result<Option<u32>, MailboxError> {
    for longest in [RINGS.longest_frame, USUAL_FRAME] {
        if granted(mailbox, common::SET_LONGEST_FRAME, &words::longest_frame(longest))? {
            return Ok(Some((longest - FCS + TAG).min(RINGS.max_frame())));
        }
    }
    Ok(None)
}

/// What the VF receives beside its own frames, the most that it is granted: some PFs refuse, others grant less and say so.
fn mode(mailbox: &mut Mailbox, api: Api) -> Result<Mode, MailboxError> {
    if api < Api::V12 {
        return Ok(Mode::Hashed);
    }
    let wished: &[Mode] = match api {
        Api::V12 => &[Mode::Groups, Mode::Hashed],
        _ => &[Mode::Promiscuous, Mode::Groups, Mode::Hashed],
    };
    for &mode in wished {
        let (answer, reply) = mailbox.ask(verb::UPDATE_XCAST_MODE, &message::xcast(mode))?;
        if answer == Answer::Granted {
            return Ok(Mode::of(reply[1]).unwrap_or_default().min(mode));
        }
    }
    Ok(Mode::Hashed)
}
