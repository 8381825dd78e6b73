//! The ixgbevf driver against our model of its device: rung L1.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use models::exam::{Exam, RECOVERY, length, numbered};
use models::ixgbevf::{Api, Ixgbevf as Model, Mode, Options, Part, Wrong};
use models::packets::{Ip, Transport, packet};
use models::{InProcess, Stall};
use pmd::ixgbevf::{IDS, Ixgbevf, Patience, Setup};
use pmd::pci::PciFunction;
use pmd::vf::{Place, Vf, Wishes};
use pmd::{
    Armed, Completions, DeviceError, DeviceEvent, Link, MacAddress, Offload, ReceiveQueue, TransmitQueue,
};

const PARTS: [Part; 4] = [Part::I82599, Part::X540, Part::X550, Part::X552];
const APIS: [Api; 6] = [Api::V10, Api::V11, Api::V12, Api::V13, Api::V14, Api::V15];
const PATIENCE: Patience =
    Patience { interval: Duration::from_micros(50), looks: 40, stall: Duration::from_millis(200) };
/// Where the exam's frames go to.
const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 2]);

fn options() -> Options {
    Options { mac: Some(MAC), queues: 4, ..Options::default() }
}

fn of(part: Part) -> Options {
    // The PF of an 82599 has jumbo frames for all or for none.
    Options { part, pf_jumbo: part == Part::I82599, ..options() }
}

fn open(function: Arc<InProcess<Model>>, part: Part, wishes: Wishes) -> Result<Vf<Ixgbevf>, DeviceError> {
    let ids = IDS[PARTS.iter().position(|known| *known == part).unwrap()];
    let place = Place { address: "0000:01:10.0".parse().unwrap(), pf: Some(("eth2".to_owned(), 0)) };
    Ixgbevf::open(function as Arc<dyn PciFunction>, Setup { place, ids, wishes, patience: PATIENCE })
}

fn exam_with(options: Options, wrong: Option<Wrong>, wishes: Wishes) -> Exam<Model> {
    let part = options.part;
    let mut model = Model::new(options);
    model.wrong = wrong;
    Exam::start(model, |function| open(function, part, wishes))
}

fn exam_of(options: Options) -> Exam<Model> {
    exam_with(options, None, Wishes::default())
}

fn exam() -> Exam<Model> {
    exam_of(options())
}

fn wrong(wrong: Wrong) -> Exam<Model> {
    exam_with(options(), Some(wrong), Wishes::default())
}

fn pairs(pairs: u16) -> Wishes {
    Wishes { queue_pairs: pairs.try_into().unwrap(), ..Wishes::default() }
}

#[test]
fn the_link_comes_up_and_the_address_is_the_pfs_on_every_part() {
    for part in PARTS {
        let mut exam = exam_of(of(part));
        assert!(
            exam.hears(|event| *event == DeviceEvent::Link(Link::Up { speed: Some(10_000) })),
            "{part:?}"
        );
        assert_eq!((exam.device.identity().mac, exam.device.identity().max_frame), (Some(MAC), 9724));
        exam.sends_numbered_frames(1000, 1514);
        exam.receives_numbered_frames(1000, 1514);
    }
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
fn jumbo_frames_go_both_ways_on_every_part() {
    for part in PARTS {
        let mut exam = exam_of(of(part));
        exam.sends_numbered_frames(1500, 9724);
        exam.receives_numbered_frames(1500, 9724);
    }
}

#[test]
fn an_82599_without_jumbo_frames_gets_usual_ones() {
    let mut exam = exam_of(Options { pf_jumbo: false, ..of(Part::I82599) });
    assert_eq!(exam.device.identity().max_frame, 1518);
    exam.sends_numbered_frames(500, 1514);
    exam.receives_numbered_frames(500, 1514);
}

#[test]
fn an_82599_with_jumbo_frames_whose_pf_speaks_an_old_language_says_what_to_do() {
    let function = InProcess::new(Model::new(Options { api: Api::V10, ..of(Part::I82599) }));
    let text = open(function, Part::I82599, Wishes::default()).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("ip link set eth2 mtu 1500"), "{text}");
}

#[test]
fn every_version_of_the_language_is_spoken() {
    for api in APIS {
        let mut exam = exam_of(Options { api, ..options() });
        assert_eq!(exam.function.with(|model, _| model.pf().api), api);
        exam.sends_numbered_frames(100, 9724);
        exam.receives_numbered_frames(100, 9724);
        let filters = exam.device.identity().filters_by_mac;
        assert_eq!(filters, api < Api::V13, "{api:?}: promiscuous mode came with 1.3");
        assert!(!filters || exam.tells("refuses promiscuous mode"));
    }
}

#[test]
fn a_pf_grants_what_it_grants_and_the_rest_is_told() {
    for (options, mode, text) in [
        (options(), Mode::Promiscuous, None),
        (
            Options { pf_promiscuous: false, ..options() },
            Mode::AllMulti,
            Some("refuses promiscuous mode, so"),
        ),
        (of(Part::I82599), Mode::AllMulti, Some("refuses promiscuous mode, so")),
        (Options { trusted: false, ..options() }, Mode::Multi, Some("and all groups")),
    ] {
        let mut exam = exam_of(options);
        assert_eq!(exam.function.with(|model, _| model.pf().mode), mode);
        assert!(text.is_none_or(|text| exam.tells(text)), "{mode:?}");
        let (mut stranger, mut group) = (numbered(1, 100), numbered(2, 100));
        stranger[5] = 9;
        group[..6].copy_from_slice(&[1, 0, 0x5e, 1, 0x77, 0x77]);
        exam.function.arrive(stranger);
        exam.function.arrive(group);
        let expected = [Mode::Promiscuous, Mode::AllMulti].iter().filter(|known| **known <= mode).count();
        assert_eq!(exam.receive(0).len(), expected, "{mode:?}");
        exam.no_faults();
    }
}

#[test]
fn the_device_fills_in_checksums_on_every_part() {
    for part in PARTS {
        exam_of(of(part)).fills_in_checksums();
    }
}

#[test]
fn the_device_cuts_tcp_on_every_part() {
    for part in PARTS {
        exam_of(of(part)).cuts_tcp();
    }
}

#[test]
fn the_longest_frame_is_cut() {
    exam().cuts_the_longest_frame();
}

#[test]
fn a_frame_costs_one_write_and_no_read() {
    let mut exam = exam();
    assert!(exam.send(0, &numbered(0, 100), Offload::NONE));
    let (reads, writes) = exam.function.accesses();
    for n in 0..100 {
        assert!(exam.send(0, &numbered(n, 100), Offload::NONE));
    }
    let now = exam.function.accesses();
    assert_eq!((now.0 - reads, now.1 - writes), (0, 100));
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
fn tagged_frames_pass_both_ways_and_only_those_that_were_asked_for() {
    for part in PARTS {
        let mut exam = exam_with(of(part), None, Wishes { vlans: vec![7, 4094], ..Wishes::default() });
        let vlans = exam.function.with(|model, _| Vec::from_iter(model.pf().vlans.clone()));
        assert!(vlans.contains(&7) && vlans.contains(&4094), "{vlans:?}");
        for (number, (len, vlan)) in [(60, 7), (1514, 4094), (5000, 7), (9716, 7)].into_iter().enumerate() {
            let frame = tagged(number as u32, len, vlan);
            assert!(exam.send(0, &frame, Offload::NONE));
            assert_eq!(exam.function.take_sent().as_ref(), Some(&frame));
            exam.function.arrive(frame.clone());
            assert!(exam.receive(0).iter().map(|(frame, _)| frame).eq([&frame]), "{len} {vlan}");
        }
        exam.function.arrive(tagged(9, 60, 8));
        assert!(exam.receive(0).is_empty(), "a VLAN that was not asked for");
        exam.no_faults();
    }
}

#[test]
fn a_refused_vlan_and_a_refused_address_are_told() {
    let options = Options { grants_vlans: false, trusted: false, ..options() };
    let wishes = Wishes { vlans: vec![7], mac: Some(MacAddress([2, 0, 0, 0, 0, 9])), ..Wishes::default() };
    let mut exam = exam_with(options, None, wishes);
    assert!(exam.tells("VLANs [7]"));
    assert_eq!(exam.device.identity().mac, Some(MAC));
    let mut exam = exam_with(
        Options { trusted: false, ..self::options() },
        None,
        Wishes { mac: Some(MacAddress([2, 0, 0, 0, 0, 9])), ..Wishes::default() },
    );
    assert!(exam.tells("vf 0 mac 02:00:00:00:00:09"));
}

#[test]
fn the_address_that_is_wished_for_is_taken_and_survives_a_reset() {
    let mac = MacAddress([2, 0, 0, 0, 0, 9]);
    let options = Options { pf_promiscuous: false, ..options() };
    let mut exam = exam_with(options, None, Wishes { mac: Some(mac), ..Wishes::default() });
    for _ in 0..2 {
        assert_eq!(exam.device.identity().mac, Some(mac));
        let mut frame = numbered(1, 100);
        exam.function.arrive(frame.clone());
        frame[..6].copy_from_slice(&mac.0);
        exam.function.arrive(frame.clone());
        assert!(exam.receive(0).iter().map(|(frame, _)| frame).eq([&frame]));
        exam.function.with(|model, bus| model.begin_pf_reset(bus));
        assert!(exam.asks_to_be_reset());
        exam.function.with(|model, bus| model.end_pf_reset(bus));
        assert!(exam.recovers());
    }
    exam.no_faults();
}

#[test]
fn without_an_address_from_the_pf_one_is_drawn_and_kept() {
    exam_of(Options { mac: None, ..options() }).keeps_the_address_that_was_drawn();
}

#[test]
fn each_flow_goes_to_one_of_four_queues() {
    for part in PARTS {
        let mut exam = exam_with(of(part), None, pairs(4));
        assert_eq!((exam.queues().receive.len(), exam.queues().transmit.len()), (4, 4));
        let mut seen = [0; 4];
        for port in 0..64 {
            for _ in 0..4 {
                exam.function.arrive(packet(Ip::V4, Transport::Tcp, port, b"hello"));
            }
            let counts = [0, 1, 2, 3].map(|queue| exam.receive(queue).len());
            assert_eq!((counts.iter().sum::<usize>(), counts.iter().max()), (4, Some(&4)), "{part:?} {port}");
            (0..4).for_each(|queue| seen[queue] += counts[queue]);
        }
        assert!(seen.iter().all(|count| *count >= 16), "{part:?} {seen:?}");
        for queue in [3, 0, 2, 1] {
            let frame = numbered(queue as u32, 1000);
            assert!(exam.send(queue, &frame, Offload::NONE));
            assert_eq!(exam.function.take_sent(), Some(frame));
        }
        exam.receives_numbered_frames(500, 1514);
        exam.no_faults();
    }
}

#[test]
fn there_are_as_many_queues_as_the_pf_grants_and_fewer_than_wished_are_told() {
    for (granted, wished, got) in [(4, 4, 4), (4, 3, 2), (2, 4, 2), (1, 2, 1), (8, 8, 4), (4, 1, 1)] {
        let mut exam = exam_with(Options { queues: granted, ..options() }, None, pairs(wished));
        assert_eq!(exam.queues().receive.len(), got, "{granted} {wished}");
        assert!(wished as usize == got || exam.tells("queue pairs wished for are used"));
        exam.receives_numbered_frames(50, 1514);
        exam.no_faults();
    }
    let mut exam = exam_with(Options { api: Api::V10, ..options() }, None, pairs(4));
    assert_eq!(exam.queues().receive.len(), 1, "1.0 does not tell of queues");
}

#[test]
fn a_pf_reset_is_noticed_and_traffic_is_back() {
    for api in [Api::V10, Api::V15] {
        let mut exam = exam_with(Options { api, ..options() }, None, pairs(2));
        assert!(exam.link_comes_up());
        exam.function.with(|model, bus| model.begin_pf_reset(bus));
        assert!(exam.asks_to_be_reset());
        assert!(exam.hears(|event| *event == DeviceEvent::Link(Link::Down)));
        let begin = Instant::now();
        exam.stop();
        assert!(exam.device.start().is_err(), "the PF is still in reset");
        exam.function.with(|model, bus| model.end_pf_reset(bus));
        assert!(exam.recovers() && exam.traffic_is_back() && begin.elapsed() < RECOVERY);
        assert!(exam.link_comes_up());
        exam.sends_numbered_frames(100, 1514);
        exam.receives_numbered_frames(100, 1514);
    }
}

#[test]
fn a_pf_that_was_reset_between_two_looks_is_noticed() {
    let mut exam = exam();
    exam.function.with(|model, bus| {
        model.begin_pf_reset(bus);
        model.end_pf_reset(bus);
    });
    assert!(exam.asks_to_be_reset() && exam.recovers() && exam.traffic_is_back());
    exam.no_faults();
}

#[test]
fn a_silent_mailbox_fails_in_time_and_is_forgotten_when_it_speaks() {
    let mut exam = exam();
    exam.function.with(|model, _| model.silent = true);
    exam.stop();
    let begin = Instant::now();
    let error = exam.device.start().unwrap_err().to_string();
    assert!(error.contains("ip link set eth2 up") && begin.elapsed() < Duration::from_secs(1), "{error}");
    exam.function.with(|model, _| model.silent = false);
    assert!(exam.recovers() && exam.traffic_is_back());
    exam.no_faults();
}

#[test]
fn a_slow_pf_is_waited_for() {
    let mut exam = exam_of(Options { slowness: 20, ..options() });
    exam.sends_numbered_frames(100, 1514);
    exam.receives_numbered_frames(100, 1514);
}

#[test]
fn a_link_that_flaps_is_told_both_times() {
    exam().tells_of_its_link(|model, bus, up| model.set_link(bus, up), 10_000);
}

#[test]
fn a_link_that_the_pf_takes_from_the_vf_is_down_until_it_gives_it_back() {
    let mut exam = exam();
    assert!(exam.link_comes_up());
    for (allows_link, link) in [(false, Link::Down), (true, Link::Up { speed: Some(10_000) })] {
        exam.function.with(|model, bus| {
            model.options().allows_link = allows_link;
            model.ping(bus);
        });
        assert!(exam.hears(|event| *event == DeviceEvent::Link(link)));
    }
    // Before 1.2 nobody can ask.
    let mut exam = exam_of(Options { api: Api::V11, allows_link: false, ..options() });
    assert!(exam.link_comes_up());
    exam.no_faults();
}

#[test]
fn a_sleeper_is_woken_once_by_its_own_queue_and_the_fourth_queue_is_looked_at() {
    let mut exam = exam_with(options(), None, pairs(4));
    let ports = [0, 1, 2].map(|queue| {
        (0..)
            .find(|port| {
                exam.function.arrive(packet(Ip::V4, Transport::Tcp, *port, b"hello"));
                [0, 1, 2, 3].map(|queue| exam.receive(queue).len())[queue] == 1
            })
            .unwrap()
    });
    for queue in [0, 1, 2] {
        exam.queues().receive[queue].arm();
        exam.queues().receive[queue].disarm();
        exam.rings(queue);
    }
    for queue in [0, 1, 2, 0] {
        let raised = exam.function.with(|_, bus| bus.raised());
        assert_eq!(exam.queues().receive[queue].arm(), Armed::Rings);
        for _ in 0..3 {
            exam.function.arrive(packet(Ip::V4, Transport::Tcp, ports[queue], b"hello"));
        }
        assert!(exam.rings(queue) && !exam.rings((queue + 1) % 3));
        assert_eq!(exam.function.with(|_, bus| bus.raised()) - raised, 1);
        assert_eq!(exam.receive(queue).len(), 3);
        exam.queues().receive[queue].arm();
        exam.queues().receive[queue].disarm();
        exam.rings(queue);
    }
    assert!(exam.queues().receive[3].bell().is_none());
    assert_eq!(exam.queues().receive[3].arm(), Armed::Silent);
    exam.no_faults();
}

#[test]
fn lost_interrupts_lose_no_frames() {
    exam().loses_no_frames_with_its_interrupts();
}

#[test]
fn damaged_frames_are_dropped_and_counted() {
    let mut exam = exam();
    exam.function.with(|model, _| model.damaged = 2);
    for n in 0..4 {
        exam.function.arrive(numbered(n, 5000));
    }
    let received = exam.receive(0);
    assert!(received.len() == 2 && received[0].0 == numbered(2, 5000));
    assert_eq!(exam.device.statistics().rx_errors, 2);
    exam.receives_numbered_frames(3000, 9000);
}

#[test]
fn a_ring_without_buffers_misses_and_recovers() {
    let mut exam = exam();
    for n in 0..1500 {
        exam.function.arrive(numbered(n, 60));
    }
    assert_eq!(exam.function.with(|_, bus| bus.wire.missed), 1500 - 1023);
    while !exam.receive(0).is_empty() {}
    exam.receives_numbered_frames(3000, 1514);
}

#[test]
fn borrowed_or_not_frames_come_back_from_a_port_that_is_paused() {
    let mut exam = exam();
    exam.function.with(|model, bus| model.set_paused(bus, true));
    let taken = (0..2000).filter(|n| exam.send(0, &numbered(*n, 100), Offload::NONE)).count();
    assert!((1000..1024).contains(&taken), "{taken}");
    exam.function.with(|model, bus| model.set_paused(bus, false));
    assert_eq!(std::iter::from_fn(|| exam.function.take_sent()).count(), taken);
    exam.sends_numbered_frames(2000, 1514);
}

#[test]
fn frames_of_a_guest_are_sent_from_where_they_are_but_for_headers_that_the_device_reads() {
    exam().sends_from_guest_memory(|model, bus, held| model.set_paused(bus, held));
}

#[test]
fn a_device_that_leaves_is_told_once_and_its_memory_is_given_back() {
    exam().leaves();
}

#[test]
fn counters_of_32_and_36_bits_are_summed_up_over_their_ends() {
    let mut exam = exam_of(Options { statistics: u32::MAX - 10, ..options() });
    exam.sends_numbered_frames(200, 1000);
    exam.receives_numbered_frames(200, 1000);
    let bytes: u64 = (0..200).map(|n| length(n, 1000) as u64).sum();
    let statistics = exam.device.statistics();
    assert_eq!((statistics.rx_frames, statistics.rx_bytes), (200, bytes));
    assert_eq!((statistics.tx_frames, statistics.tx_bytes), (200, bytes));
    let wire = bytes + 800;
    let expected = [("vfgprc", 200), ("vfgorc", wire), ("vfgptc", 200), ("vfgotc", wire), ("vfmprc", 0)];
    assert_eq!(exam.device.counters(), expected);
}

// Devices that are wrong.

#[test]
fn a_device_that_never_reports_what_it_sent_takes_a_ring_and_no_more() {
    for kind in [Wrong::NoWriteBack, Wrong::WrongDoneBit] {
        let mut exam = wrong(kind);
        let taken = (0..3000).filter(|n| exam.send(0, &numbered(*n, 100), Offload::NONE)).count();
        assert_eq!(taken, 1022, "{kind:?}: a ring, but for its context");
        let (mut done, begin) = (Completions::new(), Instant::now());
        exam.queues().transmit[0].abort(&mut done);
        assert!(exam.queues().transmit[0].outstanding() == 0 && begin.elapsed() < Duration::from_secs(1));
        exam.no_faults();
    }
}

#[test]
fn a_device_that_never_reports_what_it_sent_is_reset() {
    exam().notices_a_stall(Stall {
        set: |model, _, stalls| model.wrong = stalls.then_some(Wrong::NoWriteBack),
        set_link: |model, bus, up| model.set_link(bus, up),
        limit: PATIENCE.stall,
        worker_looks: true,
    });
}

#[test]
fn a_device_that_never_says_that_a_frame_is_there_delivers_nothing() {
    for kind in [Wrong::NotDone, Wrong::NoEnd, Wrong::LongLength, Wrong::NoLength] {
        let mut exam = wrong(kind);
        for n in 0..3000 {
            exam.function.arrive(numbered(n, 100));
            assert!(exam.receive(0).is_empty(), "{kind:?}");
        }
        let errors = exam.device.statistics().rx_errors;
        let expected = if matches!(kind, Wrong::LongLength | Wrong::NoLength) { 3000 } else { 0 };
        assert_eq!(errors, expected, "{kind:?}");
        exam.no_faults();
    }
}

#[test]
fn lengths_that_are_too_short_fail_the_exam() {
    let mut exam = wrong(Wrong::ShortLength);
    assert!(catch_unwind(AssertUnwindSafe(|| exam.receives_numbered_frames(10, 1514))).is_err());
}

#[test]
fn without_interrupts_a_sleeper_sees_what_came_when_it_looks() {
    wrong(Wrong::NoInterrupt).sees_what_came_without_an_interrupt();
}

#[test]
fn a_pf_that_answers_wrongly_or_not_at_all_keeps_the_vf_from_being_opened() {
    for (kind, text) in [
        (Wrong::ResetReplyWithCts, "does not say that it has reset the VF"),
        (Wrong::NoAcknowledge, "does not answer"),
        (Wrong::OtherVerb, "does not answer"),
        (Wrong::BothVerdicts, "does not answer"),
    ] {
        let mut model = Model::new(options());
        model.wrong = Some(kind);
        let function = InProcess::new(model);
        let begin = Instant::now();
        let error = open(Arc::clone(&function), Part::X550, Wishes::default()).map(|_| ()).unwrap_err();
        assert!(
            matches!(error, DeviceError::NotReady(_)) && error.to_string().contains(text),
            "{kind:?}: {error}"
        );
        assert!(begin.elapsed() < Duration::from_secs(1));
        assert_eq!((function.take_faults(), function.mappings()), (vec![], 0));
    }
}

#[test]
fn a_link_that_never_comes_up_is_never_told_to_be() {
    let mut exam = wrong(Wrong::NoLink);
    assert!(exam.hears(|event| *event == DeviceEvent::Link(Link::Down)));
    assert!((0..50).all(|_| exam.device.service().is_empty()));
}

#[test]
fn a_queue_that_cannot_be_switched_off_costs_the_function_a_reset() {
    let mut exam = wrong(Wrong::NeverOff);
    let (resets, begin) = (exam.function.resets(), Instant::now());
    exam.stop();
    assert_eq!((exam.function.resets() - resets, exam.function.mappings()), (1, 0));
    assert!(begin.elapsed() < Duration::from_secs(1));
    exam.no_faults();
}
