//! What a relay has carried and dropped.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::pci::PciAddress;
use super::relay::{Cpus, DeviceState, GuestState};

/// Names of the drop reasons that the C daemon's statistics know, too. A relay may report others beside them.
pub mod drops {
    /// Device to guest: the guest's queue stayed full.
    pub const GUEST_QUEUE_FULL: &str = "guest_queue_full";
    /// Device to guest: no VM was connected.
    pub const VM_NOT_CONNECTED: &str = "vm_not_connected";
    /// Guest to device: the device's queue stayed full.
    pub const VF_QUEUE_FULL: &str = "vf_queue_full";
    /// Guest to device: the relay had no device.
    pub const VF_NOT_CONNECTED: &str = "vf_not_connected";
}

/// Statistics of one relay since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RelayStatistics {
    /// The virtio-id.
    pub id: u32,
    /// Whether frames flow: guest and device are ready.
    pub active: bool,
    /// Path of the vhost-user socket, if there is one.
    pub socket: Option<String>,
    /// Name of the device, if there is one: `0000:02:08.0`, `tap:vm1`.
    pub device: Option<String>,
    /// PCI address of the device, if it is a VF.
    #[schema(value_type = Option<String>)]
    pub pci_addr: Option<PciAddress>,
    /// NUMA node of the buffers, where known.
    pub numa_node: Option<u32>,
    /// The CPUs that work for it.
    pub cpus: Cpus,
    /// Device to guest.
    pub vf_to_vm: DirectionStatistics<DeviceState>,
    /// Guest to device.
    pub vm_to_vf: DirectionStatistics<GuestState>,
    /// The device's own counters, if there is a device.
    pub device_statistics: Option<DeviceStatistics>,
}

/// One direction. `S` is the state of the side that the frames come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DirectionStatistics<S> {
    /// Whether the side that the frames come from is active.
    pub active: bool,
    /// State of that side.
    pub internal_state: S,
    /// Present while the direction is active.
    pub counters: Option<Counters>,
    /// Frames dropped, by reason (present while the direction is active).
    pub drops: BTreeMap<String, u64>,
    /// Per second over the time asked for. The server computes it: a `Daemon` leaves it empty.
    pub rates: Option<Rates>,
}

/// What came from the source and went to the sink. Bytes are those of frames without FCS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counters {
    /// Frames taken from the source.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames given to the sink.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
}

/// [`Counters`] per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Rates {
    /// Frames taken from the source.
    pub rx_packets: f64,
    /// Their bytes.
    pub rx_bytes: f64,
    /// Frames given to the sink.
    pub tx_packets: f64,
    /// Their bytes.
    pub tx_bytes: f64,
}

/// Counters of the device itself; what it does not count is 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceStatistics {
    /// Good frames received.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames that it dropped because no receive descriptor was free.
    pub rx_missed: u64,
    /// Frames that arrived damaged.
    pub rx_errors: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames that it could not send.
    pub tx_errors: u64,
    /// Whatever else it counts, by its own names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counters: BTreeMap<String, u64>,
}
