//! What travels over the control socket: requests, replies and problems, as serde types with OpenAPI schemas.
//!
//! Requests refuse unknown fields, so that a misspelt option is an error and not silence. Replies may gain fields.

mod configuration;
mod device;
mod legacy;
mod pci;
mod problem;
mod relay;
mod shown;
mod statistics;
mod worker;

pub use configuration::{Configuration, ConfiguredRelay};
pub(crate) use device::DeviceRequest;
pub use device::{AddDevice, DeviceSpec, DeviceSpecError, RemoveDevice};
pub use legacy::{LegacyError, Operation};
pub use pci::{PciAddress, PciAddressError};
pub use problem::{Problem, ProblemCode, ProblemDocument};
pub use relay::{Cpus, Device, DeviceState, Guest, GuestState, Link, Relay, Version};
pub(crate) use shown::{shortened, shown};
pub use statistics::{Counters, DeviceStatistics, DirectionStatistics, Rates, RelayStatistics, drops};
pub use worker::Worker;

/// Where the daemon listens unless it is told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/virtio-forwarder/control.sock";
