//! What the model does not forgive: a driver by hand, which breaks one rule at a time.

use std::sync::Arc;

use pmd::memory::{DmaMemory, DmaSlice};
use pmd::pci::PciFunction;
use pmd::{Caching, Registers};

use super::features::*;
use super::*;
use crate::in_process::InProcess;

/// A driver that has done everything right up to some point.
struct ByHand {
    function: Arc<InProcess<VirtioNet>>,
    bar: Arc<dyn Registers>,
    ring: DmaSlice,
}

const SIZE: u16 = 8;

impl ByHand {
    /// A driver that has chosen `features`.
    fn new(features: &[u32]) -> Self {
        let function = InProcess::new(VirtioNet::new(Options { queue_size: SIZE, ..Options::split() }));
        let bar = Arc::clone(&function).bar(BAR, 0, 0x4000, Caching::Uncached).unwrap();
        let memory = DmaMemory::new(Arc::clone(&function) as Arc<_>, 4096, "by hand").unwrap();
        let [ring] = memory.carve([4096]).unwrap();
        function.set_bus_master(true).unwrap();
        let driver = Self { function, bar, ring };
        [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER].into_iter().for_each(|status| driver.status(status));
        let bits: u64 = features.iter().chain(&[VERSION_1, ACCESS_PLATFORM]).map(|bit| 1 << bit).sum();
        for half in 0..2 {
            driver.bar.write(8, half);
            driver.bar.write(12, (bits >> (32 * half)) as u32);
        }
        driver
    }

    /// And has settled them.
    fn settled(features: &[u32]) -> Self {
        let driver = Self::new(features);
        driver.status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        driver
    }

    /// And has two queues, of which the second is in its memory, and runs.
    fn running() -> Self {
        let driver = Self::settled(&[]);
        [0, 1].into_iter().for_each(|queue| driver.enable(queue));
        driver.status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(driver.faults(), Vec::<String>::new());
        driver
    }

    fn status(&self, status: u8) {
        self.bar.write8(0x14, status);
    }

    fn enable(&self, queue: u16) {
        self.bar.write16(0x16, queue);
        for (area, at) in [(0x20, 0), (0x28, 0x200), (0x30, 0x300)] {
            let iova = self.ring.iova() + at + 0x800 * u64::from(queue == 0);
            self.bar.write(area, iova as u32);
            self.bar.write(area + 4, (iova >> 32) as u32);
        }
        self.bar.write16(0x1c, 1);
    }

    /// Makes descriptor `head` available as entry `index` of the second queue, and notifies it.
    fn give(&mut self, index: u16, head: u16) {
        self.ring.store16(0x100 + 2 + usize::from(index % SIZE), head);
        self.ring.store16(0x100 + 1, index + 1);
        self.bar.write16(NOTIFY as u32 + MULTIPLIER, 1);
    }

    /// A descriptor of the second queue.
    fn describe(&mut self, slot: usize, iova: u64, len: u32, flags: u16, next: u16) {
        self.ring.store(2 * slot, iova);
        let half = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.ring.store(2 * slot + 1, half);
    }

    fn faults(&self) -> Vec<String> {
        self.function.take_faults().iter().map(ToString::to_string).collect()
    }

    fn blamed(&self, words: &str) {
        let faults = self.faults();
        assert!(faults.iter().any(|fault| fault.contains(words)), "'{words}' is not among {faults:?}");
    }
}

#[test]
fn status_and_features_have_an_order() {
    let driver = ByHand::new(&[]);
    driver.status(ACKNOWLEDGE | DRIVER | DRIVER_OK);
    driver.blamed("follows on");
    let driver = ByHand::new(&[]);
    driver.status(ACKNOWLEDGE);
    driver.blamed("takes back");
    let driver = ByHand::settled(&[]);
    driver.bar.write(12, 1);
    driver.blamed("after they were settled");
    let driver = ByHand::settled(&[]);
    driver.status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    driver.blamed("without its first two queues");
}

#[test]
fn features_must_be_offered_and_rest_on_others() {
    for (features, words) in [
        (&[RING_PACKED][..], "not offered"),
        (&[HOST_TSO4], "without any of [0]"),
        (&[CTRL_RX], "without any of [17]"),
    ] {
        let driver = ByHand::settled(features);
        driver.blamed(words);
        assert_eq!(driver.bar.read8(0x14) & FEATURES_OK, 0, "{features:?} are not accepted");
    }
}

#[test]
fn queues_are_programmed_before_they_run() {
    let driver = ByHand::running();
    driver.bar.write16(0x18, 4);
    driver.blamed("is written in status");
    let driver = ByHand::settled(&[]);
    driver.enable(0);
    driver.bar.write(0x20, 0);
    driver.blamed("absent or enabled");
    let driver = ByHand::settled(&[]);
    driver.bar.write16(0x16, 1);
    driver.bar.write16(0x18, 6);
    driver.enable(1);
    driver.blamed("a ring of 6");
    let driver = ByHand::settled(&[]);
    driver.bar.write8(0x18, 8);
    driver.blamed("by Byte");
}

#[test]
fn notifications_are_for_queues_that_run() {
    let driver = ByHand::settled(&[]);
    driver.enable(0);
    driver.bar.write16(NOTIFY as u32, 0);
    driver.blamed("before the driver is ready");
    let driver = ByHand::running();
    driver.bar.write16(NOTIFY as u32 + 2 * MULTIPLIER, 2);
    driver.blamed("which is not there");
    driver.bar.write16(NOTIFY as u32, 1);
    driver.blamed("is notified of queue 1");
    driver.bar.write(NOTIFY as u32, 0);
    driver.blamed("by Word");
}

#[test]
fn descriptors_are_the_devices_until_they_come_back() {
    let mut driver = ByHand::running();
    let frame = driver.ring.iova() + 0x400;
    driver.function.with(|model, _| model.frozen = true);
    driver.describe(0, frame, 112, 0, 0);
    driver.give(0, 0);
    driver.give(1, 0);
    driver.blamed("used again");
    driver.describe(0, frame + 1, 112, 0, 0);
    driver.function.with(|model, bus| {
        model.frozen = false;
        model.go_on(bus);
    });
    driver.blamed("was changed while the device had it");
}

#[test]
fn chains_stay_in_the_table_and_frames_in_memory() {
    for (descriptor, words) in [
        ((0, 112, 0, 0), "not mapped"),
        ((0x400, 112, 1, 9), "outside the table"),
        ((0x400, 112, 1, 0), "no end"),
        ((0x400, 112, 4, 0), "flags 0x4"),
        ((0x400, 0, 0, 0), "0 bytes"),
        ((0x400, 20, 0, 0), "a frame of 8 bytes"),
        ((0x400, 112, 2, 0), "descriptors to write"),
    ] {
        let mut driver = ByHand::running();
        let (at, len, flags, next) = descriptor;
        let iova = if at == 0 { 0x1000 } else { driver.ring.iova() + at };
        driver.describe(0, iova, len, flags, next);
        driver.give(0, 0);
        driver.blamed(words);
    }
}

#[test]
fn headers_ask_only_for_what_was_agreed_on() {
    for (header, words) in [(2, "bits that only devices set"), (1, "a checksum at"), (0x0100, "not zero")] {
        let mut driver = ByHand::running();
        let frame = driver.ring.iova() + 0x400;
        driver.ring.store32(0x100, header);
        driver.describe(0, frame, 112, 0, 0);
        driver.give(0, 0);
        driver.blamed(words);
    }
}

#[test]
fn after_a_reset_a_vector_may_be_let_go_of_and_nothing_else() {
    let driver = ByHand::running();
    driver.status(0);
    driver.bar.write16(0x1a, NO_VECTOR);
    assert_eq!(driver.faults(), Vec::<String>::new());
    driver.bar.write16(0x1a, 0);
    driver.blamed("is written in status");
}
