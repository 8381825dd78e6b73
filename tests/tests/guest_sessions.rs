//! Guests that come, go, come again, and misbehave on the socket.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use forwarder_tests::frames::exchange;
use forwarder_tests::stand::Stand;
use forwarder_tests::wait::{eventually, within};
use relay::counters::DropReason;
use relay::driver::nic::{GuestNic, NicOptions};
use relay::relay::{DeviceState, GuestState};

fn options(bits: u32) -> NicOptions {
    let bit = |n: u32| bits >> n & 1 != 0;
    NicOptions {
        mergeable: bit(0),
        indirect: bit(1),
        separate_header: bit(2),
        memory_slots: bit(3),
        ..NicOptions::default()
    }
}

#[test]
fn frames_come_back_whole_and_in_order_whatever_the_driver_negotiates() {
    let stand = Stand::new(1);
    stand.loopback(0);
    for bits in 0..16 {
        let mut nic = stand.connect(0, options(bits)).unwrap();
        exchange(&mut nic, 0, 5000);
        drop(nic);
        eventually("the guest is gone", || stand.relay(0).status().guest.is_none());
    }
    let counters = stand.relay(0).counters();
    assert_eq!(counters.vm_to_vf.rx_frames.get(), 16 * 5000);
    assert_eq!(counters.vf_to_vm.tx_frames.get(), 16 * 5000);
    assert_eq!(counters.vm_to_vf.dropped_in_all() + counters.vf_to_vm.dropped_in_all(), 0);
}

#[test]
fn small_receive_buffers_are_merged() {
    let stand = Stand::new(1);
    stand.loopback(0);
    let mut nic = GuestNic::connect(
        &stand.socket(0),
        NicOptions { mergeable: true, queue_size: 1024, ..NicOptions::default() },
    )
    .unwrap();
    exchange(&mut nic, 0, 2000);
}

#[test]
fn a_guest_comes_and_goes_in_the_middle_of_traffic() {
    let stand = Stand::new(1);
    stand.loopback(0);
    for round in 0..20 {
        let mut nic = stand.connect(0, options(round)).unwrap();
        exchange(&mut nic, 0, 200);
        // Leaves with frames under way.
        for number in 0..100 {
            nic.send(&forwarder_tests::frames::frame(number));
        }
        nic.flush();
        drop(nic);
        eventually("the guest is gone", || stand.relay(0).status().guest.is_none());
        assert_eq!(stand.relay(0).status().guest_state, GuestState::Uninit);
        assert_eq!(stand.relay(0).status().device_state, DeviceState::Added);
    }
}

#[test]
fn rings_that_were_stopped_go_on_where_they_stood() {
    let stand = Stand::new(1);
    stand.loopback(0);
    let mut nic = stand.connect(0, options(0)).unwrap();
    for round in 0..10 {
        exchange(&mut nic, round * 777, (round + 1) * 777);
        let (receive, transmit) = nic.stop_queues().unwrap();
        assert_eq!((u32::from(receive), u32::from(transmit)), ((round + 1) * 777, (round + 1) * 777));
        nic.restart_queues().unwrap();
    }
}

#[test]
fn a_second_vm_is_turned_away_and_the_first_goes_on() {
    let stand = Stand::new(1);
    stand.loopback(0);
    let mut nic = stand.connect(0, options(0)).unwrap();
    let mut second = UnixStream::connect(stand.socket(0)).unwrap();
    second.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(second.read(&mut [0; 1]).unwrap(), 0, "the connection is closed");
    exchange(&mut nic, 0, 1000);
    drop(nic);
    eventually("the guest is gone", || stand.relay(0).status().guest.is_none());
    exchange(&mut stand.connect(0, options(0)).unwrap(), 0, 1000);
}

#[test]
fn without_a_device_a_guests_frames_are_dropped_and_counted() {
    let stand = Stand::new(1);
    let mut nic = stand.connect(0, options(0)).unwrap();
    for number in 0..50 {
        assert!(nic.send(&forwarder_tests::frames::frame(number)));
    }
    nic.flush();
    let counters = stand.relay(0).counters();
    eventually("50 frames are dropped", || counters.vm_to_vf.dropped(DropReason::VfNotConnected) == 50);
    eventually("their buffers come back", || {
        nic.take_sent();
        nic.free_slots() == 256
    });
    stand.loopback(0);
    exchange(&mut nic, 0, 1000);
    stand.relay(0).remove_device(Some("loopback")).unwrap();
    assert!(nic.send(&forwarder_tests::frames::frame(0)));
    nic.flush();
    eventually("one more is dropped", || counters.vm_to_vf.dropped(DropReason::VfNotConnected) == 51);
}

#[test]
fn a_guest_that_posts_no_buffers_loses_its_frames_after_a_while_and_nobody_else_does() {
    let stand = Stand::new(2);
    stand.loopback(0);
    stand.loopback(1);
    let mut lazy = stand.connect(0, options(0)).unwrap();
    let mut neighbour = stand.connect(1, options(0)).unwrap();
    // 256 receive buffers that are never emptied.
    let mut sent = 0;
    eventually("600 frames are sent", || {
        lazy.take_sent();
        while sent < 600 && lazy.send(&forwarder_tests::frames::frame(sent)) {
            sent += 1;
        }
        lazy.flush();
        sent == 600
    });
    exchange(&mut neighbour, 0, 1000);
    let dropped = || stand.relay(0).counters().vm_to_vf.dropped(DropReason::GuestQueueFull);
    eventually("what did not fit is dropped", || dropped() == 600 - 256);
}

#[test]
fn garbage_on_a_socket_harms_nobody() {
    let stand = Stand::new(2);
    stand.loopback(0);
    stand.loopback(1);
    let mut neighbour = stand.connect(1, options(0)).unwrap();
    let header = |request: u32, flags: u32, size: u32| {
        [request, flags, size].into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<u8>>()
    };
    let mut garbage: Vec<Vec<u8>> = vec![
        vec![],
        vec![0xff; 4096],
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        header(1, 1, 0)[..5].to_vec(),
        header(5, 1, 264),
        header(5, 1, u32::MAX),
        header(1000, 1, 0),
        header(1, 7, 0),
    ];
    // Rings that do not exist, addresses and sizes that cannot be, in every message that names a ring.
    for request in [8, 9, 10, 11, 12, 13, 14, 18] {
        for index in [2u64, 0xff, 0x1_0000, 0x8000_0000] {
            let size = if request == 9 { 40 } else { 8 };
            let mut message = header(request, 1, size);
            message.extend(index.to_ne_bytes());
            message.resize(12 + size as usize, 0xff);
            garbage.push(message);
        }
    }
    for (round, bytes) in garbage.iter().cycle().take(3 * garbage.len()).enumerate() {
        let mut stream = UnixStream::connect(stand.socket(0)).unwrap();
        let _ = stream.write_all(bytes);
        if round % 3 == 0 {
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            let _ = stream.read(&mut [0; 64]);
        }
        drop(stream);
        exchange(&mut neighbour, round as u32 * 10, round as u32 * 10 + 10);
    }
    eventually("the socket is free again", || stand.relay(0).status().guest.is_none());
    exchange(&mut stand.connect(0, options(0)).unwrap(), 0, 1000);
}

#[test]
fn half_a_message_does_not_keep_the_daemon_from_anything() {
    let stand = Stand::new(2);
    stand.loopback(1);
    let mut half = UnixStream::connect(stand.socket(0)).unwrap();
    half.write_all(&[1, 0, 0, 0, 1]).unwrap();
    let mut neighbour = stand.connect(1, options(0)).unwrap();
    exchange(&mut neighbour, 0, 1000);
    half.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let start = Instant::now();
    assert_eq!(half.read(&mut [0; 1]).unwrap(), 0, "given up in the end");
    assert!(start.elapsed() > Duration::from_secs(2), "but not at once");
}

#[test]
fn a_guest_that_truncates_its_memory_is_disconnected_and_its_neighbour_goes_on() {
    let stand = Stand::new(2);
    stand.loopback(0);
    stand.loopback(1);
    let mut hostile = stand.connect(0, options(0)).unwrap();
    let mut neighbour = stand.connect(1, options(0)).unwrap();
    exchange(&mut hostile, 0, 100);
    hostile.ram().file().set_len(0).unwrap();
    // A worker that sleeps touches nothing.
    hostile.kick(1);
    exchange(&mut neighbour, 0, 1000);
    eventually("the hostile guest is disconnected", || stand.relay(0).status().guest.is_none());
    exchange(&mut neighbour, 1000, 2000);
    // Its own mapping is gone as well: nothing of it may be touched any more, not even to be dropped.
    std::mem::forget(hostile);
}

#[test]
fn a_guest_whose_interrupt_blocks_is_disconnected_and_its_neighbour_goes_on() {
    use std::os::fd::{AsRawFd, BorrowedFd};
    let stand = Stand::new(2);
    stand.loopback(0);
    stand.loopback(1);
    let mut hostile = stand.connect(0, options(0)).unwrap();
    let mut neighbour = stand.connect(1, options(0)).unwrap();
    exchange(&mut neighbour, 0, 100);
    for call in hostile.interrupts() {
        // SAFETY: the eventfd is open as long as `hostile` lives.
        let fd = unsafe { BorrowedFd::borrow_raw(call.as_raw_fd()) };
        rustix::fs::fcntl_setfl(fd, rustix::fs::OFlags::empty()).unwrap();
        // It holds nothing yet; after this, adding one blocks.
        call.write(u64::MAX - 1).unwrap();
    }
    hostile.send(&forwarder_tests::frames::frame(0));
    hostile.flush();
    exchange(&mut neighbour, 100, 1000);
    eventually("the hostile guest is disconnected", || stand.relay(0).status().guest.is_none());
    exchange(&mut neighbour, 1000, 2000);
}

#[test]
fn a_stopped_daemon_lets_go_of_its_guests() {
    let stand = Stand::new(1);
    stand.loopback(0);
    let mut nic = stand.connect(0, options(0)).unwrap();
    exchange(&mut nic, 0, 100);
    let socket = stand.socket(0);
    drop(stand);
    assert!(within(Duration::from_secs(5), || !socket.exists()));
    assert!(nic.stop_queues().is_err(), "the connection is closed");
}
