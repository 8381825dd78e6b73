//! A relay seen from outside, and what may be wrong with adding and removing devices.

use pmd::{DeviceStatistics, Identity, Link};
use thiserror::Error;

use crate::zero_copy::ZeroCopyState;

/// The guest's side, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestStatus {
    /// Process id of the front end.
    pub peer: Option<i32>,
    /// Virtio features that it negotiated; 0 before.
    pub features: u64,
    /// MTU in bytes that the front end set.
    pub mtu: Option<u16>,
}

/// How far a device is. Users see the C daemon's names for these (`DPDK_ADDED` …), which the API knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// None.
    Uninit,
    /// There, and waiting for its guest; a cable between two guests, for either.
    Added,
    /// Running.
    Ready,
    /// On its way out.
    Removing,
}

/// How far a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestState {
    /// No guest, or one whose rings do not run.
    Uninit,
    /// A receive queue runs, and a transmit queue.
    Ready,
}

/// A relay seen from outside.
#[derive(Clone, Debug)]
pub struct RelayStatus {
    /// The guest's connection, if there is one.
    pub guest: Option<GuestStatus>,
    /// State of the guest's rings.
    pub guest_state: GuestState,
    /// Queue pairs of which both rings run.
    pub queue_pairs: u32,
    /// The device, if there is one.
    pub device: Option<DeviceStatus>,
    /// State of the device.
    pub device_state: DeviceState,
    /// The guest at the other end, if the relay has a cable to one.
    pub far: Option<FarStatus>,
    /// CPU of the worker for VF to VM.
    pub vf_to_vm_cpu: usize,
    /// CPU of the worker for VM to VF.
    pub vm_to_vf_cpu: usize,
}

/// The guest at the other end of a cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FarStatus {
    /// Its connection, if there is one.
    pub guest: Option<GuestStatus>,
    /// State of its rings.
    pub state: GuestState,
    /// Queue pairs of which both rings run.
    pub queue_pairs: u32,
}

/// A device seen from outside.
#[derive(Clone, Debug, Default)]
pub struct DeviceStatus {
    /// Name, as in [`Identity::name`].
    pub name: String,
    /// The rest of what the device says of itself; `None` while it is being opened, and for a cable.
    pub identity: Option<Identity>,
    /// Carrier, where known.
    pub link: Option<Link>,
    /// Counters of the device, at most a second old.
    pub statistics: DeviceStatistics,
    /// What it counts beside them, by its own names.
    pub counters: Vec<(&'static str, u64)>,
    /// Whether it sends from the guest's memory.
    pub zero_copy: ZeroCopyState,
}

/// The relay has a device already.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("relay {relay} is in use by {device}; remove that first")]
pub struct Occupied {
    /// The relay's virtio-id.
    pub relay: u32,
    /// Name of the device that it has.
    pub device: String,
}

/// Why a device was not removed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RemoveError {
    /// There is none.
    #[error("relay {0} has no device")]
    Nothing(u32),
    /// There is another.
    #[error("relay {relay} has {actual}, not {wanted}")]
    Another {
        /// The relay's virtio-id.
        relay: u32,
        /// Name of the device that it has.
        actual: String,
        /// Name of the device that was to go.
        wanted: String,
    },
    /// It is just being opened or removed.
    #[error("{device} of relay {relay} is just being added or removed; try again")]
    Busy {
        /// The relay's virtio-id.
        relay: u32,
        /// Name of the device.
        device: String,
    },
}
