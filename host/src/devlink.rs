//! devlink over generic netlink (devlink(8), `linux/devlink.h`): which versions a device runs. It is asked by PCI address, so it
//! answers for a PF without an interface, too. A driver without devlink tells ethtool's ioctl the version of its firmware.

use std::io;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkSerializable, NlasIterator,
};
use netlink_sys::protocols::NETLINK_GENERIC;
use pmd::Address;

use crate::netlink::exchange;

/// The family that knows the numbers of the others (`GENL_ID_CTRL` of `linux/genetlink.h`), its command
/// `CTRL_CMD_GETFAMILY`, and the attributes `CTRL_ATTR_FAMILY_ID` and `CTRL_ATTR_FAMILY_NAME`.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `DEVLINK_CMD_INFO_GET` of `linux/devlink.h`, and attributes (`DEVLINK_ATTR_…`).
const INFO_GET: u8 = 51;
const BUS_NAME: u16 = 1;
const DEVICE_NAME: u16 = 2;
const VERSION_RUNNING: u16 = 101;
const VERSION_NAME: u16 = 103;
const VERSION_VALUE: u16 = 104;
/// Bytes of `struct genlmsghdr`: command, version, two that are reserved.
const HEADER: usize = 4;

/// A part of a device that has a version, as the kernel's documentation of devlink-info names them (`fw`, `fw.mgmt`, …).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The part.
    pub name: String,
    /// Its version.
    pub value: String,
}

/// What a device runs; an error where its driver has no devlink, or the kernel none.
pub(crate) fn running(function: Address) -> io::Result<Vec<Version>> {
    running_on("pci", &function.to_string())
}

fn running_on(bus: &str, device: &str) -> io::Result<Vec<Version>> {
    let request = attribute(FAMILY_NAME, "devlink");
    let reply = ask(Generic { family: CONTROL, command: GET_FAMILY, attributes: request })?;
    let family = values(&reply, FAMILY_ID).find_map(|value| value.first_chunk().copied());
    let family = u16::from_ne_bytes(family.ok_or(io::ErrorKind::InvalidData)?);
    let device = [attribute(BUS_NAME, bus), attribute(DEVICE_NAME, device)].concat();
    Ok(versions(&ask(Generic { family, command: INFO_GET, attributes: device })?))
}

/// The versions that a reply says the device runs; not those that it has stored, or that are burnt in.
fn versions(attributes: &[u8]) -> Vec<Version> {
    let version = |nested: &[u8]| {
        let text = |kind| values(nested, kind).next().map(text);
        Some(Version { name: text(VERSION_NAME)?, value: text(VERSION_VALUE)? })
    };
    values(attributes, VERSION_RUNNING).filter_map(version).collect()
}

fn ask(request: Generic) -> io::Result<Vec<u8>> {
    let reply = exchange(NETLINK_GENERIC, request, NLM_F_REQUEST)?;
    reply.map(|reply| reply.attributes).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A text, with the zero at its end.
fn attribute(kind: u16, text: &str) -> Vec<u8> {
    let attribute = DefaultNla::new(kind, [text.as_bytes(), &[0]].concat());
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

/// The values of all attributes of this kind.
fn values(attributes: &[u8], kind: u16) -> impl Iterator<Item = &[u8]> {
    NlasIterator::new(attributes)
        .map_while(Result::ok)
        .filter(move |attribute| attribute.kind() == kind)
        .filter_map(|attribute| attribute.into_inner().get(HEADER..usize::from(attribute.length())))
}

fn text(value: &[u8]) -> String {
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).trim().to_owned()
}

/// A message of generic netlink.
#[derive(Debug)]
struct Generic {
    family: u16,
    command: u8,
    attributes: Vec<u8>,
}

impl NetlinkSerializable for Generic {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&[&[self.command, 1, 0, 0], self.attributes.as_slice()].concat());
    }
}

impl NetlinkDeserializable for Generic {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        match payload.split_at_checked(HEADER) {
            Some((head, attributes)) => {
                Ok(Self { family: header.message_type, command: head[0], attributes: attributes.to_vec() })
            }
            None => Err("a message of generic netlink is cut short".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
        let attribute = DefaultNla::new(kind | netlink_packet_core::NLA_F_NESTED, parts.concat());
        let mut bytes = vec![0; attribute.buffer_len()];
        attribute.emit(&mut bytes);
        bytes
    }

    #[test]
    fn only_what_runs_is_told_in_the_drivers_order() {
        const STORED: u16 = 102;
        let version = |kind, name, value| {
            nested(kind, &[attribute(VERSION_NAME, name), attribute(VERSION_VALUE, value)])
        };
        let reply = [
            attribute(BUS_NAME, "pci"),
            attribute(DEVICE_NAME, "0000:3b:00.0"),
            version(VERSION_RUNNING, "fw.mgmt", "7.3.2"),
            version(STORED, "fw.mgmt", "7.4.0"),
            nested(VERSION_RUNNING, &[attribute(VERSION_NAME, "without a value")]),
            version(VERSION_RUNNING, "fw.app", "1.3.30.0"),
        ];
        let told: Vec<_> = versions(&reply.concat()).into_iter().map(|one| [one.name, one.value]).collect();
        assert_eq!(told, [["fw.mgmt", "7.3.2"], ["fw.app", "1.3.30.0"]]);
    }

    #[test]
    fn a_reply_that_is_cut_short_tells_what_came_whole() {
        let whole =
            nested(VERSION_RUNNING, &[attribute(VERSION_NAME, "fw"), attribute(VERSION_VALUE, "16.35")]);
        for length in 0..whole.len() {
            assert_eq!(versions(&whole[..length]), [], "{length}");
        }
        assert_eq!(versions(&whole).len(), 1);
    }

    #[test]
    #[ignore = "needs a device with devlink: modprobe netdevsim; echo '1 1' > /sys/bus/netdevsim/new_device"]
    fn a_device_of_the_kernel_answers() {
        let told = running_on("netdevsim", "netdevsim1").unwrap();
        assert_eq!(told, [Version { name: "fw.mgmt".to_owned(), value: "10.20.30".to_owned() }]);
        assert_eq!(running("ffff:ff:1f.7".parse().unwrap()).unwrap_err().raw_os_error(), Some(19), "ENODEV");
    }

    #[test]
    fn a_device_that_is_not_there_is_told() {
        let error = running("ffff:ff:1f.7".parse().unwrap()).unwrap_err();
        // ENODEV, or ENOENT of a kernel without devlink.
        assert!(matches!(error.raw_os_error(), Some(19 | 2)), "{error:?}");
    }
}
