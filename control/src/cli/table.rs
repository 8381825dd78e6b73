//! Tables for people.

use std::collections::BTreeMap;
use std::fmt::Display;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::api::{Cpus, DirectionStatistics, Relay, RelayStatistics};

/// One row a relay.
pub(super) fn relays(relays: &[Relay]) -> String {
    let mut table =
        table(&["relay", "device", "driver", "link", "device state", "guest state", "cpus", "socket"]);
    for relay in relays {
        let device = relay.device.as_ref();
        table.add_row([
            relay.id.to_string(),
            device.map_or_else(dash, |device| device.name.clone()),
            device.map_or_else(dash, |device| device.driver.clone()),
            device.map_or_else(dash, |device| link(device.link.up, device.link.speed)),
            relay.device_state.to_string(),
            relay.guest_state.to_string(),
            cpus(relay.cpus),
            relay.socket.clone().unwrap_or_else(dash),
        ]);
    }
    right(&mut table, &[0]);
    finish(&table, relays.is_empty(), "no relays")
}

/// Two rows a relay: one each direction. Relays that were asked for by number and are idle are named.
pub(super) fn statistics(relays: &[RelayStatistics], named: &[u32]) -> String {
    let mut table = table(&[
        "relay",
        "direction",
        "state",
        "rx packets",
        "tx packets",
        "rx bytes",
        "tx bytes",
        "rx/s",
        "tx/s",
        "rx Mbit/s",
        "tx Mbit/s",
        "dropped",
    ]);
    for relay in relays {
        table.add_row(direction(relay.id, "vf_to_vm", &relay.vf_to_vm));
        table.add_row(direction(relay.id, "vm_to_vf", &relay.vm_to_vf));
    }
    right(&mut table, &[0, 3, 4, 5, 6, 7, 8, 9, 10]);
    let idle = named.iter().filter(|id| !relays.iter().any(|relay| relay.id == **id));
    let idle: String =
        idle.map(|id| format!("relay {id} is idle; --include-inactive shows it all the same\n")).collect();
    match (relays.is_empty(), idle.is_empty()) {
        (true, false) => idle,
        (empty, _) => finish(&table, empty, "no active relay; --include-inactive shows the others") + &idle,
    }
}

fn direction<S: Display>(id: u32, name: &str, direction: &DirectionStatistics<S>) -> [String; 12] {
    let counter = |value: Option<u64>| value.map_or_else(dash, |value| value.to_string());
    let rate = |value: Option<f64>| value.map_or_else(dash, |value| format!("{value:.0}"));
    let megabits = |bytes: Option<f64>| bytes.map_or_else(dash, |value| format!("{:.1}", value * 8e-6));
    let (counters, rates) = (direction.counters, direction.rates);
    [
        id.to_string(),
        name.to_owned(),
        direction.internal_state.to_string(),
        counter(counters.map(|c| c.rx_packets)),
        counter(counters.map(|c| c.tx_packets)),
        counter(counters.map(|c| c.rx_bytes)),
        counter(counters.map(|c| c.tx_bytes)),
        rate(rates.map(|r| r.rx_packets)),
        rate(rates.map(|r| r.tx_packets)),
        megabits(rates.map(|r| r.rx_bytes)),
        megabits(rates.map(|r| r.tx_bytes)),
        drops(&direction.drops),
    ]
}

fn drops(drops: &BTreeMap<String, u64>) -> String {
    let named: Vec<String> =
        drops.iter().filter(|(_, n)| **n > 0).map(|(reason, n)| format!("{reason} {n}")).collect();
    if named.is_empty() { dash() } else { named.join("\n") }
}

fn link(up: bool, speed: Option<u32>) -> String {
    match (up, speed) {
        (false, _) => "down".to_owned(),
        (true, None) => "up".to_owned(),
        (true, Some(speed)) => format!("up, {speed} Mbit/s"),
    }
}

fn cpus(cpus: Cpus) -> String {
    let cpu = |cpu: Option<u32>| cpu.map_or_else(dash, |cpu| cpu.to_string());
    match (cpus.vf_to_vm, cpus.vm_to_vf) {
        (None, None) => dash(),
        (to_vm, to_vf) => format!("{},{}", cpu(to_vm), cpu(to_vf)),
    }
}

fn dash() -> String {
    "-".to_owned()
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    table
}

fn right(table: &mut Table, columns: &[usize]) {
    for index in columns {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// The table without the blanks at the ends of its lines, or a word if it has none.
fn finish(table: &Table, empty: bool, instead: &str) -> String {
    if empty {
        return format!("{instead}\n");
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}
