//! Workers that have nothing to do: they sleep, and whatever brings work wakes them.
//!
//! Timers are set so long here that nothing happens within a test's deadline unless somebody rings.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forwarder::worker::Idle;
use forwarder_tests::device::{Borrower, look};
use forwarder_tests::frames::{exchange, frame};
use forwarder_tests::messages::{Answer, NOFD, Wire, request, words};
use forwarder_tests::stand::Stand;
use forwarder_tests::wait::{eventually, within};
use relay::counters::DropReason;
use relay::driver::nic::{GuestNic, NicOptions};
use relay::relay::DeviceState;
use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{ClockId, clock_gettime};

/// What does not ring is looked at after 10 s at the earliest.
const RINGS_ONLY: Idle = Idle::Adaptive { timer: Duration::from_secs(200) };
/// In which a worker that was rung for has long been awake.
const DEADLINE: Duration = Duration::from_secs(2);

/// Every way in which a driver is told whether to kick.
fn drivers() -> impl Iterator<Item = NicOptions> {
    [(false, false), (false, true), (true, false), (true, true)]
        .into_iter()
        .map(|(packed, event_idx)| NicOptions { packed, event_idx, ..NicOptions::default() })
}

fn cable(relays: u32, idle: Idle) -> Stand {
    let stand = Stand::with_idle(relays, idle);
    (0..relays as usize).for_each(|id| stand.loopback(id));
    stand
}

/// Sends a frame and waits until it is back.
fn comes_back(nic: &mut GuestNic, number: u32) -> bool {
    nic.take_sent();
    assert!(nic.send(&frame(number)));
    nic.flush();
    within(DEADLINE, || nic.receive(1, |bytes| assert_eq!(bytes, frame(number))) == 1)
}

#[test]
fn a_kick_wakes_a_worker_that_sleeps() {
    for options in drivers() {
        let stand = cable(1, RINGS_ONLY);
        let mut nic = stand.connect(0, options).unwrap();
        for number in 0..10 {
            stand.falls_asleep();
            assert!(comes_back(&mut nic, number), "frame {number}, {options:?}");
        }
    }
}

/// The same with no more than the moment in between in which a worker goes to sleep.
#[test]
fn a_kick_at_any_moment_of_falling_asleep_is_not_lost() {
    for options in drivers() {
        let stand = cable(1, RINGS_ONLY);
        let mut nic = stand.connect(0, options).unwrap();
        for number in 0..3000 {
            let pause = Duration::from_nanos(40_000 + u64::from(number) * 20);
            let end = Instant::now() + pause;
            while Instant::now() < end {}
            assert!(comes_back(&mut nic, number), "frame {number}, {options:?}");
        }
    }
}

#[test]
fn receive_buffers_wake_a_worker_with_frames_that_wait_for_them() {
    for options in drivers() {
        // A worker whose CPU is taken away for a millisecond drops what waits, and says so.
        let proven = (0..20).any(|_| buffers_wake(options));
        assert!(proven, "frames never waited until the worker slept, {options:?}");
    }
}

/// Fills all receive buffers, has a frame wait until the worker sleeps, and takes it; `false` if it did not wait for long
/// enough.
fn buffers_wake(options: NicOptions) -> bool {
    let stand = cable(1, RINGS_ONLY);
    let mut nic = stand.connect(0, options).unwrap();
    let buffers = u32::from(options.queue_size);
    for number in 0..=buffers {
        eventually("there is room", || {
            nic.take_sent();
            nic.send(&frame(number))
        });
        nic.flush();
    }
    let arrived = || stand.relay(0).counters().vf_to_vm.tx_frames.get();
    eventually("all buffers are full", || arrived() == u64::from(buffers));
    stand.falls_asleep();
    if stand.relay(0).counters().vm_to_vf.dropped_in_all() > 0 {
        return false;
    }
    assert_eq!(nic.receive(1, |_| ()), 1);
    assert!(within(DEADLINE, || arrived() == u64::from(buffers) + 1), "{options:?}");
    true
}

#[test]
fn a_chain_that_is_no_frame_does_not_cost_the_next_kick() {
    for options in drivers() {
        let stand = cable(1, RINGS_ONLY);
        let mut nic = stand.connect(0, options).unwrap();
        let malformed = || stand.relay(0).counters().vm_to_vf.dropped(DropReason::FrameTooShort);
        for number in 0..5 {
            stand.falls_asleep();
            assert!(nic.send(&[0; 13]));
            nic.flush();
            assert!(within(DEADLINE, || malformed() == number + 1), "{options:?}");
            stand.falls_asleep();
            assert!(comes_back(&mut nic, number as u32), "{options:?}");
        }
    }
}

#[test]
fn a_device_wakes_a_worker_that_sleeps() {
    let stand = Stand::with_idle(1, RINGS_ONLY);
    let (device, bench) = Borrower::new();
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    look(&bench).bell = Some(Arc::clone(&bell));
    stand.device(0, Box::new(device));
    let mut nic = stand.connect(0, NicOptions::default()).unwrap();
    eventually("the device runs", || stand.relay(0).status().device_state == DeviceState::Ready);
    for number in 0..10 {
        stand.falls_asleep();
        look(&bench).to_receive.push_back(frame(number));
        rustix::io::write(&*bell, &1u64.to_ne_bytes()).unwrap();
        assert!(within(DEADLINE, || nic.receive(1, |bytes| assert_eq!(bytes, frame(number))) == 1));
    }
}

/// A device that has lost an interrupt, or whose interrupts go elsewhere, delays what it has received by half a second.
#[test]
fn a_device_whose_bell_never_rings_is_looked_at_all_the_same() {
    let stand = Stand::new(1);
    let (device, bench) = Borrower::new();
    look(&bench).bell = Some(Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap()));
    stand.device(0, Box::new(device));
    let mut nic = stand.connect(0, NicOptions::default()).unwrap();
    eventually("the device runs", || stand.relay(0).status().device_state == DeviceState::Ready);
    for number in 0..3 {
        stand.falls_asleep();
        look(&bench).to_receive.push_back(frame(number));
        assert!(within(DEADLINE, || nic.receive(1, |bytes| assert_eq!(bytes, frame(number))) == 1));
    }
}

/// Each start and stop of a ring takes several messages, which only the bell brings at once.
#[test]
fn a_message_wakes_a_worker_that_sleeps() {
    let stand = cable(1, RINGS_ONLY);
    let mut nic = stand.connect(0, NicOptions::default()).unwrap();
    stand.falls_asleep();
    let start = Instant::now();
    for _ in 0..5 {
        nic.stop_queues().unwrap();
        nic.restart_queues().unwrap();
    }
    let time = start.elapsed();
    assert!(time < DEADLINE, "{time:?}");
    exchange(&mut nic, 0, 100);
}

#[test]
fn a_guest_without_kick_descriptors_is_polled() {
    let stand = cable(1, Idle::default());
    let mut nic = stand.connect(0, NicOptions::default()).unwrap();
    let mut wire = Wire::of(&mut nic).unwrap();
    for ring in 0..2 {
        assert_eq!(wire.ask(request::SET_VRING_KICK, &words(&[ring | NOFD]), &[]), Answer::Done);
    }
    for number in 0..100 {
        std::thread::sleep(Duration::from_millis(2));
        assert!(comes_back(&mut nic, number), "frame {number}");
    }
}

#[test]
fn a_device_without_interrupt_is_polled() {
    let stand = Stand::new(1);
    let (device, bench) = Borrower::new();
    stand.device(0, Box::new(device));
    let mut nic = stand.connect(0, NicOptions::default()).unwrap();
    eventually("the device runs", || stand.relay(0).status().device_state == DeviceState::Ready);
    for number in 0..100 {
        std::thread::sleep(Duration::from_millis(2));
        look(&bench).to_receive.push_back(frame(number));
        assert!(within(DEADLINE, || nic.receive(1, |bytes| assert_eq!(bytes, frame(number))) == 1));
    }
}

#[test]
fn silent_guests_let_the_worker_sleep() {
    const TIME: Duration = Duration::from_secs(2);
    let stand = cable(64, Idle::default());
    let nics: Vec<GuestNic> = (0..64).map(|id| stand.connect(id, NicOptions::default()).unwrap()).collect();
    stand.falls_asleep();
    let (before, cpu) = (stand.figures(), clock_gettime(ClockId::ProcessCPUTime));
    std::thread::sleep(TIME);
    let (after, used) = (stand.figures(), clock_gettime(ClockId::ProcessCPUTime) - cpu);
    let (passes, sleeps) = (after.passes - before.passes, after.sleeps - before.sleeps);
    let share = Duration::try_from(used).unwrap().as_secs_f64() / TIME.as_secs_f64() * 1e2;
    println!("64 silent guests: {passes} passes, {sleeps} sleeps in {TIME:?}, {share:.2} % of a CPU");
    // A beat every half second, for the watchdog.
    assert!(sleeps > 0 && passes <= 20, "{passes} passes, {sleeps} sleeps");
    drop(nics);
}

#[test]
fn kicks_without_end_cost_the_neighbour_no_frame_and_end_with_the_guest() {
    let stand = cable(2, RINGS_ONLY);
    let mut neighbour = stand.connect(1, NicOptions::default()).unwrap();
    let nic = stand.connect(0, NicOptions::default()).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let kicks = nic.kicks();
        let stop = &stop;
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                kicks.iter().for_each(|kick| kick.write(1).unwrap());
            }
        });
        exchange(&mut neighbour, 0, 2000);
        stop.store(true, Ordering::Relaxed);
    });
    // Nobody has read the eventfds: they are readable, and do not keep the worker awake.
    assert!(nic.kicks().iter().all(|kick| kick.read().unwrap() > 0));
    nic.kicks().iter().for_each(|kick| kick.write(1).unwrap());
    stand.falls_asleep();
    assert!(comes_back(&mut neighbour, 7));
}

#[test]
fn a_worker_that_is_told_to_poll_does_not_sleep() {
    let stand = cable(1, Idle::Poll);
    let mut nic = stand.connect(0, NicOptions::default()).unwrap();
    let sleeps = stand.figures().sleeps;
    let passes = stand.figures().passes;
    std::thread::sleep(Duration::from_millis(50));
    eventually("it goes round", || stand.figures().passes > passes + 1000);
    assert_eq!(stand.figures().sleeps, sleeps);
    exchange(&mut nic, 0, 100);
    assert_eq!(nic.kicks()[1].read().unwrap_or(0), 0, "and asks for no kick");
}
