//! `virtio-forwarder demo`: the main job on any machine, for an ordinary user.
//!
//! One relay with the `loopback` device, served by a real worker on a real vhost-user socket; a built-in guest connects
//! to it, sends numbered frames of mixed sizes, and checks every one that comes back.

mod frames;
mod guest;
mod report;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use relay::Relay;
use relay::driver::nic::{GuestNic, NicOptions};
use relay::guest::endpoint::Endpoint;
use relay::guest::features::GuestOptions;
use relay::guest::socket::{SocketOwner, listen, prepare_directory};
use relay::relay::Placement;

use crate::worker::{Idle, Worker};

pub use report::Summary;

/// Runs the demonstration for about `time` and prints what it did; `cpu` is where the worker goes.
pub fn run(time: Duration, cpu: usize) -> anyhow::Result<Summary> {
    let directory = tempfile::Builder::new().prefix("virtio-forwarder-demo-").tempdir();
    let directory = directory.context("cannot create a directory for the demonstration's socket")?;
    let worker = Worker::start(cpu, Idle::default())?;
    let placement = Placement { vf_to_vm: worker.handle().clone(), vm_to_vf: worker.handle().clone() };
    let relay = Arc::new(Relay::new(0, placement));
    relay.reserve("loopback")?.attach_cable();
    let endpoint = serve(&relay, directory.path())?;
    println!("relay 0: loopback <-> {} (worker on CPU {cpu})", endpoint.path().display());
    let options = NicOptions { mergeable: true, ..NicOptions::default() };
    let nic = GuestNic::connect(endpoint.path(), options).context("the built-in guest could not connect")?;
    let summary = guest::Guest::new(nic).run(time);
    drop(endpoint);
    relay.remove_device(None)?;
    println!("{summary}");
    Ok(summary)
}

fn serve(relay: &Arc<Relay>, directory: &Path) -> anyhow::Result<Endpoint> {
    let path = directory.join("virtio-forwarder0.sock");
    prepare_directory(directory, SocketOwner::default())?;
    let listener = listen(&path, SocketOwner::default())?;
    Ok(Endpoint::start(Arc::clone(relay), listener, &path, GuestOptions::default(), None)?)
}
