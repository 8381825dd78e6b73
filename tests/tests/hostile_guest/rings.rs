//! What a driver writes into its rings.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forwarder_tests::frames::{exchange, frame};
use forwarder_tests::scene::{Buffer, RECEIVE, Scene, TRANSMIT, drops, packed, post, split, take_back};
use forwarder_tests::wait::{eventually, within};
use relay::counters::DropReason;
use relay::driver::nic::{GuestNic, NicOptions, RECEIVER_OFFLOADS, SENDER_OFFLOADS};
use relay::driver::packed::{PackedDescriptor, write_packed_descriptor};
use relay::driver::queue::Layout;
use relay::driver::split::{Descriptor, INDIRECT, NEXT, WRITE, write_descriptor};
use vhost::VhostBackend;

use crate::memory::TwoRegions;

/// Bytes of header and of the shortest frame that Ethernet has.
const WHOLE: u32 = 12 + 60;

fn layouts() -> [NicOptions; 2] {
    [false, true].map(|packed| NicOptions { packed, indirect: true, ..NicOptions::default() })
}

/// Writes a good frame at the beginning of some memory of the guest's, and returns its address.
fn good_frame(nic: &mut GuestNic) -> u64 {
    let at = nic.allocate(4096).unwrap();
    nic.ram().write(at + 12, &frame(0));
    at
}

/// Posts a chain in the transmit queue and waits until it is back; the frames that came of it.
fn send(scene: &Scene, nic: &mut GuestNic, chain: &[Buffer]) -> Vec<Vec<u8>> {
    let before = scene.to_guest().tx_frames.get();
    post(nic, TRANSMIT, chain);
    eventually("the chain is back", || take_back(nic, TRANSMIT) == 1);
    let delivered = (scene.to_guest().tx_frames.get() - before) as usize;
    let mut arrived = Vec::new();
    eventually("what was delivered is shown", || {
        nic.receive(64, |frame| arrived.push(frame.to_vec()));
        arrived.len() == delivered
    });
    arrived
}

/// Expects that a chain is dropped for this reason only, and that the next good one is not.
fn is_dropped(scene: &mut Scene, nic: &mut GuestNic, chain: &[Buffer], reason: DropReason) {
    let good = good_frame(nic);
    let before = scene.from_guest().dropped(reason);
    let all = scene.from_guest().dropped_in_all();
    assert!(send(scene, nic, chain).is_empty(), "{chain:x?}");
    assert_eq!(scene.from_guest().dropped(reason), before + 1, "{chain:x?}: {:?}", drops(scene.from_guest()));
    assert_eq!(scene.from_guest().dropped_in_all(), all + 1);
    assert_eq!(send(scene, nic, &[(good, WHOLE, 0)]), [frame(0)], "after {chain:x?}");
}

/// CVE-2018-1059: a buffer that ran over the end of its region, or over the seam of two that are not one mapping.
#[test]
fn buffers_are_read_up_to_the_ends_of_memory_and_not_a_byte_further() {
    let mut scene = Scene::new();
    for options in layouts() {
        let (mut nic, two) = TwoRegions::bring_up(&scene, options);
        two.fill(&nic);
        for boundary in two.boundaries() {
            for delta in -1..=1 {
                for start in [boundary, boundary - u64::from(WHOLE)].map(|at| at.wrapping_add_signed(delta)) {
                    match two.bytes(&nic, start, WHOLE) {
                        Some(bytes) => assert_eq!(
                            send(&scene, &mut nic, &[(start, WHOLE, 0)]),
                            [&bytes[12..]],
                            "{start:x}"
                        ),
                        None => {
                            is_dropped(&mut scene, &mut nic, &[(start, WHOLE, 0)], DropReason::BadAddress)
                        }
                    }
                }
            }
        }
        scene.neighbour_goes_on();
        drop(nic);
        scene.relay_is_free_again();
    }
}

/// CVE-2018-1059: the same for what the device writes.
#[test]
fn buffers_are_written_up_to_the_ends_of_memory_and_not_a_byte_further() {
    let mut scene = Scene::new();
    for options in layouts() {
        let (mut nic, two) = TwoRegions::bring_up(&scene, NicOptions { queue_size: 2, ..options });
        two.fill(&nic);
        let good = good_frame(&mut nic);
        // Uses up the buffers that were posted.
        for _ in 0..2 {
            post(&mut nic, TRANSMIT, &[(good, WHOLE, 0)]);
            eventually("a frame arrives", || take_back(&mut nic, RECEIVE) == 1);
            eventually("its buffer is back", || take_back(&mut nic, TRANSMIT) == 1);
        }
        for boundary in two.boundaries() {
            for delta in -1..=1 {
                for start in [boundary, boundary - u64::from(WHOLE)].map(|at| at.wrapping_add_signed(delta)) {
                    let before = scene.to_guest().dropped(DropReason::BadAddress);
                    let inside = two.bytes(&nic, start, WHOLE).is_some();
                    post(&mut nic, RECEIVE, &[(start, WHOLE, WRITE)]);
                    post(&mut nic, TRANSMIT, &[(good, WHOLE, 0)]);
                    eventually("the frame is delivered or dropped", || take_back(&mut nic, TRANSMIT) == 1);
                    eventually("its buffer comes back", || take_back(&mut nic, RECEIVE) == 1);
                    let dropped = scene.to_guest().dropped(DropReason::BadAddress) - before;
                    assert_eq!(dropped, u64::from(!inside), "{start:x}");
                    if inside {
                        assert_eq!(two.bytes(&nic, start, WHOLE).unwrap()[12..], frame(0), "{start:x}");
                    }
                }
            }
        }
        scene.neighbour_goes_on();
        drop(nic);
        scene.relay_is_free_again();
    }
}

/// CVE-2018-1059: an indirect table that ran over the end of its region.
#[test]
fn indirect_tables_are_read_up_to_the_ends_of_memory_and_not_a_byte_further() {
    let mut scene = Scene::new();
    for options in layouts() {
        let (mut nic, two) = TwoRegions::bring_up(&scene, options);
        two.fill(&nic);
        let good = good_frame(&mut nic);
        for boundary in two.boundaries() {
            for delta in [-16, -1, 0, 1, 16] {
                for start in [boundary, boundary - 32].map(|at| at.wrapping_add_signed(delta)) {
                    let mut table = [0; 32];
                    for (entry, (addr, len)) in table.chunks_mut(16).zip([(good, 12u32), (good + 12, 60)]) {
                        entry[..8].copy_from_slice(&addr.to_le_bytes());
                        entry[8..12].copy_from_slice(&len.to_le_bytes());
                    }
                    if !options.packed {
                        (table[12], table[14]) = (NEXT as u8, 1);
                    }
                    // An entry that two mappings share is none.
                    let whole = |at| two.in_one(at, 16);
                    let inside = whole(start) && whole(start + 16);
                    two.write(&nic, start, &table);
                    match inside {
                        true => assert_eq!(
                            send(&scene, &mut nic, &[(start, 32, INDIRECT)]),
                            [frame(0)],
                            "{start:x}"
                        ),
                        false => {
                            is_dropped(
                                &mut scene,
                                &mut nic,
                                &[(start, 32, INDIRECT)],
                                DropReason::BadAddress,
                            );
                        }
                    }
                }
            }
        }
        scene.neighbour_goes_on();
        drop(nic);
        scene.relay_is_free_again();
    }
}

/// CVE-2018-1059: a ring that ran over the end of its region.
#[test]
fn a_ring_that_is_not_inside_one_region_is_refused() {
    let mut scene = Scene::new();
    for options in layouts() {
        let (mut nic, two) = TwoRegions::bring_up(&scene, options);
        let base = nic.ram().user();
        let (good, areas) = {
            let ring_areas: [(u64, u64); 3] = match nic.by_hand(TRANSMIT) {
                (Layout::Split(ring), _) => {
                    [(ring.descriptors, 16 * 256), (ring.available, 6 + 2 * 256), (ring.used, 6 + 8 * 256)]
                }
                (Layout::Packed(ring), _) => {
                    [(ring.descriptors, 16 * 256), (ring.driver_event, 4), (ring.device_event, 4)]
                }
            };
            (ring_areas.map(|(gpa, _)| nic.ram().user_of(gpa)), ring_areas.map(|(_, len)| len))
        };
        let seam = base + nic.ram().size();
        let put = |nic: &mut GuestNic, at: [u64; 3]| {
            let data = vhost::VringConfigData {
                queue_max_size: 256,
                queue_size: 256,
                flags: 0,
                desc_table_addr: at[0],
                avail_ring_addr: at[1],
                used_ring_addr: at[2],
                log_addr: None,
            };
            nic.frontend().set_vring_addr(TRANSMIT, &data).is_ok()
        };
        for area in 0..3 {
            let len = areas[area].next_multiple_of(16);
            let mut places = vec![
                (seam - len, true),
                (seam - len + 16, areas[area] <= len - 16),
                (seam - 8, areas[area] <= 8 && area > 0),
                (base.wrapping_sub(16), false),
                (base + two.size_of_both() - len + 16, false),
                (base + 1, false),
                (u64::MAX - 15, false),
                (0, false),
            ];
            // Four bytes fit anywhere.
            places.retain(|(at, _)| areas[area] > 4 || *at < seam);
            for (at, fits) in places {
                let mut all = good;
                all[area] = at;
                assert_eq!(put(&mut nic, all), fits, "area {area} at {at:x}, seam {seam:x}");
                scene.neighbour_goes_on();
            }
        }
        assert!(put(&mut nic, good));
        exchange(&mut nic, 0, 300);
        drop(nic);
        scene.relay_is_free_again();
    }
}

/// CVE-2020-10725: DPDK's fast path for four packed descriptors at once looked at neither address nor length.
#[test]
fn one_bad_descriptor_of_four_is_dropped_alone_wherever_it_stands() {
    let mut scene = Scene::new();
    for options in layouts() {
        let mut nic = scene.hostile(options);
        let good = good_frame(&mut nic);
        let bad: [(Buffer, DropReason); 4] = [
            ((good, 0, 0), DropReason::ChainTooShort),
            ((0xdead_0000_0000, WHOLE, 0), DropReason::BadAddress),
            ((good, WHOLE, WRITE), DropReason::WrongDirection),
            ((good, u32::MAX, 0), DropReason::FrameTooLong),
        ];
        for (bad, reason) in bad {
            for position in 0..4 {
                let before = scene.from_guest().dropped(reason);
                let batch: [Buffer; 4] =
                    std::array::from_fn(|n| if n == position { bad } else { (good, WHOLE, 0) });
                match nic.by_hand(TRANSMIT) {
                    (Layout::Split(ring), ram) => {
                        for (n, (addr, len, flags)) in batch.into_iter().enumerate() {
                            ring.set(ram, n as u16, Descriptor { addr, len, flags, next: 0 });
                            ring.push(ram, n as u16);
                        }
                        ring.publish(ram);
                    }
                    (Layout::Packed(ring), ram) => {
                        for (n, (addr, len, flags)) in batch.into_iter().enumerate() {
                            assert!(ring.push(
                                ram,
                                n as u16,
                                &[PackedDescriptor { addr, len, id: 0, flags }]
                            ));
                        }
                        ring.publish(ram);
                    }
                }
                let (mut back, mut arrived) = (0, 0);
                eventually("four chains are back", || {
                    back += take_back(&mut nic, TRANSMIT);
                    arrived += nic.receive(64, |bytes| assert_eq!(bytes, frame(0)));
                    back == 4 && arrived == 3
                });
                assert_eq!(scene.from_guest().dropped(reason), before + 1, "{bad:x?} at {position}");
            }
        }
        scene.neighbour_goes_on();
        drop(nic);
        scene.relay_is_free_again();
    }
}

/// CVE-2020-14374: lengths that were not looked at, or overflowed when they were added up.
#[test]
fn lengths_that_overflow_are_frames_that_are_too_long() {
    let mut scene = Scene::new();
    for options in layouts() {
        let mut nic = scene.hostile(options);
        let good = good_frame(&mut nic);
        let (start, end) = (nic.ram().gpa(), nic.ram().gpa() + nic.ram().size());
        let too_long = DropReason::FrameTooLong;
        for (chain, reason) in [
            (vec![(good, u32::MAX, 0)], too_long),
            (vec![(start, u32::MAX, 0), (start, u32::MAX, 0)], too_long),
            (vec![(good, WHOLE, 0), (start, u32::MAX, 0)], too_long),
            (vec![(good, WHOLE, 0), (start, 0x8000_0000, 0), (start, 0x8000_0000, 0)], too_long),
            (vec![(start, 100_000, 0); 4], too_long),
            (vec![(end - 100, u32::MAX, 0)], DropReason::BadAddress),
            (vec![(u64::MAX - 100, u32::MAX, 0)], DropReason::BadAddress),
            (vec![(good, WHOLE, 0), (u64::MAX, u32::MAX, 0)], DropReason::BadAddress),
        ] {
            is_dropped(&mut scene, &mut nic, &chain, reason);
        }
        scene.neighbour_goes_on();
        drop(nic);
        scene.relay_is_free_again();
    }
}

/// CVE-2022-2132: a chain no longer than the header, or a header in many pieces, kept DPDK busy for ever.
#[test]
fn chains_that_end_within_the_header_or_just_behind_it_are_dropped() {
    let mut scene = Scene::new();
    for options in layouts() {
        let mut nic = scene.hostile(options);
        let good = good_frame(&mut nic);
        for length in 0..=25u32 {
            let reason = if length < 12 { DropReason::ChainTooShort } else { DropReason::FrameTooShort };
            is_dropped(&mut scene, &mut nic, &[(good, length, 0)], reason);
            let bytes: Vec<Buffer> =
                (0..length.max(1)).map(|n| (good + u64::from(n), length.min(1), 0)).collect();
            is_dropped(&mut scene, &mut nic, &bytes, reason);
            is_dropped(&mut scene, &mut nic, &[(good, 0, 0), (good, length, 0), (good, 0, 0)], reason);
        }
        assert_eq!(send(&scene, &mut nic, &[(good, 26, 0)]), [&frame(0)[..14]], "the shortest frame");
        scene.neighbour_goes_on();
        drop(nic);
        scene.relay_is_free_again();
    }
}

/// CVE-2022-2132.
#[test]
fn a_header_in_single_bytes_is_a_header() {
    let mut scene = Scene::new();
    for options in layouts() {
        for offloads in [0, SENDER_OFFLOADS] {
            let mut nic = scene.hostile(NicOptions { offloads, ..options });
            let good = good_frame(&mut nic);
            let mut chain: Vec<Buffer> = (0..12).map(|n| (good + n, 1, 0)).collect();
            chain.push((good + 12, 60, 0));
            assert_eq!(send(&scene, &mut nic, &chain), [frame(0)]);
            let bytes: Vec<Buffer> = (0..u64::from(WHOLE)).map(|n| (good + n, 1, 0)).collect();
            assert_eq!(send(&scene, &mut nic, &bytes), [frame(0)], "the frame too");
            drop(nic);
            scene.relay_is_free_again();
        }
    }
    scene.neighbour_goes_on();
}

/// CVE-2022-2132.
#[test]
fn split_chains_that_never_end_are_too_long() {
    let mut scene = Scene::new();
    let mut nic = scene.hostile(NicOptions { indirect: true, ..NicOptions::default() });
    let good = good_frame(&mut nic);
    let table = nic.allocate(4096).unwrap();
    for len in [0, 1, 12, 72, 600] {
        // A loop of one, a loop of two, and the same in a table.
        let (ring, ram) = split(&mut nic, TRANSMIT);
        let to = |next| Descriptor { addr: good, len, flags: NEXT, next };
        for (index, next) in [(0, 0), (1, 2), (2, 1)] {
            ring.set(ram, index, to(next));
        }
        for (index, next) in [(0, 0), (1, 2), (2, 1)] {
            write_descriptor(ram, table + 16 * index, to(next));
        }
        ring.set(ram, 3, Descriptor { addr: table, len: 64, flags: INDIRECT, next: 0 });
        ring.set(ram, 4, Descriptor { addr: table + 16, len: 48, flags: INDIRECT, next: 0 });
        let before = scene.from_guest().dropped(DropReason::ChainTooLong);
        for head in [0, 1, 2, 3] {
            ring.push(ram, head);
        }
        ring.publish(ram);
        let mut back = 0;
        eventually("all are back", || {
            back += take_back(&mut nic, TRANSMIT);
            back == 4
        });
        assert_eq!(scene.from_guest().dropped(DropReason::ChainTooLong), before + 4, "length {len}");
        scene.neighbour_goes_on();
    }
    assert_eq!(send(&scene, &mut nic, &[(good, WHOLE, 0)]), [frame(0)]);
}

/// A packed chain without an end has no id to complete it by: the ring stands still until it is set up anew.
#[test]
fn a_packed_chain_that_never_ends_stops_its_ring_and_nothing_else() {
    let mut scene = Scene::new();
    let mut nic = scene.hostile(NicOptions { packed: true, indirect: true, ..NicOptions::default() });
    for len in [0, 1, 100] {
        let good = good_frame(&mut nic);
        let before = scene.from_guest().dropped(DropReason::ChainTooLong);
        let (ring, ram) = packed(&mut nic, TRANSMIT);
        let available = ring.next_available.available_flags();
        for slot in (0..ring.size).rev() {
            ring.set(ram, slot, PackedDescriptor { addr: good, len, id: 0, flags: NEXT | available });
        }
        eventually("it is counted", || scene.from_guest().dropped(DropReason::ChainTooLong) == before + 1);
        scene.neighbour_goes_on();
        assert_eq!(take_back(&mut nic, TRANSMIT), 0);
        nic.reset_ring(TRANSMIT, 256).unwrap();
        exchange(&mut nic, 0, 300);
        nic.reset_ring(TRANSMIT, 256).unwrap();
    }
    // A table has its length: nothing in it says that it goes on.
    let good = good_frame(&mut nic);
    let table = nic.allocate(16 * 600).unwrap();
    for n in 0..600 {
        write_packed_descriptor(
            nic.ram(),
            table + 16 * n,
            PackedDescriptor { addr: good, len: 0, id: 0, flags: NEXT },
        );
    }
    is_dropped(&mut scene, &mut nic, &[(table, 16 * 600, INDIRECT)], DropReason::ChainTooLong);
    is_dropped(&mut scene, &mut nic, &[(table, 16 * 512, INDIRECT)], DropReason::ChainTooShort);
}

#[test]
fn tables_within_tables_and_tables_of_broken_length_are_refused() {
    let mut scene = Scene::new();
    for options in layouts() {
        let mut nic = scene.hostile(options);
        let table = nic.allocate(4096).unwrap();
        let nested = Descriptor { addr: table, len: 16, flags: INDIRECT, next: 0 };
        match options.packed {
            false => write_descriptor(nic.ram(), table, nested),
            // Flags other than WRITE say nothing in a packed ring's table.
            true => nic.ram().write(table, &[0; 16]),
        }
        let reason = if options.packed { DropReason::ChainTooShort } else { DropReason::BadIndirect };
        is_dropped(&mut scene, &mut nic, &[(table, 16, INDIRECT)], reason);
        for len in [0, 1, 15, 17, 31, u32::MAX] {
            is_dropped(&mut scene, &mut nic, &[(table, len, INDIRECT)], DropReason::BadIndirect);
        }
        let good = good_frame(&mut nic);
        let after = [(good, 12, 0), (table, 16, INDIRECT)];
        if options.packed {
            is_dropped(&mut scene, &mut nic, &after, DropReason::BadIndirect);
        }
        is_dropped(&mut scene, &mut nic, &[(table, 16, INDIRECT), (good, 60, 0)], DropReason::BadIndirect);
        drop(nic);
        scene.relay_is_free_again();
        // And without the feature there are none at all.
        let mut nic = scene.hostile(NicOptions { indirect: false, ..options });
        let table = nic.allocate(4096).unwrap();
        is_dropped(&mut scene, &mut nic, &[(table, 16, INDIRECT)], DropReason::BadIndirect);
        scene.neighbour_goes_on();
        drop(nic);
        scene.relay_is_free_again();
    }
}

/// CVE-2024-11614: a checksum that begins or ends past the end of the frame.
#[test]
fn a_checksum_beyond_the_frame_is_a_bad_offload() {
    let mut scene = Scene::new();
    // A receiver that takes checksums off would get it as it is.
    let offloads = [SENDER_OFFLOADS, SENDER_OFFLOADS | RECEIVER_OFFLOADS];
    for options in
        layouts().into_iter().flat_map(|options| offloads.map(|offloads| NicOptions { offloads, ..options }))
    {
        let mut nic = scene.hostile(options);
        let good = good_frame(&mut nic);
        let header = |start: u16, offset: u16, gso: u8, size: u16| {
            let mut header = [1, gso, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            for (at, field) in [(4, size), (6, start), (8, offset)] {
                header[at..at + 2].copy_from_slice(&u16::to_le_bytes(field));
            }
            header
        };
        for (start, offset, gso, size) in [
            (59, 0, 0, 0),
            (60, 0, 0, 0),
            (58, 1, 0, 0),
            (65535, 65535, 0, 0),
            (65535, 0, 0, 0),
            (0, 65535, 0, 0),
            (34, 65535, 1, 100),
            (65535, 16, 1, 100),
            (34, 16, 1, 0),
            (34, 16, 2, 100),
            (34, 16, 3, 100),
            (34, 16, 0x7f, 100),
        ] {
            nic.ram().write(good, &header(start, offset, gso, size));
            let chain = [(good, WHOLE, 0)];
            let before = scene.from_guest().dropped(DropReason::BadOffload);
            assert!(send(&scene, &mut nic, &chain).is_empty(), "{start} {offset} {gso} {size}");
            assert_eq!(
                scene.from_guest().dropped(DropReason::BadOffload),
                before + 1,
                "{start} {offset} {gso}"
            );
        }
        // What contradicts the frame's own headers is left to the receiver where that cuts the frame, and refused here.
        if options.offloads == SENDER_OFFLOADS {
            nic.ram().write(good, &header(34, 6, 1, 20));
            assert!(send(&scene, &mut nic, &[(good, WHOLE, 0)]).is_empty());
        }
        nic.ram().write(good, &header(50, 8, 0, 0));
        assert_eq!(
            send(&scene, &mut nic, &[(good, WHOLE, 0)]).len(),
            1,
            "the last two bytes are still the frame's"
        );
        scene.neighbour_goes_on();
        drop(nic);
        scene.relay_is_free_again();
    }
}

#[test]
fn a_header_cannot_ask_for_what_was_not_negotiated() {
    let mut scene = Scene::new();
    let mut nic = scene.hostile(NicOptions { offloads: 1, ..NicOptions::default() });
    let good = good_frame(&mut nic);
    nic.ram().write(good, &[1, 1, 0, 0, 100, 0, 34, 0, 16, 0, 0, 0]);
    assert!(send(&scene, &mut nic, &[(good, WHOLE, 0)]).is_empty());
    assert_eq!(drops(scene.from_guest()), [(DropReason::BadOffload, 1)]);
    scene.neighbour_goes_on();
}

#[test]
fn an_available_index_out_of_reach_is_counted_and_nothing_is_read() {
    let mut scene = Scene::new();
    let mut nic = scene.hostile(NicOptions::default());
    exchange(&mut nic, 0, 100);
    let good = split(&mut nic, TRANSMIT).0.next_available;
    for jump in [257, 300, 0x7fff, 0x8000, 0xffff] {
        let (ring, ram) = split(&mut nic, TRANSMIT);
        ring.set_available_index(ram, good.wrapping_add(jump));
        let before = scene.from_guest().bad_available_index.get();
        eventually("it is counted", || scene.from_guest().bad_available_index.get() > before);
        scene.neighbour_goes_on();
    }
    let (ring, ram) = split(&mut nic, TRANSMIT);
    ring.set_available_index(ram, good);
    assert_eq!(scene.from_guest().rx_frames.get(), 100, "nothing was taken");
    exchange(&mut nic, 100, 200);
    // A jump of as much as the ring has is a driver that has filled it.
    assert_eq!(scene.from_guest().dropped_in_all(), 0);
}

/// Beyond DPDK's list: what one side writes is what the other reads.
#[test]
fn areas_of_a_ring_over_one_another_harm_nobody_else() {
    let mut scene = Scene::new();
    for (used, available, descriptors) in [(1, 1, 0), (2, 1, 2), (0, 0, 0), (1, 0, 0)] {
        let mut nic = scene.hostile(NicOptions::default());
        exchange(&mut nic, 0, 10);
        let (ring, _) = split(&mut nic, TRANSMIT);
        let areas = [ring.descriptors, ring.available, ring.used];
        let [descriptors, available, used] =
            [descriptors, available, used].map(|n: usize| nic.ram().user_of(areas[n]));
        let data = vhost::VringConfigData {
            queue_max_size: 256,
            queue_size: 256,
            flags: 0,
            desc_table_addr: descriptors,
            avail_ring_addr: available,
            used_ring_addr: used,
            log_addr: None,
        };
        // Taken or refused, as long as it costs nobody else anything.
        let _ = nic.frontend().set_vring_addr(TRANSMIT, &data);
        for number in 0..50 {
            nic.send(&frame(number));
            nic.flush();
        }
        scene.neighbour_goes_on();
        scene.neighbour_goes_on();
        drop(nic);
        scene.relay_is_free_again();
    }
}

/// A packed driver that makes the same slots available again and again, used or not.
#[test]
fn a_packed_ring_whose_slots_are_all_available_always_is_read_no_faster_than_it_is_completed() {
    let mut scene = Scene::new();
    let mut nic = scene.hostile(NicOptions { packed: true, ..NicOptions::default() });
    let good = good_frame(&mut nic);
    let (ring, ram) = packed(&mut nic, TRANSMIT);
    let mut flags = 1 << 7;
    let mut make_all_available = || {
        flags ^= 1 << 7 | 1 << 15;
        for slot in 0..ring.size {
            ring.set(ram, slot, PackedDescriptor { addr: good, len: WHOLE, id: slot, flags });
        }
    };
    (0..2000).for_each(|_| make_all_available());
    scene.neighbour_goes_on();
    // A worker that had no CPU meanwhile has not taken many yet.
    eventually("what there is no room for is dropped", || {
        make_all_available();
        scene.from_guest().dropped(DropReason::GuestQueueFull) > 0
    });
    drop(nic);
    scene.relay_is_free_again();
}

/// Values that are likely to hit something.
fn interesting(random: &mut u64, ram: u64, size: u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    let r = *random;
    match r >> 60 {
        0 => 0,
        1 => u64::MAX,
        2 => ram + size - (r & 0xff),
        3 => ram.wrapping_sub(r & 0xff),
        4..=8 => ram + (r & 0xff_ffff) % size,
        9 | 10 => u64::from(WHOLE) | (r & 7) << 32 | (r & 0xff) << 48,
        11 => r & 0xffff,
        12 => (r & 0x1_0007) << 32 | 12,
        _ => r,
    }
}

/// CVE-2020-10724, 14375, 14376, 14377, 14378 and DPDK's fix 285e6b8b18: what was checked was read once more and had
/// changed. Here rings, tables and headers are rewritten all the time, while frames are under way in them.
fn everything_is_rewritten(packed: bool, offloads: u64) {
    let mut scene = Scene::new();
    let options = NicOptions { packed, offloads, indirect: true, mergeable: true, ..NicOptions::default() };
    let end = Instant::now() + Duration::from_millis(1500);
    let mut round = 0;
    let mut dropped = 0;
    while Instant::now() < end {
        let mut nic = scene.hostile(options);
        let file = nic.ram().file().try_clone().unwrap();
        let (gpa, size) = (nic.ram().gpa(), nic.ram().size());
        let buffers = good_frame(&mut nic);
        // Rings, tables and the heads of buffers: all but the frames' middles.
        let tables = nic.allocate(4096).unwrap();
        let targets: Vec<u64> = match nic.by_hand(TRANSMIT) {
            (Layout::Split(ring), _) => vec![ring.descriptors, ring.available, ring.used],
            (Layout::Packed(ring), _) => vec![ring.descriptors, ring.driver_event, ring.device_event],
        };
        let targets: Vec<u64> = targets.into_iter().chain([tables, buffers]).collect();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = 0x9e37_79b9_7f4a_7c15 ^ (round + 1);
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    let value = interesting(&mut random, gpa, size);
                    let target = targets[n % targets.len()];
                    let within = if target == buffers { 12 } else { 512 };
                    let at = target - gpa + interesting(&mut random, 0, 512) % within;
                    let width = if target == targets[1] && !packed { 2 } else { 8 };
                    file.write_all_at(&value.to_le_bytes()[..width], at).unwrap();
                    n += 1;
                }
            });
            let pause = Instant::now() + Duration::from_millis(40);
            let mut n = 0u16;
            while Instant::now() < pause {
                for _ in 0..8 {
                    match nic.by_hand(TRANSMIT) {
                        (Layout::Split(ring), ram) => {
                            let whole = Descriptor { addr: buffers, len: WHOLE, flags: 0, next: 0 };
                            let table = Descriptor { addr: tables, len: 64, flags: INDIRECT, next: 0 };
                            ring.set(ram, n % 32, if n.is_multiple_of(2) { whole } else { table });
                            ring.push(ram, n % 32);
                            ring.publish(ram);
                        }
                        (Layout::Packed(ring), ram) => {
                            // Never mind what is used: slots are made available in the lap that is due.
                            let flags = ring.next_available.available_flags();
                            let slot = ring.next_available.slot;
                            let (addr, len, kind) = if n.is_multiple_of(2) {
                                (buffers, WHOLE, 0)
                            } else {
                                (tables, 64, INDIRECT)
                            };
                            ring.set(ram, slot, PackedDescriptor { addr, len, id: n, flags: flags | kind });
                            ring.next_available = ring.next_available.advanced(1, ring.size);
                        }
                    }
                    n = n.wrapping_add(1);
                }
                std::thread::yield_now();
            }
            scene.neighbour_goes_on();
            stop.store(true, Ordering::Relaxed);
        });
        let counters = scene.from_guest();
        dropped = counters.dropped_in_all() + counters.bad_available_index.get();
        drop(nic);
        scene.relay_is_free_again();
        round += 1;
    }
    assert!(dropped > 0, "{:?}", drops(scene.from_guest()));
    println!("{round} rounds, packed {packed}: {:?}", drops(scene.from_guest()));
}

#[test]
fn split_rings_that_are_rewritten_while_they_are_read() {
    everything_is_rewritten(false, 0);
}

#[test]
fn packed_rings_that_are_rewritten_while_they_are_read() {
    everything_is_rewritten(true, 0);
}

#[test]
fn split_rings_with_offloads_that_are_rewritten_while_they_are_read() {
    everything_is_rewritten(false, SENDER_OFFLOADS);
}

#[test]
fn packed_rings_with_offloads_that_are_rewritten_while_they_are_read() {
    everything_is_rewritten(true, SENDER_OFFLOADS);
}

/// DPDK's fix 285e6b8b18: `csum_start` was read again after it was checked. It is right one moment and far outside the
/// next; a frame is sent with the checksum of the one, or is dropped for the other, and nothing else.
#[test]
fn a_checksum_start_that_changes_all_the_time_is_read_once() {
    let mut scene = Scene::new();
    for options in layouts() {
        let mut nic = scene.hostile(NicOptions { offloads: SENDER_OFFLOADS, ..options });
        let good = good_frame(&mut nic);
        let partial =
            models::packets::partial(models::packets::Ip::V4, models::packets::Transport::Udp, 1, &[7; 100]);
        nic.ram().write(good, &[1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0]);
        nic.ram().write(good + 12, &partial);
        let file = nic.ram().file().try_clone().unwrap();
        let at = good - nic.ram().gpa() + 6;
        let stop = AtomicBool::new(false);
        let (mut arrived, mut n) = (0, 0);
        let before = scene.from_guest().dropped(DropReason::BadOffload);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    file.write_all_at(&0xfff0u16.to_le_bytes(), at).unwrap();
                    file.write_all_at(&34u16.to_le_bytes(), at).unwrap();
                }
            });
            let len = 12 + partial.len() as u32;
            let both = within(Duration::from_secs(10), || {
                n += 1;
                for frame in send(&scene, &mut nic, &[(good, len, 0)]) {
                    models::packets::check(&frame).expect("the checksum of the one that was checked");
                    arrived += 1;
                }
                n >= 300 && arrived > 0 && scene.from_guest().dropped(DropReason::BadOffload) > before
            });
            stop.store(true, Ordering::Relaxed);
            assert!(both, "{n} sent, {arrived} arrived, {:?}", drops(scene.from_guest()));
        });
        assert_eq!(scene.from_guest().dropped(DropReason::BadOffload) - before + arrived, n);
        scene.neighbour_goes_on();
        drop(nic);
        scene.relay_is_free_again();
    }
}

/// An interrupt descriptor that blocks costs a worker the time until the watchdog has noticed. A guest with many of them
/// that leaves and comes again as fast as it can must not add that up.
#[test]
fn a_guest_that_comes_again_and_again_with_interrupts_that_block_costs_its_neighbour_little() {
    use std::os::fd::{AsRawFd, BorrowedFd};
    let mut scene = Scene::new();
    let exchanged_within = |scene: &mut Scene, time: Duration| {
        let (start, mut rounds) = (Instant::now(), 0u32);
        while start.elapsed() < time {
            scene.neighbour_goes_on();
            rounds += 1;
        }
        rounds
    };
    let time = Duration::from_millis(2500);
    let alone = exchanged_within(&mut scene, time);
    let stop = AtomicBool::new(false);
    let socket = scene.stand.socket(0);
    let (beside, came) = std::thread::scope(|scope| {
        let hostile = scope.spawn(|| {
            let mut came = 0;
            while !stop.load(Ordering::Relaxed) {
                let options = NicOptions { queue_pairs: 4, ..NicOptions::default() };
                let Ok(mut nic) = GuestNic::connect(&socket, options) else { continue };
                came += 1;
                for call in nic.all_interrupts() {
                    // SAFETY: the eventfd is open as long as the guest lives.
                    let fd = unsafe { BorrowedFd::borrow_raw(call.as_raw_fd()) };
                    let _ = call.read();
                    let _ = call.write(u64::MAX - 1);
                    rustix::fs::fcntl_setfl(fd, rustix::fs::OFlags::empty()).unwrap();
                }
                for pair in 0..4 {
                    nic.send_on(pair, &[0; 12], &frame(0));
                }
                nic.flush();
                // Before that can have been noticed, and after.
                std::thread::sleep(Duration::from_millis(if came % 2 == 1 { 5 } else { 100 }));
            }
            came
        });
        let beside = exchanged_within(&mut scene, time);
        stop.store(true, Ordering::Relaxed);
        (beside, hostile.join().unwrap())
    });
    println!("{alone} rounds alone, {beside} beside a guest that came {came} times");
    assert!(beside > alone / 3, "{beside} of {alone}, it came {came} times");
    assert!(came <= 10, "it has to wait: it came {came} times");
}
