//! The life of the daemon: start, serve, stop.
//!
//! ```text
//!   workers → relays → sockets → control socket → functions bound, devices given at start → READY=1 → … → SIGTERM →
//!   control socket closed → guests disconnected → devices quiet → workers ended
//! ```

use std::collections::BTreeSet;
use std::slice;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use control::server::Server;
use host::{Address, Machine};
use pmd::VfOptions;
use relay::Relay;
use relay::guest::endpoint::Endpoint;
use relay::guest::socket::{listen, prepare_directory};
use relay::guest::watch::DirectoryWatch;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::config::{Config, InitialDevice};
use crate::daemon::Forwarder;
use crate::guests::Guests;
use crate::placement::place;
use crate::watchdog::{Watch, Watchdog, tell_systemd};
use crate::worker::Worker;

/// Serves until SIGTERM or SIGINT; SIGHUP (a closed terminal) does not end it.
pub fn run(config: &Config) -> anyhow::Result<()> {
    complain(config);
    let begin = Instant::now();
    // Signals first: one that comes during the start ends it in order.
    let mut signals =
        signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot handle signals")?;
    allow_descriptors();
    let workers =
        config.cpus.iter().map(|cpu| Worker::start(*cpu, config.idle)).collect::<Result<Vec<_>, _>>()?;
    let _watchdog = Watchdog::start(Watch::new(&workers, Instant::now()), tell_systemd)
        .context("cannot start the watchdog")?;
    let server = Server::bind(&config.control)?;
    let relays = make_relays(config, &workers)?;
    let watch = (0..config.relays)
        .any(|id| config.is_client(id))
        .then(|| DirectoryWatch::start(&config.sockets.directory))
        .transpose()
        .with_context(|| format!("cannot watch {}", config.sockets.directory.display()))?;
    let guests = Guests::new(config);
    let endpoints =
        if config.sockets.dynamic { Vec::new() } else { serve(config, &guests, &relays, watch.as_ref())? };
    let vf_options = VfOptions { token: config.vf_token, ..VfOptions::default() };
    let forwarder = Forwarder::new(relays, endpoints, vf_options, guests)
        .with_workers(&workers)
        .with_wishes(config.wishes());
    let forwarder = Arc::new(forwarder);
    let control = server.spawn(forwarder.clone()).context("no control thread")?;
    tracing::info!(
        "virtio-forwarder {} serves {} relays in {} with workers on CPUs {:?}, {:.0} ms after its start",
        env!("CARGO_PKG_VERSION"),
        config.relays,
        config.sockets.directory.display(),
        config.cpus,
        begin.elapsed().as_secs_f64() * 1e3
    );
    bind(config);
    for InitialDevice { relay, device } in &config.devices {
        // As in the C daemon a device that is not there does not keep the others from being served.
        if let Err(problem) = forwarder.add(*relay, device, false) {
            forwarder.stop_awaiting_device(*relay);
            tracing::error!("cannot add {device} to relay {relay}: {problem}");
        }
    }
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
    for signal in signals.forever() {
        if signal != SIGHUP {
            tracing::info!("stopping on signal {signal}");
            break;
        }
        tracing::info!("SIGHUP has no effect: restart the daemon to have it read its configuration");
    }
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    if let Err(error) = control.stop() {
        tracing::warn!("control socket: {error}");
    }
    forwarder.stop();
    drop(watch);
    drop(workers);
    tracing::info!("stopped");
    Ok(())
}

/// Hands to vfio-pci what the configuration lists; returns how many could not be had. As with devices, one that is
/// not there does not keep the others from being served.
pub fn bind(config: &Config) -> usize {
    let machine = Machine::default();
    let resolved: Vec<_> =
        config.bind.iter().map(|target| host::bind::resolve(&machine, slice::from_ref(target))).collect();
    let together: BTreeSet<Address> = resolved.iter().flatten().flatten().copied().collect();
    let mut failures = 0;
    for functions in resolved {
        let outcomes = match functions.and_then(|functions| host::bind::bind(&machine, &functions, &together))
        {
            Ok(outcomes) => outcomes.into_iter().map(|outcome| outcome.result).collect(),
            Err(refusal) => vec![Err(refusal)],
        };
        for outcome in outcomes {
            match outcome {
                Ok(moved) if moved.is_unchanged() => {}
                Ok(moved) => {
                    let from = moved.from.as_deref().unwrap_or("no driver");
                    tracing::info!("{} taken from {from} and handed to vfio-pci", moved.address);
                }
                Err(error) => {
                    failures += 1;
                    tracing::error!("bind-vfio-pci: {error}");
                }
            }
        }
    }
    failures
}

/// Raises the number of open files to what the system allows: each VM brings tens of eventfds and memory regions, and one
/// must not be able to use them up.
fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(cause) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!("cannot raise the number of open files to {maximum:?}: {cause}");
    }
}

/// Says what of the configuration this version cannot do.
fn complain(config: &Config) {
    let missing = [(
        config.sockets.dynamic,
        "--dynamic-sockets: sockets cannot be added at run time; relays have none",
    )];
    for (_, sentence) in missing.iter().filter(|(asked, _)| *asked) {
        tracing::warn!("not available in this version: {sentence}");
    }
}

fn make_relays(config: &Config, workers: &[Worker]) -> anyhow::Result<Vec<Arc<Relay>>> {
    let relay = |id| -> anyhow::Result<_> {
        let placement = place(id, workers, &config.pins)
            .with_context(|| format!("relay {id} is pinned to a CPU that has no worker: add it to --cpus"))?;
        Ok(Arc::new(Relay::new(id, placement).with_zero_copy(config.zero_copy(id))))
    };
    let relays: Vec<Arc<Relay>> = (0..config.relays).map(relay).collect::<anyhow::Result<_>>()?;
    // VMs that live on while the daemon is restarted send as soon as they find its sockets.
    for initial in &config.devices {
        if let Some(relay) = relays.get(initial.relay as usize) {
            relay.await_device();
        }
    }
    Ok(relays)
}

fn serve(
    config: &Config,
    guests: &Guests,
    relays: &[Arc<Relay>],
    watch: Option<&DirectoryWatch>,
) -> anyhow::Result<Vec<Endpoint>> {
    let owner = guests.owner();
    prepare_directory(&config.sockets.directory, owner)?;
    let endpoint = |relay: &Arc<Relay>| {
        let id = relay.id();
        let path = config.sockets.path(id);
        let positions = guests.state().positions(id);
        let guest = guests.options(id);
        let endpoint = match watch.filter(|_| config.is_client(id)) {
            Some(watch) => Endpoint::connecting(Arc::clone(relay), &path, owner, watch, guest, positions),
            None => Endpoint::start(Arc::clone(relay), listen(&path, owner)?, &path, guest, positions),
        };
        endpoint.with_context(|| format!("no thread to serve {}", path.display()))
    };
    relays.iter().map(endpoint).collect()
}
