//! What can be asked of the daemon, and what comes of it.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::api::{
    AddDevice, LegacyError, Operation, Problem, ProblemCode, Relay, RelayStatistics, RemoveDevice,
};
use crate::client::{Client, ClientError};

/// One thing to do.
pub(super) enum Verb {
    /// Give a relay a device.
    Add { id: u32, request: AddDevice },
    /// Take a relay's device away.
    Remove { id: u32, request: RemoveDevice },
    /// The same, but where the C tools asked to remove "no device": that matches no device there is.
    RemoveNothing { id: u32, conditional: bool },
    /// Show which device stands behind a vhost-user socket.
    QueryPci { vhost_path: PathBuf },
    /// Show relays: one, or all.
    List { id: Option<u32> },
    /// Show counters and rates.
    Statistics { relays: Vec<u32>, include_inactive: bool, delay: Duration },
}

/// What came of it.
pub(super) enum Outcome {
    /// A relay was changed and looks like this now.
    Changed(Box<Relay>),
    /// The device behind a socket; `None` if the relay has none.
    Device(Option<String>),
    /// Relays as they stand.
    Relays(Vec<Relay>),
    /// Counters and rates.
    Statistics {
        /// Those of relays that are active, or of all that were asked for.
        relays: Vec<RelayStatistics>,
        /// The relays that were asked for by number.
        named: Vec<u32>,
    },
}

/// Why nothing came of it.
#[derive(Debug, Error)]
pub(super) enum Failure {
    /// The daemon refused, or could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It cannot be asked at all.
    #[error("{0}")]
    Impossible(String),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Client(ClientError::Problem(Box::new(problem)))
    }
}

impl Verb {
    /// Does it.
    pub(super) fn run(self, client: &Client) -> Result<Outcome, Failure> {
        Ok(match self {
            Self::Add { id, request } => Outcome::Changed(Box::new(client.add_device(id, &request)?)),
            Self::Remove { id, request } => Outcome::Changed(Box::new(client.remove_device(id, &request)?)),
            Self::RemoveNothing { id, conditional } => remove_nothing(client, id, conditional)?,
            Self::QueryPci { vhost_path } => query_pci(client, vhost_path)?,
            Self::List { id: Some(id) } => Outcome::Relays(vec![client.relay(id)?]),
            Self::List { id: None } => Outcome::Relays(client.relays()?),
            Self::Statistics { relays, include_inactive, delay } => {
                let statistics = client.statistics(&relays, include_inactive, delay)?;
                Outcome::Statistics { relays: statistics, named: relays }
            }
        })
    }
}

fn remove_nothing(client: &Client, id: u32, conditional: bool) -> Result<Outcome, Failure> {
    let occupied = match client.relay(id) {
        Ok(relay) => relay.device,
        // The daemon has the right words, and number, for a relay that is not there.
        Err(_) => None,
    };
    match occupied {
        None => Verb::Remove { id, request: RemoveDevice { device: None, conditional } }.run(client),
        Some(device) => {
            let detail = format!("relay {id} has {}, and no device to be removed is named", device.name);
            let mut problem = Problem::new(ProblemCode::DeviceMismatch, detail).with_remedy("add --pci-addr");
            problem.legacy = Operation::Remove.legacy(problem.code);
            Err(problem.into())
        }
    }
}

fn query_pci(client: &Client, vhost_path: PathBuf) -> Result<Outcome, Failure> {
    let path = vhost_path.to_string_lossy();
    let relays = client.relays()?;
    match relays.into_iter().find(|relay| relay.socket.as_deref() == Some(&path)) {
        Some(relay) => {
            let name =
                |device: crate::api::Device| device.pci_addr.map_or(device.name, |pci| pci.to_string());
            Ok(Outcome::Device(relay.device.map(name)))
        }
        None => {
            let detail = format!("no relay has the vhost-user socket '{path}'");
            let mut problem =
                Problem::new(ProblemCode::RelayNotFound, detail).with_remedy("'list' shows all sockets");
            problem.legacy = Some(LegacyError { code: 2, source: "virtio_query_pci()".into() });
            Err(problem.into())
        }
    }
}
