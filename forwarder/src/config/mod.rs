//! What the daemon shall do, from four places: command line over TOML file over defaults file over what is built in.
//!
//! ```text
//!   options ────────┐
//!   TOML file ──────┼─▶ Layer over Layer over Layer ──▶ validate ──▶ Config, or all mistakes at once
//!   defaults file ──┘        (raw text with its place)
//! ```

mod defaults_file;
mod layer;
mod machine;
mod options;
mod shell;
mod sockets;
mod toml_file;
mod validate;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use control::api::{Configuration, ConfiguredRelay, Cpus, DeviceSpec};
use control::server::ServerConfig;
use host::bind::Target;
use pmd::vf::Wishes;
use pmd::vfio::VfToken;
use relay::zero_copy::ZeroCopy;
use thiserror::Error;
use tracing::level_filters::LevelFilter;

use layer::Layer;
pub use layer::Notice;
pub use machine::Machine;
pub use options::{Command, CommandLine, Options};
pub use sockets::SocketPattern;
use validate::Validator;

use crate::placement::{Pins, cpus_of};
use crate::worker::Idle;

/// Directory of the vhost-user sockets, as the documentation of the C daemon has it.
pub const DEFAULT_VHOST_PATH: &str = "/tmp/virtio-forwarder";

/// The validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// CPUs of the workers, in order; at least one.
    pub cpus: Vec<usize>,
    /// Number of relays.
    pub relays: u32,
    /// The vhost-user sockets.
    pub sockets: Sockets,
    /// Functions to hand to vfio-pci before that.
    pub bind: Vec<Target>,
    /// Devices to add at start; no relay and no device occurs twice.
    pub devices: Vec<InitialDevice>,
    /// Relays that are pinned to CPUs, all of them among `cpus`.
    pub pins: Pins,
    /// What VMs are offered.
    pub guest: GuestOffer,
    /// What is set for single relays, by their ids.
    pub relay: BTreeMap<u32, RelaySettings>,
    /// Token for VFs whose PF is held by VFIO, too.
    pub vf_token: Option<VfToken>,
    /// How much to log.
    pub log_level: LogLevel,
    /// What idle workers do.
    pub idle: Idle,
    /// The control socket, its group, and the address for metrics.
    pub control: ServerConfig,
}

/// What is set for one relay, over what holds for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelaySettings {
    /// Whether the VM makes the socket; `None`: as [`Sockets::client`] says.
    pub client: Option<bool>,
    /// The largest MTU that a front end may set, in bytes; `None`: what any relay can do.
    pub mtu: Option<u16>,
    /// How far devices are let into the VM's memory.
    pub zero_copy: ZeroCopy,
    /// What its VF is asked for.
    pub wishes: Wishes,
}

/// The vhost-user sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockets {
    /// Where they are.
    pub directory: PathBuf,
    /// What they are called.
    pub pattern: SocketPattern,
    /// Their owner; `None`: the daemon's user.
    pub owner: Option<u32>,
    /// Their group; `None`: the daemon's group.
    pub group: Option<u32>,
    /// VMs make the sockets, the daemon connects; single relays may do otherwise ([`Config::is_client`]).
    pub client: bool,
    /// None are made at start.
    pub dynamic: bool,
}

impl Sockets {
    /// The path of relay `id`.
    pub fn path(&self, id: u32) -> PathBuf {
        self.pattern.path(&self.directory, id)
    }
}

/// A device that a relay gets at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialDevice {
    /// The relay.
    pub relay: u32,
    /// The device.
    pub device: DeviceSpec,
}

/// What VMs are offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestOffer {
    /// Mergeable receive buffers.
    pub mergeable_buffers: bool,
    /// TCP segmentation offload.
    pub segmentation: bool,
}

/// A threshold of the log as syslog counts: 0 (emergencies) to 7 (debugging).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLevel(u8);

impl Default for LogLevel {
    fn default() -> Self {
        Self(6)
    }
}

impl LogLevel {
    /// The number.
    pub fn number(self) -> u8 {
        self.0
    }

    /// The same for `tracing`.
    pub fn filter(self) -> LevelFilter {
        match self.0 {
            0..=3 => LevelFilter::ERROR,
            4 => LevelFilter::WARN,
            5 | 6 => LevelFilter::INFO,
            _ => LevelFilter::DEBUG,
        }
    }
}

/// Everything that is wrong with the configuration. Each mistake names its place and what to write instead.
#[derive(Debug, Error)]
#[error("the configuration cannot be used:\n  {}", mistakes.join("\n  "))]
pub struct ConfigError {
    /// The mistakes.
    pub mistakes: Vec<String>,
    /// What else there is to say; it may explain a mistake.
    pub notices: Vec<Notice>,
}

/// Where the files are when no option says so.
#[derive(Clone, Debug)]
pub struct Locations {
    /// The TOML file.
    pub config: PathBuf,
    /// The defaults file.
    pub defaults: PathBuf,
}

impl Default for Locations {
    fn default() -> Self {
        Self {
            config: "/etc/virtio-forwarder/config.toml".into(),
            defaults: "/etc/default/virtioforwarder".into(),
        }
    }
}

impl Config {
    /// Whether the VM of relay `id` makes the socket and the daemon connects to it.
    pub fn is_client(&self, id: u32) -> bool {
        self.relay.get(&id).and_then(|relay| relay.client).unwrap_or(self.sockets.client)
    }

    /// The largest MTU that the front end of relay `id` may set, in bytes.
    pub fn mtu(&self, id: u32) -> Option<u16> {
        self.relay.get(&id)?.mtu
    }

    /// How far devices of relay `id` are let into the VM's memory.
    pub fn zero_copy(&self, id: u32) -> ZeroCopy {
        self.relay.get(&id).map_or(ZeroCopy::Off, |relay| relay.zero_copy)
    }

    /// What the VFs of relays are asked for, where anything is set.
    pub fn wishes(&self) -> BTreeMap<u32, Wishes> {
        self.relay.iter().map(|(id, relay)| (*id, relay.wishes.clone())).collect()
    }

    /// What a machine has to be prepared for.
    pub fn summary(&self) -> Configuration {
        let cpu = |cpu: usize| u32::try_from(cpu).ok();
        let relay = |id| {
            let device = self.devices.iter().find(|device| device.relay == id).map(|one| one.device.clone());
            let (vf_to_vm, vm_to_vf) = cpus_of(id, &self.cpus, &self.pins).unzip();
            let cpus = Cpus { vf_to_vm: vf_to_vm.and_then(cpu), vm_to_vf: vm_to_vf.and_then(cpu) };
            ConfiguredRelay { id, device, cpus }
        };
        Configuration {
            cpus: self.cpus.iter().copied().filter_map(cpu).collect(),
            vhost_path: self.sockets.directory.clone(),
            relays: (0..self.relays).map(relay).collect(),
        }
    }

    /// Reads the files and puts everything together. The notices are for the log, once it is open.
    pub fn load(
        options: &Options,
        locations: &Locations,
        machine: &Machine,
    ) -> Result<(Self, Vec<Notice>), ConfigError> {
        let mut check = Validator { machine, errors: Vec::new(), notices: options.notices().collect() };
        let toml = match read(options.config.as_deref(), "--config", &locations.config, &mut check.errors) {
            Some((path, text)) => toml_file::parse(path, &text).unwrap_or_else(|mistake| {
                check.errors.push(mistake);
                Layer::default()
            }),
            None => Layer::default(),
        };
        let defaults =
            match read(options.defaults.as_deref(), "--defaults", &locations.defaults, &mut check.errors) {
                Some((path, text)) => {
                    let file = defaults_file::parse(path, &text);
                    check.errors.extend(file.errors);
                    check.notices.extend(file.notices);
                    file.layer
                }
                None => Layer::default(),
            };
        let config = check.config(options.layer().over(toml).over(defaults));
        match check.errors.is_empty() {
            true => Ok((config, check.notices)),
            false => Err(ConfigError { mistakes: check.errors, notices: check.notices }),
        }
    }
}

/// The contents of a file: the one that an option names must be there, the usual one may be.
fn read<'a>(
    named: Option<&'a Path>,
    option: &str,
    usual: &'a Path,
    errors: &mut Vec<String>,
) -> Option<(&'a Path, String)> {
    let path = named.unwrap_or(usual);
    match fs::read_to_string(path) {
        Ok(text) => Some((path, text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => None,
        Err(error) => {
            let by = if named.is_some() { format!("{option}: ") } else { String::new() };
            errors.push(format!("{by}cannot read '{}': {error}", path.display()));
            None
        }
    }
}

#[cfg(test)]
mod tests;
