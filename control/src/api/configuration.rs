//! What the daemon's configuration comes to, as `virtio-forwarder config` prints it, whether a daemon runs or not.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::device::DeviceSpec;
use super::relay::Cpus;

/// The configuration of a daemon, as far as the machine has to be prepared for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Configuration {
    /// CPUs of the workers.
    pub cpus: Vec<u32>,
    /// Directory of the vhost-user sockets.
    pub vhost_path: PathBuf,
    /// The relays, by number.
    pub relays: Vec<ConfiguredRelay>,
}

/// A relay that there will be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfiguredRelay {
    /// The virtio-id.
    pub id: u32,
    /// The device that it gets at start.
    pub device: Option<DeviceSpec>,
    /// The CPUs that will work for it.
    pub cpus: Cpus,
}
