//! What the server asks of the daemon.

use crate::api::{AddDevice, Problem, Relay, RelayStatistics, RemoveDevice, Version, Worker};

/// The daemon behind the API.
///
/// Calls are synchronous and may take as long as slow hardware does (a second): the server makes them on threads of
/// their own, several at a time. The server adds the C daemon's error numbers to problems, and computes rates.
pub trait Daemon: Send + Sync + 'static {
    /// All relays, in order of their ids.
    fn relays(&self) -> Result<Vec<Relay>, Problem>;

    /// One relay.
    fn relay(&self, id: u32) -> Result<Relay, Problem>;

    /// Gives relay `id` a device.
    fn add_device(&self, id: u32, request: &AddDevice) -> Result<(), Problem>;

    /// Takes the device of relay `id` away.
    fn remove_device(&self, id: u32, request: &RemoveDevice) -> Result<(), Problem>;

    /// Statistics of the relays in `ids`, or of all if it is empty; those that do not exist are left out (the
    /// server asks for each with [`Daemon::relay`] before), and those that are not active unless `include_inactive`.
    fn statistics(&self, ids: &[u32], include_inactive: bool) -> Result<Vec<RelayStatistics>, Problem>;

    /// All workers, in order of their CPUs.
    fn workers(&self) -> Result<Vec<Worker>, Problem>;

    /// Name and version.
    fn version(&self) -> Result<Version, Problem>;

    /// Everything for Prometheus, in the OpenMetrics text format.
    fn metrics_text(&self) -> Result<String, Problem>;
}
