//! The dirty log of a migration: every page that was written is marked, and no other.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use forwarder_tests::flows::Flows;
use forwarder_tests::frames::exchange;
use forwarder_tests::messages::{Wire, message, request, words};
use forwarder_tests::stand::Stand;
use relay::driver::memory::GuestRam;
use relay::driver::nic::{GuestNic, NicOptions};
use relay::driver::queue::Layout;
use vhost::VhostBackend;

const LOG: u64 = 1 << 20;
const PAGE: u64 = 4096;
const LOG_ALL: u64 = 1 << 26;
/// What receive buffers hold that nobody has written to.
const PAINT: u8 = 0xa5;

/// A memory area of the guest: address and length.
type Area = (u64, u64);

fn pages(areas: &[Area]) -> BTreeSet<u64> {
    areas.iter().flat_map(|(at, len)| at / PAGE..=(at + len - 1) / PAGE).collect()
}

/// The buffers of a receive ring.
fn receive_buffers(nic: &mut GuestNic) -> Vec<Area> {
    let (layout, ram) = nic.by_hand(0);
    let (table, size) = match layout {
        Layout::Split(ring) => (ring.descriptors, ring.size),
        Layout::Packed(ring) => (ring.descriptors, ring.size),
    };
    let read = |at: u64, bytes: &mut [u8]| ram.read(at, bytes);
    (0..u64::from(size))
        .map(|n| {
            let (mut addr, mut len) = ([0; 8], [0; 4]);
            read(table + 16 * n, &mut addr);
            read(table + 16 * n + 8, &mut len);
            (u64::from_le_bytes(addr), u64::from(u32::from_le_bytes(len)))
        })
        .collect()
}

/// Where the device writes in ring `index`.
fn device_areas(nic: &mut GuestNic, index: usize) -> Vec<Area> {
    match nic.by_hand(index).0 {
        Layout::Split(ring) => vec![(ring.used, 6 + 8 * u64::from(ring.size))],
        Layout::Packed(ring) => vec![(ring.descriptors, 16 * u64::from(ring.size)), (ring.device_event, 4)],
    }
}

fn marked(log: &File) -> BTreeSet<u64> {
    let mut bytes = vec![0; LOG as usize];
    log.read_exact_at(&mut bytes, 0).unwrap();
    (0..8 * LOG).filter(|page| bytes[(page / 8) as usize] >> (page % 8) & 1 != 0).collect()
}

fn is_painted(ram: &GuestRam, page: u64, buffers: &[Area]) -> bool {
    buffers.iter().all(|(at, len)| {
        let (first, end) = ((*at).max(page * PAGE), (at + len).min((page + 1) * PAGE));
        let mut bytes = vec![0; end.saturating_sub(first) as usize];
        if !bytes.is_empty() {
            ram.read(first, &mut bytes);
        }
        bytes.iter().all(|byte| *byte == PAINT)
    })
}

#[test]
fn every_written_page_is_marked_and_no_other_and_none_once_the_log_is_off() {
    for packed in [false, true] {
        for mergeable in [false, true] {
            for buffer in [2048, 6000] {
                let options =
                    NicOptions { packed, mergeable, buffer, queue_size: 128, ..NicOptions::default() };
                check(options);
            }
        }
    }
}

/// Paints the guest's receive buffers, and has its device log from now on.
fn begin_log(nic: &mut GuestNic, features: u64) -> File {
    for (at, len) in receive_buffers(nic) {
        nic.ram().write(at, &vec![PAINT; len as usize]);
    }
    let log = File::from(rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    log.set_len(LOG).unwrap();
    let mut wire = Wire::of(nic).unwrap();
    let place = words(&[LOG, 0]);
    wire.write_with(&message(request::SET_LOG_BASE, &place), &[log.as_fd()]).unwrap();
    assert_eq!(wire.reply().unwrap(), (request::SET_LOG_BASE, place));
    nic.frontend().set_features(features | LOG_ALL).unwrap();
    log
}

fn check(options: NicOptions) {
    let stand = Stand::new(1);
    stand.loopback(0);
    let mut nic = stand.connect(0, options).unwrap();
    let features = stand.relay(0).status().guest.unwrap().features;
    let buffers = receive_buffers(&mut nic);
    let log = begin_log(&mut nic, features);
    // More frames than buffers are written to where the ring is not gone round.
    exchange(&mut nic, 0, 40);
    nic.stop_queues().unwrap();

    let marked_pages = marked(&log);
    let buffer_pages = pages(&buffers);
    for page in &buffer_pages {
        let written = !is_painted(nic.ram(), *page, &buffers);
        assert_eq!(marked_pages.contains(page), written, "page {page:#x} of the buffers, {options:?}");
    }
    assert!(buffer_pages.iter().any(|page| !marked_pages.contains(page)), "some were not needed");
    let rings: BTreeSet<u64> =
        [0, 1].into_iter().flat_map(|index| pages(&device_areas(&mut nic, index))).collect();
    let others: Vec<_> = marked_pages.difference(&buffer_pages).copied().collect();
    assert!(others.iter().all(|page| rings.contains(page)), "{others:x?} but {rings:x?}, {options:?}");
    for index in [0, 1] {
        let own = pages(&device_areas(&mut nic, index)[..1]);
        assert!(own.iter().any(|page| marked_pages.contains(page)), "ring {index}, {options:?}");
    }

    // A migration that was given up.
    nic.frontend().set_features(features).unwrap();
    log.write_all_at(&vec![0; LOG as usize], 0).unwrap();
    nic.restart_queues().unwrap();
    exchange(&mut nic, 40, 200);
    nic.stop_queues().unwrap();
    assert_eq!(marked(&log), BTreeSet::new());
}

/// Of two guests at a cable either has a log of its own: the receiver's has the buffers, the sender's nothing but rings.
#[test]
fn frames_between_two_guests_are_marked_in_the_log_of_whoever_has_one() {
    for packed in [false, true] {
        for (near_logs, far_logs) in [(true, true), (true, false), (false, true)] {
            let stand = Stand::new(1);
            stand.cable(0);
            let options = NicOptions { packed, queue_size: 128, ..NicOptions::default() };
            let mut near = stand.connect(0, options).unwrap();
            let mut far = stand.connect_far(0, options).unwrap();
            let status = stand.relay(0).status();
            let (near_features, far_features) =
                (status.guest.unwrap().features, status.far.unwrap().guest.unwrap().features);
            let near_log = near_logs.then(|| begin_log(&mut near, near_features));
            let far_log = far_logs.then(|| begin_log(&mut far, far_features));
            let buffers = receive_buffers(&mut far);
            Flows::new(1, &[60, 1514]).carry(&mut near, &mut far, 40);
            near.stop_queues().unwrap();
            far.stop_queues().unwrap();

            if let Some(log) = far_log {
                let marked_pages = marked(&log);
                for page in &pages(&buffers) {
                    let written = !is_painted(far.ram(), *page, &buffers);
                    assert_eq!(
                        marked_pages.contains(page),
                        written,
                        "page {page:#x} of the receiver, packed {packed}"
                    );
                }
            }
            if let Some(log) = near_log {
                let [receive, transmit] = [0, 1].map(|index| pages(&device_areas(&mut near, index)));
                let marked_pages = marked(&log);
                assert!(transmit.iter().any(|page| marked_pages.contains(page)), "packed {packed}");
                let rings: BTreeSet<u64> = receive.union(&transmit).copied().collect();
                assert!(marked_pages.is_subset(&rings), "{marked_pages:x?} of {rings:x?}");
            }
        }
    }
}
