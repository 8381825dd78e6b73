//! PCI addresses: domain, bus, device, function.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Where a PCI function sits: `0000:02:08.0`.
///
/// Ordered as `lspci` lists functions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// The text is not a PCI address.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("'{0}' is not a PCI address; write it as 0000:02:08.0 or 02:08.0 (lspci -D lists them)")]
pub struct AddressParseError(String);

impl Address {
    /// Largest device number (5 bits, PCI Local Bus 3.0 §3.2.2.3).
    const MAX_DEVICE: u8 = 0x1f;
    /// Largest function number (3 bits, as above).
    const MAX_FUNCTION: u8 = 7;

    /// The address of these numbers; `None` where `device` is over 31 or `function` over 7.
    pub fn new(domain: u32, bus: u8, device: u8, function: u8) -> Option<Self> {
        (device <= Self::MAX_DEVICE && function <= Self::MAX_FUNCTION).then_some(Self {
            domain,
            bus,
            device,
            function,
        })
    }

    /// How the function names itself on the bus: 8 bits of bus, 5 of device, 3 of function (PCI Express 2.2.6.2).
    pub fn routing_id(&self) -> u16 {
        u16::from(self.bus) << 8 | u16::from(self.device) << 3 | u16::from(self.function)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A hexadecimal number of `digits` digits at least and `most` at most; `from_str_radix` alone would take a sign.
fn hexadecimal(text: &str, digits: usize, most: usize) -> Option<u32> {
    let plain = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    ((digits..=most).contains(&text.len()) && plain).then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

fn parse(text: &str) -> Option<Address> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    // Domains behind a VMD controller have more than four digits.
    let (domain, bus) = match rest.rsplit_once(':') {
        Some((domain, bus)) => (hexadecimal(domain, 4, 8)?, bus),
        None => (0, rest),
    };
    Address::new(
        domain,
        hexadecimal(bus, 2, 2)?.try_into().ok()?,
        hexadecimal(device, 2, 2)?.try_into().ok()?,
        hexadecimal(function, 1, 1)?.try_into().ok()?,
    )
}

impl FromStr for Address {
    type Err = AddressParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| AddressParseError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_and_any_case_are_read() {
        for (text, shown) in [
            ("0000:02:08.0", "0000:02:08.0"),
            ("02:08.7", "0000:02:08.7"),
            ("00AF:fE:1D.3", "00af:fe:1d.3"),
            ("10000:e1:00.0", "10000:e1:00.0"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn other_texts_are_refused_with_an_example() {
        for text in [
            "",
            "02",
            "02:08",
            "2:8.0",
            "02:20.0",
            "02:08.8",
            "02:08.0 ",
            "+2:08.0",
            "000:02:08.0",
            "x:02:08.0",
            "0000-02-08.0",
            "02:08.00",
            "tap:vm1",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("0000:02:08.0"), "{error}");
        }
    }

    #[test]
    fn order_is_by_domain_bus_device_function() {
        let mut list: Vec<Address> =
            ["0001:00:00.0", "00:1f.7", "02:00.1", "02:00.0"].map(|text| text.parse().unwrap()).into();
        list.sort();
        assert_eq!(format!("{list:?}"), "[0000:00:1f.7, 0000:02:00.0, 0000:02:00.1, 0001:00:00.0]");
    }

    proptest! {
        #[test]
        fn text_round_trips(domain in 0u32.., bus: u8, device in 0u8..32, function in 0u8..8) {
            let address = Address::new(domain, bus, device, function).unwrap();
            prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,20}") {
            let _ = text.parse::<Address>();
        }
    }
}
