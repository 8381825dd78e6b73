//! What a front end says, and what it does not read.

use std::fs::File;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use forwarder_tests::frames::exchange;
use forwarder_tests::messages::{Answer, NOFD, Wire, header, message, request, state, words};
use forwarder_tests::process::Holdings;
use forwarder_tests::scene::Scene;
use forwarder_tests::wait::eventually;
use relay::driver::nic::NicOptions;
use relay::relay::GuestState;
use vhost::VhostBackend;

const IOTLB_MSG: u32 = 22;
/// The last of the 64 virtqueues that there are.
const LAST: u32 = 63;

fn wire(scene: &Scene) -> Wire {
    eventually("the socket is free", || scene.stand.relay(0).status().guest.is_none());
    Wire::connect(&scene.stand.socket(0)).unwrap()
}

/// Waits until all that was sent has been handled.
fn all_is_handled(wire: &mut Wire) {
    wire.write(&message(request::GET_FEATURES, &[])).unwrap();
    assert_eq!(wire.reply().unwrap().0, request::GET_FEATURES);
}

/// CVE-2019-14818: each of these messages leaked what the one before had brought.
#[test]
fn a_hundred_thousand_messages_about_a_ring_leave_nothing_behind() {
    let mut scene = Scene::new();
    let mut wire = wire(&scene);
    let round = |wire: &mut Wire, rounds: u32| {
        for n in 0..rounds {
            let mut bytes = Vec::new();
            let index = n % (LAST + 1);
            let address = u64::from(n) << 12;
            bytes.extend(message(request::SET_VRING_NUM, &state(index, n % 32768 + 1)));
            bytes.extend(message(request::SET_VRING_BASE, &state(index, n)));
            bytes.extend(message(
                request::SET_VRING_ADDR,
                &words(&[u64::from(index), address, address, address, 0]),
            ));
            bytes.extend(message(request::SET_VRING_ENABLE, &state(index, n % 2)));
            bytes.extend(message(request::SET_VRING_KICK, &words(&[u64::from(index) | NOFD])));
            bytes.extend(message(request::SET_VRING_CALL, &words(&[u64::from(index) | NOFD])));
            bytes.extend(message(request::SET_VRING_ERR, &words(&[u64::from(index) | NOFD])));
            wire.write(&bytes).unwrap();
        }
        all_is_handled(wire);
    };
    round(&mut wire, 100);
    let before = Holdings::now();
    for _ in 0..10 {
        round(&mut wire, 1429);
        scene.neighbour_goes_on();
    }
    let after = Holdings::now();
    assert!(after.is_about(&before), "{after:?}, before {before:?}");
}

/// CVE-2019-14818: the same with descriptors.
#[test]
fn thousands_of_descriptors_for_rings_leave_nothing_behind() {
    let mut scene = Scene::new();
    let mut wire = wire(&scene);
    let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    let before = Holdings::now();
    for n in 0..4000u64 {
        let request =
            [request::SET_VRING_KICK, request::SET_VRING_CALL, request::SET_VRING_ERR][n as usize % 3];
        assert_eq!(wire.ask(request, &words(&[n % 64]), &[eventfd.as_fd()]), Answer::Done);
    }
    scene.neighbour_goes_on();
    let after = Holdings::now();
    assert!(after.is_about(&before), "{after:?}, before {before:?}");
}

/// The same while rings run: each of these messages takes a ring from its worker and gives it back.
#[test]
fn a_flood_of_messages_about_running_rings_costs_their_guest_alone() {
    let mut scene = Scene::new();
    let mut nic = scene.hostile(NicOptions::default());
    exchange(&mut nic, 0, 100);
    let mut flood = Wire::of(&mut nic).unwrap();
    let before = Holdings::now();
    std::thread::scope(|scope| {
        let flooding = scope.spawn(|| {
            for n in 0..1500u32 {
                let mut bytes = message(request::SET_VRING_ENABLE, &state(n % 2, 1));
                bytes.extend(message(request::SET_VRING_CALL, &words(&[u64::from(n % 2) | NOFD])));
                bytes.extend(message(
                    request::SET_FEATURES,
                    &words(&[1 << 32 | 1 << 30 | u64::from(n % 2) << 29]),
                ));
                flood.write(&bytes).unwrap();
            }
            all_is_handled(&mut flood);
        });
        while !flooding.is_finished() {
            scene.neighbour_goes_on();
        }
    });
    let after = Holdings::now();
    assert!(after.is_about(&before), "{after:?}, before {before:?}");
    scene.neighbour_goes_on();
    drop((nic, flood));
    scene.relay_is_free_again();
}

/// CVE-2020-10723: an index of 0x10000 was cut to 16 bits after it was found to be too large, or before. DPDK's fix
/// 7cc4f260bf: one virtqueue more than there is room for.
#[test]
fn a_ring_that_does_not_exist_is_refused_in_every_message() {
    let mut scene = Scene::new();
    for (request, length) in request::OF_A_RING {
        let answers = request == request::GET_VRING_BASE;
        let by_descriptor =
            [request::SET_VRING_KICK, request::SET_VRING_CALL, request::SET_VRING_ERR].contains(&request);
        for index in [LAST, LAST + 1, LAST + 2, 0x80, 0xff, 0x1_0000, 0x1_003f, 0x8000_0000, 0xffff_ffff] {
            let mut wire = wire(&scene);
            let mut payload = state(index, 4);
            if by_descriptor {
                payload = words(&[u64::from(index) | NOFD]);
            }
            payload.resize(length, 0);
            if answers {
                wire.write(&message(request, &payload)).unwrap();
                assert_eq!(wire.reply().is_ok(), index == LAST, "request {request}, index {index:#x}");
                continue;
            }
            let expected = if index == LAST { Answer::Done } else { Answer::Refused };
            assert_eq!(wire.ask(request, &payload, &[]), expected, "request {request}, index {index:#x}");
        }
        scene.neighbour_goes_on();
    }
    let mut wire = wire(&scene);
    for size in [0, 32769, 0xffff, 0x1_0000, 0x1_0100, u32::MAX] {
        assert_eq!(
            wire.ask(request::SET_VRING_NUM, &state(0, size), &[]),
            Answer::Refused,
            "{size} descriptors"
        );
    }
}

/// CVE-2022-0669, CVE-2020-10726, CVE-2021-3839 (in-flight messages, which are not negotiated here) and DPDK's fix
/// 585283f9a7: descriptors that nobody asked for were never closed.
#[test]
fn descriptors_with_any_message_are_closed() {
    let mut scene = Scene::new();
    let file = File::open("/dev/null").unwrap();
    let before = Holdings::now();
    for request in 0..=44 {
        for count in [1, 2, 4, 8] {
            let mut wire = wire(&scene);
            for payload in [0, 8, 40] {
                let _ = wire.write_with(&message(request, &vec![0; payload]), &vec![file.as_fd(); count]);
            }
            let _ = wire.stream().shutdown(Shutdown::Write);
            assert!(wire.is_closed(), "request {request} with {count} descriptors");
        }
    }
    for count in [9, 16, 64, 252, 253] {
        for request in [1, 5, 12, 31, 37] {
            let mut wire = wire(&scene);
            let _ = wire.write_with(&message(request, &[0; 8]), &vec![file.as_fd(); count]);
            assert!(wire.is_closed(), "request {request} with {count} descriptors");
        }
    }
    // In the middle of a message, byte by byte.
    for _ in 0..5 {
        let mut wire = wire(&scene);
        for byte in message(request::SET_MEM_TABLE, &[0; 8]) {
            if wire.write_with(&[byte], &[file.as_fd(); 100]).is_err() {
                break;
            }
        }
        assert!(wire.is_closed());
    }
    let after = Holdings::now();
    // 45 × 15 × 3 and some thousand were sent.
    assert!(after.is_about(&before), "{after:?}, before {before:?}");
    scene.neighbour_goes_on();
    scene.relay_is_free_again();
}

/// DPDK's fixes 218daf1664 and 585283f9a7: a length that was believed.
#[test]
fn a_length_that_no_message_has_ends_the_connection() {
    let mut scene = Scene::new();
    for size in [1, 7, 9, 263, 265, 4096, 4097, 0x1_0000, 0x8000_0000, u32::MAX] {
        for request in [1, 2, 5, 8, 9, 12, 37] {
            if [(9, 40), (37, 40)].contains(&(request, size)) || request == 5 && size < 264 {
                continue;
            }
            let mut wire = wire(&scene);
            let _ = wire.write(&header(request, 1, size));
            let _ = wire.write(&vec![0xff; size.min(8192) as usize]);
            assert!(wire.is_closed(), "request {request} of {size} bytes");
        }
    }
    scene.neighbour_goes_on();
    scene.relay_is_free_again();
}

#[test]
fn a_front_end_that_leaves_in_the_middle_of_a_message_is_let_go() {
    let mut scene = Scene::new();
    let file = File::open("/dev/null").unwrap();
    let whole = message(request::ADD_MEM_REG, &words(&[0, 0x1000, 0x1000, 0x1000, 0]));
    let before = Holdings::now();
    for cut in 1..whole.len() {
        let wire = wire(&scene);
        wire.write_with(&whole[..cut], &[file.as_fd()]).unwrap();
    }
    let after = Holdings::now();
    assert!(after.is_about(&before), "{after:?}, before {before:?}");
    scene.neighbour_goes_on();
    scene.relay_is_free_again();
}

#[test]
fn a_front_end_that_never_reads_is_given_up_and_nobody_waits_for_it() {
    let mut scene = Scene::new();
    let wire = wire(&scene);
    wire.stream().set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let questions = message(request::GET_FEATURES, &[]).repeat(10_000);
    let mut stream = wire.stream();
    let mut slowest = Duration::ZERO;
    while stream.write_all(&questions).is_ok() {
        let start = Instant::now();
        let _ = scene.stand.relay(0).status();
        slowest = slowest.max(start.elapsed());
        scene.neighbour_goes_on();
    }
    assert!(slowest < Duration::from_secs(1), "the relay's state could not be seen for {slowest:?}");
    scene.neighbour_goes_on();
    eventually("it is given up", || scene.stand.relay(0).status().guest.is_none());
    drop(wire);
    scene.relay_is_free_again();
}

#[test]
fn rings_may_be_enabled_before_they_are_kicked_and_kicked_without_a_descriptor() {
    for packed in [false, true] {
        let mut scene = Scene::new();
        let mut nic = scene.hostile(NicOptions { packed, ..NicOptions::default() });
        exchange(&mut nic, 0, 100);
        let addresses = [0usize, 1].map(|index| ring_addresses(&mut nic, index));
        nic.stop_queues().unwrap();
        let mut wire = Wire::of(&mut nic).unwrap();
        for (index, address) in (0u32..).zip(addresses) {
            for (request, payload) in [
                (request::SET_VRING_ENABLE, state(index, 1)),
                (request::SET_VRING_KICK, words(&[u64::from(index) | NOFD])),
                (request::SET_VRING_CALL, words(&[u64::from(index) | NOFD])),
                (request::SET_VRING_ADDR, address),
                (request::SET_VRING_NUM, state(index, 256)),
            ] {
                assert_eq!(wire.ask(request, &payload, &[]), Answer::Done, "request {request}");
            }
        }
        exchange(&mut nic, 100, 500);
        scene.neighbour_goes_on();
        // A descriptor that is said not to be there, and one that is missing.
        let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        for request in [request::SET_VRING_KICK, request::SET_VRING_CALL, request::SET_VRING_ERR] {
            assert_eq!(wire.ask(request, &words(&[NOFD]), &[eventfd.as_fd()]), Answer::Refused);
            assert_eq!(wire.ask(request, &words(&[0]), &[]), Answer::Refused);
        }
        // Nor anything that a worker could be made to wait for.
        let file = File::open("/dev/null").unwrap();
        for request in [request::SET_VRING_KICK, request::SET_VRING_CALL] {
            assert_eq!(wire.ask(request, &words(&[0]), &[file.as_fd()]), Answer::Refused);
        }
        exchange(&mut nic, 500, 600);
    }
}

fn ring_addresses(nic: &mut relay::driver::nic::GuestNic, index: usize) -> Vec<u8> {
    use relay::driver::queue::Layout;
    let (layout, ram) = nic.by_hand(index);
    let (descriptors, available, used) = match layout {
        Layout::Split(ring) => (ring.descriptors, ring.available, ring.used),
        Layout::Packed(ring) => (ring.descriptors, ring.driver_event, ring.device_event),
    };
    let [descriptors, available, used] = [descriptors, available, used].map(|gpa| ram.user_of(gpa));
    words(&[index as u64, descriptors, used, available, 0])
}

#[test]
fn a_ring_that_is_placed_anew_while_it_runs_goes_on() {
    for packed in [false, true] {
        let mut scene = Scene::new();
        let mut nic = scene.hostile(NicOptions { packed, ..NicOptions::default() });
        let mut wire = Wire::of(&mut nic).unwrap();
        for round in 0..50 {
            exchange(&mut nic, 10 * round, 10 * round + 10);
            let index = round as usize % 2;
            let address = ring_addresses(&mut nic, index);
            assert_eq!(wire.ask(request::SET_VRING_ADDR, &address, &[]), Answer::Done);
        }
        scene.neighbour_goes_on();
    }
}

#[test]
fn asking_twice_where_a_ring_stands_gives_the_same_answer_twice() {
    for packed in [false, true] {
        let mut scene = Scene::new();
        let mut nic = scene.hostile(NicOptions { packed, ..NicOptions::default() });
        exchange(&mut nic, 0, 123);
        let first = nic.stop_queues().unwrap();
        assert_eq!(scene.stand.relay(0).status().guest_state, GuestState::Uninit);
        assert_eq!(nic.stop_queues().unwrap(), first);
        // A ring that was never there stands at its beginning.
        assert_eq!(nic.frontend().get_vring_base(0).unwrap() as u16, first.0);
        nic.restart_queues().unwrap();
        exchange(&mut nic, 123, 246);
        scene.neighbour_goes_on();
    }
}

#[test]
fn two_front_ends_on_one_socket_are_one_too_many() {
    let mut scene = Scene::new();
    let mut nic = scene.hostile(NicOptions::default());
    for round in 0..20 {
        let mut second = Wire::connect(&scene.stand.socket(0)).unwrap();
        let _ = second.write(&message(request::SET_OWNER, &[]));
        let _ = second.write(&message(request::GET_FEATURES, &[]));
        assert!(second.reply().is_err() && second.is_closed());
        exchange(&mut nic, 20 * round, 20 * round + 20);
    }
    scene.neighbour_goes_on();
}

#[test]
fn a_flood_of_connections_leaves_nothing_behind() {
    let mut scene = Scene::new();
    let mut nic = scene.hostile(NicOptions::default());
    let before = Holdings::now();
    for round in 0..500 {
        let wire = Wire::connect(&scene.stand.socket(0));
        if round % 50 == 0 {
            exchange(&mut nic, round, round + 50);
            scene.neighbour_goes_on();
        }
        drop(wire);
    }
    let after = Holdings::now();
    assert!(after.is_about(&before), "{after:?}, before {before:?}");
}

/// DPDK's fix e7cb7fdf54: translations of a driver that had gone stayed, and piled up.
#[test]
fn translations_of_a_hundred_drivers_do_not_pile_up() {
    let mut scene = Scene::new();
    let mut wire = wire(&scene);
    let update = |iova: u64, kind: u64| {
        message(IOTLB_MSG, &words(&[iova, 0x1000, 0x7000_0000_0000 + iova, kind << 8 | 3]))
    };
    wire.write(&message(request::SET_FEATURES, &words(&[1 << 33 | 1 << 32 | 1 << 30]))).unwrap();
    let mut before = None;
    for driver in 0..100u64 {
        for page in 0..100 {
            wire.write(&update(driver << 32 | page << 13, 2)).unwrap();
        }
        all_is_handled(&mut wire);
        // The first fill it up to what it holds.
        if driver == 50 {
            before = Some(Holdings::now());
        }
    }
    let (before, after) = (before.unwrap(), Holdings::now());
    assert!(after.is_about(&before), "{after:?}, before {before:?}");
    scene.neighbour_goes_on();
    drop(wire);
    scene.relay_is_free_again();
}
