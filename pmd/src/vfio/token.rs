//! The VF token: what a VF's user shows when the PF is in the hands of VFIO, too.

use std::fmt;
use std::str::FromStr;

/// A UUID that the PF's user and the VFs' users agreed on (`VFIO_DEVICE_FEATURE_PCI_VF_TOKEN`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VfToken([u8; 16]);

impl VfToken {
    /// The 16 bytes in the order in which they are written.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for VfToken {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let groups: Vec<&str> = text.split('-').collect();
        let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
        let digits = groups.concat();
        if lengths != [8, 4, 4, 4, 12] || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(NoToken(text.to_owned()));
        }
        u128::from_str_radix(&digits, 16)
            .map(|number| Self(number.to_be_bytes()))
            .map_err(|_| NoToken(text.to_owned()))
    }
}

impl fmt::Display for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

/// Whoever knows it may take a PF's VFs, so it is not for logs.
impl fmt::Debug for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VfToken(…)")
    }
}

/// What is no UUID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no VF token; write a UUID such as 14d63f20-8445-11ea-8900-1f9ce7d5650d")]
pub struct NoToken(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_written_as_it_was_read() {
        let text = "14d63f20-8445-11ea-8900-1f9ce7d5650d";
        let token: VfToken = text.to_uppercase().parse().unwrap();
        assert_eq!(token.to_string(), text);
        assert_eq!(token.as_bytes()[..5], [0x14, 0xd6, 0x3f, 0x20, 0x84]);
        assert!(!format!("{token:?}").contains("14d6"));
    }

    #[test]
    fn what_is_no_uuid_is_no_token() {
        for text in [
            "",
            "0",
            "14d63f20844511ea89001f9ce7d5650d",
            "14d63f20-8445-11ea-8900-1f9ce7d5650g",
            "+4d63f20-8445-11ea-8900-1f9ce7d5650d",
        ] {
            assert!(text.parse::<VfToken>().is_err(), "{text}");
        }
    }
}
