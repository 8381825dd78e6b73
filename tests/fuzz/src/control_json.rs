//! Text from control clients and administrators: requests, device names, configuration files.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use control::api::{AddDevice, DeviceSpec, PciAddress, Relay, RelayStatistics, RemoveDevice, Version};
use forwarder::config::{Config, Locations, Machine, Options};
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{from_slice, to_vec};

/// What was understood means the same when it is said again.
macro_rules! round_trip {
    ($type:ty, $bytes:expr) => {
        if let Ok(value) = from_slice::<$type>($bytes) {
            let said = to_vec(&value).expect("what was read can be written");
            same(&from_slice::<$type>(&said).expect("what was written can be read"), &value);
        }
    };
}

fn same<T: Debug>(again: &T, first: &T) {
    assert_eq!(format!("{again:?}"), format!("{first:?}"));
}

thread_local! {
    /// Where the configuration is read from.
    static FILE: RefCell<Option<File>> = const { RefCell::new(None) };
}

fn in_a_file(bytes: &[u8], use_it: impl FnOnce(PathBuf)) {
    FILE.with_borrow_mut(|file| {
        let file = file.get_or_insert_with(|| {
            File::from(memfd_create("configuration", MemfdFlags::CLOEXEC).expect("a memfd"))
        });
        file.set_len(0).expect("it shrinks");
        file.write_all_at(bytes, 0).expect("it grows");
        use_it(format!("/proc/self/fd/{}", file.as_raw_fd()).into());
    });
}

fn load(options: &Options) {
    let nowhere = Locations { config: "/nonexistent/toml".into(), defaults: "/nonexistent/defaults".into() };
    let cpus = BTreeSet::from([0, 1, 2, 3]);
    let machine = Machine { online: cpus.clone(), allowed: cpus, vm_user: None, vm_group: None };
    match Config::load(options, &nowhere, &machine) {
        Ok((config, notices)) => drop(format!("{config:?}{notices:?}")),
        Err(error) => drop(format!("{error} {error:?}")),
    }
}

/// The first byte says what the rest is.
pub fn run(data: &[u8]) {
    let Some((kind, text)) = data.split_first() else { return };
    match kind % 8 {
        0 => round_trip!(AddDevice, text),
        1 => round_trip!(RemoveDevice, text),
        2 => {
            let Ok(text) = str::from_utf8(text) else { return };
            if let Ok(device) = text.parse::<DeviceSpec>() {
                assert_eq!(device.to_string().parse(), Ok(device));
            }
            if crate::planted()
                && let Some(name) = text.strip_prefix("tap:")
            {
                // The kernel's buffer for it, and a check that is missing.
                [0; 16][..name.len()].copy_from_slice(name.as_bytes());
            }
        }
        3 => {
            let Ok(text) = str::from_utf8(text) else { return };
            if let Ok(address) = text.parse::<PciAddress>() {
                assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
        4 => round_trip!(Relay, text),
        5 => {
            round_trip!(RelayStatistics, text);
            round_trip!(Version, text);
        }
        6 => in_a_file(text, |path| {
            let mut options = Options::default();
            options.config = Some(path);
            load(&options);
        }),
        _ => in_a_file(text, |path| {
            let mut options = Options::default();
            options.defaults = Some(path);
            load(&options);
        }),
    }
}
