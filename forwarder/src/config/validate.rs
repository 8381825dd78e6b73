//! From raw text to a configuration that makes sense, with all mistakes at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;

use control::api::{DEFAULT_SOCKET, DeviceSpec, PciAddress};
use control::server::ServerConfig;
use host::bind::Target;
use nix::unistd::{Group, User};
use pmd::MacAddress;
use pmd::vf::Wishes;
use pmd::vfio::VfToken;

use super::layer::{Layer, List, Notice, Sourced, Switch, Tables, Text};
use super::machine::{self, Machine};
use super::sockets::SocketPattern;
use super::{Config, DEFAULT_VHOST_PATH, GuestOffer, InitialDevice, LogLevel, RelaySettings, Sockets};
use crate::placement::Pins;
use crate::worker::Idle;
use relay::guest::session::{MAX_MTU, MIN_MTU};
use relay::zero_copy::ZeroCopy;

/// More relays than this would be a typing error: each has its socket, its descriptors and its memory.
const MOST_RELAYS: u32 = 1024;

/// Most queue pairs of a VF: as many as a guest may have.
const MOST_QUEUE_PAIRS: u16 = 32;
/// Numbers of VLANs end here (IEEE 802.1Q, 9.6).
const MOST_VLANS: u16 = 4094;

/// The token that `0` stands for.
const DPDK_VF_TOKEN: &str = "14d63f20-8445-11ea-8900-1f9ce7d5650d";

/// Collects mistakes, so that the user sees all of them.
pub(super) struct Validator<'a> {
    pub(super) machine: &'a Machine,
    pub(super) errors: Vec<String>,
    pub(super) notices: Vec<Notice>,
}

impl Validator<'_> {
    /// The configuration; it is only good if `errors` is still empty.
    pub(super) fn config(&mut self, layer: Layer) -> Config {
        let relays = self.text(layer.relays, 64, relays);
        let machine = self.machine;
        let workers = self.text(layer.cpus, machine.default_workers(), |text| machine.workers(text));
        let cpus: Vec<usize> = workers.iter().copied().collect();
        let sockets = self.sockets(
            relays,
            layer.vhost_path,
            layer.vhost_socket,
            (layer.vhost_username, layer.vhost_groupname),
            (layer.vhostuser_client, layer.dynamic_sockets),
        );
        let bind = self.targets(layer.bind_vfio_pci);
        let devices = self.devices(relays, layer.add_pci_vf, layer.add_device);
        let pins = self.pins(relays, &cpus, layer.virtio_cpu);
        let relay = self.relay_tables(relays, layer.relay);
        let mut control = ServerConfig::new(self.text(layer.control_socket, DEFAULT_SOCKET.into(), path));
        control.group = self.text(layer.control_group, None, group);
        control.metrics_listen = self.text(layer.metrics_listen, None, |text| {
            let wrong =
                |_| format!("'{text}' is no address; write IP:PORT, as in 127.0.0.1:9100 or [::]:9100");
            text.parse::<SocketAddr>().map(Some).map_err(wrong)
        });
        if let Some(Sourced { origin, .. }) = &layer.enable_jumbo {
            self.notices.push(Notice::Info(format!(
                "{origin} has no effect: VFs are always asked for their largest frame"
            )));
        }
        let guest =
            GuestOffer { mergeable_buffers: on(&layer.enable_mrgbuf), segmentation: on(&layer.enable_tso) };
        Config {
            cpus,
            relays,
            sockets,
            bind,
            devices,
            pins,
            guest,
            relay,
            vf_token: self.text(layer.vfio_vf_token, None, vf_token),
            log_level: self.log_level(layer.loglevel),
            idle: self.text(layer.idle, Idle::default(), idle),
            control,
        }
    }

    /// Reads one word; where it is wrong, the mistake is noted and `default` stands in.
    fn text<T>(&mut self, text: Option<Text>, default: T, read: impl FnOnce(&str) -> Result<T, String>) -> T {
        match text {
            None => default,
            Some(text) => match read(&text.value) {
                Ok(value) => value,
                Err(mistake) => {
                    self.mistake(&text, &mistake);
                    default
                }
            },
        }
    }

    fn mistake<T>(&mut self, at: &Sourced<T>, mistake: &str) {
        self.errors.push(format!("{}: {mistake}", at.origin));
    }

    fn sockets(
        &mut self,
        relays: u32,
        directory: Option<Text>,
        pattern: Option<Text>,
        (owner, group_name): (Option<Text>, Option<Text>),
        (client, dynamic): (Option<Switch>, Option<Switch>),
    ) -> Sockets {
        let at = directory.clone().or_else(|| pattern.clone());
        let directory = self.text(directory, PathBuf::from(DEFAULT_VHOST_PATH), path);
        let pattern = self.text(pattern, SocketPattern::default(), SocketPattern::new);
        if let (Err(mistake), Some(at)) = (pattern.check_length(&directory, relays), at) {
            self.mistake(&at, &mistake);
        }
        Sockets {
            directory,
            pattern,
            owner: self.text(owner, self.machine.vm_user, user),
            group: self.text(group_name, self.machine.vm_group, group),
            client: on(&client),
            dynamic: on(&dynamic),
        }
    }

    fn devices(&mut self, relays: u32, vfs: Option<List>, others: Option<List>) -> Vec<InitialDevice> {
        let vf = |name: &str| name.parse::<PciAddress>().map(DeviceSpec::Vf).map_err(|e| e.to_string());
        let any = |name: &str| name.parse::<DeviceSpec>().map_err(|e| e.to_string());
        let mut devices: Vec<InitialDevice> = Vec::new();
        let vfs = vfs.iter().flatten().map(|item| (item, assigned(&item.value, relays, vf)));
        let others = others.iter().flatten().map(|item| (item, assigned(&item.value, relays, any)));
        for (item, device) in vfs.chain(others).collect::<Vec<_>>() {
            match device {
                Err(mistake) => self.mistake(item, &mistake),
                Ok(new) => match devices.iter().find_map(|other| clash(other, &new)) {
                    Some(mistake) => self.mistake(item, &mistake),
                    None => devices.push(new),
                },
            }
        }
        devices
    }

    fn targets(&mut self, list: Option<List>) -> Vec<Target> {
        let mut targets = Vec::new();
        for item in list.iter().flatten() {
            // The C daemon's script took one list with commas.
            for text in item.value.split(',').map(str::trim).filter(|text| !text.is_empty()) {
                match text.parse::<Target>() {
                    Ok(target) => targets.push(target),
                    Err(mistake) => self.mistake(item, &mistake),
                }
            }
        }
        targets
    }

    fn pins(&mut self, relays: u32, workers: &[usize], pins: Option<List>) -> Pins {
        let mut map = Pins::new();
        for item in pins.iter().flatten() {
            for text in item.value.split(';').filter(|text| !text.trim().is_empty()) {
                match pin(text.trim(), relays, workers) {
                    // As in the C daemon, the last one counts.
                    Ok((relay, pin)) => {
                        map.insert(relay, pin);
                    }
                    Err(mistake) => self.mistake(item, &mistake),
                }
            }
        }
        map
    }

    fn relay_tables(&mut self, relays: u32, tables: Option<Tables>) -> BTreeMap<u32, RelaySettings> {
        let mut map = BTreeMap::new();
        for table in tables.into_iter().flatten() {
            let settings = RelaySettings {
                client: table.vhostuser_client.as_ref().map(|switch| switch.value),
                mtu: self.text(table.mtu, None, mtu),
                zero_copy: self.text(table.zero_copy, ZeroCopy::Off, zero_copy),
                wishes: Wishes {
                    queue_pairs: self.text(table.queue_pairs, NonZero::<u16>::MIN, queue_pairs),
                    mac: self.text(table.mac, None, mac),
                    vlans: table.vlans.into_iter().flatten().filter_map(|item| self.vlan(item)).collect(),
                },
            };
            match relay(&table.id.value, relays) {
                Err(mistake) => self.mistake(&table.id, &mistake),
                Ok(id) if map.contains_key(&id) => {
                    self.mistake(&table.id, &format!("relay {id} has a table before; join the two"));
                }
                Ok(id) => {
                    map.insert(id, settings);
                }
            }
        }
        map
    }

    fn vlan(&mut self, item: Sourced<String>) -> Option<u16> {
        let id = item.value.parse().ok().filter(|id| (1..=MOST_VLANS).contains(id));
        if id.is_none() {
            let text = format!("'{}' is no VLAN; write a number from 1 to {MOST_VLANS}", item.value);
            self.mistake(&item, &text);
        }
        id
    }

    fn log_level(&mut self, text: Option<Text>) -> LogLevel {
        let at = text.clone();
        let level = self.text(text, LogLevel::default().0, |text| {
            text.parse::<u8>().map_err(|_| format!("'{text}' is no log level; write a number from 0 to 7"))
        });
        if let (8.., Some(at)) = (level, at) {
            self.notices
                .push(Notice::Warning(format!("{}: {level} is taken as 7, the highest level", at.origin)));
        }
        LogLevel(level.min(7))
    }
}

fn mtu(text: &str) -> Result<Option<u16>, String> {
    let number = text.parse().ok().filter(|mtu| (MIN_MTU..=MAX_MTU).contains(mtu));
    let wrong = || format!("'{text}' is no MTU; write a number of bytes from {MIN_MTU} to {MAX_MTU}");
    number.map(Some).ok_or_else(wrong)
}

fn queue_pairs(text: &str) -> Result<NonZero<u16>, String> {
    let number = text.parse().ok().filter(|pairs: &NonZero<u16>| pairs.get() <= MOST_QUEUE_PAIRS);
    number.ok_or_else(|| {
        format!("'{text}' is no number of queue pairs; write a number from 1 to {MOST_QUEUE_PAIRS}")
    })
}

fn mac(text: &str) -> Result<Option<MacAddress>, String> {
    let mac = text.parse().ok().filter(|mac: &MacAddress| mac.is_valid_unicast());
    mac.map(Some).ok_or_else(|| {
        format!(
            "'{text}' is no address of a station; write six bytes like 52:54:00:00:00:01, the first one even"
        )
    })
}

fn zero_copy(text: &str) -> Result<ZeroCopy, String> {
    match text {
        "off" => Ok(ZeroCopy::Off),
        "tx" => Ok(ZeroCopy::Transmit),
        "rx" | "both" => Err(format!(
            "'{text}' is not possible: no driver here lets a VF write into a VM's buffers (those of the 82576 and I350 have \
             one buffer size a queue, and would write over the end of smaller ones); write tx or off"
        )),
        _ => Err(format!("'{text}' says nothing about zero-copy; write off or tx")),
    }
}

fn on(switch: &Option<Switch>) -> bool {
    switch.as_ref().is_some_and(|switch| switch.value)
}

fn relays(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (1..=MOST_RELAYS).contains(number));
    number.ok_or_else(|| format!("'{text}' is no number of relays; write a number from 1 to {MOST_RELAYS}"))
}

fn path(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err("an empty path names nothing".to_owned()),
        text if text.starts_with('/') => Ok(PathBuf::from(text)),
        text => Err(format!("'{text}' depends on where the daemon is started; give an absolute path")),
    }
}

fn idle(text: &str) -> Result<Idle, String> {
    match text {
        "adaptive" => Ok(Idle::default()),
        "poll" => Ok(Idle::Poll),
        _ => Err(format!("'{text}' is no way to idle; write adaptive or poll")),
    }
}

fn user(name: &str) -> Result<Option<u32>, String> {
    account("user", name, || Ok(User::from_name(name)?.map(|user| user.uid.as_raw())))
}

fn group(name: &str) -> Result<Option<u32>, String> {
    account("group", name, || Ok(Group::from_name(name)?.map(|group| group.gid.as_raw())))
}

/// The number of a user or group; empty: none, which is that of the process.
fn account(
    kind: &str,
    name: &str,
    look_up: impl FnOnce() -> Result<Option<u32>, nix::Error>,
) -> Result<Option<u32>, String> {
    if name.is_empty() {
        return Ok(None);
    }
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    match look_up() {
        Ok(Some(number)) => Ok(Some(number)),
        Ok(None) => Err(format!("there is no {kind} '{name}' on this machine; create it or name another")),
        Err(error) => Err(format!("cannot look up the {kind} '{name}': {error}")),
    }
}

/// Empty: none.
fn vf_token(text: &str) -> Result<Option<VfToken>, String> {
    let text = match text {
        "" => return Ok(None),
        "0" => DPDK_VF_TOKEN,
        text => text,
    };
    text.parse().map(Some).map_err(|error| format!("{error}, or 0 for that one"))
}

fn relay(text: &str, relays: u32) -> Result<u32, String> {
    let id: u32 = text.trim().parse().map_err(|_| format!("'{text}' is no relay id"))?;
    if id < relays {
        return Ok(id);
    }
    let last = relays - 1;
    Err(format!("there is no relay {id}; they are numbered from 0 to {last}, and --relays makes more"))
}

/// `DEVICE=ID`.
fn assigned(
    text: &str,
    relays: u32,
    device: impl FnOnce(&str) -> Result<DeviceSpec, String>,
) -> Result<InitialDevice, String> {
    let Some((name, id)) = text.rsplit_once('=') else {
        return Err(format!("'{text}' lacks the relay; write DEVICE=ID, as in {text}=1"));
    };
    Ok(InitialDevice { device: device(name)?, relay: relay(id, relays)? })
}

fn clash(old: &InitialDevice, new: &InitialDevice) -> Option<String> {
    if old.relay == new.relay {
        return Some(format!(
            "relay {} gets {} and {}; it can have one device",
            old.relay, old.device, new.device
        ));
    }
    // Each relay can have its own loopback, or nothing.
    let shared = matches!(new.device, DeviceSpec::Loopback | DeviceSpec::Null);
    (old.device == new.device && !shared)
        .then(|| format!("{} goes to relay {} and to relay {}", new.device, old.relay, new.relay))
}

/// `ID:CPU[,CPU]`.
fn pin(text: &str, relays: u32, workers: &[usize]) -> Result<(u32, (usize, usize)), String> {
    let wrong = || format!("'{text}' is no pin; write ID:CPU or ID:CPU,CPU (VF to VM, VM to VF)");
    let (id, rest) = text.split_once(':').ok_or_else(wrong)?;
    let cpu = |text: &str| -> Result<usize, String> {
        let cpu = text.trim().parse().map_err(|_| wrong())?;
        if workers.contains(&cpu) {
            return Ok(cpu);
        }
        let all = machine::list(&workers.iter().copied().collect());
        Err(format!("'{text}' in '{id}:{rest}' is no worker CPU; those are {all} (--cpus)"))
    };
    let (first, second) = rest.split_once(',').unwrap_or((rest, rest));
    Ok((relay(id, relays)?, (cpu(first)?, cpu(second)?)))
}
