//! Instructions for [`FRAMES`] frames, by kind of frame and ring. `cargo xtask counts` runs this under valgrind and compares
//! with `tests/counts.toml`; see there and in `tests/README.md` what may be concluded from it.
//!
//! This is an example to cargo, not a bench: only so it is compiled as the daemon is, with `panic = "abort"`.

// What gungraun's macros make has no documentation.
#![allow(missing_docs)]

use std::hint::black_box;

use forwarder_tests::bed::{Bed, BedOptions, FRAMES, Way};
use gungraun::{Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use models::drivers::DRIVERS;
use models::rate::Looped;
use pmd::frame::BURST_FRAMES;

/// glibc chooses its copy functions by what the processor has. Valgrind shows a processor no more than AVX2, so this is the
/// variant that is counted, on whichever machine.
const TUNABLES: &str = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512CD,-AVX512DQ,-AVX512ER,-AVX512PF,-ERMS,-FSRM,-RTM:\
     glibc.cpu.x86_non_temporal_threshold=0xc0000:glibc.cpu.x86_rep_movsb_threshold=0x10000000";

/// Entering this function ends the counting, leaving it goes on with it.
const IN_MODEL: &str = "--toggle-collect=models::in_process::left_out*";
/// Bursts that a driver has sent before it is counted.
const WARM_UP: usize = 100;

fn ring(packed: bool, frame: u32) -> Bed {
    Bed::ready(BedOptions::new(packed, frame))
}

fn with_offloads(packed: bool, frame: u32) -> Bed {
    Bed::ready(BedOptions { offloads: true, ..BedOptions::new(packed, frame) })
}

fn mergeable(packed: bool, frame: u32) -> Bed {
    Bed::ready(BedOptions { mergeable: true, buffer: 2048, ..BedOptions::new(packed, frame) })
}

fn to_null(packed: bool, frame: u32) -> Bed {
    Bed::ready(BedOptions { way: Way::ToNull, ..BedOptions::new(packed, frame) })
}

fn from_device(packed: bool, frame: u32) -> Bed {
    Bed::ready(BedOptions { way: Way::FromDevice, ..BedOptions::new(packed, frame) })
}

fn in_pieces(packed: bool, indirect: bool) -> Bed {
    Bed::ready(BedOptions { pieces: 3, indirect, ..BedOptions::new(packed, 1518) })
}

fn in_order(packed: bool, frame: u32) -> Bed {
    Bed::ready(BedOptions { in_order: true, ..BedOptions::new(packed, frame) })
}

fn segmented(frame: u32) -> Bed {
    let way = Way::ToNull;
    Bed::ready(BedOptions { way, offloads: true, segmented: true, ..BedOptions::new(false, frame) })
}

fn idle(packed: bool) -> Bed {
    let mut bed = ring(packed, 64);
    bed.carry(u64::from(FRAMES));
    bed.take_back();
    bed.step();
    bed
}

/// Nothing that was counted may have been lost.
fn finish(mut bed: Bed) {
    bed.finish();
}

#[library_benchmark(teardown = finish)]
#[bench::split_64(ring(false, 64))]
#[bench::split_1518(ring(false, 1518))]
#[bench::packed_64(ring(true, 64))]
#[bench::packed_1518(ring(true, 1518))]
#[bench::packed_64_in_order(in_order(true, 64))]
#[bench::split_64_offloads(with_offloads(false, 64))]
#[bench::packed_64_offloads(with_offloads(true, 64))]
#[bench::split_1518_mergeable(mergeable(false, 1518))]
#[bench::packed_1518_mergeable(mergeable(true, 1518))]
#[bench::split_9000_mergeable(mergeable(false, 9000))]
#[bench::packed_9000_mergeable(mergeable(true, 9000))]
#[bench::split_1518_three_descriptors(in_pieces(false, false))]
#[bench::packed_1518_three_descriptors(in_pieces(true, false))]
#[bench::split_1518_indirect(in_pieces(false, true))]
#[bench::packed_1518_indirect(in_pieces(true, true))]
fn cable(mut bed: Bed) -> Bed {
    bed.carry(black_box(u64::from(FRAMES)));
    bed
}

#[library_benchmark(teardown = finish)]
#[bench::split_64(to_null(false, 64))]
#[bench::split_1518(to_null(false, 1518))]
#[bench::packed_64(to_null(true, 64))]
#[bench::split_65214_segmented(segmented(54 + 45 * 1448))]
fn to_device(mut bed: Bed) -> Bed {
    bed.carry(black_box(u64::from(FRAMES)));
    bed
}

#[library_benchmark(teardown = finish)]
#[bench::split_64(from_device(false, 64))]
#[bench::split_1518(from_device(false, 1518))]
#[bench::packed_64(from_device(true, 64))]
#[bench::packed_1518(from_device(true, 1518))]
fn to_guest(mut bed: Bed) -> Bed {
    bed.carry(black_box(u64::from(FRAMES)));
    bed
}

// Passes in which there is nothing to do, as many as there are frames in the others.
#[library_benchmark]
#[bench::split(idle(false))]
#[bench::packed(idle(true))]
fn idle_pass(mut bed: Bed) -> Bed {
    for _ in 0..black_box(FRAMES) {
        bed.step();
    }
    bed
}

fn looped(driver: &str, frame: usize) -> Box<dyn Looped> {
    #[allow(clippy::expect_used, reason = "a bench that names a driver that is not there cannot be run")]
    let (_, open) = DRIVERS.iter().find(|(name, _)| *name == driver).expect("no such driver");
    let mut looped = open(frame);
    // Rings have gone round.
    (0..WARM_UP).for_each(|_| looped.turn());
    looped
}

fn without_faults(driver: Box<dyn Looped>) {
    driver.no_faults();
}

// A frame is sent, and received again. What the model does meanwhile is left out (`IN_MODEL`).
#[library_benchmark(teardown = without_faults)]
#[bench::igbvf_64(looped("igbvf", 64))]
#[bench::igbvf_1514(looped("igbvf", 1514))]
#[bench::ixgbevf_64(looped("ixgbevf", 64))]
#[bench::ena_host_64(looped("ena-host", 64))]
#[bench::nfp_64(looped("nfp", 64))]
#[bench::iavf_64(looped("iavf", 64))]
#[bench::virtio_split_64(looped("virtio-split", 64))]
#[bench::virtio_packed_64(looped("virtio-packed", 64))]
fn driver(mut driver: Box<dyn Looped>) -> Box<dyn Looped> {
    driver.leave_model_out(true);
    for _ in 0..black_box(FRAMES as usize / BURST_FRAMES) {
        driver.turn();
    }
    driver.leave_model_out(false);
    driver
}

library_benchmark_group!(name = frames, benchmarks = [cable, to_device, to_guest, idle_pass, driver]);

main!(
    config = LibraryBenchmarkConfig::default()
        .env("GLIBC_TUNABLES", TUNABLES)
        .tool(Callgrind::with_args(["--cache-sim=no", IN_MODEL]));
    library_benchmark_groups = frames
);
