//! Two models, served and joined by a wire, seen by the clients of the protocol.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use models::served::{Totals, serve_pair};
use models::{Bus, Config, Model, Size};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfio_user::Client;

/// A device with one register: the length of the frame at address 0, which writing sends. What arrives is put to address
/// 4096 and interrupts.
#[derive(Debug)]
struct Slot;

impl Model for Slot {
    fn config(&self) -> Config {
        Config::ethernet((0x1234, 0x5678), [0x1000, 0, 0, 0, 0, 0], 2, 0, 0x800)
    }

    fn read(&mut self, _: &mut Bus, _: u8, offset: u64, _: Size) -> u64 {
        offset
    }

    fn write(&mut self, bus: &mut Bus, _: u8, _: u64, _: Size, value: u64) {
        let frame = bus.dma_get(0, value as usize);
        bus.wire.send(frame);
    }

    fn poll(&mut self, bus: &mut Bus) {
        while let Some(frame) = bus.wire.take_arriving() {
            bus.dma_write(4096, &frame);
            bus.raise(1);
        }
    }

    fn reset(&mut self, _: &mut Bus) {}
}

const CONFIG: u32 = 7;
const MSIX: u32 = 2;
/// Trigger by file descriptor.
const SET_BELL: u32 = 0x24;
const SIZE: u64 = 8192;

/// A client with its memory, a bus master.
struct Driver {
    client: Client,
    memory: File,
    bell: File,
}

impl Driver {
    fn new(socket: &Path) -> Self {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut client = loop {
            match Client::new(socket) {
                Ok(client) => break client,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            thread::sleep(Duration::from_millis(5));
        };
        let memory = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
        ftruncate(&memory, SIZE).unwrap();
        client.dma_map(0, 0, SIZE, memory.as_raw_fd()).unwrap();
        let bell = File::from(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        client.set_irqs(MSIX, SET_BELL, 1, 1, &[bell.as_raw_fd()]).unwrap();
        client.region_write(CONFIG, 4, &6u16.to_le_bytes()).unwrap();
        Self { client, memory, bell }
    }

    fn send(&mut self, frame: &[u8]) {
        self.memory.write_all_at(frame, 0).unwrap();
        self.client.region_write(0, 0, &(frame.len() as u32).to_le_bytes()).unwrap();
    }

    fn receive(&mut self, len: usize) -> Vec<u8> {
        self.bell.read_exact(&mut [0; 8]).unwrap();
        let mut frame = vec![0; len];
        self.memory.read_exact_at(&mut frame, 4096).unwrap();
        frame
    }
}

fn serve(name: &str) -> (JoinHandle<io::Result<[Totals; 2]>>, [Driver; 2]) {
    let paths = [0, 1].map(|n| std::env::temp_dir().join(format!("{name}.{}.{n}", std::process::id())));
    let sockets = paths.clone();
    let server = thread::spawn(move || serve_pair([&sockets[0], &sockets[1]], [Slot, Slot], |_, _, _| false));
    (server, paths.map(|path| Driver::new(&path)))
}

fn ended(server: JoinHandle<io::Result<[Totals; 2]>>, drivers: [Driver; 2]) -> [Totals; 2] {
    for driver in drivers {
        driver.client.shutdown().unwrap();
    }
    server.join().unwrap().unwrap()
}

#[test]
fn what_one_sends_arrives_at_the_other() {
    let (server, [mut left, mut right]) = serve("wire");
    left.send(b"from left to right");
    assert_eq!(right.receive(18), b"from left to right");
    right.send(b"and back");
    assert_eq!(left.receive(8), b"and back");
    let totals = ended(server, [left, right]);
    for totals in totals {
        assert_eq!((totals.sent, totals.arrived, totals.interrupts, totals.faults), (1, 1, 1, 0));
    }
}

#[test]
fn what_a_driver_must_not_do_is_counted() {
    let (server, [mut left, right]) = serve("faults");
    let mut bytes = [0; 4];
    left.client.region_read(0, 0x10, &mut bytes).unwrap();
    assert_eq!(bytes, [0x10, 0, 0, 0]);
    // Not aligned; then memory that is not there; then no bus master.
    left.client.region_read(0, 2, &mut bytes).unwrap();
    assert_eq!(bytes, [0xff; 4]);
    left.client.region_write(0, 0, &9000u32.to_le_bytes()).unwrap();
    left.client.reset().unwrap();
    left.client.region_write(0, 0, &60u32.to_le_bytes()).unwrap();
    let [left, _] = ended(server, [left, right]);
    assert_eq!((left.reads, left.writes, left.resets, left.faults), (2, 2, 1, 3));
}
