//! What the tests of `nfp` share: how the driver is opened on the model.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use models::nfp::{Nfp as Model, Settings};
use models::{Exam, InProcess};
use pmd::nfp::{IDS, Nfp, Patience, Setup};
use pmd::pci::PciFunction;
use pmd::vf::{Place, Vf, Wishes};
use pmd::{DeviceError, MacAddress};

/// Waits next to nothing.
pub const IMPATIENT: Patience = Patience {
    interval: Duration::from_micros(50),
    answer: Duration::from_millis(60),
    stall: Duration::from_millis(100),
};
/// The address that the model's firmware has.
pub const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 0x77]);

pub fn both() -> [Settings; 2] {
    [Settings::default(), Settings::nfdk()]
}

pub fn open(function: Arc<InProcess<Model>>, wishes: Wishes) -> Result<Vf<Nfp>, DeviceError> {
    let mut ids = [0; 4];
    function.read_config(0, &mut ids).unwrap();
    let ids = *IDS.iter().find(|known| known.device.to_le_bytes() == ids[2..]).unwrap_or(&IDS[0]);
    let place = Place { address: "0000:02:08.0".parse().unwrap(), pf: Some(("eth2".to_owned(), 3)) };
    Nfp::open(function as Arc<dyn PciFunction>, Setup { place, ids, wishes, patience: IMPATIENT })
}

pub fn start_with(model: Model, wishes: Wishes) -> Exam<Model> {
    Exam::start(model, |function| open(function, wishes))
}

pub fn start(settings: Settings) -> Exam<Model> {
    start_with(Model::new(settings), Wishes::default())
}

pub fn queues(count: u16) -> Wishes {
    Wishes { queue_pairs: NonZero::new(count).unwrap(), ..Wishes::default() }
}
