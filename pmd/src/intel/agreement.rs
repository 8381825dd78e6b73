//! What all families agree on with their PFs in the same words: the VF's address and its VLANs; and how a PF that does not
//! agree is told to the operator.

use super::mailbox::{Mailbox, MailboxError, PfNotice};
use super::message::{self as words, Answer, verb};
use crate::device::{DeviceError, DeviceEvent};
use crate::mac::MacAddress;
use crate::vf::Place;

/// Which address the VF has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub mac: MacAddress,
    /// Whether the PF had none for it and `mac` was drawn by lot.
    pub random: bool,
    /// An address that was wished for and refused.
    pub refused: Option<MacAddress>,
}

/// Why nothing was agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disagreement {
    /// The PF was not reached.
    Mailbox(MailboxError),
    /// The PF had no address for the VF, and refused this one.
    MacRefused(MacAddress),
    /// The PF's answer to a reset is none: it is as if there had been no reset.
    NoReset,
    /// The PF lets the VF have no frames.
    NoFrames,
}

impl From<MailboxError> for Disagreement {
    fn from(error: MailboxError) -> Self {
        Self::Mailbox(error)
    }
}

/// Asks the PF for something; whether it is granted.
pub fn granted(mailbox: &mut Mailbox, verb: u32, message: &words::Message) -> Result<bool, MailboxError> {
    Ok(mailbox.ask(verb, message)?.0 == Answer::Granted)
}

/// Settles the VF's address, when the PF has given one or none: what is wished for, else that, else one drawn by lot, now or
/// `earlier`.
pub fn settle_address(
    mailbox: &mut Mailbox,
    given: Option<MacAddress>,
    wished: Option<MacAddress>,
    earlier: Option<MacAddress>,
) -> Result<Address, Disagreement> {
    let mut take = |mac| granted(mailbox, verb::SET_MAC, &words::set_mac(mac));
    if let Some(mac) = wished
        && (given == wished || take(mac)?)
    {
        return Ok(Address { mac, random: false, refused: None });
    }
    if let Some(mac) = given {
        return Ok(Address { mac, random: false, refused: wished });
    }
    let mac = earlier.unwrap_or_else(MacAddress::random);
    if !take(mac)? {
        return Err(Disagreement::MacRefused(mac));
    }
    Ok(Address { mac, random: true, refused: wished })
}

/// Asks for the tagged frames of VLANs; those that are refused.
pub fn ask_for_vlans(mailbox: &mut Mailbox, vlans: &[u16]) -> Result<Vec<u16>, MailboxError> {
    let mut refused = Vec::new();
    for &vlan in vlans {
        if !granted(mailbox, verb::SET_VLAN, &words::add_vlan(vlan))? {
            refused.push(vlan);
        }
    }
    Ok(refused)
}

/// What the operator should know of an address and of VLANs.
pub fn notices(place: &Place, address: &Address, refused_vlans: &[u16]) -> Vec<String> {
    let (vf, mac) = (place.at_pf(), address.mac);
    let mut notices = Vec::new();
    if address.random {
        notices.push(format!(
            "{place}: the PF gave the VF no address; it uses {mac}, drawn by lot, until it is opened anew; \
             set one: ip link set {vf} mac {mac}"
        ));
    }
    if let Some(wished) = address.refused {
        notices.push(format!(
            "{place}: the PF refuses {wished} as the VF's address, which is {mac}; set it there: \
             ip link set {vf} mac {wished}"
        ));
    }
    if !refused_vlans.is_empty() {
        notices.push(format!(
            "{place}: the PF refuses VLANs {refused_vlans:?}, so their frames do not arrive; it may have put the VF into a \
             VLAN of its own, which is undone by: ip link set {vf} vlan 0"
        ));
    }
    notices
}

/// A disagreement, with its remedy.
pub fn explain(place: &Place, cause: Disagreement) -> DeviceError {
    let pf = place.pf();
    match cause {
        Disagreement::Mailbox(MailboxError::Gone) => DeviceError::NotFound(format!(
            "{place} does not answer: it has left the machine, or its memory is disabled; see dmesg"
        )),
        Disagreement::Mailbox(cause) => DeviceError::NotReady(format!(
            "{place}: {cause}; its interface must be up, with the kernel's driver: ip link set {pf} up"
        )),
        Disagreement::MacRefused(mac) => DeviceError::NotReady(format!(
            "{place}: the PF gave the VF no address and refuses {mac}; give it one: ip link set {} mac {mac}",
            place.at_pf()
        )),
        Disagreement::NoReset => DeviceError::NotReady(format!(
            "{place}: the PF does not say that it has reset the VF; take its interface down and up: \
             ip link set {pf} down; ip link set {pf} up"
        )),
        Disagreement::NoFrames => DeviceError::NotReady(format!(
            "{place}: the PF refuses frames of any length, as that of an 82599 with jumbo frames does to VFs that speak an \
             old language; give it the usual length: ip link set {pf} mtu 1500"
        )),
    }
}

/// What a notice of the PF means for the device.
pub fn event(place: &Place, notice: PfNotice) -> Option<DeviceEvent> {
    match notice {
        PfNotice::Nothing | PfNotice::Ping => None,
        PfNotice::Reset => Some(DeviceEvent::ResetNeeded {
            reason: format!("{place}: the PF was reset, or has reset the VF"),
        }),
        PfNotice::Gone => Some(DeviceEvent::Gone {
            reason: format!("{place} does not answer any more: it has left the machine"),
        }),
    }
}
