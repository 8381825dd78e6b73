//! Relays that connect to sockets which front ends own (QEMU with `server=on`).

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use forwarder_tests::frames::exchange;
use forwarder_tests::stand::Stand;
use forwarder_tests::wait::{eventually, within};
use relay::driver::nic::{GuestNic, NicOptions};
use relay::relay::GuestState;

/// What comes to a front end within 5 s, and after how long.
fn accepted(listener: &UnixListener) -> (UnixStream, Duration) {
    let start = Instant::now();
    listener.set_nonblocking(true).unwrap();
    let mut stream = None;
    assert!(within(Duration::from_secs(5), || match listener.accept() {
        Ok((accepted, _)) => {
            stream = Some(accepted);
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            false
        }
    }));
    (stream.unwrap(), start.elapsed())
}

/// A guest over a connection that a relay has made.
fn guest(stand: &Stand, stream: UnixStream) -> GuestNic {
    stream.set_nonblocking(false).unwrap();
    let nic = GuestNic::over(stream, NicOptions::default()).unwrap();
    eventually("the guest's rings run", || stand.relay(0).status().guest_state == GuestState::Ready);
    nic
}

fn gone(stand: &Stand) {
    eventually("the guest is gone", || stand.relay(0).status().guest.is_none());
}

/// Listens where nobody does, as QEMU does: over what is there.
fn listen(path: &Path) -> UnixListener {
    let _ = fs::remove_file(path);
    UnixListener::bind(path).unwrap()
}

#[test]
fn traffic_is_back_whenever_the_front_end_is() {
    let stand = Stand::of_clients(1);
    stand.loopback(0);
    let path = stand.socket(0);
    let mut times = Vec::new();
    for round in 0..10 {
        let listener = listen(&path);
        let (stream, time) = accepted(&listener);
        times.push(time);
        let mut nic = guest(&stand, stream);
        exchange(&mut nic, 0, 1000);
        drop(nic);
        if round % 2 == 0 {
            // In good order; otherwise as one that was killed, with its socket left behind.
            fs::remove_file(&path).unwrap();
        }
        drop(listener);
        gone(&stand);
    }
    println!("connected after {times:?}");
}

#[test]
fn a_front_end_that_closes_every_connection_at_once_is_asked_less_and_less_often() {
    let stand = Stand::of_clients(1);
    stand.loopback(0);
    let listener = listen(&stand.socket(0));
    let start = Instant::now();
    let mut connections = 0;
    while start.elapsed() < Duration::from_millis(1500) {
        drop(accepted(&listener));
        connections += 1;
    }
    println!("{connections} connections in 1.5 s");
    // Pauses of 1, 2, 4 … 64 ms, and of 100 ms then.
    assert!((2..30).contains(&connections), "{connections}");
    exchange(&mut guest(&stand, accepted(&listener).0), 0, 1000);
}

#[test]
fn a_relay_that_is_restarted_finds_its_front_end_and_leaves_the_socket_alone() {
    let mut stand = Stand::of_clients(1);
    stand.loopback(0);
    let listener = listen(&stand.socket(0));
    for round in 0..5 {
        let (stream, time) = accepted(&listener);
        println!("round {round}: connected after {time:?}");
        let mut nic = guest(&stand, stream);
        exchange(&mut nic, 0, 1000);
        stand.reconnect();
        assert!(stand.socket(0).exists());
    }
}

#[test]
fn a_directory_that_is_not_there_is_waited_for() {
    let stand = Stand::of_clients(1);
    stand.loopback(0);
    let path = stand.socket(0);
    fs::remove_dir(path.parent().unwrap()).unwrap();
    std::thread::sleep(Duration::from_millis(700));
    fs::create_dir(path.parent().unwrap()).unwrap();
    let listener = listen(&path);
    let (stream, time) = accepted(&listener);
    println!("connected after {time:?}");
    exchange(&mut guest(&stand, stream), 0, 1000);
}

#[test]
fn front_ends_that_never_answer_neither_stop_the_relay_nor_its_end() {
    let stand = Stand::of_clients(2);
    let listener = listen(&stand.socket(0));
    rustix::net::listen(&listener, 0).unwrap();
    let _queued: Vec<_> = (0..2).map(|_| relay::guest::socket::connect(&stand.socket(0))).collect();
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    drop(stand);
    assert!(start.elapsed() < Duration::from_secs(5));
}
