//! A relay as it stands: its guest, its device, its CPUs.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::pci::PciAddress;

macro_rules! states {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant,)* }

        impl $name {
            /// The name that users of the C daemon know.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

states! {
    /// State of the guest side.
    GuestState {
        /// No VM is connected, or its driver is not up.
        #[default] Uninit = "VIRTIO_UNINIT",
        /// The VM's driver is up: frames flow if the device is ready, too.
        Ready = "VIRTIO_READY",
        /// The VM is going: its memory is being given back.
        Removing = "VIRTIO_REMOVING1",
    }
}

states! {
    /// State of the device side.
    DeviceState {
        /// No device.
        #[default] Uninit = "DPDK_UNINIT",
        /// The device waits for its VM.
        Added = "DPDK_ADDED",
        /// The device is up: frames flow if the guest is ready, too.
        Ready = "DPDK_READY",
        /// The device is going.
        Removing = "DPDK_REMOVING1",
    }
}

impl GuestState {
    /// Whether frames from the guest are taken and counted.
    pub fn is_active(self) -> bool {
        self == Self::Ready
    }
}

impl DeviceState {
    /// Whether the relay has a device whose frames are counted.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Added | Self::Ready)
    }
}

/// A relay: the pairing of one device and one guest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Relay {
    /// The virtio-id.
    pub id: u32,
    /// Path of the vhost-user socket, if there is one.
    pub socket: Option<String>,
    /// Whether frames flow: guest and device are ready.
    pub active: bool,
    /// State of the guest side.
    pub guest_state: GuestState,
    /// State of the device side.
    pub device_state: DeviceState,
    /// The connected guest; `null` while no VM is connected.
    pub guest: Option<Guest>,
    /// The device; `null` if there is none.
    pub device: Option<Device>,
    /// The CPUs that work for it.
    pub cpus: Cpus,
}

/// A connected VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Guest {
    /// Negotiated virtio features as one hexadecimal number (JSON numbers lose bits above 2^53).
    pub features: String,
    /// Negotiated virtio features by name.
    pub feature_names: Vec<String>,
    /// Queue pairs that run.
    pub queue_pairs: u32,
    /// MTU in bytes that the front end has set; `null` if it has set none.
    pub mtu: Option<u16>,
}

impl Guest {
    /// Names the features of a virtio-net device.
    pub fn new(features: u64, queue_pairs: u32, mtu: Option<u16>) -> Self {
        let feature_names = (0..64)
            .filter(|bit| features & (1 << bit) != 0)
            .map(|bit| {
                let known = FEATURES.iter().find(|(known, _)| *known == bit);
                known.map_or_else(|| format!("bit{bit}"), |(_, name)| (*name).to_owned())
            })
            .collect();
        Self { features: format!("{features:#x}"), feature_names, queue_pairs, mtu }
    }
}

/// Virtio 1.3, §5.1.3 and §6; bits 26 and 30 as vhost-user uses them.
const FEATURES: &[(u32, &str)] = &[
    (0, "csum"),
    (1, "guest_csum"),
    (2, "ctrl_guest_offloads"),
    (3, "mtu"),
    (5, "mac"),
    (7, "guest_tso4"),
    (8, "guest_tso6"),
    (9, "guest_ecn"),
    (10, "guest_ufo"),
    (11, "host_tso4"),
    (12, "host_tso6"),
    (13, "host_ecn"),
    (14, "host_ufo"),
    (15, "mrg_rxbuf"),
    (16, "status"),
    (17, "ctrl_vq"),
    (18, "ctrl_rx"),
    (19, "ctrl_vlan"),
    (20, "ctrl_rx_extra"),
    (21, "guest_announce"),
    (22, "mq"),
    (23, "ctrl_mac_addr"),
    (24, "notify_on_empty"),
    (26, "log_all"),
    (27, "any_layout"),
    (28, "ring_indirect_desc"),
    (29, "ring_event_idx"),
    (30, "protocol_features"),
    (32, "version_1"),
    (33, "access_platform"),
    (34, "ring_packed"),
    (35, "in_order"),
    (36, "order_platform"),
    (38, "notification_data"),
    (40, "ring_reset"),
    (54, "guest_uso4"),
    (55, "guest_uso6"),
    (56, "host_uso"),
    (57, "hash_report"),
    (59, "guest_hdrlen"),
    (60, "rss"),
    (61, "rsc_ext"),
    (62, "standby"),
    (63, "speed_duplex"),
];

/// The device of a relay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// Its name: `0000:02:08.0`, `tap:vm1`.
    pub name: String,
    /// Its PCI address, if it is a VF.
    #[schema(value_type = Option<String>)]
    pub pci_addr: Option<PciAddress>,
    /// The driver: `igbvf`, `tap`.
    pub driver: String,
    /// Its Ethernet address, if it has one.
    pub mac: Option<String>,
    /// The wire.
    pub link: Link,
    /// Longest frame that it carries, in bytes without FCS.
    pub max_frame: u32,
    /// State of the VM at the other end, of a cable to one (`vhost-user:SOCKET`).
    #[serde(default)]
    pub guest_state: Option<GuestState>,
    /// The VM that is connected at the other end.
    #[serde(default)]
    pub guest: Option<Guest>,
}

/// State of a device's wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Link {
    /// Whether there is a carrier.
    pub up: bool,
    /// Mbit/s, where known.
    pub speed: Option<u32>,
}

/// The CPUs that work for a relay's directions; `null` while a direction does not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cpus {
    /// Device to guest.
    pub vf_to_vm: Option<u32>,
    /// Guest to device.
    pub vm_to_vf: Option<u32>,
}

/// Who answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// `virtio-forwarder`.
    pub name: String,
    /// Its version.
    pub version: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_the_names_of_the_c_daemon() {
        assert_eq!(serde_json::to_string(&DeviceState::Added).unwrap(), r#""DPDK_ADDED""#);
        assert_eq!(GuestState::Ready.to_string(), "VIRTIO_READY");
        assert!(DeviceState::Added.is_active() && !DeviceState::Removing.is_active());
    }

    #[test]
    fn features_are_named() {
        let guest = Guest::new(1 << 32 | 1 << 15 | 1 << 6, 2, None);
        assert_eq!(guest.features, "0x100008040");
        assert_eq!(guest.feature_names, ["bit6", "mrg_rxbuf", "version_1"]);
    }
}
