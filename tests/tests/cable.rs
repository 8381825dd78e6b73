//! Two guests at the ends of one cable: frames from either to the other, and what becomes of each when the other comes,
//! goes, changes its memory or misbehaves.

#![allow(clippy::unwrap_used)]

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use forwarder_tests::flows::Flows;
use forwarder_tests::frames::{exchange, frame};
use forwarder_tests::messages::{Answer, Wire, request};
use forwarder_tests::scene::{TRANSMIT, drops, post};
use forwarder_tests::stand::Stand;
use forwarder_tests::wait::eventually;
use models::packets::{Ip, Transport, check, partial};
use relay::counters::DropReason;
use relay::driver::memory::GuestRam;
use relay::driver::nic::{GuestNic, NicOptions, RECEIVER_OFFLOADS, SENDER_OFFLOADS};
use relay::guest::positions::Positions;
use relay::relay::{DeviceState, GuestPort, GuestState, RemoveError};
use vhost::VhostUserMemoryRegionInfo;
use vhost::vhost_user::VhostUserFrontend;

const SIZES: &[usize] = &[60, 61, 508, 1514, 64, 1020];

/// Relay 0 with a cable to a second guest.
fn stand() -> Stand {
    let stand = Stand::new(1);
    stand.cable(0);
    stand
}

fn pair(stand: &Stand, near: NicOptions, far: NicOptions) -> (GuestNic, GuestNic) {
    let guests = (stand.connect(0, near).unwrap(), stand.connect_far(0, far).unwrap());
    assert_eq!(stand.relay(0).status().device_state, DeviceState::Ready);
    guests
}

fn plain_pair(stand: &Stand) -> (GuestNic, GuestNic) {
    pair(stand, NicOptions::default(), NicOptions::default())
}

/// Frames both ways, by turns.
fn both_ways(near: &mut GuestNic, far: &mut GuestNic, flows: u16, each: u32) {
    let (mut out, mut back) = (Flows::new(flows, SIZES), Flows::new(flows, SIZES));
    for _ in 0..2 {
        out.carry(near, far, each);
        back.carry(far, near, each);
    }
}

fn nothing_was_dropped(stand: &Stand) {
    let counters = stand.relay(0).counters();
    for direction in [&counters.vm_to_vf, &counters.vf_to_vm] {
        assert_eq!(drops(direction), []);
        assert_eq!(direction.bad_available_index.get(), 0);
    }
}

fn near_has_left(stand: &Stand) {
    eventually("the near guest is gone", || stand.relay(0).status().guest.is_none());
}

fn far_has_left(stand: &Stand) {
    eventually("the far guest is gone", || {
        stand.relay(0).status().far.is_some_and(|far| far.guest.is_none())
    });
}

/// The guest sends frames until it has all its buffers back: somebody took them, to carry or to drop.
fn send_away(nic: &mut GuestNic, frames: u32) {
    for number in 0..frames {
        assert!(nic.send(&frame(number)));
    }
    nic.flush();
    eventually("their buffers come back", || {
        nic.take_sent();
        nic.free_slots() == usize::from(nic.options().queue_size)
    });
}

#[test]
fn guests_with_all_kinds_of_rings_reach_each_other() {
    let stand = stand();
    let counters = stand.relay(0).counters();
    let mut frames = 0;
    for bits in 0..32u32 {
        let bit = |n: u32| bits >> n & 1 != 0;
        let near =
            NicOptions { packed: bit(0), mergeable: bit(2), in_order: bit(3), ..NicOptions::default() };
        let far = NicOptions {
            packed: bit(1),
            mergeable: bit(4),
            indirect: bit(3),
            event_idx: bit(2),
            separate_header: bit(4),
            ..NicOptions::default()
        };
        let (mut near, mut far) = pair(&stand, near, far);
        both_ways(&mut near, &mut far, 2, 50);
        frames += 200;
        for (direction, name) in [(&counters.vm_to_vf, "near to far"), (&counters.vf_to_vm, "far to near")] {
            assert_eq!((direction.rx_frames.get(), direction.tx_frames.get()), (frames, frames), "{name}");
            assert_eq!(direction.rx_bytes.get(), direction.tx_bytes.get(), "{name}");
        }
        drop((near, far));
        near_has_left(&stand);
        far_has_left(&stand);
    }
    nothing_was_dropped(&stand);
}

fn lead_to_their_numbers(from: &mut GuestNic, to: &mut GuestNic) {
    for queue in 0..from.pairs() {
        assert!(from.send_on(queue, &[0; 12], &frame(7)));
        from.flush();
        eventually("it arrives there", || to.receive_on(queue % to.pairs(), 1, |_, _| ()) == 1);
        from.take_sent();
    }
}

#[test]
fn a_ring_leads_to_that_of_its_number_as_far_as_there_is_one() {
    for packed in [false, true] {
        for (near_pairs, far_pairs) in [(4, 4), (4, 1), (1, 4), (3, 2), (2, 3), (32, 5)] {
            let stand = stand();
            let options = |queue_pairs| NicOptions { packed, queue_pairs, ..NicOptions::default() };
            let (mut near, mut far) = pair(&stand, options(near_pairs), options(far_pairs));
            lead_to_their_numbers(&mut near, &mut far);
            lead_to_their_numbers(&mut far, &mut near);
            both_ways(&mut near, &mut far, 32, 20);
            let status = stand.relay(0).status();
            assert_eq!(status.queue_pairs, u32::from(near_pairs));
            assert_eq!(status.far.unwrap().queue_pairs, u32::from(far_pairs));
            nothing_was_dropped(&stand);
        }
    }
}

/// A header that leaves the checksum of a TCP segment, and its segmentation to 1400 bytes.
fn leaves_segmentation() -> [u8; 12] {
    let mut header = [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (at, field) in [(2, 54u16), (4, 1400), (6, 34), (8, 16)] {
        header[at..at + 2].copy_from_slice(&field.to_le_bytes());
    }
    header
}

/// What arrives at `to` of a segment of 20 000 bytes that `from` leaves to be cut.
fn long_segment(from: &mut GuestNic, to: &mut GuestNic, frames: usize) -> Vec<([u8; 12], Vec<u8>)> {
    let payload: Vec<u8> = (0..20_000).map(|at: u32| (at * 13 + (at >> 8)) as u8).collect();
    assert!(from.send_on(0, &leaves_segmentation(), &partial(Ip::V4, Transport::Tcp, 1, &payload)));
    from.flush();
    let mut arrived = Vec::new();
    eventually("it arrives", || {
        to.receive_on(0, 64, |header, frame| arrived.push((*header, frame.to_vec())));
        from.take_sent();
        arrived.len() >= frames
    });
    assert_eq!(arrived.len(), frames);
    arrived
}

#[test]
fn what_one_guest_leaves_is_done_for_a_guest_that_does_not_take_it_and_left_to_one_that_does() {
    for packed in [false, true] {
        let stand = stand();
        let options = NicOptions { packed, buffer: 65_600, queue_size: 64, ..NicOptions::default() };
        let able = NicOptions { offloads: SENDER_OFFLOADS | RECEIVER_OFFLOADS, mergeable: true, ..options };
        let sender = NicOptions { offloads: SENDER_OFFLOADS, ..options };
        let (mut able, mut sender) = pair(&stand, able, sender);
        let cut = long_segment(&mut able, &mut sender, 15);
        let mut bytes = 0;
        for (header, frame) in &cut {
            assert!(header[..10].iter().all(|byte| *byte == 0), "nothing is left: {header:?}");
            bytes += check(frame).unwrap().payload.len();
        }
        assert_eq!(bytes, 20_000);
        let whole = long_segment(&mut sender, &mut able, 1);
        assert_eq!(whole[0].0[..10], leaves_segmentation()[..10]);
        assert_eq!(whole[0].1.len(), 54 + 20_000);
        nothing_was_dropped(&stand);
    }
}

#[test]
fn a_cable_waits_for_both_guests_and_its_carrier_is_the_far_one() {
    let stand = stand();
    let state = || {
        let status = stand.relay(0).status();
        let link = status.device.unwrap().link;
        (status.guest_state, status.device_state, link == Some(pmd::Link::Up { speed: None }))
    };
    let counters = stand.relay(0).counters();
    assert_eq!(state(), (GuestState::Uninit, DeviceState::Added, false));

    let mut near = stand.connect(0, NicOptions::default()).unwrap();
    assert_eq!(state(), (GuestState::Ready, DeviceState::Added, false));
    send_away(&mut near, 20);
    assert_eq!(drops(&counters.vm_to_vf), [(DropReason::VfNotConnected, 20)]);

    let mut far = stand.connect_far(0, NicOptions::default()).unwrap();
    assert_eq!(state(), (GuestState::Ready, DeviceState::Ready, true));
    both_ways(&mut near, &mut far, 1, 100);

    drop(near);
    near_has_left(&stand);
    assert_eq!(state(), (GuestState::Uninit, DeviceState::Added, true));
    send_away(&mut far, 30);
    assert_eq!(drops(&counters.vf_to_vm), [(DropReason::VmNotConnected, 30)]);
    assert_eq!(drops(&counters.vm_to_vf), [(DropReason::VfNotConnected, 20)]);
    let far = stand.relay(0).status().far.unwrap();
    assert!(far.guest.unwrap().features != 0 && far.state == GuestState::Ready);
}

/// The guest has all its buffers back, and has taken in what was still for it.
fn settle(nic: &mut GuestNic) {
    send_away(nic, 0);
    while nic.receive(64, |_| ()) > 0 {}
}

#[test]
fn either_guest_dies_in_the_middle_of_traffic_and_the_other_goes_on_with_the_next() {
    for packed in [false, true] {
        let stand = stand();
        let options = NicOptions { packed, ..NicOptions::default() };
        let (mut near, mut far) = pair(&stand, options, options);
        for round in 0..10 {
            for nic in [&mut near, &mut far] {
                (0..200).for_each(|number| assert!(nic.send(&frame(number))));
                nic.flush();
            }
            if round % 2 == 0 {
                drop(far);
                far_has_left(&stand);
                assert!(stand.relay(0).status().guest.is_some(), "the near guest stays");
                settle(&mut near);
                far = stand.connect_far(0, options).unwrap();
            } else {
                drop(near);
                near_has_left(&stand);
                assert!(stand.relay(0).status().far.unwrap().guest.is_some(), "the far guest stays");
                settle(&mut far);
                near = stand.connect(0, options).unwrap();
            }
            both_ways(&mut near, &mut far, 1, 100);
        }
    }
}

#[test]
fn a_second_vm_at_the_far_end_is_turned_away() {
    use std::io::Read;
    let stand = stand();
    let (mut near, mut far) = plain_pair(&stand);
    let mut second = std::os::unix::net::UnixStream::connect(stand.far_socket(0)).unwrap();
    second.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    assert_eq!(second.read(&mut [0; 1]).unwrap(), 0, "the connection is closed");
    both_ways(&mut near, &mut far, 1, 100);
}

/// While `change` goes on, frames go both ways, and none is lost.
fn under_traffic(stand: &Stand, guests: &mut (GuestNic, GuestNic), change: impl FnOnce() + Send) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            change();
            over.store(true, Ordering::Relaxed);
        });
        let (near, far) = guests;
        let (mut out, mut back) = (Flows::new(2, SIZES), Flows::new(2, SIZES));
        while !over.load(Ordering::Relaxed) && !changes.is_finished() {
            out.carry(near, far, 25);
            back.carry(far, near, 25);
        }
        changes.join().unwrap();
    });
    nothing_was_dropped(stand);
}

#[test]
fn memory_of_either_guest_changes_under_traffic() {
    for packed in [false, true] {
        let stand = stand();
        let options = NicOptions { packed, memory_slots: true, ..NicOptions::default() };
        let mut guests = pair(&stand, options, options);
        for far in [false, true] {
            let mut frontend = if far { &mut guests.1 } else { &mut guests.0 }.frontend().clone();
            under_traffic(&stand, &mut guests, || {
                for n in 0..40 {
                    let ram = GuestRam::new(0x100_0000_0000 + (n << 24), 0x1000).unwrap();
                    let region = VhostUserMemoryRegionInfo {
                        guest_phys_addr: ram.gpa(),
                        memory_size: ram.size(),
                        userspace_addr: ram.user(),
                        mmap_offset: 0,
                        mmap_handle: ram.file().as_raw_fd(),
                    };
                    frontend.add_mem_region(&region).unwrap();
                    frontend.remove_mem_region(&region).unwrap();
                }
            });
        }
    }
}

#[test]
fn rings_of_either_guest_stop_and_go_on_where_they_stood() {
    for packed in [false, true] {
        let stand = stand();
        let options = NicOptions { packed, ..NicOptions::default() };
        let (mut near, mut far) = pair(&stand, options, options);
        for round in 0..10 {
            both_ways(&mut near, &mut far, 1, 77);
            let (stops, goes_on) = if round % 2 == 0 { (&mut near, &mut far) } else { (&mut far, &mut near) };
            stops.stop_queues().unwrap();
            send_away(goes_on, 10);
            stops.restart_queues().unwrap();
            if round == 8 {
                stops.reset().unwrap();
            }
        }
        both_ways(&mut near, &mut far, 1, 77);
        let counters = stand.relay(0).counters();
        assert_eq!(drops(&counters.vm_to_vf), [(DropReason::VfNotConnected, 50)]);
        assert_eq!(drops(&counters.vf_to_vm), [(DropReason::VmNotConnected, 50)]);
    }
}

#[test]
fn a_cable_is_removed_and_plugged_in_again_under_traffic() {
    let stand = stand();
    let mut near = stand.connect(0, NicOptions::default()).unwrap();
    for round in 0..5 {
        let mut far = stand.connect_far(0, NicOptions::default()).unwrap();
        both_ways(&mut near, &mut far, 1, 50);
        for nic in [&mut near, &mut far] {
            (0..200).for_each(|number| assert!(nic.send(&frame(number))));
            nic.flush();
        }
        stand.relay(0).remove_device(Some("vhost-user")).unwrap();
        assert_eq!(stand.relay(0).remove_device(None), Err(RemoveError::Nothing(0)), "round {round}");
        assert!(!stand.far_socket(0).exists(), "its socket goes with it");
        assert!(far.stop_queues().is_err(), "and the far guest's connection");
        let status = stand.relay(0).status();
        assert!(status.far.is_none() && status.guest_state == GuestState::Ready);
        settle(&mut near);
        stand.cable(0);
    }
    // As good as new for a device of another kind.
    stand.relay(0).remove_device(None).unwrap();
    stand.loopback(0);
    exchange(&mut near, 0, 200);
}

/// A cable that is taken away does to its guest what the death of a daemon does: the guest hears nothing of its rings.
#[test]
fn rings_of_a_far_guest_go_on_where_an_earlier_back_end_left_them() {
    for packed in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let positions = || Some(Positions::open(&folder.path().join("relay-0-far")).unwrap());
        let stand = Stand::new(1);
        stand.cable_with(0, positions());
        let (mut near, mut far) =
            pair(&stand, NicOptions::default(), NicOptions { packed, ..NicOptions::default() });
        let (mut out, mut back) = (Flows::new(1, SIZES), Flows::new(1, SIZES));
        for _ in 0..5 {
            out.carry(&mut near, &mut far, 77);
            back.carry(&mut far, &mut near, 55);
            stand.relay(0).remove_device(None).unwrap();
            stand.cable_with(0, positions());
            far.rejoin(&stand.far_socket(0)).unwrap();
        }
        out.carry(&mut near, &mut far, 77);
        back.carry(&mut far, &mut near, 55);
        nothing_was_dropped(&stand);
    }
}

/// The guest's front end announces 02:00:00:00:00:`last`.
fn announce(nic: &mut GuestNic, last: u8) {
    let payload = [2, 0, 0, 0, 0, last, 0, 0];
    assert_eq!(Wire::of(nic).unwrap().ask(request::SEND_RARP, &payload, &[]), Answer::Done);
}

#[test]
fn an_announcement_reaches_the_guest_at_the_other_end_as_soon_as_it_runs() {
    let stand = stand();
    let counters = stand.relay(0).counters();
    let mut near = stand.connect(0, NicOptions::default()).unwrap();
    let announced = |nic: &mut GuestNic| {
        let mut from = Vec::new();
        nic.receive(64, |frame| from.push((frame[6..12].to_vec(), frame[12..14] == [0x80, 0x35])));
        from
    };
    announce(&mut near, 1);
    let mut far = stand.connect_far(0, NicOptions::default()).unwrap();
    assert_eq!(announced(&mut far), [(vec![2, 0, 0, 0, 0, 1], true)]);
    announce(&mut far, 2);
    assert_eq!(announced(&mut near), [(vec![2, 0, 0, 0, 0, 2], true)]);
    assert!(announced(&mut far).is_empty());

    // A guest without room loses it, as it would lose any frame.
    send_away(&mut far, 256);
    announce(&mut far, 2);
    assert_eq!(drops(&counters.vf_to_vm), [(DropReason::GuestQueueFull, 1)]);
    assert_eq!(counters.vf_to_vm.rx_frames.get(), counters.vf_to_vm.tx_frames.get() + 1);
    assert_eq!(near.receive(300, |_| ()), 256);
    both_ways(&mut near, &mut far, 1, 100);

    // One that has left is not announced to who comes later.
    drop(near);
    near_has_left(&stand);
    GuestPort::from(Arc::clone(stand.relay(0))).announce(pmd::MacAddress([2, 0, 0, 0, 0, 1]));
    settle(&mut far);
    assert!(announced(&mut far).is_empty());
}

/// What a hostile far guest may do; the near guest of its relay and a neighbour go on.
fn survives(name: &str, misbehave: impl FnOnce(&mut GuestNic, &Stand)) {
    let stand = Stand::new(2);
    stand.cable(0);
    stand.loopback(1);
    let mut neighbour = stand.connect(1, NicOptions::default()).unwrap();
    let (mut near, mut far) = plain_pair(&stand);
    both_ways(&mut near, &mut far, 1, 50);
    misbehave(&mut far, &stand);
    exchange(&mut neighbour, 0, 1000);
    send_away(&mut near, 100);
    exchange(&mut neighbour, 1000, 2000);
    assert!(stand.relay(0).status().guest.is_some(), "{name}: the near guest stays connected");
    // Its own mapping may be gone as well: nothing of it may be touched any more, not even to be dropped.
    let connection = stand.relay(0).status().far.unwrap().guest;
    if connection.is_some() {
        drop(far);
    } else {
        std::mem::forget(far);
    }
    far_has_left(&stand);
    settle(&mut near);
    // After one that made the worker wait nobody is let in for 2 s.
    let mut far = stand.connect_far(0, NicOptions::default()).unwrap();
    settle(&mut near);
    both_ways(&mut near, &mut far, 1, 100);
    exchange(&mut neighbour, 2000, 3000);
    let counters = stand.relay(1).counters();
    assert_eq!(counters.vm_to_vf.dropped_in_all() + counters.vf_to_vm.dropped_in_all(), 0, "{name}");
}

#[test]
fn a_far_guest_that_truncates_its_memory_ends_its_own_session_only() {
    survives("truncated", |far, stand| {
        far.ram().file().set_len(0).unwrap();
        // A worker that sleeps touches nothing.
        far.kick(TRANSMIT);
        far_has_left(stand);
    });
}

#[test]
fn a_far_guest_with_malformed_descriptors_is_counted() {
    survives("malformed", |far, stand| {
        post(far, TRANSMIT, &[(u64::MAX - 100, 1500, 0)]);
        let counters = stand.relay(0).counters();
        eventually("it is counted", || counters.vf_to_vm.dropped(DropReason::BadAddress) == 1);
        let stopped = far.stop_queues();
        assert!(stopped.is_ok(), "it is still served");
        far.restart_queues().unwrap();
        assert_eq!(drops(&counters.vm_to_vf), []);
    });
}

#[test]
fn a_far_guest_whose_interrupt_blocks_is_disconnected() {
    use std::os::fd::BorrowedFd;
    survives("blocking", |far, stand| {
        for call in far.interrupts() {
            // SAFETY: the eventfd is open as long as `far` lives.
            let fd = unsafe { BorrowedFd::borrow_raw(call.as_raw_fd()) };
            rustix::fs::fcntl_setfl(fd, rustix::fs::OFlags::empty()).unwrap();
            // It holds nothing yet, or some; after this, adding one blocks.
            let _ = call.read();
            call.write(u64::MAX - 1).unwrap();
        }
        far.send(&frame(0));
        far.flush();
        far_has_left(stand);
    });
}

#[test]
fn garbage_at_the_far_end_harms_nobody() {
    use std::io::Write;
    let stand = stand();
    let (mut near, far) = plain_pair(&stand);
    drop(far);
    far_has_left(&stand);
    for bytes in
        [vec![0xff; 4096], b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![5, 0, 0, 0, 1, 0, 0, 0, 8, 1, 0, 0]]
    {
        let mut stream = std::os::unix::net::UnixStream::connect(stand.far_socket(0)).unwrap();
        let _ = stream.write_all(&bytes);
        drop(stream);
        settle(&mut near);
    }
    far_has_left(&stand);
    let mut far = stand.connect_far(0, NicOptions::default()).unwrap();
    both_ways(&mut near, &mut far, 1, 100);
}
