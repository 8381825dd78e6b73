//! The life of the daemon: start, serve, stop.
//!
//! ```text
//!   workers → relays → sockets → control socket → devices given at start → READY=1 → … → SIGTERM →
//!   control socket closed → guests disconnected → devices quiet → workers ended
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use control::api::DeviceSpec;
use control::server::{Server, ServerConfig};
use pmd::VfOptions;
use relay::Relay;
use relay::guest::endpoint::Endpoint;
use relay::guest::features::GuestOptions;
use relay::guest::socket::{SocketOwner, listen, prepare_directory};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::daemon::Forwarder;
use crate::placement::{Pins, place};
use crate::watchdog::{Watch, Watchdog, tell_systemd};
use crate::worker::{Idle, Worker};

/// All that the daemon needs to know, checked.
#[derive(Clone, Debug)]
pub struct Setup {
    /// CPUs of the workers; at least one.
    pub cpus: Vec<usize>,
    /// What workers do without work.
    pub idle: Idle,
    /// Number of relays.
    pub relays: u32,
    /// Directory of the vhost-user sockets.
    pub vhost_path: PathBuf,
    /// File name of a socket; `%u` is the virtio-id.
    pub socket_pattern: String,
    /// Whether relays have sockets from the start.
    pub sockets: bool,
    /// Owner of the sockets.
    pub owner: SocketOwner,
    /// What guests are offered.
    pub guest: GuestOptions,
    /// Relays bound to CPUs.
    pub pins: Pins,
    /// Devices to add at start.
    pub devices: Vec<(u32, DeviceSpec)>,
    /// How VFs are opened.
    pub vf_options: VfOptions,
    /// The control socket.
    pub control: ServerConfig,
}

/// Serves until SIGTERM or SIGINT.
pub fn run(setup: Setup) -> anyhow::Result<()> {
    let begin = Instant::now();
    // Signals first: one that comes during the start ends it in order.
    let mut signals =
        signal_hook::iterator::Signals::new([SIGTERM, SIGINT]).context("cannot handle signals")?;
    let workers =
        setup.cpus.iter().map(|cpu| Worker::start(*cpu, setup.idle)).collect::<Result<Vec<_>, _>>()?;
    let beats = workers.iter().map(|worker| (worker.handle().cpu, Arc::clone(worker.heartbeat())));
    let _watchdog = Watchdog::start(Watch::new(beats, Instant::now()), tell_systemd)
        .context("cannot start the watchdog")?;
    let server = Server::bind(&setup.control).context("no control socket")?;
    let relays = make_relays(&setup, &workers)?;
    let endpoints = if setup.sockets { serve(&setup, &relays)? } else { Vec::new() };
    let forwarder = Arc::new(Forwarder::new(relays, endpoints, setup.vf_options.clone()));
    let control = server.spawn(forwarder.clone()).context("no control thread")?;
    tracing::info!(
        "virtio-forwarder {} serves {} relays in {} with workers on CPUs {:?}, {:.0} ms after its start",
        env!("CARGO_PKG_VERSION"),
        setup.relays,
        setup.vhost_path.display(),
        setup.cpus,
        begin.elapsed().as_secs_f64() * 1e3
    );
    for (id, device) in &setup.devices {
        // As in the C daemon a device that is not there does not keep the others from being served.
        if let Err(problem) = forwarder.add(*id, device, false) {
            tracing::error!("cannot add {device} to relay {id}: {problem}");
        }
    }
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
    if let Some(signal) = signals.forever().next() {
        tracing::info!("stopping on signal {signal}");
    }
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    if let Err(error) = control.stop() {
        tracing::warn!("control socket: {error}");
    }
    forwarder.stop();
    drop(workers);
    tracing::info!("stopped");
    Ok(())
}

fn make_relays(setup: &Setup, workers: &[Worker]) -> anyhow::Result<Vec<Arc<Relay>>> {
    let relay = |id| {
        let placement = place(id, workers, &setup.pins)
            .with_context(|| format!("relay {id} is pinned to a CPU that has no worker: add it to --cpus"))?;
        Ok(Arc::new(Relay::new(id, placement)))
    };
    (0..setup.relays).map(relay).collect()
}

fn serve(setup: &Setup, relays: &[Arc<Relay>]) -> anyhow::Result<Vec<Endpoint>> {
    prepare_directory(&setup.vhost_path, setup.owner)?;
    let endpoint = |relay: &Arc<Relay>| {
        let path = setup.vhost_path.join(setup.socket_pattern.replacen("%u", &relay.id().to_string(), 1));
        let listener = listen(&path, setup.owner)?;
        Endpoint::start(Arc::clone(relay), listener, &path, setup.guest)
            .with_context(|| format!("no thread to serve {}", path.display()))
    };
    relays.iter().map(endpoint).collect()
}
