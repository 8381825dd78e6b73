//! Netlink: one request, one answer. And rtnetlink(7): what a PF has set for its VFs, and how it is set.

use std::fmt;
use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage, LinkVfInfo, VfInfo, VfInfoMac, VfInfoSpoofCheck,
    VfInfoTrust, VfInfoVlan,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use pmd::MacAddress;

use crate::kernel::{VfSetting, VfSettings};

/// What the PF `interface` has set for its VFs, in order.
pub(crate) fn vf_settings(interface: &str) -> io::Result<Vec<VfSettings>> {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(interface.to_owned()));
    link.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Vf]));
    let reply = route(RouteNetlinkMessage::GetLink(link), NLM_F_REQUEST)?;
    let Some(RouteNetlinkMessage::NewLink(link)) = reply else { return Ok(Vec::new()) };
    let list = link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::VfInfoList(list) => Some(list),
        _ => None,
    });
    Ok(list.unwrap_or_default().iter().map(settings).collect())
}

fn settings(info: &LinkVfInfo) -> VfSettings {
    let mut vf = VfSettings::default();
    for info in &info.0 {
        match info {
            VfInfo::Mac(mac) => {
                vf.index = mac.vf_id;
                let [a, b, c, d, e, f, ..] = mac.mac;
                vf.mac = MacAddress([a, b, c, d, e, f]).to_string();
            }
            VfInfo::Vlan(vlan) => (vf.vlan, vf.qos) = (vlan.vlan_id, vlan.qos),
            // Drivers that know neither answer with all ones, which reads as "on" there.
            VfInfo::SpoofCheck(check) => vf.spoof_check = Some(check.enabled),
            VfInfo::Trust(trust) => vf.trust = Some(trust.enabled),
            _ => {}
        }
    }
    vf
}

/// Sets something for VF `index` of the PF `interface`.
pub(crate) fn set_vf(interface: &str, index: u32, setting: VfSetting) -> io::Result<()> {
    let info = match setting {
        VfSetting::Mac(mac) => VfInfo::Mac(VfInfoMac::new(index, &mac.0)),
        VfSetting::Vlan(vlan, priority) => VfInfo::Vlan(VfInfoVlan::new(index, vlan, priority)),
        VfSetting::Trust(on) => VfInfo::Trust(VfInfoTrust::new(index, on)),
        VfSetting::SpoofCheck(on) => VfInfo::SpoofCheck(VfInfoSpoofCheck::new(index, on)),
    };
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(interface.to_owned()));
    link.attributes.push(LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![info])]));
    route(RouteNetlinkMessage::SetLink(link), NLM_F_REQUEST | NLM_F_ACK).map(drop)
}

/// Brings an interface up.
pub(crate) fn set_up(interface: &str) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes.push(LinkAttribute::IfName(interface.to_owned()));
    route(RouteNetlinkMessage::SetLink(link), NLM_F_REQUEST | NLM_F_ACK).map(drop)
}

/// Sends a request of rtnetlink, and waits for the one answer that it has.
fn route(request: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
    exchange(NETLINK_ROUTE, request, flags)
}

/// Sends a request, and waits for the one answer that it has; `None`: done, without an answer.
pub(crate) fn exchange<M>(protocol: isize, request: M, flags: u16) -> io::Result<Option<M>>
where
    M: NetlinkSerializable + NetlinkDeserializable + fmt::Debug,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (bytes, _) = socket.recv_from_full()?;
    let reply = NetlinkMessage::<M>::deserialize(&bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    match reply.payload {
        NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
        NetlinkPayload::Error(error) => match error.raw_code() {
            0 => Ok(None),
            code => Err(io::Error::from_raw_os_error(-code)),
        },
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("unexpected answer: {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_of_this_machine_answers() {
        assert_eq!(vf_settings("lo").unwrap(), []);
        let error = vf_settings("no-such-link").unwrap_err();
        assert_eq!(error.kind(), io::Error::from_raw_os_error(19).kind(), "ENODEV");
    }
}
