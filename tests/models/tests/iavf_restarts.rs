//! Rung L1: stops and starts of the driver `iavf` leave nothing behind. Alone in its process, whose files it counts.

use std::num::NonZero;
use std::sync::Arc;

use models::Exam;
use models::iavf::{Iavf as Model, Options};
use pmd::iavf::{Iavf, Patience, Setup};
use pmd::pci::PciFunction;
use pmd::vf::{Place, Wishes};

#[test]
fn l1_it_stops_and_starts_100_times_and_leaves_nothing_behind() {
    let place = Place { address: "0000:01:10.0".parse().unwrap(), pf: None };
    let wishes = Wishes { queue_pairs: NonZero::new(2).unwrap(), ..Wishes::default() };
    let mut exam = Exam::start(Model::new(Options::default()), |function| {
        Iavf::open(function as Arc<dyn PciFunction>, Setup { place, wishes, patience: Patience::default() })
    });
    exam.stops_and_starts_100_times();
}
