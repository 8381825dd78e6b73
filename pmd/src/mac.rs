//! Ethernet addresses.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::str::FromStr;

use thiserror::Error;

/// An Ethernet (EUI-48) address, as on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

/// The text is not six hexadecimal bytes with colons between them.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is not an Ethernet address; write it as 52:54:00:12:34:56")]
pub struct MacParseError(String);

impl MacAddress {
    /// A locally administered address of a station (IEEE 802, bits 1 and 0 of the first byte), drawn by lot.
    pub fn random() -> Self {
        // The standard library seeds its hash maps from the kernel's random numbers.
        let [a, b, c, d, e, f, ..] = RandomState::new().build_hasher().finish().to_le_bytes();
        Self([a & !1 | 2, b, c, d, e, f])
    }

    /// Whether the group bit (IEEE 802, first bit on the wire) is set: multicast and broadcast.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether a station may own this address: not multicast and not all zeros.
    pub fn is_valid_unicast(self) -> bool {
        !self.is_multicast() && self.0 != [0; 6]
    }

    /// The address in the low 48 bits, first byte lowest; 0 is no station's address and serves as "none".
    pub fn to_u64(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    /// The inverse of [`MacAddress::to_u64`]; the upper 16 bits are ignored.
    pub fn from_u64(value: u64) -> Self {
        let [a, b, c, d, e, f, ..] = value.to_le_bytes();
        Self([a, b, c, d, e, f])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddress {
    type Err = MacParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || MacParseError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part =
                parts.next().filter(|part| part.len() == 2 && !part.starts_with('+')).ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Self(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_number_round_trip() {
        let mac: MacAddress = "52:54:00:Ab:cd:01".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:01");
        assert_eq!(MacAddress::from_u64(mac.to_u64()), mac);
        for bad in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:01:02",
            "5:54:00:ab:cd:01",
            "52-54-00-ab-cd-01",
            "zz:54:00:ab:cd:01",
            "+5:54:00:ab:cd:01",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn group_and_zero_addresses_belong_to_no_station() {
        assert!(MacAddress([0x33, 0x33, 0, 0, 0, 1]).is_multicast());
        assert!(!MacAddress([0; 6]).is_valid_unicast());
        assert!(MacAddress([2, 0, 0, 0, 0, 1]).is_valid_unicast());
    }
}
