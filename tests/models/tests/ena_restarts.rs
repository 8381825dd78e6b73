//! The `ena` driver, stopped and started (rung L1): a process of its own, whose files nobody else opens.

use std::sync::Arc;

use models::Exam;
use models::ena::{Ena as Device, Settings};
use pmd::ena::{Ena, Patience, Setup};
use pmd::pci::PciFunction;
use pmd::vf::{Place, Wishes};

#[test]
fn it_stops_and_starts_100_times_and_leaves_nothing_behind() {
    for settings in [Settings::first(), Settings::newest()] {
        let mut exam = Exam::start(Device::new(settings), |function| {
            let place = Place { address: "0000:00:06.0".parse().unwrap(), pf: None };
            let setup = Setup { place, wishes: Wishes::default(), patience: Patience::default() };
            Ena::open(function as Arc<dyn PciFunction>, setup)
        });
        exam.stops_and_starts_100_times();
    }
}
