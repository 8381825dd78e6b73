//! The ixgbevf driver is stopped and started against our model: rung L1. Alone in its process, for it counts what is open
//! there.

#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use models::exam::Exam;
use models::ixgbevf::{Ixgbevf as Model, Options};
use pmd::MacAddress;
use pmd::ixgbevf::{IDS, Ixgbevf, Patience, Setup};
use pmd::pci::PciFunction;
use pmd::vf::{Place, Wishes};

#[test]
fn it_stops_and_starts_100_times_and_leaves_nothing_behind() {
    let mac = Some(MacAddress([0x52, 0x54, 0, 0, 0, 2]));
    let model = Model::new(Options { mac, queues: 4, ..Options::default() });
    let mut exam = Exam::start(model, |function| {
        let place = Place { address: "0000:01:10.0".parse().unwrap(), pf: None };
        let wishes = Wishes { queue_pairs: 2.try_into().unwrap(), ..Wishes::default() };
        let patience = Patience { interval: Duration::from_micros(50), looks: 40, ..Patience::default() };
        Ixgbevf::open(function as Arc<dyn PciFunction>, Setup { place, ids: IDS[2], wishes, patience })
    });
    exam.stops_and_starts_100_times();
    exam.no_faults();
}
