//! Rung L1 of `nfp`: the driver against our model of the virtual NIC, with firmware of both kinds.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use models::exam::{RECOVERY, numbered};
use models::nfp::{
    CTAG_FILTER, GATHER, L2MC, LSO, LSO2, Nfp as Model, PROMISC, Path, RSS, RSS2, RXCSUM, Settings, TXCSUM,
    TXRWB, USUAL, Wrong,
};
use models::packets::{Ip, Transport, check, packet, partial};
use models::rate::{Loop, Looped};
use models::{Exam, Fault, InProcess, Stall};
use pmd::pci::PciFunction;
use pmd::vf::Wishes;
use pmd::{
    Armed, Checksum, Device as _, DeviceError, DeviceEvent, Link, MacAddress, Offload, ReceiveQueue,
    Segmentation, TransmitQueue,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

#[path = "nfp/common.rs"]
mod common;

use common::*;

fn counter(exam: &mut Exam<Model>, wanted: &str) -> u64 {
    exam.device.counters().into_iter().find(|(name, _)| *name == wanted).unwrap().1
}

fn notices(exam: &mut Exam<Model>) -> Vec<String> {
    let mut events = exam.device.service();
    events.append(&mut exam.events);
    events
        .into_iter()
        .filter_map(|event| match event {
            DeviceEvent::Notice(text) => Some(text),
            _ => None,
        })
        .collect()
}

fn needs_reset(exam: &mut Exam<Model>) -> bool {
    exam.hears(|event| matches!(event, DeviceEvent::ResetNeeded { .. }))
}

#[test]
fn it_comes_up_with_the_address_of_the_firmware_and_a_link() {
    for settings in both() {
        let mut exam = start(settings);
        let identity = exam.device.identity();
        assert_eq!((identity.driver, identity.mac, identity.max_frame), ("nfp", Some(MAC), 9234));
        assert!(!identity.filters_by_mac);
        assert!(exam.hears(|event| *event == DeviceEvent::Link(Link::Up { speed: Some(25_000) })));
        exam.no_faults();
    }
}

#[test]
fn nfd3_carries_100_000_numbered_frames_each_way() {
    let mut exam = start(Settings::default());
    exam.sends_numbered_frames(100_000, 1514);
    exam.receives_numbered_frames(100_000, 1514);
}

#[test]
fn nfdk_carries_100_000_numbered_frames_each_way() {
    let mut exam = start(Settings::nfdk());
    exam.sends_numbered_frames(100_000, 1514);
    exam.receives_numbered_frames(100_000, 1514);
}

#[test]
fn jumbo_frames_pass_both_ways() {
    for settings in both() {
        let mut exam = start(settings);
        exam.sends_numbered_frames(3000, 9234);
        exam.receives_numbered_frames(3000, 9234);
    }
}

#[test]
fn checksums_are_filled_in_by_the_nic() {
    both().into_iter().for_each(|settings| start(settings).fills_in_checksums());
}

#[test]
fn tcp_is_cut_by_the_nic() {
    both().into_iter().for_each(|settings| start(settings).cuts_tcp());
    start(Settings { cap: USUAL & !LSO2 | LSO, ..Settings::default() }).cuts_tcp();
}

#[test]
fn frames_of_more_segments_than_the_firmware_cuts_come_out_whole() {
    for settings in both() {
        let mut exam = start(settings);
        for ip in [Ip::V4, Ip::V6] {
            for (len, size) in
                [(8000usize, 100u16), (60_000, 536), (6400, 100), (6401, 100), (65_400, 48), (65_490, 1400)]
            {
                let payload: Vec<u8> = (0..len).map(|n| ((n * 13) >> 3) as u8).collect();
                let frame = partial(ip, Transport::Tcp, 9, &payload);
                let start = ip.transport_at() as u16;
                let offload = Offload {
                    checksum: Checksum::Partial { start, offset: 16 },
                    segmentation: if ip == Ip::V4 { Segmentation::TcpV4 } else { Segmentation::TcpV6 },
                    segment_size: size,
                    header_length: start + 20,
                    ecn: false,
                };
                for _ in 0..3 {
                    assert!(exam.send(0, &frame, offload), "{ip:?} {len} {size}");
                    let (mut joined, mut first) = (Vec::new(), None);
                    while let Some(sent) = exam.function.take_sent() {
                        let more = usize::from(size).min(len - joined.len());
                        let seen = check(&sent[..ip.transport_at() + 20 + more]).unwrap();
                        assert_eq!(seen.sequence, *first.get_or_insert(seen.sequence) + joined.len() as u32);
                        joined.extend(seen.payload);
                        assert_eq!(
                            seen.flags & 8 != 0,
                            joined.len() == len,
                            "PSH is on the last segment only"
                        );
                    }
                    assert!(joined == payload, "{ip:?} {len} {size}: {} bytes", joined.len());
                }
            }
        }
        exam.no_faults();
    }
}

#[test]
fn what_the_nic_cannot_do_is_not_offered() {
    for (path, without) in
        [(Path::Nfd3, TXCSUM), (Path::Nfd3, GATHER), (Path::Nfd3, LSO2), (Path::Nfdk, TXCSUM)]
    {
        let settings = if path == Path::Nfd3 { Settings::default() } else { Settings::nfdk() };
        let mut exam = start(Settings { cap: settings.cap & !without, ..settings });
        let capabilities = exam.queues().transmit[0].capabilities();
        assert!(!capabilities.tcp_v4 && !capabilities.tcp_v6 && !capabilities.ecn && !capabilities.udp);
        assert_eq!(capabilities.checksum, without != TXCSUM);
        // Without gathering, a frame is one piece.
        exam.sends_numbered_frames(300, 9234);
    }
    let old = Settings { major: 2, cap: USUAL & !(LSO2 | RSS2) | LSO, ..Settings::default() };
    assert!(!start(old).queues().transmit[0].capabilities().tcp_v4, "LSO is another one before ABI 3");
}

#[test]
fn a_frame_that_contradicts_what_it_leaves_is_counted_and_the_next_one_sent() {
    for settings in both() {
        let mut exam = start(settings);
        let frame = partial(Ip::V4, Transport::Tcp, 9, &[1; 8000]);
        let checksum = |start| Checksum::Partial { start, offset: 16 };
        let offload = Offload { checksum: checksum(34), header_length: 54, ..Offload::NONE };
        let cut = Offload { segmentation: Segmentation::TcpV4, segment_size: 100, ..offload };
        assert!(exam.send(0, &frame, Offload { checksum: checksum(33), ..offload }));
        assert!(exam.send(0, &frame, Offload { segmentation: Segmentation::TcpV6, ..cut }));
        // A segment is longer than the NIC's longest frame.
        let long = [frame.clone(), vec![1; 20_000]].concat();
        assert!(exam.send(0, &long, Offload { segment_size: 9500, ..cut }));
        assert!(exam.send(0, &numbered(1, 9235), Offload::NONE));
        assert_eq!((counter(&mut exam, "tx_bad_headers"), counter(&mut exam, "tx_bad_length")), (3, 1));
        assert_eq!(exam.device.statistics().tx_errors, 4);
        assert_eq!(exam.function.take_sent(), None);
        exam.sends_numbered_frames(3, 1514);
    }
}

#[test]
fn checksums_that_the_nic_found_right_are_told_and_others_are_left_to_the_guest() {
    for settings in both() {
        let checks = settings.cap & RXCSUM != 0;
        let mut exam = start(settings);
        for ip in [Ip::V4, Ip::V6] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let good = packet(ip, transport, 9, b"hello");
                let bad = partial(ip, transport, 9, b"hello");
                for (frame, wanted) in [(good, Checksum::Valid), (bad, Checksum::Unknown)] {
                    exam.function.arrive(frame.clone());
                    let received = exam.receive(0);
                    assert_eq!(
                        received,
                        [(frame, Offload { checksum: wanted, ..Offload::NONE })],
                        "{checks}"
                    );
                }
            }
        }
        exam.no_faults();
    }
}

#[test]
fn tagged_frames_pass_both_ways_with_their_tags() {
    for settings in both() {
        let mut exam = start(settings);
        let mut frame = numbered(5, 300);
        frame.splice(12..12, [0x81, 0, 0x20, 7]);
        assert!(exam.send(0, &frame, Offload::NONE));
        assert_eq!(exam.function.take_sent(), Some(frame.clone()));
        exam.function.arrive(frame.clone());
        assert_eq!(exam.receive(0)[0].0, frame);
        exam.no_faults();
    }
}

#[test]
fn wished_vlans_become_filters() {
    for settings in both() {
        let wishes = Wishes { vlans: vec![7, 100], ..Wishes::default() };
        let mut exam = start_with(Model::new(settings), wishes);
        assert_eq!(exam.function.with(|model, _| model.vlans().to_vec()), [7, 100]);
        let tagged = |vlan: u8| {
            let mut frame = numbered(u32::from(vlan), 100);
            frame.splice(12..12, [0x81, 0, 0, vlan]);
            frame
        };
        for vlan in [7, 8, 100] {
            exam.function.arrive(tagged(vlan));
        }
        exam.function.arrive(numbered(1, 80));
        let received: Vec<_> = exam.receive(0).into_iter().map(|(frame, _)| frame).collect();
        assert_eq!(received, [tagged(7), tagged(100), numbered(1, 80)]);
        exam.no_faults();
        exam.stop();
        exam.restart();
        assert_eq!(exam.function.with(|model, _| model.vlans().len()), 2, "after a restart, too");
    }
    let wishes = Wishes { vlans: vec![7], ..Wishes::default() };
    let mut exam =
        start_with(Model::new(Settings { cap: USUAL & !CTAG_FILTER, ..Settings::default() }), wishes);
    assert!(notices(&mut exam).iter().any(|text| text.contains("does not filter VLANs")));
    exam.no_faults();
}

#[test]
fn what_cannot_be_started_has_let_go_of_memory() {
    for settings in both() {
        let function = InProcess::new(Model::new(settings));
        // No such VLAN: the firmware refuses when all else is on.
        let wishes = Wishes { vlans: vec![4095], ..Wishes::default() };
        let mut device = open(Arc::clone(&function), wishes).unwrap();
        let error = device.start().map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("the VLAN filter"), "{error}");
        assert_eq!(function.mappings(), 0);
        function.arrive(numbered(1, 60));
        let faults = function.take_faults();
        assert!(
            faults.iter().all(|fault| matches!(fault, Fault::Rule(text) if text.contains("mailbox"))),
            "{faults:?}"
        );
    }
}

#[test]
fn memory_lies_where_descriptors_reach() {
    for (settings, bits) in [(Settings::default(), 40), (Settings::nfdk(), 48)] {
        for (first, fits) in [((1 << bits) - (40 << 20), true), (1 << bits, false)] {
            let function = InProcess::new(Model::new(settings.clone()));
            function.lend_from(first);
            let mut device = open(Arc::clone(&function), Wishes::default()).unwrap();
            assert_eq!(device.start().map(|queues| device.stop(queues)).is_ok(), fits, "{first:#x}");
        }
    }
    let mut exam = Exam::start(Model::new(Settings::nfdk()), |function| {
        function.lend_from(1 << 40);
        open(function, Wishes::default())
    });
    exam.sends_numbered_frames(1000, 1514);
    exam.receives_numbered_frames(1000, 1514);
}

#[test]
fn flows_are_spread_over_the_queues_and_each_stays_on_one() {
    let single = Settings { major: 3, cap: USUAL & !RSS2 | RSS, ..Settings::default() };
    for settings in both().into_iter().chain([single]) {
        let mut exam = start_with(Model::new(settings), queues(4));
        assert_eq!((exam.queues().receive.len(), exam.queues().transmit.len()), (4, 4));
        let mut seen = [0; 4];
        for port in 0..64 {
            let frames = [b"first", b"again"].map(|text| packet(Ip::V4, Transport::Tcp, port, text));
            for frame in &frames {
                exam.function.arrive(frame.clone());
            }
            let counts: Vec<usize> = (0..4).map(|n| exam.receive(n).len()).collect();
            let queue = counts.iter().position(|count| *count > 0).unwrap();
            assert_eq!(counts[queue], 2, "{counts:?}");
            seen[queue] += 1;
        }
        assert!(seen.iter().all(|flows| *flows > 4), "{seen:?}");
        for n in 0..4 {
            let frame = numbered(n as u32, 200);
            assert!(exam.send(n, &frame, Offload::NONE));
            assert_eq!(exam.function.take_sent(), Some(frame));
        }
        exam.no_faults();
    }
}

#[test]
fn fewer_queues_than_wanted_are_told() {
    let mut exam = start_with(Model::new(Settings { rings: 2, ..Settings::default() }), queues(8));
    assert_eq!(exam.queues().receive.len(), 2);
    assert!(notices(&mut exam).iter().any(|text| text.contains("2 of the 8 queues")));
    let mut exam = start_with(Model::new(Settings { cap: USUAL & !RSS2, ..Settings::default() }), queues(8));
    assert_eq!(exam.queues().receive.len(), 1);
    exam.no_faults();
}

#[test]
fn promiscuous_mode_and_groups_are_taken_where_they_are_granted() {
    let mut exam = start(Settings { cap: USUAL & !(PROMISC | L2MC), ..Settings::default() });
    assert!(exam.device.identity().filters_by_mac);
    let told = notices(&mut exam);
    assert!(
        told.iter()
            .any(|text| text.contains("promiscuous") && text.contains("ip link set eth2 vf 3 trust on"))
    );
    assert!(told.iter().any(|text| text.contains("groups")));
    let to = |address: [u8; 6]| {
        let mut frame = numbered(1, 64);
        frame[..6].copy_from_slice(&address);
        frame
    };
    for (address, arrives) in [
        (MAC.0, true),
        ([0x52, 0x54, 0, 0, 0, 9], false),
        ([0x33, 0x33, 0, 0, 0, 1], false),
        ([0xff; 6], true),
    ] {
        exam.function.arrive(to(address));
        assert_eq!(exam.receive(0).len() == 1, arrives, "{address:x?}");
    }
    let mut exam = start(Settings { cap: USUAL & !PROMISC, ..Settings::default() });
    exam.function.arrive(to([0x33, 0x33, 0, 0, 0, 1]));
    assert_eq!(exam.receive(0).len(), 1, "a group");
    exam.no_faults();
}

#[test]
fn an_address_is_drawn_where_there_is_none_and_kept() {
    for invalid in [None, Some([0x01, 0, 0, 0, 0, 1])] {
        let mut exam = start(Settings { mac: invalid, ..Settings::default() });
        let mac = exam.device.identity().mac.unwrap();
        assert!(mac.is_valid_unicast() && mac.0[0] & 2 != 0);
        assert!(notices(&mut exam).iter().any(|text| text.contains("drawn by lot")));
        exam.function.with(|model, _| model.reload());
        assert!(needs_reset(&mut exam) && exam.recovers());
        exam.stop();
        exam.restart();
        assert!(exam.traffic_is_back());
        assert_eq!(exam.device.identity().mac, Some(mac), "the same one, after all that");
        exam.no_faults();
    }
}

#[test]
fn a_wished_address_is_set_or_its_refusal_told() {
    let wished = MacAddress([0x52, 0x54, 0, 0, 0, 0x42]);
    let wishes = Wishes { mac: Some(wished), ..Wishes::default() };
    for settings in both() {
        let exam = start_with(Model::new(settings), wishes.clone());
        assert_eq!(exam.device.identity().mac, Some(wished));
        assert_eq!(exam.function.with(|model, _| model.word(0x24)), 0x5254_0000);
        exam.no_faults();
    }
    let fixed = Settings { mac_is_fixed: true, ..Settings::default() };
    let mut exam = start_with(Model::new(fixed), wishes);
    assert_eq!(exam.device.identity().mac, Some(MAC));
    assert!(notices(&mut exam).iter().any(|text| text.contains("refuses the address 52:54:00:00:00:42")));
    assert!(exam.traffic_is_back());
    exam.no_faults();
}

#[test]
fn another_address_that_the_pf_gives_is_told() {
    let mut exam = start(Settings::default());
    let new = [0x52, 0x54, 0, 0, 0, 0x99];
    exam.function.with(|model, _| model.assign_mac(new));
    assert!(exam.hears(|event| *event == DeviceEvent::MacChanged(MacAddress(new))));
    exam.no_faults();
}

#[test]
fn counters_of_the_firmware_are_told_by_name() {
    let mut exam = start(Settings::default());
    exam.sends_numbered_frames(10, 100);
    exam.receives_numbered_frames(7, 100);
    let now = exam.device.statistics();
    assert_eq!((now.tx_frames, now.rx_frames, now.rx_missed), (10, 7, 0));
    for n in 0..2000 {
        exam.function.arrive(numbered(n, 60));
    }
    let mut received = 0;
    while let burst @ 1.. = exam.receive(0).len() as u64 {
        received += burst;
    }
    let missed = counter(&mut exam, "dev_rx_discards");
    assert_eq!((received + missed, exam.device.statistics().rx_missed), (2000, missed));
    assert!((984..1016).contains(&missed), "{missed}");
    assert_eq!(counter(&mut exam, "dev_tx_pkts"), 10);
    exam.stop();
    exam.restart();
    assert_eq!(exam.device.statistics().tx_frames, 10, "they go on");
}

#[test]
fn the_ring_keeps_eight_descriptors_free_and_goes_on_when_the_nic_does() {
    for (settings, most) in [(Settings::default(), 1016), (Settings::nfdk(), 992)] {
        let mut exam = start(settings);
        exam.function.with(|model, _| model.holds = true);
        let mut taken = 0;
        while exam.send(0, &numbered(taken, 60), Offload::NONE) {
            taken += 1;
        }
        assert_eq!(taken, most);
        exam.function.with(|model, _| model.holds = false);
        for n in 0..most {
            assert_eq!(exam.function.take_sent(), Some(numbered(n, 60)));
        }
        exam.sends_numbered_frames(3000, 1514);
    }
}

#[test]
fn memory_for_frames_runs_out_before_descriptors_do_and_comes_back() {
    for settings in both() {
        let mut exam = start(settings);
        exam.function.with(|model, _| model.holds = true);
        let mut taken = 0;
        while exam.send(0, &numbered(taken, 9000), Offload::NONE) {
            taken += 1;
        }
        assert!((200..233).contains(&taken), "{taken}");
        exam.function.with(|model, _| model.holds = false);
        for n in 0..taken {
            assert!(exam.function.take_sent() == Some(numbered(n, 9000)), "{n}");
        }
        exam.sends_numbered_frames(1000, 9234);
    }
}

#[test]
fn a_frame_costs_no_read_where_pointers_come_to_memory_and_one_for_hundreds_where_not() {
    for (settings, most) in [(Settings::nfdk(), 0.0), (Settings::default(), 1.0 / 400.0)] {
        let rate = Loop::new(start(settings), 64).rate(Duration::from_millis(100));
        assert!(rate.accesses.0 <= most, "{} reads a frame", rate.accesses.0);
        assert!(rate.accesses.1 <= 2.1 / 32.0, "{} writes a frame", rate.accesses.1);
    }
}

#[test]
fn a_sleeper_is_woken_by_the_next_frame_and_by_nothing_else() {
    for settings in both() {
        let mut exam = start_with(Model::new(settings), queues(2));
        let rings = |exam: &mut Exam<Model>| {
            let bell = exam.queues().receive[0].bell().unwrap();
            let ready = Timespec { tv_sec: 0, tv_nsec: 0 };
            let rung = poll(&mut [PollFd::new(&bell, PollFlags::IN)], Some(&ready)).unwrap() > 0;
            if rung {
                rustix::io::read(bell, &mut [0; 8]).unwrap();
            }
            rung
        };
        exam.function.arrive(numbered(1, 60));
        exam.sends_numbered_frames(3, 60);
        assert!(!rings(&mut exam), "nobody sleeps");
        assert_eq!(exam.queues().receive[0].arm(), Armed::Ready);
        exam.queues().receive[0].disarm();
        rings(&mut exam);
        assert_eq!(exam.receive(0).len(), 1);
        assert_eq!(exam.queues().receive[0].arm(), Armed::Rings);
        exam.sends_numbered_frames(3, 60);
        assert!(!rings(&mut exam), "nothing has come");
        exam.function.arrive(numbered(2, 60));
        exam.function.arrive(numbered(3, 60));
        assert!(rings(&mut exam) && !rings(&mut exam), "once");
        assert_eq!(exam.receive(0).len(), 2);
        exam.no_faults();
    }
}

#[test]
fn free_lists_come_first_where_the_firmware_wants_it_so() {
    let mut exam = start(Settings { cap_word1: 1 << 6, ..Settings::nfdk() });
    assert!(exam.traffic_is_back());
    exam.stop();
    exam.restart();
    exam.sends_numbered_frames(100, 1514);
    exam.receives_numbered_frames(100, 1514);
}

#[test]
fn a_link_that_goes_and_comes_is_told() {
    let mut exam = start(Settings::default());
    assert!(exam.link_comes_up());
    exam.function.with(|model, bus| model.set_link(bus, false));
    assert!(exam.hears(|event| *event == DeviceEvent::Link(Link::Down)));
    exam.function.with(|model, bus| model.set_link(bus, true));
    assert!(exam.link_comes_up() && exam.traffic_is_back());
    exam.no_faults();
}

#[test]
fn firmware_that_is_loaded_anew_is_met_again() {
    for settings in both() {
        let mut exam = start(settings);
        exam.function.with(|model, _| model.reload());
        assert!(needs_reset(&mut exam));
        assert!(exam.recovers() && exam.traffic_is_back());
        assert!(!exam.device.service().iter().any(|event| matches!(event, DeviceEvent::ResetNeeded { .. })));
    }
}

#[test]
fn firmware_that_stops_sending_is_noticed_and_recovers_with_it() {
    for settings in both() {
        let mut exam = start(settings);
        assert!(exam.link_comes_up());
        exam.function.with(|model, _| model.is_dead = true);
        assert!(exam.send(0, &numbered(1, 60), Offload::NONE));
        assert!(needs_reset(&mut exam));
        let begun = Instant::now();
        exam.stop();
        // Not the whole time that the firmware is given otherwise.
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert_eq!(exam.function.resets(), 1, "what does not confirm is reset");
        let error = exam.device.start().map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("the firmware does not answer"), "{error}");
        exam.function.with(|model, _| model.is_dead = false);
        assert!(exam.recovers() && exam.traffic_is_back());
        exam.no_faults();
    }
}

#[test]
fn firmware_that_holds_frames_back_is_reset_unless_there_is_no_link() {
    for settings in both() {
        start(settings).notices_a_stall(Stall {
            set: |model, _, stalls| model.holds = stalls,
            set_link: |model, bus, up| model.set_link(bus, up),
            limit: IMPATIENT.stall,
            // The slow side reads the pointers.
            worker_looks: false,
        });
    }
}

#[test]
fn a_device_that_leaves_is_told_once_and_can_be_stopped() {
    let mut exam = start(Settings::nfdk());
    exam.function.set_gone(true);
    assert!(exam.hears(|event| matches!(event, DeviceEvent::Gone { .. })));
    assert!(exam.device.service().is_empty());
    while exam.send(0, &numbered(1, 60), Offload::NONE) {}
    assert!(exam.receive(0).is_empty());
    exam.stop();
    assert_eq!(exam.function.mappings(), 0);
    assert!(matches!(exam.device.start(), Err(DeviceError::NotFound(_))));
}

#[test]
fn lost_interrupts_do_not_lose_frames() {
    let mut exam = start(Settings::default());
    exam.function.with(|_, bus| bus.lose_interrupts(true));
    assert_eq!(exam.queues().receive[0].arm(), Armed::Rings);
    exam.receives_numbered_frames(100, 1514);
}

#[test]
fn firmware_that_is_not_known_is_refused_with_what_to_do() {
    for settings in [
        Settings { major: 6, ..Settings::default() },
        Settings { major: 4, ..Settings::nfdk() },
        Settings { structures: vec![1 << 31 | 77 << 16], ..Settings::default() },
        Settings { rx_offset: 100, ..Settings::default() },
        Settings { rings: 0, ..Settings::default() },
    ] {
        let error = open(InProcess::new(Model::new(settings)), Wishes::default()).map(|_| ()).unwrap_err();
        assert!(
            matches!(&error, DeviceError::Unsupported(text) if text.contains("linux-firmware")),
            "{error}"
        );
    }
}

#[test]
fn a_dead_firmware_is_told_when_it_is_opened() {
    let mut model = Model::new(Settings::default());
    model.is_dead = true;
    let error = open(InProcess::new(model), Wishes::default()).map(|_| ()).unwrap_err();
    assert!(matches!(&error, DeviceError::NotReady(text) if text.contains("ip link set eth2 up")), "{error}");
    let function = InProcess::new(Model::new(Settings::default()));
    function.set_gone(true);
    assert!(matches!(open(function, Wishes::default()), Err(DeviceError::NotFound(_))));
}

/// Of each way to be wrong: what the driver does. Never a hang, never a damaged frame.
#[test]
fn a_model_that_is_wrong_on_purpose_is_caught() {
    for settings in both() {
        for (wrong, reason) in [
            (Wrong::TooLong, "rx_bad_length"),
            (Wrong::TooShort, "rx_bad_length"),
            (Wrong::TooMuchMetadata, "rx_bad_metadata"),
            (Wrong::MetadataLies, "rx_bad_metadata"),
            (Wrong::Stripped, "rx_stripped"),
        ] {
            let mut exam = start_with(Model::new(settings.clone()).wrong(wrong), Wishes::default());
            for n in 0..3000 {
                exam.function.arrive(numbered(n, 200));
                assert!(exam.receive(0).is_empty(), "{wrong:?}");
            }
            assert_eq!(
                (counter(&mut exam, reason), exam.device.statistics().rx_errors),
                (3000, 3000),
                "{wrong:?}"
            );
            exam.function.with(|model, _| model.wrong = None);
            exam.receives_numbered_frames(100, 1514);
        }
        for wrong in [Wrong::NotDone, Wrong::NoInterrupt] {
            let mut exam = start_with(Model::new(settings.clone()).wrong(wrong), Wishes::default());
            exam.function.arrive(numbered(1, 200));
            assert_eq!(exam.receive(0).len(), usize::from(wrong == Wrong::NoInterrupt), "{wrong:?}");
            exam.sends_numbered_frames(10, 1514);
        }
        for wrong in [Wrong::ReadPointerBeyond, Wrong::ReadPointerStuck] {
            let mut exam = start_with(Model::new(settings.clone()).wrong(wrong), Wishes::default());
            assert!(exam.link_comes_up());
            let begun = Instant::now();
            let mut n = 0;
            while !exam.device.service().iter().any(|event| matches!(event, DeviceEvent::ResetNeeded { .. }))
            {
                for _ in 0..32 {
                    exam.send(0, &numbered(n, 100), Offload::NONE);
                    n += 1;
                }
                assert!(begun.elapsed() < RECOVERY, "{wrong:?}");
            }
            exam.no_faults();
            exam.function.with(|model, _| (model.wrong, model.holds) = (None, false));
            assert!(exam.recovers() && exam.traffic_is_back(), "{wrong:?}");
        }
        for wrong in [Wrong::ErrorBit, Wrong::NoAnswer] {
            let model = Model::new(settings.clone()).wrong(wrong);
            let error = open(InProcess::new(model), Wishes::default()).map(|_| ()).unwrap_err();
            assert!(matches!(error, DeviceError::NotReady(_)), "{error}");
            let mut exam = start(settings.clone());
            exam.function.with(|model, _| model.wrong = Some(wrong));
            exam.stop();
            assert_eq!(exam.function.resets(), 1, "{wrong:?}");
            assert!(exam.device.start().is_err());
            exam.function.with(|model, _| model.wrong = None);
            assert!(exam.recovers() && exam.traffic_is_back(), "{wrong:?}");
        }
        let model = Model::new(settings.clone()).wrong(Wrong::RightUnchecked);
        let mut exam = start_with(model, Wishes::default());
        exam.function.arrive(partial(Ip::V4, Transport::Tcp, 1, b"damaged"));
        assert_eq!(exam.receive(0)[0].1.checksum, Checksum::Unknown);
    }
}

#[test]
fn where_pointers_do_not_come_to_memory_the_register_is_read() {
    for settings in [Settings::nfdk(), Settings { cap: USUAL | TXRWB, ..Settings::default() }] {
        let mut exam = start_with(Model::new(settings).wrong(Wrong::NoWriteBack), Wishes::default());
        exam.sends_numbered_frames(10_000, 1514);
    }
}

#[test]
fn the_model_is_strict() {
    let mut exam = start(Settings::default());
    let registers = Arc::clone(&exam.function).bar(2, 8 * 0x800, 0x800, pmd::Caching::Uncached).unwrap();
    registers.write(4, 2000);
    let rule = |exam: &Exam<Model>| match exam.function.take_faults().as_slice() {
        [Fault::Rule(text)] => text.clone(),
        other => panic!("{other:?}"),
    };
    assert!(rule(&exam).contains("fill transmit ring 0"));
    let control = Arc::clone(&exam.function).bar(0, 0, 0x8000, pmd::Caching::Uncached).unwrap();
    control.write64(0x200, 0x1000);
    assert!(rule(&exam).contains("while they are on"));
    control.write(0x38, 1);
    assert!(rule(&exam).contains("read-only"));
    exam.stop();
    control.write64(0x200, 1 << 40);
    control.write(0, 1);
    control.write(4, 3);
    let config = Arc::clone(&exam.function).bar(2, 9 * 0x800, 0x800, pmd::Caching::Uncached).unwrap();
    config.write(4, 1);
    assert!(!exam.function.take_faults().is_empty());
}
