//! Rung L1: the driver `virtio` is stopped and started. In a process of its own, whose open files nobody else changes.

use std::num::NonZero;

use models::Exam;
use models::virtio::{Options, VirtioNet};
use pmd::vf::{Place, Wishes};
use pmd::virtio::{Patience, Setup, Virtio};

#[test]
fn it_stops_and_starts_100_times_and_leaves_nothing_behind() {
    for (options, pairs) in [(Options::split(), 1), (Options::packed(), 2)] {
        let setup = Setup {
            place: Place { address: "0000:03:00.0".parse().unwrap(), pf: None },
            wishes: Wishes { queue_pairs: NonZero::new(pairs).unwrap(), ..Wishes::default() },
            patience: Patience::default(),
        };
        let mut exam = Exam::start(VirtioNet::new(options), |function| Virtio::open(function, setup));
        exam.stops_and_starts_100_times();
    }
}
