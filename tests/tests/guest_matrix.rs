//! Every kind of guest that can be negotiated, and what a guest changes while it runs.

#![allow(clippy::unwrap_used)]

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forwarder_tests::device::{Borrower, look};
use forwarder_tests::flows::Flows;
use forwarder_tests::stand::Stand;
use forwarder_tests::wait::{eventually, within};
use models::packets::{Ip, Transport, check, packet, partial};
use relay::driver::memory::GuestRam;
use relay::driver::nic::{GuestNic, Header, NicOptions, RECEIVER_OFFLOADS, SENDER_OFFLOADS};
use relay::relay::DeviceState;
use vhost::VhostUserMemoryRegionInfo;
use vhost::vhost_user::VhostUserFrontend;

const SIZES: &[usize] = &[60, 61, 508, 1514, 64, 1020];

fn stand() -> Stand {
    let stand = Stand::new(1);
    stand.loopback(0);
    stand
}

fn leave(stand: &Stand, nic: GuestNic) {
    drop(nic);
    eventually("the guest is gone", || stand.relay(0).status().guest.is_none());
}

fn nothing_was_dropped(stand: &Stand) {
    let counters = stand.relay(0).counters();
    for direction in [&counters.vm_to_vf, &counters.vf_to_vm] {
        assert_eq!(direction.dropped_in_all(), 0, "{direction:?}");
        assert_eq!(direction.bad_available_index.get(), 0);
    }
}

/// Each of the 32 combinations of what is negotiated, with each way to lay a frame out.
fn every_driver(packed: bool, queue_pairs: u16) {
    let stand = stand();
    let mut frames = 0;
    for bits in 0..16u32 {
        for (separate_header, pieces) in [(false, false), (true, false), (false, true)] {
            let bit = |n: u32| bits >> n & 1 != 0;
            let options = NicOptions {
                packed,
                queue_pairs,
                separate_header,
                pieces,
                mergeable: bit(0),
                indirect: bit(1),
                in_order: bit(2),
                event_idx: bit(3),
                ..NicOptions::default()
            };
            let mut nic = stand.connect(0, options).unwrap();
            let mut flows = Flows::new(8, SIZES);
            flows.exchange(&mut nic, 100);
            assert_eq!(flows.received, [100; 8], "{options:?}");
            frames += 800;
            leave(&stand, nic);
        }
    }
    let counters = stand.relay(0).counters();
    assert_eq!((counters.vm_to_vf.rx_frames.get(), counters.vf_to_vm.tx_frames.get()), (frames, frames));
    nothing_was_dropped(&stand);
}

#[test]
fn every_driver_with_split_rings_gets_its_frames_back() {
    every_driver(false, 1);
}

#[test]
fn every_driver_with_packed_rings_gets_its_frames_back() {
    every_driver(true, 1);
}

#[test]
fn every_driver_with_split_rings_and_four_queue_pairs_gets_its_frames_back() {
    every_driver(false, 4);
}

#[test]
fn every_driver_with_packed_rings_and_four_queue_pairs_gets_its_frames_back() {
    every_driver(true, 4);
}

#[test]
fn the_most_queue_pairs_that_there_are_carry_frames() {
    for packed in [false, true] {
        let stand = stand();
        let options = NicOptions { packed, queue_pairs: 32, queue_size: 64, ..NicOptions::default() };
        let mut nic = stand.connect(0, options).unwrap();
        Flows::new(64, SIZES).exchange(&mut nic, 50);
        nothing_was_dropped(&stand);
    }
}

#[test]
fn rings_of_any_size_carry_frames() {
    for (packed, queue_size) in [
        (false, 2),
        (true, 2),
        (true, 3),
        (true, 7),
        (false, 256),
        (true, 256),
        (false, 32768),
        (true, 32768),
    ] {
        for in_order in [false, true] {
            let stand = stand();
            let options = NicOptions { packed, queue_size, in_order, ..NicOptions::default() };
            let mut nic = stand.connect(0, options).unwrap();
            let frames = if queue_size > 256 { 70_000 } else { 1000 };
            let mut flows = Flows::new(1, &[60]);
            // No more under way than the guest has receive buffers: what waits for one is dropped in the end.
            let complete = within(Duration::from_secs(20), || {
                nic.take_sent();
                while flows.sent[0] < frames && flows.sent[0] - flows.received[0] < u32::from(queue_size) {
                    let number = flows.sent[0];
                    if !nic.send(flows.write(0, number)) {
                        break;
                    }
                    flows.sent[0] += 1;
                }
                nic.flush();
                nic.receive(64, |frame| flows.check(frame));
                flows.received[0] == frames
            });
            assert!(complete, "{options:?}: {} of {frames}", flows.received[0]);
            nothing_was_dropped(&stand);
        }
    }
}

#[test]
fn jumbo_frames_come_back_from_one_buffer_or_from_many() {
    let big = NicOptions { buffer: 9728, ..NicOptions::default() };
    let merged = NicOptions { mergeable: true, receive_buffer: Some(1536), queue_size: 1024, ..big };
    for packed in [false, true] {
        for indirect in [false, true] {
            let stand = stand();
            let mut nic = stand.connect(0, NicOptions { packed, indirect, ..big }).unwrap();
            Flows::new(2, &[9702, 60, 9701, 1514]).exchange(&mut nic, 300);
            leave(&stand, nic);
            // Sent from buffers of 9728 bytes, received in those that a driver with mergeable buffers posts.
            let mut nic = stand.connect(0, NicOptions { packed, indirect, ..merged }).unwrap();
            Flows::new(2, &[9702, 60, 9701, 1514]).exchange(&mut nic, 300);
            nothing_was_dropped(&stand);
        }
    }
}

#[test]
fn a_guest_that_sleeps_until_it_is_interrupted_misses_nothing() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    for packed in [false, true] {
        for event_idx in [false, true] {
            let stand = stand();
            let options = NicOptions { packed, event_idx, ..NicOptions::default() };
            let mut nic = stand.connect(0, options).unwrap();
            nic.set_polling(false);
            let mut flows = Flows::new(1, &[60]);
            for number in 0..300 {
                assert!(nic.send(flows.write(0, number)));
                nic.flush();
                flows.sent[0] += 1;
                let mut empty = 0;
                while flows.received[0] <= number {
                    if nic.receive(64, |frame| flows.check(frame)) == 0 {
                        let call = nic.interrupts()[0];
                        let _ = call.read();
                        // Asked for before the last look, which found nothing.
                        nic.set_polling(false);
                        if nic.receive(64, |frame| flows.check(frame)) > 0 {
                            continue;
                        }
                        // SAFETY: the eventfd is open as long as `nic` lives.
                        let fd =
                            unsafe { std::os::fd::BorrowedFd::borrow_raw(nic.interrupts()[0].as_raw_fd()) };
                        let limit = Timespec { tv_sec: 5, tv_nsec: 0 };
                        let ready =
                            poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&limit)).unwrap();
                        assert_eq!(ready, 1, "no interrupt for frame {number}: {options:?}");
                        empty += 1;
                        assert!(empty < 1000);
                    }
                }
                nic.take_sent();
            }
        }
    }
}

#[test]
fn a_queue_pair_is_disabled_and_enabled_under_traffic() {
    for packed in [false, true] {
        let stand = stand();
        let mut nic =
            stand.connect(0, NicOptions { packed, queue_pairs: 4, ..NicOptions::default() }).unwrap();
        let mut flows = Flows::new(8, SIZES);
        for round in 0..10 {
            let pair = round % 3 + 1;
            let goal: Vec<u32> = flows.sent.iter().map(|sent| sent + 200).collect();
            flows.turn(&mut nic, &goal);
            nic.set_pair_enabled(pair, false).unwrap();
            let others = |flows: &Flows| {
                (0..8).filter(|flow| flow % 4 != pair).all(|flow| flows.received[flow] == goal[flow])
            };
            let complete = within(Duration::from_secs(10), || {
                flows.turn(&mut nic, &goal);
                others(&flows)
            });
            assert!(complete, "the other pairs go on: {flows:?}");
            nic.set_pair_enabled(pair, true).unwrap();
            let complete = within(Duration::from_secs(10), || {
                flows.turn(&mut nic, &goal);
                flows.received == goal
            });
            assert!(complete, "and this one afterwards: {:?} of {goal:?}", flows.received);
        }
        nothing_was_dropped(&stand);
    }
}

#[test]
fn rings_are_reset_one_at_a_time_and_come_back_with_another_size() {
    for packed in [false, true] {
        let stand = stand();
        let options = NicOptions { packed, queue_pairs: 2, ..NicOptions::default() };
        let mut nic = stand.connect(0, options).unwrap();
        let mut flows = Flows::new(4, SIZES);
        flows.exchange(&mut nic, 150);
        let sizes: [u16; 4] = if packed { [100, 256, 129, 255] } else { [128, 256, 128, 256] };
        for (round, size) in sizes.into_iter().enumerate() {
            for index in [1, 0, 3, 2] {
                nic.reset_ring((index + round) % 4, size).unwrap();
                flows.exchange(&mut nic, 40);
            }
        }
        nothing_was_dropped(&stand);
    }
}

#[test]
fn a_device_that_is_reset_begins_anew() {
    for packed in [false, true] {
        let stand = stand();
        let options = NicOptions { packed, event_idx: true, queue_pairs: 2, ..NicOptions::default() };
        let mut nic = stand.connect(0, options).unwrap();
        let mut flows = Flows::new(4, SIZES);
        for _ in 0..5 {
            flows.exchange(&mut nic, 77);
            nic.reset().unwrap();
        }
        flows.exchange(&mut nic, 77);
        nothing_was_dropped(&stand);
    }
}

#[test]
fn packed_rings_that_were_stopped_go_on_where_they_stood() {
    for queue_size in [256, 250] {
        let stand = stand();
        let options = NicOptions { packed: true, queue_size, ..NicOptions::default() };
        let mut nic = stand.connect(0, options).unwrap();
        let mut flows = Flows::new(2, SIZES);
        for _ in 0..20 {
            flows.exchange(&mut nic, 61);
            nic.stop_queues().unwrap();
            nic.restart_queues().unwrap();
        }
        nothing_was_dropped(&stand);
    }
}

/// The parts of memory that come and go are others than those that the frames are in; those that stay must not notice.
#[test]
fn memory_regions_are_added_and_removed_under_traffic() {
    for packed in [false, true] {
        let stand = stand();
        let options = NicOptions { packed, memory_slots: true, ..NicOptions::default() };
        let mut nic = stand.connect(0, options).unwrap();
        let slots = nic.frontend().get_max_mem_slots().unwrap();
        assert!(slots >= 64, "{slots} slots");
        let mut frontend = nic.frontend().clone();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let changes = scope.spawn(|| {
                let rams: Vec<_> =
                    (0..80).map(|n| GuestRam::new(0x100_0000_0000 + (n << 24), 0x1000).unwrap()).collect();
                let region = |ram: &GuestRam| VhostUserMemoryRegionInfo {
                    guest_phys_addr: ram.gpa(),
                    memory_size: ram.size(),
                    userspace_addr: ram.user(),
                    mmap_offset: 0,
                    mmap_handle: ram.file().as_raw_fd(),
                };
                for _ in 0..3 {
                    for ram in &rams {
                        frontend.add_mem_region(&region(ram)).unwrap();
                    }
                    rams.iter().rev().for_each(|ram| frontend.remove_mem_region(&region(ram)).unwrap());
                }
                stop.store(true, Ordering::Relaxed);
            });
            let mut flows = Flows::new(2, SIZES);
            while !stop.load(Ordering::Relaxed) && !changes.is_finished() {
                flows.exchange(&mut nic, 50);
            }
            assert!(flows.received[0] >= 50);
        });
        nothing_was_dropped(&stand);
    }
}

#[test]
fn a_regions_frames_are_found_as_soon_as_it_is_there() {
    let stand = stand();
    let mut nic = stand.connect(0, NicOptions { memory_slots: true, ..NicOptions::default() }).unwrap();
    for n in 0..64u64 {
        let mut ram = GuestRam::new(0x100_0000_0000 + (n << 24), 0x1000).unwrap();
        let at = ram.allocate(72, 16).unwrap();
        ram.write(at + 12, &forwarder_tests::frames::frame(0));
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: ram.gpa(),
            memory_size: ram.size(),
            userspace_addr: ram.user(),
            mmap_offset: 0,
            mmap_handle: ram.file().as_raw_fd(),
        };
        nic.frontend().add_mem_region(&region).unwrap();
        forwarder_tests::scene::post(&mut nic, 1, &[(at, 72, 0)]);
        let mut arrived = 0;
        eventually("the frame comes back", || {
            arrived += nic.receive(1, |bytes| assert_eq!(bytes, forwarder_tests::frames::frame(0)));
            arrived == 1
        });
        eventually("its buffer too", || forwarder_tests::scene::take_back(&mut nic, 1) == 1);
    }
    nothing_was_dropped(&stand);
}

#[test]
fn frames_of_a_device_spread_over_the_guests_queues_by_flow() {
    for (packed, pairs) in [(false, 4), (true, 4), (false, 3), (true, 1)] {
        let stand = Stand::new(1);
        let (device, bench) = Borrower::new();
        stand.device(0, Box::new(device));
        let options = NicOptions { packed, queue_pairs: pairs, ..NicOptions::default() };
        let mut nic = stand.connect(0, options).unwrap();
        eventually("the device runs", || stand.relay(0).status().device_state == DeviceState::Ready);
        let mut flows = Flows::new(64, SIZES);
        let mut queue_of_flow = [None; 64];
        for _ in 0..20 {
            for flow in 0..64 {
                let number = flows.sent[flow];
                look(&bench).to_receive.push_back(flows.write(flow, number).to_vec());
                flows.sent[flow] += 1;
            }
            eventually("64 frames arrive", || {
                for queue in 0..nic.pairs() {
                    nic.receive_on(queue, 64, |_, frame| {
                        flows.check(frame);
                        let flow = usize::from(u16::from_be_bytes([frame[42], frame[43]]));
                        let before = queue_of_flow[flow].replace(queue);
                        assert!(before.is_none_or(|before| before == queue), "flow {flow} changed its queue");
                    });
                }
                flows.received == flows.sent
            });
        }
        let mut shares = vec![0; nic.pairs()];
        queue_of_flow.iter().for_each(|queue| shares[queue.unwrap()] += 1);
        let fair = 64 / shares.len();
        assert!(shares.iter().all(|share| *share > fair / 3), "{shares:?}");
        nothing_was_dropped(&stand);
    }
}

#[test]
fn frames_of_all_transmit_queues_reach_the_device_in_order_of_their_flow() {
    for packed in [false, true] {
        let stand = Stand::new(1);
        let (device, bench) = Borrower::new();
        stand.device(0, Box::new(device));
        let options = NicOptions { packed, queue_pairs: 4, in_order: true, ..NicOptions::default() };
        let mut nic = stand.connect(0, options).unwrap();
        eventually("the device runs", || stand.relay(0).status().device_state == DeviceState::Ready);
        let (mut flows, mut back) = (Flows::new(8, SIZES), 0);
        for _ in 0..50 {
            for flow in 0..8 {
                let number = flows.sent[flow];
                assert!(nic.send_on(flow % 4, &[0; 12], flows.write(flow, number)));
                flows.sent[flow] += 1;
            }
            nic.flush();
            back += nic.take_sent();
        }
        eventually("400 frames are sent", || look(&bench).sent.len() == 400);
        // This device is done with the last first, and the driver checks that they come back in order all the same.
        eventually("their buffers come back", || {
            back += nic.take_sent();
            back == 400
        });
        look(&bench).sent.iter().for_each(|frame| flows.check(frame));
        assert_eq!(flows.received, [50; 8]);
        nothing_was_dropped(&stand);
    }
}

/// A header that leaves a checksum, and with `size` segmentation too.
fn leaves(ip: Ip, transport: Transport, size: u16) -> Header {
    let gso = match (size, ip, transport) {
        (0, ..) => 0,
        (_, Ip::V4, Transport::Tcp) => 1,
        (_, Ip::V6, Transport::Tcp) => 4,
        (_, _, Transport::Udp) => 5,
    };
    let (start, offset) = (ip.transport_at() as u16, transport.checksum_at() as u16);
    let length = start + transport.header() as u16;
    let mut header = [1, gso, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (at, field) in [(2, length), (4, size), (6, start), (8, offset)] {
        header[at..at + 2].copy_from_slice(&field.to_le_bytes());
    }
    header
}

const KINDS: [(Ip, Transport); 4] =
    [(Ip::V4, Transport::Tcp), (Ip::V6, Transport::Tcp), (Ip::V4, Transport::Udp), (Ip::V6, Transport::Udp)];

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 13 + (at >> 8)) as u8).collect()
}

fn arriving(nic: &mut GuestNic, frames: usize) -> Vec<(Header, Vec<u8>)> {
    let mut arrived = Vec::new();
    eventually("the frames come back", || {
        nic.receive_on(0, 64, |header, frame| arrived.push((*header, frame.to_vec())));
        nic.take_sent();
        arrived.len() >= frames
    });
    arrived
}

#[test]
fn a_guest_that_takes_segments_off_gets_its_long_frames_back_as_they_are() {
    for packed in [false, true] {
        let stand = stand();
        let offloads = SENDER_OFFLOADS | RECEIVER_OFFLOADS;
        let options =
            NicOptions { packed, offloads, mergeable: true, buffer: 65_600, ..NicOptions::default() };
        let mut nic = stand.connect(0, NicOptions { queue_size: 64, ..options }).unwrap();
        for (ip, transport) in KINDS {
            for len in [3000, 20_000, 64_000] {
                let frame = partial(ip, transport, 1, &payload(len));
                let header = leaves(ip, transport, 1400);
                assert!(nic.send_on(0, &header, &frame));
                nic.flush();
                let arrived = arriving(&mut nic, 1);
                assert_eq!(arrived[0].1, frame);
                assert_eq!(arrived[0].0[..10], header[..10], "{ip:?} {transport:?} {len}");
            }
        }
        nothing_was_dropped(&stand);
    }
}

#[test]
fn a_guest_that_takes_nothing_off_gets_frames_cut_and_every_checksum_right() {
    for (packed, indirect, pieces) in
        [(false, false, false), (true, false, false), (false, true, true), (true, true, true)]
    {
        let stand = stand();
        let options = NicOptions { packed, indirect, pieces, buffer: 65_600, ..NicOptions::default() };
        let mut nic = stand.connect(0, NicOptions { offloads: SENDER_OFFLOADS, ..options }).unwrap();
        for (ip, transport) in KINDS {
            for (len, size) in [(3000, 1400), (64_000, 1448), (64_000, 536), (1401, 1400)] {
                let bytes = payload(len);
                assert!(nic.send_on(
                    0,
                    &leaves(ip, transport, size as u16),
                    &partial(ip, transport, 1, &bytes)
                ));
                nic.flush();
                let frames = len.div_ceil(size);
                let arrived = arriving(&mut nic, frames);
                assert_eq!(arrived.len(), frames);
                let mut whole = Vec::new();
                for (n, (header, frame)) in arrived.iter().enumerate() {
                    let seen =
                        check(frame).unwrap_or_else(|wrong| panic!("{ip:?} {transport:?} {n}: {wrong}"));
                    assert!(header[..10].iter().all(|byte| *byte == 0), "nothing is left: {header:?}");
                    if transport == Transport::Tcp {
                        assert_eq!(seen.sequence, 0x1000 + whole.len() as u32);
                        // PSH is for the last only.
                        assert_eq!(seen.flags & 8 != 0, n + 1 == frames);
                    }
                    whole.extend(seen.payload);
                }
                assert_eq!(whole, bytes);
            }
        }
        nothing_was_dropped(&stand);
    }
}

#[test]
fn a_checksum_that_a_guest_leaves_is_filled_in_or_left_to_a_guest_that_takes_it() {
    for (packed, receiver) in [(false, 0), (true, 0), (false, RECEIVER_OFFLOADS), (true, RECEIVER_OFFLOADS)] {
        let stand = stand();
        let options = NicOptions { packed, offloads: SENDER_OFFLOADS | receiver, ..NicOptions::default() };
        let mut nic = stand.connect(0, options).unwrap();
        for (ip, transport) in KINDS {
            for len in [0, 1, 17, 100, 1001, 1446] {
                let header = leaves(ip, transport, 0);
                let left = partial(ip, transport, 7, &payload(len));
                assert!(nic.send_on(0, &header, &left));
                nic.flush();
                let arrived = arriving(&mut nic, 1);
                let (seen, frame) = &arrived[0];
                if receiver == 0 {
                    assert_eq!(*frame, packet(ip, transport, 7, &payload(len)));
                    assert_eq!(seen[0], 0);
                } else {
                    assert_eq!((frame, seen[0]), (&left, 1));
                    assert_eq!(seen[6..10], header[6..10]);
                }
            }
        }
        nothing_was_dropped(&stand);
    }
}
