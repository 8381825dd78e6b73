//! What the daemon says about itself, as far as the host's side needs it. Who asks it is not this crate's business.

use std::path::PathBuf;

use pmd::Address;

/// A daemon that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Daemon {
    /// Its version.
    pub version: String,
    /// Its process; `None` where that cannot be known.
    pub process: Option<u32>,
    /// Its relays.
    pub relays: Vec<Relay>,
}

/// A relay of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relay {
    /// The virtio-id.
    pub id: u32,
    /// Its VF.
    pub function: Option<Address>,
    /// Its vhost-user socket.
    pub socket: Option<PathBuf>,
    /// The CPUs whose workers carry it.
    pub cpus: Vec<u32>,
}

/// What the configuration asks of a daemon, whether one runs or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// CPUs of its workers.
    pub cpus: Vec<u32>,
    /// Where its sockets will be.
    pub directory: PathBuf,
    /// Its relays.
    pub relays: Vec<Relay>,
}

impl Daemon {
    /// The relay that has this VF.
    pub fn relay_of(&self, function: Address) -> Option<&Relay> {
        self.relays.iter().find(|relay| relay.function == Some(function))
    }
}
