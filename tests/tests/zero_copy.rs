//! A device that is let into the guest's memory, and taken out of it again whatever happens.

#![allow(clippy::unwrap_used)]

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use forwarder_tests::device::{Bench, Borrower, look};
use forwarder_tests::frames::frame;
use forwarder_tests::stand::Stand;
use forwarder_tests::wait::eventually;
use pmd::DeviceEvent;
use relay::counters::DropReason;
use relay::driver::memory::GuestRam;
use relay::driver::nic::{GuestNic, NicOptions};
use relay::relay::DeviceState;
use relay::zero_copy::{ZeroCopy, ZeroCopyState};
use vhost::VhostBackend;
use vhost::VhostUserMemoryRegionInfo;
use vhost::vhost_user::VhostUserFrontend;

fn stand() -> (Stand, Arc<Mutex<Bench>>) {
    let stand = Stand::with_zero_copy(1, ZeroCopy::Transmit);
    let (device, bench) = Borrower::new();
    stand.device(0, Box::new(device));
    (stand, bench)
}

fn connect(stand: &Stand, options: NicOptions) -> GuestNic {
    let nic = stand.connect(0, options).unwrap();
    eventually("the device runs", || stand.relay(0).status().device_state == DeviceState::Ready);
    nic
}

fn state(stand: &Stand) -> ZeroCopyState {
    stand.relay(0).status().device.unwrap().zero_copy
}

fn sends_from(stand: &Stand, bytes: u64) {
    eventually("the device is let in", || state(stand) == ZeroCopyState::Sending(bytes));
}

fn refused(stand: &Stand, reason: &str) {
    let is_refused = || matches!(state(stand), ZeroCopyState::Refused(text) if text.contains(reason));
    eventually("zero-copy is refused", is_refused);
}

/// Sends frames and waits until they are out; how many of them were sent from where they lay.
fn send(nic: &mut GuestNic, bench: &Mutex<Bench>, numbers: std::ops::Range<u32>) -> usize {
    let before = look(bench).sent.len();
    let from_windows = look(bench).sent_from_windows;
    let count = numbers.len();
    for number in numbers.clone() {
        assert!(nic.send(&frame(number)));
    }
    nic.flush();
    eventually("they are sent", || look(bench).sent.len() == before + count);
    eventually("their buffers come back", || {
        nic.take_sent();
        nic.free_slots() == 256
    });
    let bench = look(bench);
    assert!(bench.sent[before..].iter().zip(numbers).all(|(bytes, number)| *bytes == frame(number)));
    bench.sent_from_windows - from_windows
}

fn region(ram: &GuestRam) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: ram.gpa(),
        memory_size: ram.size(),
        userspace_addr: ram.user(),
        mmap_offset: 0,
        mmap_handle: ram.file().as_raw_fd(),
    }
}

/// The device has a frame, and keeps it.
fn lend_one(nic: &mut GuestNic, bench: &Mutex<Bench>) {
    look(bench).withhold = true;
    assert!(nic.send(&frame(0)));
    nic.flush();
    eventually("a frame is borrowed", || look(bench).borrowed.len() == 1);
}

#[test]
fn a_guest_is_sent_from_while_it_is_there_and_none_of_its_memory_stays_mapped_after_it() {
    let (stand, bench) = stand();
    for packed in [false, true, false] {
        let mut nic = connect(&stand, NicOptions { packed, ..NicOptions::default() });
        let size = nic.ram().size();
        sends_from(&stand, size);
        assert_eq!(send(&mut nic, &bench, 0..200), 200);
        assert_eq!(look(&bench).mapped.iter().map(|(_, len)| *len as u64).sum::<u64>(), size);
        drop(nic);
        eventually("nothing is mapped", || look(&bench).mapped.is_empty());
        eventually("that is seen", || state(&stand) == ZeroCopyState::Copying);
    }
}

/// Where a daemon that died has left a packed ring is told by one number, which is only right if nothing overtakes.
#[test]
fn in_a_packed_ring_what_is_dropped_waits_for_what_is_borrowed() {
    let (stand, bench) = stand();
    for (packed, comes_back) in [(false, 1), (true, 0)] {
        let mut nic = connect(&stand, NicOptions { packed, ..NicOptions::default() });
        sends_from(&stand, nic.ram().size());
        look(&bench).withhold = true;
        assert!(nic.send(&frame(0)) && nic.send(&[1; 1519]));
        nic.flush();
        let counters = &stand.relay(0).counters().vm_to_vf;
        let dropped = 1 + u64::from(packed);
        eventually("one is dropped", || counters.dropped(DropReason::FrameTooLong) == dropped);
        eventually("the other is borrowed", || look(&bench).borrowed.len() == 1);
        eventually("what is done is seen", || comes_back == 0 || nic.free_slots() + nic.take_sent() > 254);
        nic.take_sent();
        assert_eq!(nic.free_slots(), 254 + comes_back);
        look(&bench).withhold = false;
        eventually("both are back", || {
            nic.take_sent();
            nic.free_slots() == 256
        });
        drop(nic);
        eventually("the guest is gone", || stand.relay(0).status().guest.is_none());
    }
}

#[test]
fn it_is_off_by_default() {
    let stand = Stand::new(1);
    let (device, bench) = Borrower::new();
    stand.device(0, Box::new(device));
    let mut nic = connect(&stand, NicOptions::default());
    assert_eq!(send(&mut nic, &bench, 0..100), 0);
    assert!(look(&bench).mapped.is_empty());
}

#[test]
fn regions_come_and_go_under_traffic_and_with_them_what_the_device_reaches() {
    let (stand, bench) = stand();
    for packed in [false, true] {
        let options = NicOptions { packed, memory_slots: true, ..NicOptions::default() };
        let mut nic = connect(&stand, options);
        let (size, more) = (nic.ram().size(), GuestRam::new(1 << 40, 1 << 21).unwrap());
        sends_from(&stand, size);
        for round in 0..5 {
            nic.frontend().add_mem_region(&region(&more)).unwrap();
            send(&mut nic, &bench, 0..50);
            sends_from(&stand, size + more.size());
            assert_eq!(send(&mut nic, &bench, 50..100), 50, "round {round}");
            // Frames are under way when it goes.
            look(&bench).withhold = true;
            assert!(nic.send(&frame(0)));
            nic.flush();
            eventually("it is borrowed", || look(&bench).borrowed.len() == 1);
            let starts = look(&bench).starts;
            nic.frontend().remove_mem_region(&region(&more)).unwrap();
            look(&bench).withhold = false;
            eventually("the device that kept it is restarted", || look(&bench).starts > starts);
            eventually("its buffer comes back", || {
                nic.take_sent();
                nic.free_slots() == 256
            });
            eventually("the region is not mapped any more", || look(&bench).mapped.len() == 1);
            sends_from(&stand, size);
        }
        drop(nic);
        eventually("nothing is mapped", || look(&bench).mapped.is_empty());
    }
}

#[test]
fn rings_that_start_anew_are_sent_from_again() {
    let (stand, bench) = stand();
    let mut nic = connect(&stand, NicOptions::default());
    let size = nic.ram().size();
    sends_from(&stand, size);
    for round in 0..5 {
        nic.reset().unwrap();
        eventually("its rings run", || stand.relay(0).status().device_state == DeviceState::Ready);
        look(&bench).events = vec![DeviceEvent::ResetNeeded { reason: "a test".to_owned() }];
        let starts = look(&bench).starts;
        eventually("the device is brought up anew", || look(&bench).starts > starts);
        // What is sent before it has new windows is copied.
        let numbers = 100 * round..100 * (round + 1);
        let again = || stand.relay(0).status().device_state == DeviceState::Ready;
        eventually("it runs", again);
        eventually("it sends from the guest's memory", || {
            send(&mut nic, &bench, numbers.clone()) == numbers.len()
        });
    }
}

#[test]
fn a_device_that_goes_has_nothing_mapped_and_the_next_one_has() {
    let (stand, bench) = stand();
    let mut nic = connect(&stand, NicOptions::default());
    let size = nic.ram().size();
    sends_from(&stand, size);
    lend_one(&mut nic, &bench);
    stand.relay(0).remove_device(None).unwrap();
    assert!(look(&bench).mapped.is_empty());
    assert_eq!(Arc::strong_count(&bench), 1, "nothing holds the device any more");
    let (device, bench) = Borrower::new();
    stand.device(0, Box::new(device));
    sends_from(&stand, size);
    assert!(nic.take_sent() > 0);
    assert_eq!(send(&mut nic, &bench, 0..100), 100);
    look(&bench).events = vec![DeviceEvent::Gone { reason: "a test".to_owned() }];
    eventually("it is let go of", || Arc::strong_count(&bench) == 1);
}

#[test]
fn memory_that_cannot_be_mapped_is_copied_until_it_is_another() {
    let (stand, bench) = stand();
    look(&bench).mappings_left = Some(1);
    let mut nic = connect(&stand, NicOptions { memory_slots: true, ..NicOptions::default() });
    let size = nic.ram().size();
    sends_from(&stand, size);
    let more = GuestRam::new(1 << 40, 1 << 21).unwrap();
    nic.frontend().add_mem_region(&region(&more)).unwrap();
    refused(&stand, "the double has no room left");
    assert!(look(&bench).mapped.is_empty(), "all or nothing");
    assert_eq!(send(&mut nic, &bench, 0..100), 0);
    look(&bench).mappings_left = None;
    nic.frontend().remove_mem_region(&region(&more)).unwrap();
    sends_from(&stand, size);
    assert_eq!(send(&mut nic, &bench, 100..200), 100);
}

#[test]
fn a_device_that_must_not_be_let_in_any_more_is_taken_out() {
    let (stand, bench) = stand();
    let mut nic = connect(&stand, NicOptions::default());
    let size = nic.ram().size();
    sends_from(&stand, size);
    lend_one(&mut nic, &bench);
    look(&bench).kept_out = Some("it has company".to_owned());
    refused(&stand, "it has company");
    let now = look(&bench);
    assert!(now.mapped.is_empty() && now.borrowed.is_empty());
    drop(now);
    look(&bench).withhold = false;
    eventually("it was restarted", || look(&bench).starts >= 2);
    eventually("it runs", || stand.relay(0).status().device_state == DeviceState::Ready);
    eventually("the frame is back", || {
        nic.take_sent();
        nic.free_slots() == 256
    });
    assert_eq!(send(&mut nic, &bench, 0..100), 0);
    look(&bench).kept_out = None;
    sends_from(&stand, size);
    assert_eq!(send(&mut nic, &bench, 0..100), 100);
}

#[test]
fn a_guest_behind_a_virtual_iommu_is_copied_from() {
    let (stand, bench) = stand();
    let mut nic = connect(&stand, NicOptions::default());
    sends_from(&stand, nic.ram().size());
    // VIRTIO_F_ACCESS_PLATFORM, on top of what it has.
    let features = stand.relay(0).status().guest.unwrap().features;
    nic.frontend().set_features(features | 1 << 33).unwrap();
    refused(&stand, "virtual IOMMU");
    assert!(look(&bench).mapped.is_empty());
}
