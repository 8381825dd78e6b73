//! The igbvf driver is stopped and started against our model: rung L1. Alone in its process, for it counts what is open there.

#![allow(missing_docs, clippy::unwrap_used)]

use models::exam::Exam;
use models::igbvf::Igbvf as Model;
use pmd::igbvf::{IDS, Igbvf, Patience, Setup};
use pmd::pci::PciFunction;
use pmd::vf::{Place, Wishes};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn it_stops_and_starts_100_times_and_leaves_nothing_behind() {
    let mut exam = Exam::start(Model::default(), |function| {
        let place = Place { address: "0000:01:10.0".parse().unwrap(), pf: None };
        let wishes = Wishes { queue_pairs: 2.try_into().unwrap(), ..Wishes::default() };
        let patience = Patience { interval: Duration::from_micros(50), looks: 40, ..Patience::default() };
        let setup = Setup { place, ids: IDS[0], wishes, patience, hashed_groups: false };
        Igbvf::open(function as Arc<dyn PciFunction>, setup)
    });
    exam.stops_and_starts_100_times();
    exam.no_faults();
}
