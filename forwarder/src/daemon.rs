//! The daemon's state, and what the control socket may ask of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use control::api::{
    AddDevice, Counters, Cpus, Device, DeviceSpec, DeviceStatistics, DirectionStatistics, Guest, Link,
    Problem, ProblemCode, Relay as RelayInfo, RelayStatistics, RemoveDevice, Version, Worker as WorkerInfo,
};
use pmd::VfOptions;
use pmd::vf::Wishes;
use relay::counters::{DirectionCounters, DropReason};
use relay::guest::endpoint::Endpoint;
use relay::relay::{DeviceState, GuestState, GuestStatus, Relay, RelayStatus, RemoveError, Reservation};

use crate::device::{Opened, open, problem};
use crate::guests::{Guests, same_socket};
use crate::metrics;
use crate::worker::{Heartbeat, Worker};

/// Everything that serves: relays and their sockets. Workers are kept elsewhere, since they end last.
#[derive(Debug)]
pub struct Forwarder {
    relays: Vec<Arc<Relay>>,
    sockets: Vec<Option<PathBuf>>,
    endpoints: Mutex<Vec<Endpoint>>,
    vf_options: VfOptions,
    /// What VFs are asked for, by relay.
    wishes: BTreeMap<u32, Wishes>,
    guests: Guests,
    /// Held while it is looked whether a device is free: of two that ask for it, one gets it.
    choosing: Mutex<()>,
    /// The workers' CPUs and figures.
    workers: Vec<(usize, Arc<Heartbeat>)>,
}

impl Forwarder {
    /// Takes relays with consecutive ids from 0 and the endpoints that serve them.
    pub fn new(
        relays: Vec<Arc<Relay>>,
        endpoints: Vec<Endpoint>,
        vf_options: VfOptions,
        guests: Guests,
    ) -> Self {
        let socket = |relay: &Arc<Relay>| {
            endpoints
                .iter()
                .find(|endpoint| endpoint.relay() == relay.id())
                .map(|endpoint| endpoint.path().to_owned())
        };
        let sockets = relays.iter().map(socket).collect();
        Self {
            relays,
            sockets,
            endpoints: Mutex::new(endpoints),
            vf_options,
            wishes: BTreeMap::new(),
            guests,
            choosing: Mutex::default(),
            workers: Vec::new(),
        }
    }

    /// Tells of these workers, too.
    pub fn with_workers<'a>(mut self, workers: impl IntoIterator<Item = &'a Worker>) -> Self {
        let known = |worker: &Worker| (worker.handle().cpu, Arc::clone(worker.heartbeat()));
        self.workers = workers.into_iter().map(known).collect();
        self.workers.sort_by_key(|(cpu, _)| *cpu);
        self
    }

    /// Asks the VFs of these relays for something.
    pub fn with_wishes(mut self, wishes: BTreeMap<u32, Wishes>) -> Self {
        self.wishes = wishes;
        self
    }

    /// Opens `spec` for relay `id`.
    pub fn add(&self, id: u32, spec: &DeviceSpec, conditional: bool) -> Result<(), Problem> {
        let name = spec.to_string();
        let Some(reservation) = self.reserve(id, spec, &name, conditional)? else { return Ok(()) };
        let out_of_memory = |cause| {
            Problem::new(ProblemCode::OutOfMemory, format!("no thread for {name} of relay {id}: {cause}"))
        };
        let mut options = self.vf_options.clone();
        if let Some(wishes) = self.wishes.get(&id) {
            options.wishes.clone_from(wishes);
        }
        match open(spec, &options, &self.guests).map_err(|error| problem(&error))? {
            Opened::Loopback => reservation.attach_cable(),
            Opened::Device(device) => reservation.attach(device).map_err(out_of_memory)?,
            Opened::Guest(listener, path) => {
                self.guests.serve_far(id, reservation, listener, &path).map_err(out_of_memory)?;
            }
        }
        Ok(())
    }

    /// The device that relay `id` was to have from the start does not come.
    pub fn stop_awaiting_device(&self, id: u32) {
        if let Ok(relay) = self.find(id) {
            relay.stop_awaiting_device();
        }
    }

    /// Sets the place of relay `id` aside for a device that nobody else has. `None` if it has that very one, and that is
    /// good enough.
    fn reserve(
        &self,
        id: u32,
        spec: &DeviceSpec,
        name: &str,
        conditional: bool,
    ) -> Result<Option<Reservation>, Problem> {
        let relay = self.find(id)?;
        let _choosing = self.choosing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(user) = self.user_of(id, spec, name) {
            let (detail, remedy) = match user {
                User::Device(other) => {
                    (format!("{name} is in use by relay {other}"), "remove it from there first")
                }
                User::Socket(other) => (
                    format!("{name}: that is the socket of relay {other} itself"),
                    "choose another path for the second VM",
                ),
            };
            return Err(Problem::new(ProblemCode::DeviceInUse, detail).with_remedy(remedy));
        }
        match relay.reserve(name) {
            Ok(reservation) => Ok(Some(reservation)),
            Err(occupied) if conditional && occupied.device == name => Ok(None),
            Err(occupied) => Err(Problem::new(ProblemCode::RelayOccupied, occupied.to_string())),
        }
    }

    /// Which other relay has what `spec` of relay `id` names, of those that can be had only once.
    fn user_of(&self, id: u32, spec: &DeviceSpec, name: &str) -> Option<User> {
        let others = || self.relays.iter().filter(|other| other.id() != id);
        match spec {
            DeviceSpec::Vf(_) | DeviceSpec::Tap(_) | DeviceSpec::Packet(_) | DeviceSpec::Pcap(_) => {
                others().find(|other| has_device(other, name)).map(|other| User::Device(other.id()))
            }
            DeviceSpec::VhostUser(path) => {
                let own =
                    |socket: &Option<PathBuf>| socket.as_ref().is_some_and(|own| same_socket(own, path));
                let of_relay = self.sockets.iter().position(own).map(|id| User::Socket(id as u32));
                let far = |other: &&Arc<Relay>| far_socket(other).is_some_and(|far| same_socket(&far, path));
                of_relay.or_else(|| others().find(far).map(|other| User::Device(other.id())))
            }
            _ => None,
        }
    }

    /// Ends all guests' connections and removes all devices, so that VFs are quiet and workers have no lanes.
    pub fn stop(&self) {
        let endpoints = std::mem::take(&mut *self.endpoints.lock().unwrap_or_else(PoisonError::into_inner));
        for endpoint in &endpoints {
            endpoint.stop();
        }
        // Devices before the endpoints are waited for, those of cables too: whatever a front end does to its session, VFs
        // become quiet.
        let (cables, devices): (Vec<_>, Vec<_>) =
            self.relays.iter().partition(|relay| relay.status().far.is_some());
        for relay in devices.into_iter().chain(cables) {
            match relay.remove_device(None) {
                Ok(()) | Err(RemoveError::Nothing(_)) => {}
                Err(error) => tracing::warn!("{error}"),
            }
        }
        drop(endpoints);
    }

    fn find(&self, id: u32) -> Result<&Arc<Relay>, Problem> {
        let count = self.relays.len() as u32;
        self.relays.get(id as usize).ok_or_else(|| Problem::no_relay(id, count))
    }

    fn socket(&self, relay: &Relay) -> Option<String> {
        self.sockets.get(relay.id() as usize)?.as_ref().map(|path| path.display().to_string())
    }

    fn describe(&self, relay: &Relay) -> RelayInfo {
        let status = relay.status();
        RelayInfo {
            id: relay.id(),
            socket: self.socket(relay),
            active: is_active(&status),
            guest_state: guest_state(status.guest_state),
            device_state: device_state(status.device_state),
            guest: status.guest.map(|guest| describe(&guest, status.queue_pairs)),
            cpus: cpus(&status),
            device: status.device.map(|device| {
                let identity = device.identity;
                let speed = match device.link {
                    Some(pmd::Link::Up { speed }) => speed,
                    _ => None,
                };
                Device {
                    pci_addr: pci_address(&device.name),
                    // A cable has no driver; neither has, yet, a device that is just being opened.
                    driver: identity.as_ref().map_or("-", |identity| identity.driver).to_owned(),
                    mac: identity.as_ref().and_then(|identity| identity.mac).map(|mac| mac.to_string()),
                    link: Link { up: matches!(device.link, Some(pmd::Link::Up { .. })), speed },
                    max_frame: identity.as_ref().map_or(0, |identity| identity.max_frame),
                    guest_state: status.far.map(|far| guest_state(far.state)),
                    guest: status.far.and_then(|far| Some(describe(&far.guest?, far.queue_pairs))),
                    name: device.name,
                }
            }),
        }
    }

    fn count(&self, relay: &Relay) -> RelayStatistics {
        let status = relay.status();
        let counters = relay.counters();
        let (device_state, guest_state) =
            (device_state(status.device_state), guest_state(status.guest_state));
        let device = status.device.as_ref();
        RelayStatistics {
            id: relay.id(),
            active: is_active(&status),
            socket: self.socket(relay),
            pci_addr: device.and_then(|device| pci_address(&device.name)),
            device: device.map(|device| device.name.clone()),
            numa_node: None,
            cpus: cpus(&status),
            vf_to_vm: direction(device_state.is_active(), device_state, &counters.vf_to_vm),
            vm_to_vf: direction(guest_state.is_active(), guest_state, &counters.vm_to_vf),
            device_statistics: device.map(|device| DeviceStatistics {
                rx_frames: device.statistics.rx_frames,
                rx_bytes: device.statistics.rx_bytes,
                rx_missed: device.statistics.rx_missed,
                rx_errors: device.statistics.rx_errors,
                tx_frames: device.statistics.tx_frames,
                tx_bytes: device.statistics.tx_bytes,
                tx_errors: device.statistics.tx_errors,
                counters: device.counters.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect(),
            }),
        }
    }
}

impl control::Daemon for Forwarder {
    fn relays(&self) -> Result<Vec<RelayInfo>, Problem> {
        Ok(self.relays.iter().map(|relay| self.describe(relay)).collect())
    }

    fn relay(&self, id: u32) -> Result<RelayInfo, Problem> {
        Ok(self.describe(self.find(id)?))
    }

    fn add_device(&self, id: u32, request: &AddDevice) -> Result<(), Problem> {
        self.add(id, &request.device, request.conditional)
    }

    fn remove_device(&self, id: u32, request: &RemoveDevice) -> Result<(), Problem> {
        let name = request.device.as_ref().map(DeviceSpec::to_string);
        let code = match self.find(id)?.remove_device(name.as_deref()) {
            Ok(()) => return Ok(()),
            Err(RemoveError::Nothing(_)) if request.conditional => return Ok(()),
            Err(error) => match error {
                RemoveError::Nothing(_) => (ProblemCode::NoDevice, error),
                RemoveError::Another { .. } => (ProblemCode::DeviceMismatch, error),
                RemoveError::Busy { .. } => (ProblemCode::DeviceBusy, error),
            },
        };
        Err(Problem::new(code.0, code.1.to_string()))
    }

    fn statistics(&self, ids: &[u32], include_inactive: bool) -> Result<Vec<RelayStatistics>, Problem> {
        let wanted = |relay: &&Arc<Relay>| ids.is_empty() || ids.contains(&relay.id());
        let all = self.relays.iter().filter(wanted).map(|relay| self.count(relay));
        Ok(all.filter(|relay| include_inactive || relay.active).collect())
    }

    fn workers(&self) -> Result<Vec<WorkerInfo>, Problem> {
        let places: Vec<_> = self.relays.iter().map(|relay| (relay.id(), relay.status())).collect();
        let describe = |(cpu, heartbeat): &(usize, Arc<Heartbeat>)| {
            let figures = heartbeat.figures();
            let serves = |status: &RelayStatus| [status.vf_to_vm_cpu, status.vm_to_vf_cpu].contains(cpu);
            let worker = WorkerInfo {
                cpu: *cpu as u32,
                relays: places.iter().filter(|(_, status)| serves(status)).map(|(id, _)| *id).collect(),
                cycles: figures.ticks,
                busy_cycles: figures.busy_ticks,
                frames: figures.frames,
                polls: figures.passes,
                empty_polls: figures.empty_passes,
                sleeps: figures.sleeps,
                ..WorkerInfo::default()
            };
            worker.with_shares()
        };
        Ok(self.workers.iter().map(describe).collect())
    }

    fn version(&self) -> Result<Version, Problem> {
        Ok(Version { name: "virtio-forwarder".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() })
    }

    fn metrics_text(&self) -> Result<String, Problem> {
        metrics::text(&self.relays, &self.workers)
            .map_err(|error| Problem::new(ProblemCode::Internal, format!("cannot write metrics: {error}")))
    }
}

/// Who has what was asked for.
enum User {
    /// It is this relay's device.
    Device(u32),
    /// It is where this relay's own VM is.
    Socket(u32),
}

/// The socket of the VM at the other end of a relay's cable.
fn far_socket(relay: &Relay) -> Option<PathBuf> {
    match relay.status().device?.name.parse() {
        Ok(DeviceSpec::VhostUser(path)) => Some(path),
        _ => None,
    }
}

fn describe(guest: &GuestStatus, queue_pairs: u32) -> Guest {
    Guest::new(guest.features, queue_pairs, guest.mtu)
}

fn has_device(relay: &Relay, name: &str) -> bool {
    relay.status().device.is_some_and(|device| device.name == name)
}

fn pci_address(name: &str) -> Option<control::api::PciAddress> {
    name.parse().ok()
}

fn is_active(status: &RelayStatus) -> bool {
    status.guest_state == GuestState::Ready && status.device_state == DeviceState::Ready
}

fn guest_state(state: GuestState) -> control::api::GuestState {
    match state {
        GuestState::Uninit => control::api::GuestState::Uninit,
        GuestState::Ready => control::api::GuestState::Ready,
    }
}

fn device_state(state: DeviceState) -> control::api::DeviceState {
    match state {
        DeviceState::Uninit => control::api::DeviceState::Uninit,
        DeviceState::Added => control::api::DeviceState::Added,
        DeviceState::Ready => control::api::DeviceState::Ready,
        DeviceState::Removing => control::api::DeviceState::Removing,
    }
}

/// A direction has a CPU while it does something, as the C daemon reported it: VF to VM when a VM can be reached, VM to
/// VF when a VM sends.
fn cpus(status: &RelayStatus) -> Cpus {
    let ready = status.guest_state == GuestState::Ready;
    let running = status.device_state == DeviceState::Ready;
    Cpus {
        vf_to_vm: running.then_some(status.vf_to_vm_cpu as u32),
        vm_to_vf: ready.then_some(status.vm_to_vf_cpu as u32),
    }
}

fn direction<S>(active: bool, internal_state: S, counters: &DirectionCounters) -> DirectionStatistics<S> {
    let drops: BTreeMap<String, u64> =
        DropReason::ALL.iter().map(|reason| (reason.name().to_owned(), counters.dropped(*reason))).collect();
    DirectionStatistics {
        active,
        internal_state,
        counters: active.then(|| Counters {
            rx_packets: counters.rx_frames.get(),
            rx_bytes: counters.rx_bytes.get(),
            tx_packets: counters.tx_frames.get(),
            tx_bytes: counters.tx_bytes.get(),
        }),
        drops: if active { drops } else { BTreeMap::new() },
        rates: None,
    }
}
