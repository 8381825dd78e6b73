//! The igbvf driver against our model of its device: rung L1.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use models::exam::{Exam, RECOVERY, numbered};
use models::guest::Guest;
use models::igbvf::{Igbvf as Model, Wrong};
use models::packets::{Ip, Transport, packet, partial};
use models::rate::{Loop, Looped};
use models::{Bus, Fault, InProcess, Model as _, Size, Stall};
use pmd::igbvf::{IDS, Igbvf, Patience, Setup};
use pmd::pci::PciFunction;
use pmd::vf::{Place, Vf, Wishes};
use pmd::{
    Accepted, Armed, Burst, Checksum, Completions, Device, DeviceError, DeviceEvent, MacAddress, Offload,
    ReceiveQueue, Token, TransmitQueue,
};

const PATIENCE: Patience =
    Patience { interval: Duration::from_micros(50), looks: 40, stall: Duration::from_millis(200) };

/// Opens the driver as that of an 82576, or as that of an I350 where `device` is 1.
fn open(function: Arc<InProcess<Model>>, device: usize, wishes: Wishes) -> Result<Vf<Igbvf>, DeviceError> {
    let place = Place { address: "0000:01:10.0".parse().unwrap(), pf: Some(("eth2".to_owned(), 0)) };
    let setup = Setup { place, ids: IDS[device], wishes, patience: PATIENCE, hashed_groups: false };
    Igbvf::open(function as Arc<dyn PciFunction>, setup)
}

fn exam_of(model: Model, wishes: Wishes) -> Exam<Model> {
    Exam::start(model, |function| open(function, 0, wishes))
}

fn exam() -> Exam<Model> {
    exam_of(Model::default(), Wishes::default())
}

fn pairs(pairs: u16) -> Wishes {
    Wishes { queue_pairs: pairs.try_into().unwrap(), ..Wishes::default() }
}

#[test]
fn the_link_comes_up_and_the_address_is_the_pfs() {
    let mut exam = exam();
    assert!(exam.tells("the PF refuses promiscuous mode"));
    assert!(exam.link_comes_up());
    assert_eq!(exam.device.identity().mac, Some(MacAddress([0x52, 0x54, 0, 0, 0, 2])));
    assert_eq!((exam.device.identity().max_frame, exam.device.identity().filters_by_mac), (9724, true));
    exam.no_faults();
}

#[test]
fn a_hundred_thousand_numbered_frames_go_out() {
    exam().sends_numbered_frames(100_000, 1514);
}

#[test]
fn a_hundred_thousand_numbered_frames_come_in() {
    exam().receives_numbered_frames(100_000, 1514);
}

#[test]
fn jumbo_frames_go_both_ways() {
    let mut exam = exam();
    exam.sends_numbered_frames(3000, 9724);
    exam.receives_numbered_frames(3000, 9724);
}

#[test]
fn a_pf_that_grants_usual_frames_only_gets_them() {
    let mut model = Model::default();
    model.pf.longest = 1522;
    let mut exam = exam_of(model, Wishes::default());
    assert_eq!(exam.device.identity().max_frame, 1518);
    exam.receives_numbered_frames(100, 1518);
    exam.sends_numbered_frames(100, 1518);
    exam.function.arrive(numbered(1, 1519));
    assert!(exam.receive(0).is_empty() && exam.send(0, &numbered(2, 1519), Offload::NONE));
    assert_eq!((exam.function.take_sent(), exam.device.statistics().tx_errors), (None, 1));
}

#[test]
fn the_device_fills_in_checksums() {
    exam().fills_in_checksums();
}

#[test]
fn the_device_cuts_tcp() {
    exam().cuts_tcp();
}

#[test]
fn the_longest_frame_is_cut_in_37_descriptors() {
    exam().cuts_the_longest_frame();
}

#[test]
fn a_flow_of_frames_of_one_kind_writes_its_context_once_and_reads_no_register() {
    let mut exam = exam();
    let frame = partial(Ip::V4, Transport::Udp, 9, &[7; 500]);
    let offload =
        Offload { checksum: Checksum::Partial { start: 34, offset: 6 }, header_length: 42, ..Offload::NONE };
    assert!(exam.send(0, &frame, offload));
    let (reads, writes) = exam.function.accesses();
    for _ in 0..100 {
        assert!(exam.send(0, &frame, offload));
    }
    let now = exam.function.accesses();
    assert_eq!((now.0 - reads, now.1 - writes), (0, 100));
    assert_eq!(exam.function.with(|model, _| model.contexts()), 1);
}

#[test]
fn full_bursts_cost_no_read_and_at_most_a_write_for_sixteen_frames_there_and_back() {
    let rate = Loop::new(exam(), 64).rate(Duration::from_millis(100));
    assert_eq!(rate.accesses.0, 0.0);
    assert!(rate.accesses.1 <= 1.0 / 16.0, "{} writes a frame", rate.accesses.1);
}

#[test]
fn what_is_received_right_is_said_to_be_and_what_is_not_is_left_to_the_guest() {
    exam().judges_what_arrives();
}

fn tagged(number: u32, len: usize, vlan: u16) -> Vec<u8> {
    let mut frame = numbered(number, len);
    let tag = [0x81, 0, 0x20 | (vlan >> 8) as u8, vlan as u8];
    frame.splice(12..12, tag);
    frame
}

#[test]
fn tagged_frames_pass_both_ways_whether_the_pf_takes_tags_off_or_not() {
    for strips_tags in [true, false] {
        let mut model = Model::default();
        model.pf.strips_tags = strips_tags;
        let mut exam = exam_of(model, Wishes { vlans: vec![7, 4094], ..Wishes::default() });
        assert_eq!(exam.function.with(|model, _| model.pf.vlans()), [7, 4094]);
        for (number, (len, vlan)) in
            [(60, 7), (1514, 4094), (5000, 7), (2048, 7), (9716, 7)].into_iter().enumerate()
        {
            let frame = tagged(number as u32, len, vlan);
            assert!(exam.send(0, &frame, Offload::NONE));
            assert_eq!(exam.function.take_sent().as_ref(), Some(&frame));
            exam.function.arrive(frame.clone());
            assert!(exam.receive(0).iter().map(|(frame, _)| frame).eq([&frame]), "{len} {vlan}");
        }
        exam.function.arrive(tagged(9, 60, 8));
        assert!(exam.receive(0).is_empty(), "a VLAN that was not asked for");
        let mut packet = packet(Ip::V4, Transport::Tcp, 9, b"hello");
        packet.splice(12..12, [0x81, 0, 0, 7]);
        exam.function.arrive(packet.clone());
        let received = exam.receive(0);
        assert!(received[0].0 == packet && received[0].1.checksum == Checksum::Valid);
        exam.receives_numbered_frames(3000, 1514);
        exam.no_faults();
    }
}

#[test]
fn a_refused_vlan_and_a_refused_address_are_told() {
    let mut model = Model::default();
    (model.pf.grants_vlans, model.pf.keeps_mac) = (false, true);
    let wishes = Wishes { vlans: vec![7], mac: Some(MacAddress([2, 0, 0, 0, 0, 9])), ..Wishes::default() };
    let mut exam = exam_of(model, wishes);
    assert!(exam.tells("VLANs [7]") && exam.tells("vf 0 mac 02:00:00:00:00:09"));
    assert_eq!(exam.device.identity().mac, Some(MacAddress([0x52, 0x54, 0, 0, 0, 2])));
}

#[test]
fn the_address_that_is_wished_for_is_taken_and_survives_a_reset() {
    let mac = MacAddress([2, 0, 0, 0, 0, 9]);
    let mut exam = exam_of(Model::default(), Wishes { mac: Some(mac), ..Wishes::default() });
    for _ in 0..2 {
        assert_eq!(exam.device.identity().mac, Some(mac));
        let mut frame = numbered(1, 100);
        exam.function.arrive(frame.clone());
        frame[..6].copy_from_slice(&mac.0);
        exam.function.arrive(frame.clone());
        assert!(exam.receive(0).iter().map(|(frame, _)| frame).eq([&frame]));
        exam.function.with(|model, _| model.ping(false));
        assert!(exam.asks_to_be_reset() && exam.recovers());
    }
    exam.no_faults();
}

#[test]
fn without_an_address_from_the_pf_one_is_drawn_and_kept() {
    let mut model = Model::default();
    model.pf.mac = None;
    exam_of(model, Wishes::default()).keeps_the_address_that_was_drawn();
}

#[test]
fn each_flow_goes_to_one_of_two_queues() {
    let mut exam = exam_of(Model::default(), pairs(2));
    assert_eq!((exam.queues().receive.len(), exam.queues().transmit.len()), (2, 2));
    let mut seen = [0; 2];
    for port in 0..50 {
        for _ in 0..4 {
            exam.function.arrive(packet(Ip::V4, Transport::Udp, port, b"hello"));
        }
        let counts = [0, 1].map(|queue| exam.receive(queue).len());
        assert!(counts == [4, 0] || counts == [0, 4], "{port}: {counts:?}");
        (0..2).for_each(|queue| seen[queue] += counts[queue]);
    }
    assert!(seen.iter().all(|count| *count >= 40), "{seen:?}");
    for queue in [1, 0, 1] {
        let frame = numbered(queue as u32, 1000);
        assert!(exam.send(queue, &frame, Offload::NONE));
        assert_eq!(exam.function.take_sent(), Some(frame));
    }
    exam.receives_numbered_frames(2000, 1514);
    exam.sends_numbered_frames(2000, 1514);
    exam.no_faults();
}

#[test]
fn an_i350_has_one_queue_pair_and_says_so() {
    let mut exam = Exam::start(Model::i350(), |function| open(function, 1, pairs(2)));
    assert_eq!((exam.queues().receive.len(), exam.queues().transmit.len()), (1, 1));
    assert!(exam.tells("of the 2 queue pairs wished for it has 1"));
    assert!(exam.tells("is not proven on an I350; L2"));
    exam.sends_numbered_frames(1000, 1514);
    exam.receives_numbered_frames(1000, 1514);
    exam.fills_in_checksums();
}

#[test]
fn the_tag_that_an_i350_takes_off_a_frame_of_its_own_port_is_put_back_right() {
    let wishes = Wishes { vlans: vec![7, 0x123], ..Wishes::default() };
    let mut exam = Exam::start(Model::i350(), |function| open(function, 1, wishes));
    for (number, vlan) in [7, 0x123].into_iter().enumerate() {
        let frame = tagged(number as u32, 100, vlan);
        exam.function.arrive(frame.clone());
        assert!(exam.receive(0).iter().map(|(frame, _)| frame).eq([&frame]), "{vlan}");
    }
    exam.no_faults();
}

#[test]
fn a_pf_reset_is_noticed_and_traffic_is_back() {
    let mut exam = exam_of(Model::default(), pairs(2));
    assert!(exam.link_comes_up());
    exam.function.with(|model, _| model.pf_goes_down());
    assert!(exam.asks_to_be_reset());
    let begin = Instant::now();
    exam.send(0, &numbered(1, 100), Offload::NONE);
    assert_eq!(exam.function.take_sent(), None);
    exam.stop();
    assert!(exam.device.start().is_err(), "the PF is still in reset");
    exam.function.with(|model, _| model.pf_comes_back());
    assert!(exam.recovers() && exam.traffic_is_back() && begin.elapsed() < RECOVERY);
    // The tail of a queue that the PF had switched off was written, which no driver can know in time.
    exam.function.take_faults();
    exam.sends_numbered_frames(100, 1514);
    exam.receives_numbered_frames(100, 1514);
}

#[test]
fn a_pf_that_has_forgotten_the_vf_is_noticed_and_traffic_is_back() {
    let mut exam = exam();
    exam.function.with(|model, _| model.ping(false));
    assert!(exam.asks_to_be_reset() && exam.recovers() && exam.traffic_is_back());
    exam.no_faults();
}

#[test]
fn a_silent_mailbox_fails_in_time_and_is_forgotten_when_it_speaks() {
    let mut exam = exam();
    exam.function.with(|model, _| model.pf.silent = true);
    exam.stop();
    // What the PF agreed to before is still known: only a reset asks it again.
    let begin = Instant::now();
    let error = exam.device.start().unwrap_err().to_string();
    assert!(error.contains("ip link set eth2 up") && begin.elapsed() < Duration::from_secs(1), "{error}");
    exam.function.with(|model, _| model.pf.silent = false);
    assert!(exam.recovers() && exam.traffic_is_back());
    exam.no_faults();
}

#[test]
fn a_link_that_flaps_is_told_both_times() {
    let set_link = |model: &mut Model, _: &mut Bus, up| {
        model.pf.link = up;
        model.ping(true);
    };
    exam().tells_of_its_link(set_link, 1000);
}

#[test]
fn a_sleeper_is_woken_once_by_its_own_queue() {
    let mut exam = exam_of(Model::default(), pairs(2));
    let ports = [0, 1].map(|queue| {
        (0..).find(|port| {
            exam.function.arrive(packet(Ip::V4, Transport::Udp, *port, b"hello"));
            let hit = !exam.receive(queue).is_empty();
            exam.receive(1 - queue);
            hit
        })
    });
    // What came while nobody listened interrupts as soon as somebody does.
    for queue in [0, 1] {
        exam.queues().receive[queue].arm();
        exam.queues().receive[queue].disarm();
        assert!(exam.rings(queue));
    }
    for queue in [0, 1, 0, 1] {
        let raised = exam.function.with(|_, bus| bus.raised());
        assert_eq!(exam.queues().receive[queue].arm(), Armed::Rings);
        for _ in 0..3 {
            exam.function.arrive(packet(Ip::V4, Transport::Udp, ports[queue].unwrap(), b"hello"));
        }
        assert!(exam.rings(queue) && !exam.rings(1 - queue));
        assert_eq!(exam.function.with(|_, bus| bus.raised()) - raised, 1);
        assert_eq!(exam.receive(queue).len(), 3);
        exam.queues().receive[queue].arm();
        exam.queues().receive[queue].disarm();
        exam.rings(queue);
    }
    exam.no_faults();
}

#[test]
fn a_sleeper_is_woken_where_linux_had_the_vf_before_and_the_device_adds_its_vectors_to_ours() {
    for number in 0..7 {
        let mut exam = Exam::start(Model::of_port(number), |function| {
            function.with(|model, bus| {
                // What Linux's driver writes to IVAR: vector 1 for what is received, vector 0 for what is sent.
                model.write(bus, 0, 0x1700, Size::Word, 0x8081);
                model.reset(bus);
            });
            open(function, 0, Wishes::default())
        });
        assert_eq!(exam.queues().receive[0].arm(), Armed::Rings);
        exam.function.arrive(numbered(1, 100));
        assert!(exam.rings(0), "VF {number}");
        exam.no_faults();
    }
}

#[test]
fn lost_interrupts_lose_no_frames() {
    exam().loses_no_frames_with_its_interrupts();
}

#[test]
fn damaged_frames_are_dropped_and_counted() {
    let mut exam = exam();
    for (n, bit) in [31, 28, 26, 25, 24].into_iter().enumerate() {
        exam.function.with(|model, _| model.damage = 1 << bit);
        exam.function.arrive(numbered(1, 5000));
        exam.function.arrive(numbered(2, 100));
        let received = exam.receive(0);
        assert!(received.len() == 1 && received[0].0 == numbered(2, 100), "bit {bit}");
        assert_eq!(exam.device.statistics().rx_errors, n as u64 + 1);
    }
    exam.receives_numbered_frames(3000, 9000);
}

#[test]
fn frames_that_find_no_descriptor_are_missed_and_counted() {
    let mut exam = exam();
    for n in 0..1500 {
        exam.function.arrive(numbered(n, 60));
    }
    assert_eq!(exam.device.statistics().rx_missed, 1500 - 1023);
    let mut received = 0;
    while let count @ 1.. = exam.receive(0).len() {
        received += count;
    }
    assert_eq!(received, 1023);
    exam.receives_numbered_frames(3000, 1514);
}

#[test]
fn a_device_that_leaves_is_told_once_and_its_memory_is_given_back() {
    exam().leaves();
}

#[test]
fn a_removal_that_is_asked_for_is_told() {
    let mut exam = exam();
    exam.function.request_removal();
    assert!(exam.hears(|event| matches!(event, DeviceEvent::Gone { .. })));
}

#[test]
fn it_counts_by_the_names_of_its_registers() {
    let mut model = Model::default();
    model.counted.received = (u32::MAX - 10, u32::MAX - 10);
    model.counted.sent = (u32::MAX, 5);
    let mut exam = exam_of(model, Wishes::default());
    exam.sends_numbered_frames(100, 1000);
    exam.receives_numbered_frames(100, 1000);
    let bytes: u64 = (0..100).map(|n| models::exam::length(n, 1000) as u64).sum();
    let statistics = exam.device.statistics();
    assert_eq!((statistics.rx_frames, statistics.rx_bytes), (100, bytes));
    assert_eq!((statistics.tx_frames, statistics.tx_bytes), (100, bytes));
    let counters = exam.device.counters();
    let wire = bytes + 400;
    assert_eq!(counters[..4], [("vfgprc", 100), ("vfgorc", wire), ("vfgptc", 100), ("vfgotc", wire)]);
    assert_eq!(counters.len(), 11);
}

#[test]
fn frames_of_a_guest_are_sent_from_where_they_are_but_for_headers_that_the_device_reads() {
    exam().sends_from_guest_memory(|model, _, held| model.stalled = held);
}

#[test]
fn borrowed_frames_come_back_from_a_device_that_stalls() {
    let mut exam = exam();
    let guest = Guest::of(&mut exam, 1 << 16);
    exam.function.with(|model, _| model.stalled = true);
    let queue = &mut exam.queues().transmit[0];
    let mut burst = Burst::new();
    assert!(burst.push_whole(guest.write(0, &numbered(1, 100)), Token(1), Offload::NONE));
    assert_eq!(queue.transmit(burst.frames()), Accepted::Borrowed(1));
    let (mut done, begin) = (Completions::new(), Instant::now());
    queue.reclaim(&mut done);
    assert!(done.is_empty());
    queue.abort(&mut done);
    assert_eq!((done[..].len(), queue.outstanding()), (1, 0));
    assert!(begin.elapsed() < Duration::from_secs(1));
    exam.function.with(|model, _| model.stalled = false);
    assert!(exam.recovers() && exam.traffic_is_back());
    exam.no_faults();
}

/// Whether the exam's part fails, as it must with a device that is wrong.
fn fails(exam: &mut Exam<Model>, part: impl FnOnce(&mut Exam<Model>)) -> bool {
    catch_unwind(AssertUnwindSafe(|| part(exam))).is_err()
}

#[test]
fn a_device_that_never_reports_what_it_sent_takes_a_ring_and_no_more() {
    let mut exam = exam_of(Model::wrong(Wrong::NoTransmitReport), Wishes::default());
    let taken = (0..3000).filter(|n| exam.send(0, &numbered(*n, 100), Offload::NONE)).count();
    assert_eq!(taken, 1023);
    let mut done = Completions::new();
    exam.queues().transmit[0].abort(&mut done);
    assert_eq!(exam.queues().transmit[0].outstanding(), 0);
    exam.no_faults();
}

#[test]
fn a_device_that_never_reports_what_it_sent_is_reset() {
    exam().notices_a_stall(Stall {
        set: |model, _, stalls| model.wrong = stalls.then_some(Wrong::NoTransmitReport),
        set_link: |model, _, up| {
            model.pf.link = up;
            model.ping(true);
        },
        limit: PATIENCE.stall,
        worker_looks: true,
    });
}

#[test]
fn a_device_that_never_reports_what_it_received_delivers_nothing() {
    for wrong in [Wrong::NoReceiveReport, Wrong::NoEnd] {
        let mut exam = exam_of(Model::wrong(wrong), Wishes::default());
        for n in 0..3000 {
            exam.function.arrive(numbered(n, 100));
            assert!(exam.receive(0).is_empty(), "{wrong:?}");
        }
        exam.no_faults();
    }
}

#[test]
fn lengths_that_do_not_fit_the_buffer_are_errors() {
    let mut exam = exam_of(Model::wrong(Wrong::LengthTooLong), Wishes::default());
    for n in 0..3000 {
        exam.function.arrive(numbered(n, 100));
        assert!(exam.receive(0).is_empty());
    }
    assert_eq!(exam.device.statistics().rx_errors, 3000);
    exam.no_faults();
}

#[test]
fn lengths_that_are_too_short_fail_the_exam() {
    let mut exam = exam_of(Model::wrong(Wrong::LengthTooShort), Wishes::default());
    assert!(fails(&mut exam, |exam| exam.receives_numbered_frames(10, 1514)));
}

#[test]
fn without_interrupts_a_sleeper_sees_what_came_when_it_looks() {
    exam_of(Model::wrong(Wrong::NoInterrupt), Wishes::default()).sees_what_came_without_an_interrupt();
}

#[test]
fn a_pf_that_answers_wrongly_or_not_at_all_keeps_the_vf_from_being_opened() {
    for wrong in [Wrong::BothAnswers, Wrong::OtherAnswer, Wrong::NoAcknowledgement] {
        let function = InProcess::new(Model::wrong(wrong));
        let begin = Instant::now();
        let error = open(Arc::clone(&function), 0, Wishes::default()).map(|_| ()).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, DeviceError::NotReady(_)) && text.contains("does not answer"),
            "{wrong:?}: {text}"
        );
        assert!(begin.elapsed() < Duration::from_secs(1));
        assert_eq!((function.take_faults(), function.mappings()), (Vec::<Fault>::new(), 0));
    }
}

#[test]
fn a_queue_that_never_starts_is_an_error_that_names_it() {
    let function = InProcess::new(Model::wrong(Wrong::NeverEnabled));
    let mut device = open(Arc::clone(&function), 0, pairs(2)).unwrap();
    let text = device.start().unwrap_err().to_string();
    assert!(text.contains("receive queue 0 does not start"), "{text}");
    assert_eq!(function.mappings(), 0);
}
