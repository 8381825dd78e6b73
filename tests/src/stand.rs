//! A test stand: workers, relays and their sockets, as the daemon has them, in one process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forwarder::watchdog::{Watch, Watchdog};
use forwarder::worker::{Figures, Idle, Worker};
use relay::Relay;
use relay::driver::nic::{GuestNic, NicError, NicOptions};
use relay::guest::endpoint::Endpoint;
use relay::guest::features::GuestOptions;
use relay::guest::positions::Positions;
use relay::guest::socket::{SocketOwner, listen};
use relay::guest::watch::DirectoryWatch;
use relay::relay::{GuestState, Placement};
use relay::zero_copy::ZeroCopy;

use crate::wait::eventually;

/// All that can be offered.
const OFFER: GuestOptions =
    GuestOptions { mergeable: true, segmentation: true, udp_segmentation: true, mtu: None };

/// Some relays on one worker.
#[derive(Debug)]
pub struct Stand {
    // In the order in which they end: guests first, then devices, then the worker.
    endpoints: Vec<Endpoint>,
    relays: Vec<Arc<Relay>>,
    _watchdog: Watchdog,
    worker: Worker,
    watch: DirectoryWatch,
    _folder: tempfile::TempDir,
}

impl Stand {
    /// A stand with `relays` relays without devices.
    ///
    /// # Panics
    /// When the machine has no room for it.
    pub fn new(relays: u32) -> Self {
        Self::with(relays, Idle::default(), ZeroCopy::Off)
    }

    /// The same with devices that are let into the guests' memory.
    ///
    /// # Panics
    /// When the machine has no room for it.
    pub fn with_zero_copy(relays: u32, zero_copy: ZeroCopy) -> Self {
        Self::with(relays, Idle::default(), zero_copy)
    }

    /// The same with a worker that does `idle` when there is nothing to do.
    ///
    /// # Panics
    /// When the machine has no room for it.
    #[allow(clippy::expect_used)]
    pub fn with_idle(relays: u32, idle: Idle) -> Self {
        Self::with(relays, idle, ZeroCopy::Off)
    }

    #[allow(clippy::expect_used)]
    fn with(relays: u32, idle: Idle, zero_copy: ZeroCopy) -> Self {
        let mut stand = Self::without_sockets(relays, idle, zero_copy);
        let endpoint = |relay: &Arc<Relay>| {
            let path = stand.socket(relay.id() as usize);
            let listener = listen(&path, SocketOwner::default()).expect("a socket");
            Endpoint::start(Arc::clone(relay), listener, &path, OFFER, None).expect("a thread")
        };
        stand.endpoints = stand.relays.iter().map(endpoint).collect();
        stand
    }

    /// The same with sockets that guests make ([`Stand::socket`] says where), to which the relays connect.
    ///
    /// # Panics
    /// When the machine has no room for it.
    #[allow(clippy::expect_used)]
    pub fn of_clients(relays: u32) -> Self {
        let mut stand = Self::without_sockets(relays, Idle::default(), ZeroCopy::Off);
        stand.reconnect();
        stand
    }

    /// Ends all endpoints, as the end of a daemon would, and makes others, which connect to the guests' sockets.
    ///
    /// # Panics
    /// When the machine has no room for it.
    #[allow(clippy::expect_used)]
    pub fn reconnect(&mut self) {
        self.endpoints.clear();
        let endpoint = |relay: &Arc<Relay>| {
            let (path, owner) = (self.socket(relay.id() as usize), SocketOwner::default());
            Endpoint::connecting(Arc::clone(relay), &path, owner, &self.watch, OFFER, None).expect("a thread")
        };
        self.endpoints = self.relays.iter().map(endpoint).collect();
    }

    #[allow(clippy::expect_used)]
    fn without_sockets(relays: u32, idle: Idle, zero_copy: ZeroCopy) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let sockets = folder.path().join("sockets");
        std::fs::create_dir(&sockets).expect("a folder");
        let watch = DirectoryWatch::start(&sockets).expect("a watch");
        let cpu = core_affinity_of_last();
        let worker = Worker::start(cpu, idle).expect("a worker");
        let placement = Placement { vf_to_vm: worker.handle().clone(), vm_to_vf: worker.handle().clone() };
        let relay = |id| Arc::new(Relay::new(id, placement.clone()).with_zero_copy(zero_copy));
        let relays: Vec<_> = (0..relays).map(relay).collect();
        let watchdog = Watchdog::start(Watch::new([&worker], Instant::now()), |_| ()).expect("a thread");
        Self { endpoints: Vec::new(), relays, _watchdog: watchdog, worker, watch, _folder: folder }
    }

    /// What the worker has done.
    pub fn figures(&self) -> Figures {
        self.worker.heartbeat().figures()
    }

    /// Waits until the worker sleeps, and goes on sleeping for longer than the next look at anything would take.
    pub fn falls_asleep(&self) {
        eventually("the worker sleeps", || {
            let before = self.figures().passes;
            std::thread::sleep(Duration::from_millis(20));
            self.figures().passes == before
        });
    }

    /// A relay.
    pub fn relay(&self, id: usize) -> &Arc<Relay> {
        &self.relays[id]
    }

    /// The path of a relay's socket.
    pub fn socket(&self, id: usize) -> PathBuf {
        self.watch.directory().join(format!("{id}.sock"))
    }

    /// Gives relay `id` a cable to its own guest.
    ///
    /// # Panics
    /// When the relay has a device.
    #[allow(clippy::expect_used)]
    pub fn loopback(&self, id: usize) {
        self.relays[id].reserve("loopback").expect("a free relay").attach_cable();
    }

    /// Gives relay `id` a cable to another guest, which connects to [`Stand::far_socket`].
    ///
    /// # Panics
    /// When the relay has a device.
    pub fn cable(&self, id: usize) {
        self.cable_with(id, None);
    }

    /// The same, with how far the far guest's packed rings are kept in `positions`.
    ///
    /// # Panics
    /// When the relay has a device.
    #[allow(clippy::expect_used)]
    pub fn cable_with(&self, id: usize, positions: Option<Positions>) {
        let path = self.far_socket(id);
        let listener = listen(&path, SocketOwner::default()).expect("a socket");
        let reservation = self.relays[id].reserve("vhost-user").expect("a free relay");
        let serve = |port| Endpoint::start(port, listener, &path, OFFER, positions);
        reservation.attach_guest(serve).expect("a thread");
    }

    /// The path of the socket at the other end of a relay's cable.
    pub fn far_socket(&self, id: usize) -> PathBuf {
        self.watch.directory().join(format!("{id}-far.sock"))
    }

    /// Connects a guest to the other end of the cable of relay `id`, with its rings running.
    pub fn connect_far(&self, id: usize, options: NicOptions) -> Result<GuestNic, NicError> {
        let nic = GuestNic::connect(&self.far_socket(id), options)?;
        let runs = || self.relays[id].status().far.is_some_and(|far| far.state == GuestState::Ready);
        eventually("the far guest's rings run", runs);
        Ok(nic)
    }

    /// Gives relay `id` a device.
    ///
    /// # Panics
    /// When the relay has one.
    #[allow(clippy::expect_used)]
    pub fn device(&self, id: usize, device: Box<dyn pmd::Device>) {
        let name = device.identity().name.clone();
        self.relays[id].reserve(&name).expect("a free relay").attach(device).expect("a thread");
    }

    /// Connects a guest to relay `id`, with its rings running.
    pub fn connect(&self, id: usize, options: NicOptions) -> Result<GuestNic, NicError> {
        let nic = GuestNic::connect(&self.socket(id), options)?;
        eventually("the guest's rings run", || self.relays[id].status().guest_state == GuestState::Ready);
        Ok(nic)
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.endpoints.clear();
        for relay in &self.relays {
            let _ = relay.remove_device(None);
        }
    }
}

fn core_affinity_of_last() -> usize {
    std::thread::available_parallelism().map_or(0, |cpus| cpus.get() - 1)
}
