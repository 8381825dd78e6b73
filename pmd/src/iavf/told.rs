//! What the operator is told: whole sentences that name the VF, the cause and the remedy.

use super::channel::ChannelError;
use super::handshake::{Grant, Refusal};
use super::virtchnl::verb;
use crate::device::DeviceError;
use crate::vf::{Place, Wishes};

/// Why nothing is agreed, or a queue does not start.
pub fn error(place: &Place, cause: ChannelError) -> DeviceError {
    let pf = place.pf();
    match cause {
        _ if cause.is_gone() => DeviceError::NotFound(format!(
            "{place} does not answer: it has left the machine, or its memory is disabled; see dmesg"
        )),
        ChannelError::Version(..) => {
            DeviceError::Unsupported(format!("{place}: {cause}; use another driver for the PF {pf}"))
        }
        ChannelError::Refused(verb::ADD_ETH_ADDR, _) => DeviceError::NotReady(format!(
            "{place}: the PF gave the VF no address and refuses one drawn by lot; give it one: \
             ip link set {} mac MAC",
            place.at_pf()
        )),
        ChannelError::Refused(..) | ChannelError::Nonsense(_) => DeviceError::Failed(format!(
            "{place}: {cause}; see dmesg for what the driver of the PF {pf} says"
        )),
        cause => DeviceError::NotReady(format!(
            "{place}: {cause}; its interface must be up, with the kernel's driver: ip link set {pf} up"
        )),
    }
}

/// What was agreed and is not as wished.
pub fn notices(place: &Place, wishes: &Wishes, grant: &Grant) -> Vec<String> {
    let mut notices: Vec<String> =
        grant.refused.iter().map(|refusal| notice(place, wishes, grant, refusal)).collect();
    if grant.random_mac {
        let (mac, at_pf) = (grant.mac, place.at_pf());
        notices.push(format!(
            "{place}: the PF gave the VF no address; it uses {mac}, drawn by lot, until it is opened anew; set one: \
             ip link set {at_pf} mac {mac}"
        ));
    }
    notices
}

fn notice(name: &Place, wishes: &Wishes, grant: &Grant, refusal: &Refusal) -> String {
    let (place, mac) = (name.at_pf(), grant.mac);
    match refusal {
        Refusal::Mac(wished) => format!(
            "{name}: the PF refuses {wished} and keeps {mac}, because it was given that one; change it there: \
             ip link set {place} mac {wished}"
        ),
        Refusal::Unicast => format!(
            "{name}: the PF refuses promiscuous mode, so only frames for {mac} and for groups arrive; give the VM \
             that address, or the VF the VM's: ip link set {place} mac MAC; or let the VF see everything: \
             ip link set {place} trust on"
        ),
        Refusal::Multicast => format!(
            "{name}: the PF refuses to deliver all multicast groups, so only common ones and that of the IPv6 \
             address made of {mac} arrive; let the VF see everything: ip link set {place} trust on"
        ),
        Refusal::Pairs => format!(
            "{name}: {} queue pairs are wanted and {} used: the VF has {} and {} interrupts; give it more, where the \
             PF can: devlink or the driver's parameters",
            wishes.queue_pairs, grant.pairs, grant.resources.pairs, grant.resources.vectors
        ),
        Refusal::Rss => format!(
            "{name}: the PF does not spread frames over queues, so one queue pair is used; a newer driver of the \
             PF may do it"
        ),
        Refusal::Vlans => format!(
            "{name}: the PF refuses frames of VLANs {:?}; it has put the VF into a VLAN of its own, or has no room \
             for so many: ip link set {place} vlan 0, or ip link set {place} trust on",
            wishes.vlans
        ),
        Refusal::WriteBack => format!(
            "{name}: the PF offers nothing for VFs that are polled, so frames may wait up to 50 ms where few come; a \
             newer driver of the PF offers it"
        ),
    }
}
