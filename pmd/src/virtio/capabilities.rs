//! Where a device has its configuration structures: vendor-specific capabilities in its configuration space (virtio 1.3,
//! 4.1.4).
//!
//! ```text
//!   id 9, next, length, cfg_type, bar, id, 2 × padding, offset 32, length 32    [, notify_off_multiplier 32]
//! ```

use std::sync::Arc;

use super::registers::COMMON_BYTES;
use crate::device::DeviceError;
use crate::pci::PciFunction;
use crate::registers::{Caching, Registers};

/// Where the list begins, and whether there is one (PCI Local Bus 3.0, 6.7).
const STATUS: usize = 6;
const STATUS_LIST: u8 = 1 << 4;
const LIST: usize = 0x34;
const VENDOR: u8 = 9;
/// Types of structures.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const DEVICE: u8 = 4;
/// BARs that a function can have; other numbers are reserved.
const BARS: u8 = 6;
/// Fewest bytes of the device's own structure: MAC and status.
const NET_BYTES: u32 = 8;
/// Most bytes that are mapped of any structure; notification areas can be larger than anybody needs.
const MOST: u32 = 4 << 20;

/// A structure in a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    bar: u8,
    offset: u32,
    len: u32,
}

/// All that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structures {
    common: Structure,
    notify: Structure,
    device: Structure,
    /// Bytes between the notification addresses of two queues.
    pub multiplier: u32,
}

/// The structures, mapped.
#[derive(Debug)]
pub struct Mapped {
    /// Common configuration.
    pub common: Arc<dyn Registers>,
    /// Notification area, its length in bytes, and where it is in its BAR.
    pub notify: (Arc<dyn Registers>, u32, u32),
    /// The device's own configuration, and its length in bytes.
    pub device: (Arc<dyn Registers>, u32),
    /// Bytes between the notification addresses of two queues.
    pub multiplier: u32,
}

impl Structures {
    /// Reads them off the first 256 bytes of a configuration space; `Err` with the name of a structure that is not there.
    /// The first usable one of a type counts, as the device orders them by its preference (4.1.4.1).
    pub fn of(config: &[u8; 256]) -> Result<Self, &'static str> {
        let (mut common, mut notify, mut device) = (None, None, None);
        let mut at = usize::from(config[LIST] & !3);
        // A list that bites its tail ends, too.
        for _ in 0..config.len() / 4 {
            if config[STATUS] & STATUS_LIST == 0 || at < 0x40 || at + 16 > config.len() {
                break;
            }
            let word = |n: usize| {
                let bytes = config.get(at + n..at + n + 4).and_then(|bytes| bytes.try_into().ok());
                bytes.map_or(0, u32::from_le_bytes)
            };
            let (len, kind, bar) = (config[at + 2], config[at + 3], config[at + 4]);
            let structure = Structure { bar, offset: word(8), len: word(12).min(MOST) };
            let usable = config[at] == VENDOR && len >= 16 && bar < BARS;
            match kind {
                COMMON if usable && structure.len >= COMMON_BYTES => common = common.or(Some(structure)),
                NOTIFY if usable && len >= 20 && structure.len >= 2 => {
                    notify = notify.or(Some((structure, word(16))));
                }
                DEVICE if usable && structure.len >= NET_BYTES => device = device.or(Some(structure)),
                _ => {}
            }
            at = usize::from(config[at + 1] & !3);
        }
        let common = common.ok_or("common configuration")?;
        let (notify, multiplier) = notify.ok_or("notification")?;
        let device = device.ok_or("device configuration")?;
        Ok(Self { common, notify, device, multiplier })
    }

    /// What is wrong with where they are: the first one that its own accesses would not be aligned in (4.1.4.3.1, 4.1.4.4.1,
    /// 4.1.4.6.1).
    pub fn misplaced(&self) -> Option<String> {
        let structures = [
            ("common configuration", self.common, 4),
            ("notification", self.notify, 2),
            ("device", self.device, 4),
        ];
        structures.into_iter().find(|(_, at, step)| !at.offset.is_multiple_of(*step)).map(
            |(name, at, step)| {
                format!(
                    "its {name} structure is at {:#x} of BAR {}, which is no multiple of {step}",
                    at.offset, at.bar
                )
            },
        )
    }

    /// Maps them; each must lie in its BAR.
    pub fn map(&self, function: &Arc<dyn PciFunction>) -> Result<Mapped, DeviceError> {
        let map = |at: Structure| {
            Arc::clone(function).bar(at.bar, at.offset.into(), at.len as usize, Caching::Uncached)
        };
        Ok(Mapped {
            common: map(self.common)?,
            notify: (map(self.notify)?, self.notify.len, self.notify.offset),
            device: (map(self.device)?, self.device.len),
            multiplier: self.multiplier,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(config: &mut [u8; 256], at: usize, next: u8, kind: u8, bar: u8, offset: u32, len: u32) {
        config[at..at + 5].copy_from_slice(&[VENDOR, next, 20, kind, bar]);
        config[at + 8..at + 12].copy_from_slice(&offset.to_le_bytes());
        config[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
        config[at + 16] = 4;
    }

    fn config() -> [u8; 256] {
        let mut config = [0; 256];
        (config[STATUS], config[LIST]) = (STATUS_LIST, 0x40);
        put(&mut config, 0x40, 0x54, COMMON, 4, 0, 0x1000);
        put(&mut config, 0x54, 0x68, DEVICE, 4, 0x2000, 0x1000);
        put(&mut config, 0x68, 0, NOTIFY, 4, 0x3000, 0x1000);
        config
    }

    #[test]
    fn structures_are_found_where_the_capabilities_say() {
        let found = Structures::of(&config()).unwrap();
        assert_eq!(found.multiplier, 4);
        assert_eq!(found.device, Structure { bar: 4, offset: 0x2000, len: 0x1000 });
    }

    #[test]
    fn a_structure_whose_words_would_not_be_aligned_is_named() {
        assert_eq!(Structures::of(&config()).unwrap().misplaced(), None);
        for (at, kind, offset, words) in [
            (0x40, COMMON, 0x1002, "common configuration structure is at 0x1002 of BAR 4"),
            (0x54, DEVICE, 0x2001, "device structure is at 0x2001 of BAR 4"),
            (0x68, NOTIFY, 0x3001, "notification structure is at 0x3001 of BAR 4, which is no multiple of 2"),
        ] {
            let mut config = config();
            let next = config[at + 1];
            put(&mut config, at, next, kind, 4, offset, 0x1000);
            let misplaced = Structures::of(&config).unwrap().misplaced();
            assert!(misplaced.as_ref().is_some_and(|text| text.contains(words)), "{misplaced:?}");
        }
    }

    #[test]
    fn the_first_that_can_be_used_counts() {
        let mut config = config();
        config[0x6b] = COMMON;
        assert_eq!(Structures::of(&config), Err("notification"));
        put(&mut config, 0x68, 0x80, NOTIFY, 7, 0x3000, 0x1000);
        put(&mut config, 0x80, 0, NOTIFY, 2, 0x5000, 0x10);
        assert_eq!(Structures::of(&config).unwrap().notify, Structure { bar: 2, offset: 0x5000, len: 0x10 });
        put(&mut config, 0x40, 0x54, COMMON, 4, 0, 0x10);
        assert_eq!(Structures::of(&config), Err("common configuration"));
        config[STATUS] = 0;
        assert!(Structures::of(&config).is_err());
    }

    proptest! {
        #[test]
        fn any_configuration_space_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 256)) {
            let mut config: [u8; 256] = bytes.try_into().unwrap();
            config[STATUS] |= STATUS_LIST;
            let _ = Structures::of(&config);
        }
    }
}
