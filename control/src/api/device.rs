//! Naming a device, and the requests that add it to a relay and remove it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

use super::pci::{PciAddress, PciAddressError};
use super::shown::{breaks_lines, shown};

/// Bytes of a device's name; as many as the kernel takes of a path.
const LONGEST: usize = 4096;

/// A device as it is asked for: a VF by its PCI address, or a software device by kind and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceSpec {
    /// `0000:02:08.0`: an SR-IOV virtual function.
    Vf(PciAddress),
    /// `loopback`: what the guest sends comes back to it.
    Loopback,
    /// `null`: swallows everything, sends nothing.
    Null,
    /// `tap:IFNAME`: a tap interface of the kernel.
    Tap(String),
    /// `packet:IFNAME`: a kernel network interface through an AF_PACKET socket.
    Packet(String),
    /// `pcap:FILE`: plays FILE, if it is there, and records in `FILE.out.pcap`.
    Pcap(PathBuf),
    /// `vhost-user:SOCKET`: another VM.
    VhostUser(PathBuf),
}

/// The text names no device.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DeviceSpecError {
    /// Neither a PCI address nor a known kind.
    #[error(
        "'{0}' names no device; write a PCI address (0000:02:08.0), loopback, null, tap:IFNAME, packet:IFNAME, pcap:FILE or \
         vhost-user:SOCKET"
    )]
    UnknownKind(String),
    /// More than any name needs.
    #[error("the name of the device is too long: {0} bytes, and {LONGEST} are taken")]
    TooLong(usize),
    /// It could forge lines of a log.
    #[error("'{0}' has a control character, which no device's name may have")]
    ControlCharacter(String),
    /// The kernel takes names of 1 to 15 bytes without `/` and white space.
    #[error(
        "'{0}' cannot be the name of a network interface (1 to 15 characters, no '/', ':' or white space)"
    )]
    InterfaceName(String),
    /// `pcap:` or `vhost-user:` with nothing after it.
    #[error("'{0}' lacks the path after the colon")]
    NoPath(String),
    /// It has the look of a PCI address but is none.
    #[error(transparent)]
    Pci(#[from] PciAddressError),
}

impl FromStr for DeviceSpec {
    type Err = DeviceSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > LONGEST {
            return Err(DeviceSpecError::TooLong(text.len()));
        }
        if text.contains(breaks_lines) {
            return Err(DeviceSpecError::ControlCharacter(shown(text)));
        }
        let path = |name: &str| match name {
            "" => Err(DeviceSpecError::NoPath(shown(text))),
            name => Ok(PathBuf::from(name)),
        };
        match text.split_once(':') {
            None if text == "loopback" => Ok(Self::Loopback),
            None if text == "null" => Ok(Self::Null),
            Some(("tap", name)) => Ok(Self::Tap(interface_name(name)?)),
            Some(("packet", name)) => Ok(Self::Packet(interface_name(name)?)),
            Some(("pcap", name)) => Ok(Self::Pcap(path(name)?)),
            Some(("vhost-user", name)) => Ok(Self::VhostUser(path(name)?)),
            Some((first, _)) if first.bytes().all(|b| b.is_ascii_hexdigit()) => Ok(Self::Vf(text.parse()?)),
            _ => Err(DeviceSpecError::UnknownKind(shown(text))),
        }
    }
}

/// The kernel's own rule (`dev_valid_name`).
fn interface_name(name: &str) -> Result<String, DeviceSpecError> {
    let legal = (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace());
    if legal { Ok(name.to_owned()) } else { Err(DeviceSpecError::InterfaceName(shown(name))) }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vf(address) => address.fmt(f),
            Self::Loopback => f.write_str("loopback"),
            Self::Null => f.write_str("null"),
            Self::Tap(name) => write!(f, "tap:{name}"),
            Self::Packet(name) => write!(f, "packet:{name}"),
            Self::Pcap(path) => write!(f, "pcap:{}", path.display()),
            Self::VhostUser(path) => write!(f, "vhost-user:{}", path.display()),
        }
    }
}

impl TryFrom<String> for DeviceSpec {
    type Error = DeviceSpecError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DeviceSpec> for String {
    fn from(device: DeviceSpec) -> Self {
        device.to_string()
    }
}

/// Request: give a relay its device. On the wire `{"device": "tap:vm1"}` or `{"pci_addr": "0000:02:08.0"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "DeviceRequest", into = "DeviceRequest")]
pub struct AddDevice {
    /// The device.
    pub device: DeviceSpec,
    /// Succeed without doing anything if the relay already has this very device.
    pub conditional: bool,
}

/// Request: take a relay's device away. On the wire as [`AddDevice`], everything optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "DeviceRequest", into = "DeviceRequest")]
pub struct RemoveDevice {
    /// Only if it is this device; `None`: whichever it is.
    pub device: Option<DeviceSpec>,
    /// Succeed if the relay has no device.
    pub conditional: bool,
}

/// Which device of a relay is meant. Give `device` or `pci_addr`, not both; to remove, both may be left out.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object with 'device' or 'pci_addr'")]
pub(crate) struct DeviceRequest {
    /// A device by name: `loopback`, `null`, `tap:IFNAME`, … or a PCI address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "tap:vm1")]
    device: Option<String>,
    /// A VF by its PCI address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "0000:02:08.0")]
    pci_addr: Option<String>,
    /// Succeed if there is nothing to do.
    #[serde(default)]
    conditional: bool,
}

impl DeviceRequest {
    fn device(&self) -> Result<Option<DeviceSpec>, String> {
        match (&self.device, &self.pci_addr) {
            (Some(_), Some(_)) => Err("'device' and 'pci_addr' exclude each other".to_owned()),
            (Some(device), None) => device.parse().map(Some).map_err(|e: DeviceSpecError| e.to_string()),
            (None, Some(address)) => {
                address.parse().map(|a| Some(DeviceSpec::Vf(a))).map_err(|e: PciAddressError| e.to_string())
            }
            (None, None) => Ok(None),
        }
    }

    fn new(device: Option<DeviceSpec>, conditional: bool) -> Self {
        match device {
            Some(DeviceSpec::Vf(address)) => {
                Self { pci_addr: Some(address.to_string()), device: None, conditional }
            }
            other => Self { pci_addr: None, device: other.map(String::from), conditional },
        }
    }
}

impl TryFrom<DeviceRequest> for AddDevice {
    type Error = String;

    fn try_from(request: DeviceRequest) -> Result<Self, Self::Error> {
        let device =
            request.device()?.ok_or("'device' or 'pci_addr' is missing: which device shall be added?")?;
        Ok(Self { device, conditional: request.conditional })
    }
}

impl From<AddDevice> for DeviceRequest {
    fn from(request: AddDevice) -> Self {
        Self::new(Some(request.device), request.conditional)
    }
}

impl TryFrom<DeviceRequest> for RemoveDevice {
    type Error = String;

    fn try_from(request: DeviceRequest) -> Result<Self, Self::Error> {
        Ok(Self { device: request.device()?, conditional: request.conditional })
    }
}

impl From<RemoveDevice> for DeviceRequest {
    fn from(request: RemoveDevice) -> Self {
        Self::new(request.device, request.conditional)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in [
            "0000:02:08.0",
            "loopback",
            "null",
            "tap:vm1",
            "packet:eth0",
            "pcap:/tmp/a:b",
            "vhost-user:/tmp/x.sock",
        ] {
            assert_eq!(text.parse::<DeviceSpec>().unwrap().to_string(), text);
        }
        assert_eq!("2:8.0".parse::<DeviceSpec>().unwrap().to_string(), "0000:02:08.0");
    }

    #[test]
    fn what_names_no_device_is_refused() {
        for bad in ["", "tap", "tap:", "tap:a/b", "tap:sixteen-letters-", "pcap:", "eth0", "02:40.0", "xyz:1"]
        {
            assert!(bad.parse::<DeviceSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_that_forge_log_lines_or_fill_the_log_are_refused() {
        for bad in ["tap:a\nb", "pcap:/tmp/x\r\nroot: OK", "vhost-user:/tmp/\u{1b}[2J", "pcap:\u{85}", "\0"] {
            let error = bad.parse::<DeviceSpec>().unwrap_err();
            assert!(matches!(error, DeviceSpecError::ControlCharacter(_)), "{error}");
            assert!(!error.to_string().contains(breaks_lines), "{error}");
        }
        let long = |prefix: &str, length| format!("{prefix}{}", "x".repeat(length - prefix.len()));
        assert!(long("pcap:/", 4096).parse::<DeviceSpec>().is_ok());
        assert_eq!(long("pcap:/", 4097).parse::<DeviceSpec>(), Err(DeviceSpecError::TooLong(4097)));
        for bad in [long("", 4096), long("tap:", 4096), long("1:", 4096), long("pcap:", 9999)] {
            assert!(bad.parse::<DeviceSpec>().unwrap_err().to_string().len() < 250);
        }
    }

    #[test]
    fn requests_name_one_device_and_nothing_unknown() {
        let add: AddDevice = serde_json::from_str(r#"{"pci_addr": "2:8.0", "conditional": true}"#).unwrap();
        assert_eq!(add.device.to_string(), "0000:02:08.0");
        assert!(add.conditional);
        assert_eq!(serde_json::to_string(&add).unwrap(), r#"{"pci_addr":"0000:02:08.0","conditional":true}"#);
        let remove: RemoveDevice = serde_json::from_str("{}").unwrap();
        assert_eq!(remove, RemoveDevice::default());

        for (bad, names) in [
            ("{}", "missing"),
            (r#"{"device":"null","pci_addr":"2:8.0"}"#, "exclude"),
            (r#"{"device":"null","condition":true}"#, "`condition`"),
            (r#"{"device":"nul"}"#, "'nul'"),
            (r#"{"device":7}"#, "integer `7`"),
        ] {
            let error = serde_json::from_str::<AddDevice>(bad).unwrap_err().to_string();
            assert!(error.contains(names), "{bad}: {error}");
        }
    }
}
