//! Rung L1 of `nfp`, continued: nothing leaks. It is alone in its process, whose files it counts.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use models::nfp::{Nfp as Model, Settings};

#[path = "nfp/common.rs"]
mod common;

use common::*;

#[test]
fn it_stops_and_starts_100_times_and_leaks_nothing() {
    for settings in both() {
        // Buffers for jumbo frames take long to get.
        let settings = Settings { mtu: 1500, ..settings };
        start_with(Model::new(settings), queues(2)).stops_and_starts_100_times();
    }
}
