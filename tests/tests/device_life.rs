//! Devices that come, go, fail, are reset, and hold on to what they borrowed.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use forwarder_tests::device::{Borrower, look};
use forwarder_tests::flows::Flows;
use forwarder_tests::frames::{exchange, frame};
use forwarder_tests::stand::Stand;
use forwarder_tests::wait::eventually;
use pmd::{Device, DeviceEvent, MacAddress};
use relay::counters::DropReason;
use relay::driver::nic::{GuestNic, NicOptions};
use relay::ends::{Ends, RelayCounters, Side};
use relay::path::GUEST_PATIENCE;
use relay::relay::{DeviceState, GuestPort, RemoveError};
use vhost::VhostBackend;

fn connect(stand: &Stand) -> GuestNic {
    stand.connect(0, NicOptions::default()).unwrap()
}

fn ready(stand: &Stand) {
    eventually("the device runs", || stand.relay(0).status().device_state == DeviceState::Ready);
}

fn send(nic: &mut GuestNic, numbers: std::ops::Range<u32>) {
    for number in numbers {
        assert!(nic.send(&frame(number)));
    }
    nic.flush();
}

#[test]
fn frames_go_through_a_device_that_borrows_and_completes_in_any_order() {
    let stand = Stand::new(1);
    let (device, bench) = Borrower::new();
    stand.device(0, Box::new(device));
    assert_eq!(stand.relay(0).status().device_state, DeviceState::Added, "it waits for its guest");
    let mut nic = connect(&stand);
    ready(&stand);
    send(&mut nic, 0..200);
    eventually("200 frames are sent", || look(&bench).sent.len() == 200);
    assert!(look(&bench).sent.iter().enumerate().all(|(n, bytes)| *bytes == frame(n as u32)));
    eventually("all buffers come back", || {
        nic.take_sent();
        nic.free_slots() == 256
    });
    let mut received = 0;
    // Never more at once than the guest has buffers: what waits for one is dropped after a millisecond.
    for hundred in 0..10 {
        look(&bench).to_receive.extend((100 * hundred..100 * (hundred + 1)).map(frame));
        eventually("100 frames arrive", || {
            nic.receive(64, |bytes| {
                assert_eq!(bytes, frame(received));
                received += 1;
            });
            received == 100 * (hundred + 1)
        });
    }
    eventually("all receive buffers are given back", || look(&bench).lent == 0);
}

#[test]
fn a_device_that_keeps_what_it_borrowed_has_it_taken_away_in_time() {
    let stand = Stand::new(2);
    stand.loopback(1);
    let (device, bench) = Borrower::new();
    stand.device(0, Box::new(device));
    let mut nic = connect(&stand);
    let mut neighbour = stand.connect(1, NicOptions::default()).unwrap();
    ready(&stand);
    look(&bench).withhold = true;
    send(&mut nic, 0..100);
    eventually("100 frames are borrowed", || look(&bench).borrowed.len() == 100);
    let start = Instant::now();
    let (_, transmit) = nic.stop_queues().unwrap();
    let time = start.elapsed();
    // The bound is 100 ms; ten times that is a fault on the slowest machine.
    assert!((Duration::from_millis(100)..Duration::from_secs(2)).contains(&time), "{time:?}");
    assert_eq!(transmit, 100, "every chain is the guest's again");
    nic.take_sent();
    assert_eq!(nic.free_slots(), 256);
    assert_eq!(stand.relay(0).counters().vm_to_vf.dropped(DropReason::Aborted), 100);
    assert!(look(&bench).borrowed.is_empty() && look(&bench).aborts > 0);
    exchange(&mut neighbour, 0, 1000);
    // A queue that was disabled is dead: its device is brought up anew, and carries frames again.
    look(&bench).withhold = false;
    eventually("the device is restarted", || look(&bench).stops >= 1);
    nic.restart_queues().unwrap();
    ready(&stand);
    send(&mut nic, 100..150);
    eventually("frames go out again", || look(&bench).sent.len() == 150);
}

#[test]
fn a_guest_that_dies_takes_its_memory_back_from_the_device_first() {
    let stand = Stand::new(1);
    let (device, bench) = Borrower::new();
    stand.device(0, Box::new(device));
    for _ in 0..3 {
        let mut nic = connect(&stand);
        ready(&stand);
        look(&bench).withhold = true;
        send(&mut nic, 0..50);
        eventually("frames are borrowed", || look(&bench).borrowed.len() == 50);
        drop(nic);
        eventually("the guest is gone", || stand.relay(0).status().guest.is_none());
        assert!(look(&bench).borrowed.is_empty(), "nothing is left with the device");
        look(&bench).withhold = false;
    }
}

#[test]
fn a_device_is_removed_and_added_under_traffic() {
    let stand = Stand::new(1);
    let mut nic = connect(&stand);
    for round in 0..10 {
        let (device, bench) = Borrower::new();
        stand.device(0, Box::new(device));
        ready(&stand);
        look(&bench).to_receive.extend((0..1000).map(frame));
        send(&mut nic, 0..100);
        eventually("frames go out", || !look(&bench).sent.is_empty());
        assert_eq!(
            stand.relay(0).remove_device(Some("other")),
            Err(RemoveError::Another { relay: 0, actual: "borrower".to_owned(), wanted: "other".to_owned() })
        );
        stand.relay(0).remove_device(Some("borrower")).unwrap();
        assert_eq!(stand.relay(0).remove_device(None), Err(RemoveError::Nothing(0)));
        let bench = look(&bench);
        assert_eq!((bench.starts, bench.stops, bench.lent), (1, 1, 0), "round {round}");
        drop(bench);
        eventually("all buffers come back", || {
            nic.take_sent();
            nic.receive(256, |_| ());
            nic.free_slots() == 256
        });
    }
}

#[test]
fn a_relay_has_one_device_at_a_time() {
    let stand = Stand::new(1);
    let reservation = stand.relay(0).reserve("first").unwrap();
    let occupied = stand.relay(0).reserve("second").unwrap_err();
    assert_eq!(occupied.device, "first");
    assert!(
        matches!(stand.relay(0).remove_device(None), Err(RemoveError::Busy { .. })),
        "it is being opened"
    );
    drop(reservation);
    assert!(stand.relay(0).reserve("second").is_ok(), "opening failed: the place is free");
}

#[test]
fn a_reset_device_is_brought_up_anew_however_often_that_fails() {
    let stand = Stand::new(1);
    let (device, bench) = Borrower::new();
    stand.device(0, Box::new(device));
    let mut nic = connect(&stand);
    ready(&stand);
    look(&bench).failing_starts = 3;
    look(&bench).events = vec![DeviceEvent::ResetNeeded { reason: "a test".to_owned() }];
    eventually("it was stopped and started again", || {
        let bench = look(&bench);
        (bench.starts, bench.stops, bench.failing_starts) == (2, 1, 0)
    });
    ready(&stand);
    send(&mut nic, 0..10);
    eventually("frames go out", || look(&bench).sent.len() >= 10);
}

#[test]
fn what_a_guest_sends_waits_for_a_device_that_is_on_its_way() {
    let stand = Stand::new(1);
    stand.relay(0).await_device();
    let mut nic = connect(&stand);
    send(&mut nic, 0..50);
    let (device, bench) = Borrower::new();
    stand.device(0, Box::new(device));
    // With the next guest it starts anew, and that takes as long as the first time.
    for guest in 1..=3 {
        eventually("all 50 frames go out", || look(&bench).sent.len() == 50);
        assert!(std::mem::take(&mut look(&bench).sent).into_iter().eq((0..50).map(frame)));
        drop(nic);
        eventually("the device is stopped", || look(&bench).stops == guest);
        nic = connect(&stand);
        send(&mut nic, 0..50);
    }
    assert_eq!(stand.relay(0).counters().vm_to_vf.dropped(DropReason::VfNotConnected), 0);
}

#[test]
fn frames_wait_no_longer_than_there_is_hope_for_a_device() {
    for comes in [false, true] {
        let stand = Stand::new(1);
        stand.relay(0).await_device();
        let mut nic = connect(&stand);
        send(&mut nic, 0..50);
        let dropped = || stand.relay(0).counters().vm_to_vf.dropped(DropReason::VfNotConnected);
        let reservation = stand.relay(0).reserve("borrower").unwrap();
        assert_eq!(dropped(), 0);
        if comes {
            let (device, bench) = Borrower::new();
            look(&bench).failing_starts = usize::MAX;
            reservation.attach(Box::new(device)).unwrap();
        } else {
            drop(reservation);
        }
        eventually("they are dropped", || dropped() == 50);
    }
}

#[test]
fn a_device_that_is_gone_is_let_go_of_and_the_relay_takes_another() {
    let stand = Stand::new(1);
    let (device, bench) = Borrower::new();
    stand.device(0, Box::new(device));
    let mut nic = connect(&stand);
    ready(&stand);
    look(&bench).events = vec![DeviceEvent::Gone { reason: "a test".to_owned() }];
    eventually("the relay's place is free", || stand.relay(0).status().device.is_none());
    assert_eq!(look(&bench).stops, 1);
    assert_eq!(Arc::strong_count(&bench), 1, "nothing holds the device any more");
    let (device, bench) = Borrower::new();
    stand.device(0, Box::new(device));
    ready(&stand);
    send(&mut nic, 0..10);
    eventually("frames go out", || look(&bench).sent.len() == 10);
}

#[test]
fn frames_that_a_device_cannot_send_are_dropped_with_a_reason() {
    let stand = Stand::new(1);
    let (device, bench) = Borrower::new();
    stand.device(0, Box::new(device));
    let mut nic = connect(&stand);
    ready(&stand);
    assert!(nic.send(&[1; 1519]));
    assert!(nic.send(&[2; 13]));
    assert!(nic.send(&[3; 60]));
    nic.flush();
    eventually("the good one goes out", || look(&bench).sent == [vec![3; 60]]);
    let counters = &stand.relay(0).counters().vm_to_vf;
    assert_eq!(counters.dropped(DropReason::FrameTooLong), 1);
    assert_eq!(counters.dropped(DropReason::FrameTooShort), 1);
    look(&bench).full = true;
    send(&mut nic, 0..10);
    eventually("a device that takes nothing loses frames in the end", || {
        counters.dropped(DropReason::VfQueueFull) == 10
    });
}

/// A device with 1000 frames of 16 flows for a guest of `pairs` queue pairs with 64 buffers each that takes none of them
/// for 50 times as long as a frame waits at most; then what arrives of each flow is checked.
fn slow_guest(pairs: u16, can_wait: bool) -> (u64, usize) {
    let stand = Stand::new(1);
    let (device, bench) = Borrower::new();
    look(&bench).can_wait = can_wait;
    let mut flows = Flows::new(16, &[60, 1514, 200]);
    look(&bench).to_receive = (0..1000u32).map(|n| flows.write(n as usize % 16, n / 16).to_vec()).collect();
    let options = NicOptions { queue_pairs: pairs, queue_size: 64, ..NicOptions::default() };
    let mut nic = stand.connect(0, options).unwrap();
    stand.device(0, Box::new(device));
    ready(&stand);
    std::thread::sleep(50 * GUEST_PATIENCE);
    let dropped = || stand.relay(0).counters().vf_to_vm.dropped(DropReason::GuestQueueFull);
    let (mut arrived, before) = (0, dropped());
    eventually("all frames are dealt with", || {
        for pair in 0..nic.pairs() {
            arrived += nic.receive_on(pair, 64, |_, bytes| {
                if before == 0 {
                    flows.check(bytes);
                }
            });
        }
        arrived as u64 + dropped() == 1000
    });
    eventually("all receive buffers are given back", || look(&bench).lent == 0);
    (dropped(), arrived)
}

#[test]
fn frames_that_can_wait_are_not_dropped_for_a_guest_without_buffers() {
    assert!(slow_guest(1, false).0 > 0, "what comes from a wire is");
    for pairs in [1, 4] {
        assert_eq!(slow_guest(pairs, true), (0, 1000), "{pairs} queue pairs");
    }
}

#[test]
fn frames_that_can_wait_do_so_while_no_receive_ring_runs() {
    for can_wait in [false, true] {
        let stand = Stand::new(1);
        let (device, bench) = Borrower::new();
        look(&bench).can_wait = can_wait;
        stand.device(0, Box::new(device));
        let mut nic = connect(&stand);
        ready(&stand);
        nic.frontend().get_vring_base(0).unwrap();
        look(&bench).to_receive.extend((0..100).map(frame));
        // For as long as its transmit ring runs, so does the device.
        std::thread::sleep(50 * GUEST_PATIENCE);
        assert_eq!(look(&bench).stops, 0);
        let nobody = stand.relay(0).counters().vf_to_vm.dropped(DropReason::VmNotConnected);
        let (lost, kept) = if can_wait { (0, 100) } else { (100, 0) };
        assert_eq!((nobody, look(&bench).to_receive.len()), (lost, kept));
    }
}

#[test]
fn an_announcement_is_taken_back_before_the_device_goes() {
    let (mut device, bench) = Borrower::new();
    look(&bench).withhold = true;
    let queues = device.start().unwrap();
    let mut ends = Ends::default();
    ends.put_device(queues.receive, queues.transmit, 1518);
    assert!(ends.announce(Side::Near, MacAddress([2, 0, 0, 0, 0, 1]), &RelayCounters::default()));
    assert_eq!(look(&bench).borrowed.len(), 1);
    // There is no lane that could do it: no transmit queue of a guest runs.
    let (_, transmit, _) = ends.take_device();
    assert_eq!((transmit.len(), look(&bench).borrowed.len()), (1, 0));
}

#[test]
fn a_guest_that_has_left_is_not_announced_when_another_comes() {
    let stand = Stand::new(1);
    let first = connect(&stand);
    GuestPort::from(Arc::clone(stand.relay(0))).announce(MacAddress([2, 0, 0, 0, 0, 1]));
    drop(first);
    eventually("the guest is gone", || stand.relay(0).status().guest.is_none());
    let (device, bench) = Borrower::new();
    stand.device(0, Box::new(device));
    let _second = connect(&stand);
    ready(&stand);
    assert!(look(&bench).sent.is_empty(), "it is on another host now");
}
