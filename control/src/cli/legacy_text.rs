//! Statistics as the C daemon's tool printed them.

use std::fmt::{Display, Write};

use super::python_float;
use crate::api::{DirectionStatistics, Rates, RelayStatistics, drops};

/// The names of one direction's fields.
struct Names {
    direction: &'static str,
    source: &'static str,
    sink: &'static str,
    /// Drops: the C daemon's name, and ours.
    drops: [(&'static str, &'static str); 2],
}

const VF_TO_VM: Names = Names {
    direction: "vf_to_vm",
    source: "rx_from_vf",
    sink: "tx_to_vm",
    drops: [
        ("pkts_dropped_vm_queue_full", drops::GUEST_QUEUE_FULL),
        ("pkts_dropped_vm_not_connected", drops::VM_NOT_CONNECTED),
    ],
};

const VM_TO_VF: Names = Names {
    direction: "vm_to_vf",
    source: "rx_from_vm",
    sink: "tx_to_vf",
    drops: [
        ("pkts_dropped_vf_queue_full", drops::VF_QUEUE_FULL),
        ("pkts_dropped_vf_not_connected", drops::VF_NOT_CONNECTED),
    ],
};

/// The fields of one direction, in groups whose order differs between the formats. Counters and drops are there only
/// while the direction is active; rates always.
struct Direction {
    names: &'static Names,
    active: bool,
    state: String,
    cpu: Option<u32>,
    counters: Vec<(String, u64)>,
    drops: Vec<(String, u64)>,
    rates: Vec<(String, f32)>,
}

impl Direction {
    fn new<S: Display>(names: &'static Names, direction: &DirectionStatistics<S>, cpu: Option<u32>) -> Self {
        let Names { source, sink, .. } = names;
        let named = |unit: &str, end: &str| format!("{unit}_{end}");
        let counters = direction.counters.map(|counters| {
            vec![
                (named("pkts", source), counters.rx_packets),
                (named("bytes", source), counters.rx_bytes),
                (named("pkts", sink), counters.tx_packets),
                (named("bytes", sink), counters.tx_bytes),
            ]
        });
        let drops = direction.counters.map(|_| {
            let count = |reason: &str| direction.drops.get(reason).copied().unwrap_or_default();
            names.drops.iter().map(|(name, reason)| ((*name).to_owned(), count(reason))).collect()
        });
        let Rates { rx_packets, rx_bytes, tx_packets, tx_bytes } = direction.rates.unwrap_or_default();
        // They travelled as 32-bit numbers there.
        let rates = vec![
            (named("pkt_rate", source), rx_packets as f32),
            (named("byte_rate", source), rx_bytes as f32),
            (named("pkt_rate", sink), tx_packets as f32),
            (named("byte_rate", sink), tx_bytes as f32),
        ];
        Self {
            names,
            active: direction.active,
            state: direction.internal_state.to_string(),
            cpu,
            counters: counters.unwrap_or_default(),
            drops: drops.unwrap_or_default(),
            rates,
        }
    }
}

fn directions(relay: &RelayStatistics) -> [Direction; 2] {
    [
        Direction::new(&VF_TO_VM, &relay.vf_to_vm, relay.cpus.vf_to_vm),
        Direction::new(&VM_TO_VF, &relay.vm_to_vf, relay.cpus.vm_to_vf),
    ]
}

fn socket_name(relay: &RelayStatistics) -> &str {
    relay.socket.as_deref().unwrap_or("NONE")
}

/// PCI addresses had capital letters; other devices are printed as they are.
fn device_name(relay: &RelayStatistics) -> Option<String> {
    relay.pci_addr.map(|address| address.to_string().to_uppercase()).or_else(|| relay.device.clone())
}

/// One `key=value` a line.
pub(super) fn flat(relays: &[RelayStatistics], suppress_zero: bool) -> String {
    let mut lines = Lines { text: String::new(), suppress_zero };
    for relay in relays {
        let id = format!("relay_{}", relay.id);
        lines.word(&id, "active", python_bool(relay.active));
        for (name, cpu) in [("vf_to_vm", relay.cpus.vf_to_vm), ("vm_to_vf", relay.cpus.vm_to_vf)] {
            if let Some(cpu) = cpu {
                lines.integer(&format!("{id}.cpu"), name, cpu.into());
            }
        }
        if let Some(device) = device_name(relay) {
            lines.word(&format!("{id}.vf"), "pci_addr_str", &device);
        }
        lines.word(&format!("{id}.vhost"), "vhost_socket_name", socket_name(relay));
        for direction in directions(relay) {
            let mut path = format!("{id}.{}", direction.names.direction);
            lines.word(&path, "active", python_bool(direction.active));
            lines.word(&path, "internal_state", &direction.state);
            if let Some(cpu) = direction.cpu {
                path.push_str(&format!(".cpu_{cpu}"));
            }
            for (name, value) in &direction.counters {
                lines.integer(&path, name, *value);
            }
            for (name, value) in &direction.rates {
                lines.word(&path, name, &python_float::repr(f64::from(*value)));
            }
            for (name, value) in &direction.drops {
                lines.integer(&path, name, *value);
            }
        }
    }
    lines.text
}

struct Lines {
    text: String,
    suppress_zero: bool,
}

impl Lines {
    fn word(&mut self, path: &str, name: &str, value: &str) {
        self.text.push_str(&format!("{path}.{name}={value}\n"));
    }

    /// Only integers are left out when zero: neither rates nor False.
    fn integer(&mut self, path: &str, name: &str, value: u64) {
        if value != 0 || !self.suppress_zero {
            self.word(path, name, &value.to_string());
        }
    }
}

fn python_bool(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

/// The text format of Protocol Buffers.
pub(super) fn protobuf(relays: &[RelayStatistics]) -> String {
    let mut text = Protobuf::default();
    text.field("status", "OK");
    for relay in relays {
        text.message("relay", |text| {
            text.field("id", relay.id);
            text.field("active", relay.active);
            let cpus = [("vf_to_vm", relay.cpus.vf_to_vm), ("vm_to_vf", relay.cpus.vm_to_vf)];
            if cpus.iter().any(|(_, cpu)| cpu.is_some()) {
                text.message("cpu", |text| {
                    for (name, cpu) in cpus {
                        if let Some(cpu) = cpu {
                            text.field(name, cpu);
                        }
                    }
                });
            }
            text.message("vhost", |text| text.quoted("vhost_socket_name", socket_name(relay)));
            if let Some(device) = device_name(relay) {
                text.message("vf", |text| text.quoted("pci_addr_str", &device));
            }
            for direction in directions(relay) {
                text.message(direction.names.direction, |text| {
                    text.field("active", direction.active);
                    text.quoted("internal_state", &direction.state);
                    for (name, value) in direction.counters.iter().chain(&direction.drops) {
                        text.field(name, value);
                    }
                    for (name, value) in &direction.rates {
                        text.field(name, python_float::repr(*value));
                    }
                });
            }
            // "Any node" was -1 in an unsigned field.
            text.field("socket_id", relay.numa_node.unwrap_or(u32::MAX));
        });
    }
    text.text.push('\n');
    text.text
}

#[derive(Default)]
struct Protobuf {
    text: String,
    depth: usize,
}

impl Protobuf {
    fn field(&mut self, name: &str, value: impl Display) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{:1$}{name}: {value}", "", 2 * self.depth);
    }

    fn quoted(&mut self, name: &str, value: &str) {
        self.field(name, format_args!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"")));
    }

    fn message(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        let _ = writeln!(self.text, "{:1$}{name} {{", "", 2 * self.depth);
        self.depth += 1;
        fill(self);
        self.depth -= 1;
        let _ = writeln!(self.text, "{:1$}}}", "", 2 * self.depth);
    }
}
