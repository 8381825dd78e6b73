//! The cells of the table: what is measured, by name, and what it has to be.

use super::lab::Function;
use super::load::{Load, Ring};
use super::results::Target;

/// What a cell measures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// One guest and a loopback.
    Loop(Load),
    /// Two guests and a cable between them.
    VmToVm(Load),
    /// 64 relays with one busy guest against one relay.
    OneBusy,
    /// 64 relays with busy guests against one relay.
    AllBusy,
    /// Memory of 64 empty relays.
    EmptyMemory,
    /// Memory that a busy relay adds.
    BusyMemory,
    /// Time until all sockets listen.
    Start,
    /// CPU time with 64 silent guests.
    IdleCpu,
    /// The first frame after some time without.
    FirstFrame,
    /// A single frame there and back.
    RoundTrip,
    /// VF drivers against the models of their devices.
    Models,
    /// A VF and a guest in the lab.
    Lab(Function),
}

/// A cell.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Its name; the parts are separated by dots.
    pub name: String,
    /// What it measures.
    pub kind: Kind,
    /// Whether it belongs to a quick look.
    pub quick: bool,
}

/// All cells, in the order of the page.
pub fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut add = |name: String, kind, quick| cells.push(Cell { name, kind, quick });
    for load in loads() {
        let quick = load.pairs == 1 && load.ring.in_order() && load.size != 256 && load.size != 9000;
        add(
            format!("loop.{}", load.name()),
            Kind::Loop(load),
            quick && (load.size == 64 || load.ring == Ring::Split),
        );
    }
    for load in loads().filter(|load| load.ring.in_order()) {
        add(format!("vm-to-vm.{}", load.name()), Kind::VmToVm(load), false);
    }
    let others = [
        ("relays.one-busy", Kind::OneBusy, false),
        ("relays.all-busy", Kind::AllBusy, false),
        ("memory.empty", Kind::EmptyMemory, true),
        ("memory.busy", Kind::BusyMemory, false),
        ("start", Kind::Start, true),
        ("idle.cpu", Kind::IdleCpu, false),
        ("idle.first-frame", Kind::FirstFrame, false),
        ("latency.loop", Kind::RoundTrip, true),
        ("drivers", Kind::Models, false),
        ("lab.vf-to-guest", Kind::Lab(Function::Igbvf), false),
        ("lab.virtio-to-guest", Kind::Lab(Function::Virtio), false),
    ];
    others.into_iter().for_each(|(name, kind, quick)| add(name.to_owned(), kind, quick));
    cells
}

fn loads() -> impl Iterator<Item = Load> {
    let rings = [Ring::Split, Ring::Packed];
    let common = rings.into_iter().flat_map(|ring| {
        [64, 256, 1518]
            .into_iter()
            .flat_map(move |size| [1, 4].into_iter().map(move |pairs| Load { ring, size, pairs }))
    });
    let long = rings.into_iter().map(|ring| Load { ring, size: 9000, pairs: 1 });
    let linux = [Ring::SplitAnyOrder, Ring::PackedAnyOrder].into_iter();
    common.chain(long).chain(linux.map(|ring| Load { ring, size: 64, pairs: 1 }))
}

/// Frames a second, ours by testpmd's.
pub fn rate_target(load: &Load) -> Target {
    Target::RatioAtLeast(match (load.size, load.ring.packed()) {
        (64, false) => 1.3,
        (1518, false) => 2.0,
        // The issue asks for no more there than never to be behind.
        (9000, _) => 1.0,
        _ => 1.2,
    })
}

/// Cycles of a frame, ours by testpmd's.
pub fn cycles_target(load: &Load) -> Option<Target> {
    match (load.size, load.ring.packed()) {
        (64, true) => Some(Target::RatioAtMost(0.5)),
        (64 | 1518, _) => Some(Target::RatioAtMost(0.4)),
        (9000, _) => Some(Target::RatioAtMost(0.6)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_say_what_is_measured() {
        let cells = all();
        let names: BTreeSet<_> = cells.iter().map(|cell| cell.name.as_str()).collect();
        assert_eq!(names.len(), cells.len());
        assert!(names.contains("loop.packed.1518.4") && names.contains("vm-to-vm.split.64.1"));
        assert_eq!(names.iter().filter(|name| name.starts_with("loop.")).count(), 16);
    }

    #[test]
    fn a_quick_look_is_short() {
        let quick: Vec<_> = all().into_iter().filter(|cell| cell.quick).map(|cell| cell.name).collect();
        assert_eq!(
            quick,
            [
                "loop.split.64.1",
                "loop.split.1518.1",
                "loop.packed.64.1",
                "memory.empty",
                "start",
                "latency.loop"
            ]
        );
    }

    #[test]
    fn the_targets_are_those_of_the_table() {
        let load = |ring, size| Load { ring, size, pairs: 1 };
        assert_eq!(rate_target(&load(Ring::Split, 64)), Target::RatioAtLeast(1.3));
        assert_eq!(rate_target(&load(Ring::Split, 1518)), Target::RatioAtLeast(2.0));
        assert_eq!(rate_target(&load(Ring::Packed, 1518)), Target::RatioAtLeast(1.2));
        assert_eq!(cycles_target(&load(Ring::Packed, 64)), Some(Target::RatioAtMost(0.5)));
        assert_eq!(cycles_target(&load(Ring::Packed, 1518)), Some(Target::RatioAtMost(0.4)));
        assert_eq!(cycles_target(&load(Ring::Split, 256)), None);
    }
}
