//! Rung L1: the driver `virtio` against the model of a virtio-net function, split and packed.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::num::NonZero;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use models::exam::{RECOVERY, length, numbered};
use models::packets::{Ip, Transport, packet};
use models::virtio::features::*;
use models::virtio::{Options, Told, VirtioNet, Wrong};
use models::{Exam, InProcess, Stall};
use pmd::vf::{Place, Vf, Wishes};
use pmd::virtio::{Patience, Setup, Virtio};
use pmd::{
    Accepted, Armed, Burst, Capabilities, Checksum, Device, DeviceError, DeviceEvent, Link, MacAddress,
    Offload, ReceiveQueue, Segment, Segmentation, Token, TransmitQueue,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const OWN: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 2]);

fn setup(wishes: Wishes) -> Setup {
    Setup {
        place: Place { address: "0000:03:00.0".parse().unwrap(), pf: Some(("eth7".to_owned(), 1)) },
        wishes,
        patience: Patience {
            reset: Duration::from_millis(50),
            quiet: Duration::from_millis(50),
            control: Duration::from_millis(50),
            stall: Duration::from_millis(300),
        },
    }
}

fn open(function: Arc<InProcess<VirtioNet>>, wishes: Wishes) -> Result<Vf<Virtio>, DeviceError> {
    Virtio::open(function, setup(wishes))
}

fn exam_with(options: Options, wishes: Wishes) -> Exam<VirtioNet> {
    Exam::start(VirtioNet::new(options), |function| open(function, wishes))
}

fn exam(options: Options) -> Exam<VirtioNet> {
    exam_with(options, Wishes::default())
}

fn pairs(count: u16) -> Wishes {
    Wishes { queue_pairs: NonZero::new(count).unwrap(), ..Wishes::default() }
}

/// Both layouts.
fn layouts() -> [Options; 2] {
    [Options::split(), Options::packed()]
}

/// Both layouts, with and without event indices.
fn told_by_flag_and_by_index() -> impl Iterator<Item = Options> {
    layouts().into_iter().flat_map(|base| [base.clone(), base.with(EVENT_IDX)])
}

/// Devices as they differ: notified with data, by index, in order, in batches, out of order, of few descriptors.
fn variants() -> impl Iterator<Item = Options> {
    layouts().into_iter().flat_map(|base| {
        let in_order = base.clone().with(IN_ORDER);
        [
            base.clone().with(EVENT_IDX),
            base.clone().with(NOTIFICATION_DATA).with(EVENT_IDX),
            Options { batches: true, ..in_order.clone() },
            Options { holds: 40, batches: true, ..in_order.with(EVENT_IDX) },
            Options { holds: 40, ..base.clone() },
            Options { queue_size: 64, mtu: 1500, ..base },
        ]
    })
}

/// Without a control queue and all that needs one.
fn uncontrolled(options: Options) -> Options {
    [CTRL_VQ, CTRL_RX, CTRL_VLAN, GUEST_ANNOUNCE, MQ, CTRL_MAC_ADDR]
        .into_iter()
        .fold(options, Options::without)
}

fn told(exam: &Exam<VirtioNet>) -> Told {
    exam.function.with(|model, _| model.told.clone())
}

fn notice(exam: &mut Exam<VirtioNet>, words: &str) -> bool {
    exam.hears(
        |event| matches!(event, DeviceEvent::Notice(text) if text.contains(words) && text.contains("0000:03:00.0")),
    )
}

fn is_reset(event: &DeviceEvent) -> bool {
    matches!(event, DeviceEvent::ResetNeeded { .. })
}

fn needs_reset(exam: &mut Exam<VirtioNet>, words: &str) -> bool {
    exam.hears(|event| matches!(event, DeviceEvent::ResetNeeded { reason } if reason.contains(words)))
}

fn carries_100_000_frames_each_way(options: Options) {
    let mut exam = exam(options);
    assert!(exam.link_comes_up());
    assert_eq!(exam.device.identity().mac, Some(OWN));
    assert_eq!(exam.device.identity().max_frame, 9018);
    exam.sends_numbered_frames(100_000, 1514);
    exam.receives_numbered_frames(100_000, 1514);
    exam.sends_numbered_frames(2000, 9018);
    exam.receives_numbered_frames(2000, 9018);
}

#[test]
fn a_split_device_carries_100_000_frames_each_way() {
    carries_100_000_frames_each_way(Options::split());
}

#[test]
fn a_packed_device_carries_100_000_frames_each_way() {
    carries_100_000_frames_each_way(Options::packed());
}

#[test]
fn devices_that_use_their_rings_differently_carry_frames_too() {
    for options in variants() {
        let longest = usize::from(options.mtu) + 18;
        let mut exam = exam(options);
        exam.sends_numbered_frames(3000, longest);
        exam.receives_numbered_frames(3000, longest);
    }
}

#[test]
fn a_device_that_does_not_spread_frames_gets_buffers_for_whole_ones() {
    for options in layouts() {
        let mut exam = exam(options.without(MRG_RXBUF));
        exam.sends_numbered_frames(2000, 9018);
        exam.receives_numbered_frames(2000, 9018);
    }
}

#[test]
fn checksums_and_segmentation_are_left_to_the_device() {
    for options in layouts().into_iter().chain([Options { holds: 9, ..Options::packed() }]) {
        let mut exam = exam(options);
        exam.fills_in_checksums();
        exam.cuts_tcp();
    }
    let plain = Options::split().without(HOST_TSO4).without(HOST_TSO6).without(CSUM);
    let Capabilities { limits, .. } = exam(Options::split()).queues().transmit[0].capabilities();
    let capabilities = exam(plain).queues().transmit[0].capabilities();
    assert_eq!(capabilities, Capabilities { limits, ..Capabilities::NONE }, "ECN alone is nothing");
}

/// The first ten bytes of the header of a frame that is still to be cut.
const TO_BE_CUT: [u8; 10] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0];

#[test]
fn what_is_left_of_received_frames_is_told() {
    for options in layouts() {
        let mut exam = exam(options);
        let frame = packet(Ip::V4, Transport::Tcp, 9, &[7; 900]);
        let long = packet(Ip::V4, Transport::Tcp, 9, &vec![7; 65_000]);
        for (header, frame) in [
            ([2, 0, 0, 0, 0, 0, 0, 0, 0, 0], &frame),
            ([1, 0, 0, 0, 0, 0, 34, 0, 16, 0], &frame),
            (TO_BE_CUT, &long),
        ] {
            exam.function.with(|model, bus| model.deliver(bus, &header, frame));
        }
        let received = exam.receive(0);
        assert_eq!(received.len(), 3);
        assert_eq!(received[0].1, Offload { checksum: Checksum::Valid, ..Offload::NONE });
        let partial = Checksum::Partial { start: 34, offset: 16 };
        assert_eq!((received[1].1.checksum, received[1].1.segmentation), (partial, Segmentation::None));
        let (bytes, offload) = &received[2];
        assert!(*bytes == long);
        assert_eq!((offload.segmentation, offload.segment_size), (Segmentation::TcpV4, 1448));
        exam.no_faults();
    }
}

#[test]
fn frames_longer_than_a_burst_has_room_for_wait_for_the_next() {
    let mut exam = exam(Options { queue_size: 1024, ..Options::packed() });
    let long = packet(Ip::V4, Transport::Tcp, 9, &vec![7; 65_000]);
    for _ in 0..20 {
        exam.function.with(|model, bus| model.deliver(bus, &TO_BE_CUT, &long));
    }
    let received: Vec<_> = (0..10).flat_map(|_| exam.receive(0)).collect();
    assert!(received.len() == 20 && received.iter().all(|(frame, _)| *frame == long));
    exam.no_faults();
}

fn tagged(vlan: u16, number: u32) -> Vec<u8> {
    let mut frame = numbered(number, 200);
    frame.splice(12..12, [0x81, 0, (vlan >> 8) as u8, vlan as u8]);
    frame
}

#[test]
fn tags_pass_in_band_both_ways_and_wished_vlans_become_filters() {
    for wished in [vec![], vec![7, 4000]] {
        let mut exam = exam_with(Options::split(), Wishes { vlans: wished.clone(), ..Wishes::default() });
        assert_eq!(told(&exam).vlans.into_iter().collect::<Vec<_>>(), wished);
        for vlan in [7, 9, 4000] {
            assert!(exam.send(0, &tagged(vlan, 1), Offload::NONE));
            assert_eq!(exam.function.take_sent(), Some(tagged(vlan, 1)));
            exam.function.arrive(tagged(vlan, 2));
            let passes = wished.is_empty() || wished.contains(&vlan);
            let received: Vec<_> = exam.receive(0).into_iter().map(|(frame, _)| frame).collect();
            assert_eq!(received, if passes { vec![tagged(vlan, 2)] } else { vec![] });
        }
        exam.no_faults();
    }
}

#[test]
fn several_queues_carry_frames_and_each_flow_keeps_to_one() {
    for options in [Options::split(), Options::packed(), Options::packed().with(RSS)] {
        let rss = options.offered >> RSS & 1 != 0;
        let mut exam = exam_with(options, pairs(3));
        let (receive, transmit) = (exam.queues().receive.len(), exam.queues().transmit.len());
        assert_eq!((receive, transmit, told(&exam).pairs), (3, 3, 3));
        assert_eq!((told(&exam).table.len(), told(&exam).key.len()), if rss { (128, 40) } else { (0, 0) });
        for port in 0..60 {
            (0..2).for_each(|_| {
                exam.function.arrive(packet(Ip::V4, Transport::Udp, port, b"a flow of several"))
            });
            let frame = numbered(port.into(), 100);
            assert!(exam.send(usize::from(port % 3), &frame, Offload::NONE));
            assert_eq!(exam.function.take_sent(), Some(frame));
        }
        let (mut queue_of, mut counts) = ([None; 60], [0; 3]);
        for (queue, count) in counts.iter_mut().enumerate() {
            let frames: Vec<_> = (0..5).flat_map(|_| exam.receive(queue)).collect();
            for (frame, _) in frames {
                let port = usize::from(u16::from_be_bytes([frame[34], frame[35]]));
                assert_eq!(*queue_of[port].get_or_insert(queue), queue, "flow {port}");
                *count += 1;
            }
        }
        assert!(counts.iter().sum::<usize>() == 120 && counts.iter().all(|count| *count > 0), "{counts:?}");
        exam.no_faults();
    }
}

#[test]
fn a_device_with_fewer_queues_than_wished_uses_those_that_it_has() {
    let mut two = exam_with(Options { pairs: 2, ..Options::split() }, pairs(5));
    assert_eq!(two.queues().receive.len(), 2);
    assert!(notice(&mut two, "2 of the 5 queue pairs"));
    let mut refusing = exam_with(Options { refused: vec![(4, 0)], ..Options::split() }, pairs(2));
    assert_eq!(refusing.queues().receive.len(), 1);
    assert!(notice(&mut refusing, "it uses one"));
    refusing.sends_numbered_frames(10, 1514);
    refusing.receives_numbered_frames(10, 1514);
    assert_eq!(exam_with(Options::split().without(MQ), pairs(2)).queues().receive.len(), 1);
}

#[test]
fn the_wished_address_is_taken_where_the_device_lets_it() {
    let mac = MacAddress([2, 0, 0, 0, 0, 9]);
    let wishes = Wishes { mac: Some(mac), ..Wishes::default() };
    let taking = exam_with(Options::split(), wishes.clone());
    assert_eq!(taking.device.identity().mac, Some(mac));
    assert_eq!(taking.function.with(|model, _| model.mac), mac.0);
    let mut keeping = exam_with(Options::split().without(CTRL_MAC_ADDR), wishes.clone());
    assert_eq!(keeping.device.identity().mac, Some(OWN));
    assert!(notice(&mut keeping, "ip link set eth7 vf 1 mac 02:00:00:00:00:09"));

    let refusing = Options { refused: vec![(1, 1)], ..Options::split() };
    let mut device = open(InProcess::new(VirtioNet::new(refusing)), wishes).unwrap();
    let Err(DeviceError::NotReady(text)) = device.start() else { panic!("the address was refused") };
    assert!(text.contains("refuses the address 02:00:00:00:00:09"), "{text}");
}

#[test]
fn a_device_without_an_address_gets_one_by_lot_which_is_kept() {
    let mut exam = exam(Options::split().without(MAC));
    let mac = exam.device.identity().mac.unwrap();
    assert!(mac.is_valid_unicast() && mac != OWN && mac.0[0] & 2 != 0);
    assert!(notice(&mut exam, "drawn by lot"));
    assert_eq!(exam.function.with(|model, _| model.mac), mac.0, "the device is told");
    exam.stop();
    exam.restart();
    assert_eq!(exam.device.identity().mac, Some(mac));
}

#[test]
fn a_device_that_filters_is_asked_for_everything() {
    let exam = exam(Options { filters: true, ..Options::split() });
    assert!(told(&exam).promiscuous && !exam.device.identity().filters_by_mac);
    exam.no_faults();
}

#[test]
fn a_refused_promiscuous_mode_is_told_once_and_all_groups_are_asked_for() {
    let mut exam = exam(Options { filters: true, refused: vec![(0, 0)], ..Options::split() });
    assert!(!told(&exam).promiscuous && told(&exam).all_multicast);
    assert!(notice(&mut exam, "refuses promiscuous mode"));
    exam.receives_numbered_frames(100, 1514);
    exam.function.arrive([&[2, 9, 9, 9, 9, 9], &numbered(1, 60)[6..]].concat());
    assert!(exam.receive(0).is_empty());
    for _ in 0..2 {
        exam.stop();
        exam.restart();
        let mut events = exam.device.service();
        events.extend(exam.device.service());
        assert!(!events.iter().any(|event| matches!(event, DeviceEvent::Notice(_))), "{events:?}");
    }
    assert!(exam.device.identity().filters_by_mac);
    let mut missing = self::exam(Options { filters: true, ..Options::split().without(CTRL_RX) });
    assert!(missing.device.identity().filters_by_mac && notice(&mut missing, "refuses promiscuous mode"));
}

#[test]
fn a_device_that_reaches_past_the_iommu_is_refused_with_the_remedy() {
    let open = |options| open(InProcess::new(VirtioNet::new(options)), Wishes::default());
    let Err(DeviceError::NotReady(text)) = open(Options::split().without(ACCESS_PLATFORM)) else { panic!() };
    assert!(text.contains("0000:03:00.0") && text.contains("iommu_platform=on"), "{text}");
    let Err(DeviceError::Unsupported(text)) = open(Options::split().without(VERSION_1)) else { panic!() };
    assert!(text.contains("disable-legacy=on"), "{text}");
    // Where there is no IOMMU, there is nothing to reach past.
    let function = InProcess::new(VirtioNet::new(Options::split().without(ACCESS_PLATFORM)));
    function.set_physical(true);
    assert!(Virtio::open(function, setup(Wishes::default())).is_ok());
}

#[test]
fn the_link_goes_and_comes() {
    let mut exam = exam(Options::split());
    assert!(exam.hears(|event| *event == DeviceEvent::Link(Link::Up { speed: Some(25_000) })));
    exam.function.with(|model, bus| model.set_link(bus, false));
    assert!(exam.hears(|event| *event == DeviceEvent::Link(Link::Down)));
    exam.function.with(|model, bus| model.set_link(bus, true));
    assert!(exam.link_comes_up() && exam.traffic_is_back());
    let silent = Options::split().without(STATUS).without(SPEED_DUPLEX).without(GUEST_ANNOUNCE);
    let up = DeviceEvent::Link(Link::Up { speed: None });
    assert!(self::exam(silent).hears(|event| *event == up), "nothing says that it is down");
}

#[test]
fn announcements_are_acknowledged() {
    let mut exam = exam(Options::packed());
    exam.function.with(|model, bus| model.ask_for_announcement(bus));
    exam.device.service();
    exam.device.service();
    assert_eq!(told(&exam).announced, 1);
    exam.no_faults();
}

#[test]
fn a_device_that_needs_a_reset_gets_it() {
    for options in layouts() {
        let mut exam = exam(options);
        exam.receives_numbered_frames(100, 1514);
        exam.function.with(|model, bus| model.fail(bus));
        assert!(needs_reset(&mut exam, "has to be reset"));
        assert!(exam.recovers() && exam.traffic_is_back());
        exam.no_faults();
    }
}

#[test]
fn a_device_that_was_reset_behind_our_back_is_started_anew() {
    let mut exam = exam(Options::packed());
    exam.function.with(models::Model::reset);
    assert!(needs_reset(&mut exam, "was reset"));
    assert!(exam.recovers() && exam.traffic_is_back());
    exam.no_faults();
}

#[test]
fn a_silent_control_queue_is_waited_for() {
    for options in layouts() {
        let mut exam = exam(options);
        exam.stop();
        exam.function.with(|model, _| model.silent = true);
        let before = Instant::now();
        let Err(DeviceError::NotReady(text)) = exam.device.start() else { panic!("nobody answered") };
        assert!(text.contains("control queue does not answer") && before.elapsed() < RECOVERY, "{text}");
        assert!(exam.device.start().is_err(), "again");
        exam.function.with(|model, _| model.silent = false);
        assert!(exam.recovers() && exam.traffic_is_back());
        // And while it runs.
        exam.function.with(|model, bus| {
            model.silent = true;
            model.ask_for_announcement(bus);
        });
        assert!(needs_reset(&mut exam, "control queue"));
        exam.function.with(|model, _| model.silent = false);
        assert!(exam.recovers() && exam.traffic_is_back());
        exam.no_faults();
    }
}

#[test]
fn a_device_that_leaves_is_told_once_and_quietly_stopped() {
    let mut exam = exam(Options::split());
    exam.receives_numbered_frames(10, 1514);
    let is_gone = |event: &DeviceEvent| matches!(event, DeviceEvent::Gone { .. });
    exam.function.set_gone(true);
    assert!(exam.hears(is_gone));
    exam.send(0, &numbered(1, 100), Offload::NONE);
    assert!(exam.receive(0).is_empty());
    assert!(!exam.device.service().iter().any(is_gone));
    let before = Instant::now();
    exam.stop();
    assert!(before.elapsed() < Duration::from_millis(100));
    assert!(matches!(exam.device.start(), Err(DeviceError::NotFound(_))));
    assert_eq!(exam.function.mappings(), 0);
}

#[test]
fn a_changed_address_is_told() {
    let mut exam = exam(Options::split());
    let mac = [2, 1, 1, 1, 1, 1];
    exam.stop();
    exam.function.with(|model, _| model.options().mac = mac);
    exam.restart();
    assert!(exam.hears(|event| *event == DeviceEvent::MacChanged(MacAddress(mac))));
}

#[test]
fn a_device_that_takes_nothing_is_reset_unless_there_is_no_link() {
    for options in layouts() {
        exam(options).notices_a_stall(Stall {
            set: |model, _, stalls| model.frozen = stalls,
            set_link: |model, bus, up| model.set_link(bus, up),
            limit: Duration::from_millis(300),
            worker_looks: true,
        });
    }
}

/// Whether the bell of receive queue 0 rings.
fn rings(exam: &mut Exam<VirtioNet>) -> bool {
    let bell = exam.queues().receive[0].bell().unwrap();
    let mut file = [PollFd::new(&bell, PollFlags::IN)];
    let rings = matches!(poll(&mut file, Some(&Timespec::default())), Ok(1..));
    if rings {
        rustix::io::read(bell, &mut [0; 8]).unwrap();
    }
    rings
}

#[test]
fn it_is_interrupted_only_while_somebody_sleeps() {
    for options in told_by_flag_and_by_index() {
        let mut exam = exam(options);
        for round in 0..5 {
            exam.receives_numbered_frames(7, 1514);
            assert!(!rings(&mut exam), "round {round}: awake");
            assert_eq!(exam.queues().receive[0].arm(), Armed::Rings);
            assert!(!rings(&mut exam), "round {round}: nothing came");
            exam.function.arrive(numbered(0, 60));
            assert!(rings(&mut exam), "round {round}: it came");
            assert_eq!(exam.queues().receive[0].arm(), Armed::Ready, "it is there");
            exam.queues().receive[0].disarm();
            assert_eq!(exam.receive(0).len(), 1);
        }
        exam.no_faults();
    }
}

#[test]
fn a_lost_interrupt_loses_no_frame() {
    for wrong in [None, Some(Wrong::NoInterrupt)] {
        let mut exam = exam(Options { wrong, ..Options::split() });
        exam.function.with(|_, bus| bus.lose_interrupts(wrong.is_none()));
        assert_eq!(exam.queues().receive[0].arm(), Armed::Rings);
        exam.function.arrive(numbered(0, 60));
        assert!(!rings(&mut exam));
        assert_eq!((exam.queues().receive[0].arm(), exam.receive(0).len()), (Armed::Ready, 1));
        exam.no_faults();
    }
}

/// Sends a burst of `count` frames of 100 bytes; how many were taken.
fn send_burst(exam: &mut Exam<VirtioNet>, count: u32) -> usize {
    let mut bytes = numbered(1, 100);
    let ptr = NonNull::new(bytes.as_mut_ptr()).unwrap();
    let mut burst = Burst::new();
    for n in 0..count {
        // SAFETY: the bytes outlive the call that copies them, and nobody has a reference to them meanwhile.
        assert!(burst.push(unsafe { Segment::new(ptr, 100) }, Token(n)));
    }
    let Accepted::Copied(taken) = exam.queues().transmit[0].transmit(burst.frames()) else {
        panic!("borrowed")
    };
    taken
}

#[test]
fn a_burst_costs_one_notification_and_no_read() {
    for options in told_by_flag_and_by_index() {
        let mut exam = exam(options);
        let before = exam.function.accesses();
        for _ in 0..100 {
            assert_eq!(send_burst(&mut exam, 32), 32);
        }
        assert_eq!(exam.function.accesses(), (before.0, before.1 + 100));
        for _ in 0..10 {
            (0..32).for_each(|n| exam.function.arrive(numbered(n, 60)));
            assert_eq!(exam.receive(0).len(), 32);
        }
        let after = exam.function.accesses();
        assert!(after.0 == before.0 && after.1 <= before.1 + 110, "{before:?} {after:?}");
        exam.no_faults();
    }
}

#[test]
fn a_device_that_polls_is_not_notified() {
    for options in told_by_flag_and_by_index() {
        let mut exam = exam(Options { polls: true, ..uncontrolled(options) });
        let before = exam.function.accesses();
        for _ in 0..50 {
            assert_eq!(send_burst(&mut exam, 32), 32);
            exam.function.with(|_, _| ());
            (0..32).for_each(|_| assert_eq!(exam.function.take_sent(), Some(numbered(1, 100))));
            (0..32).for_each(|n| exam.function.arrive(numbered(n, 60)));
            assert_eq!(exam.receive(0).len(), 32);
        }
        assert_eq!(exam.function.accesses(), before);
        exam.no_faults();
    }
}

#[test]
fn a_full_ring_takes_a_prefix_and_goes_on() {
    for options in layouts() {
        let mut exam = exam(options);
        exam.function.with(|model, _| model.frozen = true);
        let taken: usize = (0..20).map(|_| send_burst(&mut exam, 32)).sum();
        assert!((200..=256).contains(&taken), "{taken}");
        assert_eq!(send_burst(&mut exam, 32), 0);
        exam.function.with(|model, bus| {
            model.frozen = false;
            model.go_on(bus);
        });
        assert_eq!(std::iter::from_fn(|| exam.function.take_sent()).count(), taken);
        exam.sends_numbered_frames(600, 9018);
    }
}

/// The device is no longer wrong after its next reset, and traffic is back.
fn becomes_right(exam: &mut Exam<VirtioNet>) {
    exam.function.with(|model, _| model.options().wrong = None);
    assert!(exam.recovers() && exam.traffic_is_back());
    exam.no_faults();
}

#[test]
fn what_a_wrong_device_delivers_is_dropped_and_counted() {
    for (wrong, counter) in [
        (Wrong::LengthBeyondBuffer, "rx_length_errors"),
        (Wrong::LengthBelowHeader, "rx_length_errors"),
        (Wrong::UnknownSegmentation, "rx_header_errors"),
        (Wrong::ChecksumBeyondFrame, "rx_header_errors"),
    ] {
        for options in layouts() {
            let mut exam = exam(options.wrong(wrong));
            for n in 0..600 {
                exam.function.arrive(numbered(n, 100));
                assert!(exam.receive(0).is_empty(), "{wrong:?}");
            }
            let counters = exam.device.counters();
            let counted = counters.iter().find(|(name, _)| *name == counter).map(|(_, count)| *count);
            assert_eq!((counted, exam.device.statistics().rx_errors), (Some(600), 600), "{wrong:?}");
            becomes_right(&mut exam);
        }
    }
}

#[test]
fn a_device_that_cannot_be_believed_is_reset() {
    for (wrong, words) in [
        (Wrong::UnknownId, "that it did not have"),
        (Wrong::Repeated, "that it did not have"),
        (Wrong::IndexJump, "more buffers back than it had"),
        (Wrong::LastLengthBeyondBuffer, "as its own header does not say"),
        (Wrong::NoBuffers, "as its own header does not say"),
        (Wrong::OneBufferMore, "as its own header does not say"),
        (Wrong::ManyBuffers, "as its own header does not say"),
    ] {
        for options in layouts() {
            if wrong == Wrong::IndexJump && options.offered >> RING_PACKED & 1 != 0 {
                continue;
            }
            // Nothing is asked, since what is wrong is wrong with answers, too.
            let mut exam = exam(uncontrolled(options).wrong(wrong));
            exam.function.arrive(numbered(0, 100));
            exam.function.arrive(numbered(1, 3000));
            let received: Vec<_> = (0..3).flat_map(|_| exam.receive(0)).map(|(frame, _)| frame).collect();
            assert!(received.iter().all(|frame| *frame == numbered(0, 100)), "{wrong:?}");
            assert!(needs_reset(&mut exam, words), "{wrong:?}");
            becomes_right(&mut exam);
        }
    }
}

#[test]
fn a_device_that_says_nothing_of_what_it_did_is_reset() {
    for (options, wrong) in [
        (Options::split(), Wrong::NoWriteBack),
        (Options::packed(), Wrong::NoWriteBack),
        (Options::packed(), Wrong::WrapBit),
    ] {
        let mut exam = exam(uncontrolled(options).wrong(wrong));
        let resets = (0..400).any(|_| {
            exam.function.arrive(numbered(0, 100));
            assert!(exam.receive(0).is_empty());
            exam.send(0, &numbered(1, 100), Offload::NONE);
            std::thread::sleep(Duration::from_millis(5));
            exam.device.service().iter().any(is_reset)
        });
        assert!(resets, "{wrong:?}");
        becomes_right(&mut exam);
    }
}

#[test]
fn an_answer_with_a_bit_too_many_is_no_consent() {
    let mut exam = exam(Options::split().wrong(Wrong::AnswerBit));
    assert!(notice(&mut exam, "refuses promiscuous mode"));
    becomes_right(&mut exam);
}

#[test]
fn a_device_that_refuses_what_it_offered_is_not_used() {
    let model = VirtioNet::new(Options::split().wrong(Wrong::FeaturesRefused));
    let Err(DeviceError::Failed(text)) = open(InProcess::new(model), Wishes::default()) else { panic!() };
    assert!(text.contains("does not accept the features"), "{text}");
}

#[test]
fn a_reset_without_end_ends_with_one_of_the_whole_function() {
    let mut exam = exam(Options::split().wrong(Wrong::EndlessReset));
    let (before, resets) = (Instant::now(), exam.function.resets());
    exam.stop();
    assert!(before.elapsed() < Duration::from_millis(100) && exam.function.resets() == resets + 1);
    exam.restart();
    assert!(exam.traffic_is_back());
}

#[test]
fn what_the_queues_did_is_counted() {
    let mut exam = exam(Options::split());
    exam.sends_numbered_frames(100, 1514);
    exam.receives_numbered_frames(50, 1514);
    let bytes = |count| (0..count).map(|n| length(n, 1514) as u64).sum::<u64>();
    let statistics = exam.device.statistics();
    assert_eq!((statistics.tx_frames, statistics.tx_bytes), (100, bytes(100)));
    assert_eq!((statistics.rx_frames, statistics.rx_bytes), (50, bytes(50)));
    assert!(exam.send(0, &numbered(1, 9019), Offload::NONE), "taken and counted");
    assert_eq!((exam.device.statistics().tx_errors, exam.function.take_sent()), (1, None));
}
