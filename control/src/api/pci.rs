//! PCI addresses as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::shown::shown;

/// The address of a PCI function: `0000:02:08.0`, or `02:08.0` in domain 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    /// Domain; more than 16 bits behind some host bridges.
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device (slot) on the bus, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

/// The text is not a PCI address.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("'{0}' is not a PCI address; write it as 0000:02:08.0 or 02:08.0 (lspci -D shows it)")]
pub struct PciAddressError(String);

impl FromStr for PciAddress {
    type Err = PciAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| PciAddressError(shown(text)))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.split_once(':').unwrap_or(("0", rest));
    let address = PciAddress {
        domain: hex(domain, 8)?,
        bus: u8::try_from(hex(bus, 2)?).ok()?,
        device: u8::try_from(hex(device, 2)?).ok()?,
        function: u8::try_from(hex(function, 1)?).ok()?,
    };
    (address.device < 32 && address.function < 8).then_some(address)
}

/// `from_str_radix` alone would take a sign.
fn hex(digits: &str, most: usize) -> Option<u32> {
    let plain = (1..=most).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl TryFrom<String> for PciAddress {
    type Error = PciAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_mean_the_same_function() {
        for text in ["0000:02:08.0", "02:08.0", "0:2:8.0"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), "0000:02:08.0", "{text}");
        }
        assert_eq!("10000:AF:1f.7".parse::<PciAddress>().unwrap().to_string(), "10000:af:1f.7");
    }

    #[test]
    fn what_is_no_address_is_refused_by_name() {
        for bad in [
            "",
            "nonsense",
            "02:08",
            "02:20.0",
            "02:08.8",
            "0000:02:08.0.0",
            "02:+8.0",
            "100:08.00",
            "a:b:c:d.0",
        ] {
            let error = bad.parse::<PciAddress>().unwrap_err();
            assert!(error.to_string().contains(&format!("'{bad}'")), "{error}");
        }
    }
}
