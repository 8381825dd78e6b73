//! Measures every VF driver against the model of its device: `model_rates ROUNDS SECONDS` prints one line for each round,
//! driver and size: `rate DRIVER SIZE FRAMES_A_SECOND CYCLES READS WRITES`, the last three for one frame out and back.

#![allow(clippy::panic, reason = "a measurement of a broken driver ends by panicking")]

use std::process::ExitCode;
use std::time::Duration;

use models::Exam;
use models::rate::Rate;
use models::virtio::{Options, VirtioNet};
use pmd::ena::{self, Ena};
use pmd::iavf::{self, Iavf};
use pmd::igbvf::{self, Igbvf};
use pmd::ixgbevf::{self, Ixgbevf};
use pmd::nfp::{self, Nfp};
use pmd::pci::Address;
use pmd::vf::{Place, Wishes};
use pmd::virtio::{self, Virtio};

/// Bytes of the frames.
const SIZES: [usize; 2] = [64, 1514];

/// A driver's name, and how it is measured at a size for a time.
type Driver = (&'static str, fn(usize, Duration) -> Rate);

/// All drivers.
const DRIVERS: &[Driver] = &[
    ("igbvf", igbvf),
    ("ixgbevf", ixgbevf),
    ("ena", ena),
    ("ena-host", ena_host),
    ("nfp", nfd3),
    ("nfp-nfdk", nfdk),
    ("iavf", iavf),
    ("iavf-700", iavf_700),
    ("virtio-split", virtio_split),
    ("virtio-packed", virtio_packed),
];

fn place() -> Place {
    let Some(address) = Address::new(0, 1, 0x10, 0) else { panic!("no address") };
    Place { address, pf: None }
}

fn virtio(options: Options, size: usize, time: Duration) -> Rate {
    let setup =
        virtio::Setup { place: place(), wishes: Wishes::default(), patience: virtio::Patience::default() };
    Exam::start(VirtioNet::new(options), |function| Virtio::open(function, setup)).rate(size, time)
}

fn virtio_split(size: usize, time: Duration) -> Rate {
    virtio(Options::split(), size, time)
}

fn virtio_packed(size: usize, time: Duration) -> Rate {
    virtio(Options::packed(), size, time)
}

fn igbvf(size: usize, time: Duration) -> Rate {
    let setup = igbvf::Setup {
        place: place(),
        ids: igbvf::IDS[0],
        wishes: Wishes::default(),
        patience: igbvf::Patience::default(),
        hashed_groups: false,
    };
    let model = models::igbvf::Igbvf::default();
    Exam::start(model, |function| Igbvf::open(function, setup)).rate(size, time)
}

fn ixgbevf(size: usize, time: Duration) -> Rate {
    let setup = ixgbevf::Setup {
        place: place(),
        ids: ixgbevf::IDS[2],
        wishes: Wishes::default(),
        patience: ixgbevf::Patience::default(),
    };
    let model = models::ixgbevf::Ixgbevf::new(models::ixgbevf::Options::default());
    Exam::start(model, |function| Ixgbevf::open(function, setup)).rate(size, time)
}

fn ena_of(settings: models::ena::Settings, size: usize, time: Duration) -> Rate {
    let setup = ena::Setup { place: place(), wishes: Wishes::default(), patience: ena::Patience::default() };
    Exam::start(models::ena::Ena::new(settings), |function| Ena::open(function, setup)).rate(size, time)
}

fn ena(size: usize, time: Duration) -> Rate {
    ena_of(models::ena::Settings::newest(), size, time)
}

/// With descriptors in memory of the host.
fn ena_host(size: usize, time: Duration) -> Rate {
    ena_of(models::ena::Settings::first(), size, time)
}

/// Read pointers are registers.
fn nfd3(size: usize, time: Duration) -> Rate {
    nfp(models::nfp::Settings::default(), size, time)
}

/// Read pointers come to memory.
fn nfdk(size: usize, time: Duration) -> Rate {
    nfp(models::nfp::Settings::nfdk(), size, time)
}

fn nfp(settings: models::nfp::Settings, size: usize, time: Duration) -> Rate {
    let setup = nfp::Setup {
        place: place(),
        ids: nfp::IDS[0],
        wishes: Wishes::default(),
        patience: nfp::Patience::default(),
    };
    Exam::start(models::nfp::Nfp::new(settings), |function| Nfp::open(function, setup)).rate(size, time)
}

fn iavf_of(options: models::iavf::Options, size: usize, time: Duration) -> Rate {
    let setup =
        iavf::Setup { place: place(), wishes: Wishes::default(), patience: iavf::Patience::default() };
    Exam::start(models::iavf::Iavf::new(options), |function| Iavf::open(function, setup)).rate(size, time)
}

fn iavf(size: usize, time: Duration) -> Rate {
    iavf_of(models::iavf::Options::default(), size, time)
}

fn iavf_700(size: usize, time: Duration) -> Rate {
    iavf_of(models::iavf::Options::series_700(), size, time)
}

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map(|word| word.parse::<f64>());
    let (Some(Ok(rounds)), Some(Ok(seconds))) = (numbers.next(), numbers.next()) else {
        eprintln!("model_rates ROUNDS SECONDS");
        return ExitCode::from(2);
    };
    for _ in 0..rounds as usize {
        for (name, measure) in DRIVERS {
            for size in SIZES {
                let rate = measure(size, Duration::from_secs_f64(seconds));
                let (reads, writes) = rate.accesses;
                println!("rate {name} {size} {:.0} {:.1} {reads:.4} {writes:.4}", rate.frames, rate.ticks);
            }
        }
    }
    ExitCode::SUCCESS
}
