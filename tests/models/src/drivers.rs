//! Every VF driver on the model of its device.

#![allow(clippy::panic, reason = "a measurement of a broken driver ends by panicking")]

use pmd::ena::{self, Ena};
use pmd::iavf::{self, Iavf};
use pmd::igbvf::{self, Igbvf};
use pmd::ixgbevf::{self, Ixgbevf};
use pmd::nfp::{self, Nfp};
use pmd::pci::Address;
use pmd::vf::{Place, Wishes};
use pmd::virtio::{self, Virtio};

use crate::exam::Exam;
use crate::model::Model;
use crate::rate::{Loop, Looped};
use crate::virtio::{Options, VirtioNet};

/// A driver's name, and how it is opened on its model, for frames of a size.
type Driver = (&'static str, fn(usize) -> Box<dyn Looped>);

/// All drivers, each with the kinds of device that it treats differently.
pub const DRIVERS: &[Driver] = &[
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

fn looped<M: Model + 'static>(exam: Exam<M>, size: usize) -> Box<dyn Looped> {
    Box::new(Loop::new(exam, size))
}

fn place() -> Place {
    let Some(address) = Address::new(0, 1, 0x10, 0) else { panic!("no address") };
    Place { address, pf: None }
}

fn virtio(options: Options, size: usize) -> Box<dyn Looped> {
    let setup =
        virtio::Setup { place: place(), wishes: Wishes::default(), patience: virtio::Patience::default() };
    looped(Exam::start(VirtioNet::new(options), |function| Virtio::open(function, setup)), size)
}

fn virtio_split(size: usize) -> Box<dyn Looped> {
    virtio(Options::split(), size)
}

fn virtio_packed(size: usize) -> Box<dyn Looped> {
    virtio(Options::packed(), size)
}

fn igbvf(size: usize) -> Box<dyn Looped> {
    let setup = igbvf::Setup {
        place: place(),
        ids: igbvf::IDS[0],
        wishes: Wishes::default(),
        patience: igbvf::Patience::default(),
        hashed_groups: false,
    };
    let model = crate::igbvf::Igbvf::default();
    looped(Exam::start(model, |function| Igbvf::open(function, setup)), size)
}

fn ixgbevf(size: usize) -> Box<dyn Looped> {
    let setup = ixgbevf::Setup {
        place: place(),
        ids: ixgbevf::IDS[2],
        wishes: Wishes::default(),
        patience: ixgbevf::Patience::default(),
    };
    let model = crate::ixgbevf::Ixgbevf::new(crate::ixgbevf::Options::default());
    looped(Exam::start(model, |function| Ixgbevf::open(function, setup)), size)
}

fn ena_of(settings: crate::ena::Settings, size: usize) -> Box<dyn Looped> {
    let setup = ena::Setup { place: place(), wishes: Wishes::default(), patience: ena::Patience::default() };
    looped(Exam::start(crate::ena::Ena::new(settings), |function| Ena::open(function, setup)), size)
}

fn ena(size: usize) -> Box<dyn Looped> {
    ena_of(crate::ena::Settings::newest(), size)
}

/// With descriptors in memory of the host.
fn ena_host(size: usize) -> Box<dyn Looped> {
    ena_of(crate::ena::Settings::first(), size)
}

/// Read pointers are registers.
fn nfd3(size: usize) -> Box<dyn Looped> {
    nfp(crate::nfp::Settings::default(), size)
}

/// Read pointers come to memory.
fn nfdk(size: usize) -> Box<dyn Looped> {
    nfp(crate::nfp::Settings::nfdk(), size)
}

fn nfp(settings: crate::nfp::Settings, size: usize) -> Box<dyn Looped> {
    let setup = nfp::Setup {
        place: place(),
        ids: nfp::IDS[0],
        wishes: Wishes::default(),
        patience: nfp::Patience::default(),
    };
    looped(Exam::start(crate::nfp::Nfp::new(settings), |function| Nfp::open(function, setup)), size)
}

fn iavf_of(options: crate::iavf::Options, size: usize) -> Box<dyn Looped> {
    let setup =
        iavf::Setup { place: place(), wishes: Wishes::default(), patience: iavf::Patience::default() };
    looped(Exam::start(crate::iavf::Iavf::new(options), |function| Iavf::open(function, setup)), size)
}

fn iavf(size: usize) -> Box<dyn Looped> {
    iavf_of(crate::iavf::Options::default(), size)
}

fn iavf_700(size: usize) -> Box<dyn Looped> {
    iavf_of(crate::iavf::Options::series_700(), size)
}
