//! Rung L1: the driver `iavf` works against the model of an Intel 700 or 800 series VF with its PF.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::num::NonZero;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use models::exam::{RECOVERY, numbered};
use models::iavf::{Iavf as Model, Options, Promiscuous, Wrong, granted};
use models::packets::{Ip, Transport, packet, partial};
use models::{Exam, InProcess, Stall};
use pmd::iavf::{Iavf, Patience, Setup};
use pmd::pci::PciFunction;
use pmd::vf::{Place, Vf, Wishes};
use pmd::{
    Armed, Caching, Checksum, Device, DeviceError, DeviceEvent, Link, MacAddress, Offload, ReceiveQueue,
    Segmentation,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 2]);

const PATIENCE: Patience = Patience {
    interval: Duration::from_micros(50),
    firmware: Duration::from_millis(20),
    answer: Duration::from_millis(50),
    reset: Duration::from_millis(100),
    stall: Duration::from_millis(200),
};

fn open_with(wishes: Wishes) -> impl FnOnce(Arc<InProcess<Model>>) -> Result<Vf<Iavf>, DeviceError> {
    let place = Place { address: "0000:01:10.0".parse().unwrap(), pf: Some(("eth2".to_owned(), 3)) };
    |function| Iavf::open(function as Arc<dyn PciFunction>, Setup { place, wishes, patience: PATIENCE })
}

fn exam_with(options: Options, wishes: Wishes) -> Exam<Model> {
    Exam::start(Model::new(options), open_with(wishes))
}

fn exam() -> Exam<Model> {
    exam_with(Options::default(), Wishes::default())
}

/// The two that differ in what is negotiated: flexible descriptors and write-back by timer, legacy descriptors and
/// interrupt 0.
fn kinds() -> [Options; 2] {
    [Options::default(), Options::series_700()]
}

fn pairs(count: u16) -> Wishes {
    Wishes { queue_pairs: NonZero::new(count).unwrap(), ..Wishes::default() }
}

fn change<T>(exam: &Exam<Model>, act: impl FnOnce(&mut Model, &mut models::Bus) -> T) -> T {
    exam.function.with(act)
}

/// Whether a notice has these words.
fn told(exam: &mut Exam<Model>, words: &str) -> bool {
    exam.hears(|event| matches!(event, DeviceEvent::Notice(text) if text.contains(words)))
}

fn counter(exam: &mut Exam<Model>, name: &str) -> u64 {
    exam.device.counters().iter().find(|(own, _)| *own == name).map_or(u64::MAX, |(_, count)| *count)
}

/// What is received when this frame arrives.
fn delivered(exam: &mut Exam<Model>, frame: &[u8]) -> Vec<Vec<u8>> {
    exam.function.arrive(frame.to_vec());
    let queues = exam.queues().receive.len();
    (0..queues).flat_map(|queue| exam.receive(queue)).map(|(frame, _)| frame).collect()
}

fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &vlan.to_be_bytes(), &frame[12..]].concat()
}

// What it does.

#[test]
fn l1_it_opens_with_the_address_of_the_pf_and_the_link_comes_up() {
    for (options, speed) in [(Options::default(), 25_000), (Options::series_700(), 10_000)] {
        let capabilities = options.capabilities;
        // Once with speeds in Mbit/s, once with a bit for each.
        for capabilities in [capabilities, capabilities & !granted::ADVANCED_SPEED] {
            let mut exam = exam_with(Options { capabilities, ..options.clone() }, Wishes::default());
            let identity = exam.device.identity();
            assert_eq!((identity.driver, identity.mac, identity.max_frame), ("iavf", Some(MAC), 9724));
            assert!(exam.hears(|event| *event == DeviceEvent::Link(Link::Up { speed: Some(speed) })));
            assert!(told(&mut exam, "not proven on silicon"));
            exam.no_faults();
        }
    }
}

#[test]
fn l1_100_000_frames_go_each_way() {
    let mut exam = exam();
    exam.sends_numbered_frames(100_000, 1514);
    exam.receives_numbered_frames(100_000, 1514);
}

#[test]
fn l1_jumbo_frames_go_each_way_with_every_kind_of_pf() {
    for options in kinds() {
        let mut exam = exam_with(options, Wishes::default());
        exam.sends_numbered_frames(3_000, 9724);
        exam.receives_numbered_frames(3_000, 9724);
    }
}

#[test]
fn l1_without_any_write_back_frames_wait_for_the_next_look_at_the_slow_side() {
    let poor = Options { capabilities: granted::L2, ..Options::series_700() };
    let mut exam = exam_with(poor, Wishes::default());
    assert!(told(&mut exam, "frames may wait up to 50 ms"));
    let deadline = Instant::now() + RECOVERY;
    let mut received = 0;
    while received < 100 && Instant::now() < deadline {
        received += delivered(&mut exam, &numbered(received as u32, 100)).len();
        exam.device.service();
    }
    assert!(received >= 100, "{received}");
    exam.no_faults();
}

#[test]
fn l1_a_pf_that_shares_its_port_does_not_want_polling() {
    let mut exam = exam_with(Options { several_functions: true, ..Options::series_700() }, Wishes::default());
    assert!(exam.link_comes_up() && told(&mut exam, "frames may wait up to 50 ms"));
    exam.sends_numbered_frames(100, 1514);
}

#[test]
fn l1_checksums_are_filled_in_and_tcp_is_cut() {
    for options in kinds() {
        let mut exam = exam_with(options, Wishes::default());
        exam.fills_in_checksums();
        exam.cuts_tcp();
    }
}

#[test]
fn l1_a_cut_that_would_stop_the_queue_is_counted_and_the_next_frame_goes_out() {
    let mut exam = exam();
    let mut frame = partial(Ip::V4, Transport::Tcp, 9, &[7; 5000]);
    let offload = Offload {
        checksum: Checksum::Partial { start: 34, offset: 16 },
        segmentation: Segmentation::TcpV4,
        segment_size: 1000,
        header_length: 54,
        ..Offload::NONE
    };
    for segment_size in [0, 1, 63] {
        assert!(exam.send(0, &frame, Offload { segment_size, ..offload }), "{segment_size}");
    }
    let long = partial(Ip::V4, Transport::Tcp, 9, &[7; 20_000]);
    for segment_size in [9700, u16::MAX] {
        assert!(exam.send(0, &long, Offload { segment_size, ..offload }), "{segment_size}");
    }
    // Headers that are none.
    frame[14] = 0;
    assert!(exam.send(0, &frame, offload));
    assert_eq!(exam.function.take_sent(), None);
    let dropped = ["tx_dropped_length", "tx_dropped_headers"].map(|name| counter(&mut exam, name));
    assert_eq!(dropped, [5, 1]);
    assert_eq!(exam.device.statistics().tx_errors, 6);
    exam.sends_numbered_frames(10, 1514);
}

#[test]
fn l1_the_verdict_on_received_checksums_is_the_devices_and_only_a_good_one_counts() {
    for options in kinds() {
        let mut exam = exam_with(options, Wishes::default());
        for ip in [Ip::V4, Ip::V6] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let good = packet(ip, transport, 5, b"hello, this is long enough for a frame of 60");
                let mut bad = good.clone();
                *bad.last_mut().unwrap() ^= 1;
                let mut verdict = |frame: &[u8]| {
                    exam.function.arrive(frame.to_vec());
                    let received = exam.receive(0);
                    assert_eq!(received[0].0, frame);
                    received[0].1.checksum
                };
                assert_eq!(verdict(&good), Checksum::Valid, "{ip:?} {transport:?}");
                assert_eq!(verdict(&bad), Checksum::Unknown, "{ip:?} {transport:?}");
                assert_eq!(verdict(&tagged(&good, 7)), Checksum::Valid, "{ip:?} {transport:?}");
            }
        }
        exam.no_faults();
    }
}

#[test]
fn l1_tagged_frames_pass_both_ways_for_the_vlans_that_are_asked_for() {
    for options in kinds() {
        let wishes = Wishes { vlans: vec![7, 4094], ..Wishes::default() };
        let mut exam = exam_with(Options { filters_vlans: true, ..options }, wishes);
        let frame = numbered(1, 100);
        for vlan in [7, 4094] {
            let frame = tagged(&frame, vlan);
            assert_eq!(delivered(&mut exam, &frame), std::slice::from_ref(&frame));
            assert!(exam.send(0, &frame, Offload::NONE));
            assert_eq!(exam.function.take_sent(), Some(frame));
        }
        assert!(delivered(&mut exam, &tagged(&frame, 8)).is_empty());
        assert_eq!(delivered(&mut exam, &frame), [frame]);
        exam.no_faults();
    }
}

#[test]
fn l1_more_vlans_than_the_pf_has_room_for_are_told() {
    for options in kinds() {
        let wishes = Wishes { vlans: (1..=40).collect(), ..Wishes::default() };
        let mut exam = exam_with(options, wishes);
        assert!(told(&mut exam, "refuses frames of VLANs"));
        exam.sends_numbered_frames(3, 100);
    }
}

#[test]
fn l1_tags_that_the_pf_takes_out_are_put_back() {
    for options in kinds() {
        let mut exam = exam_with(Options { keeps_stripping: true, ..options }, Wishes::default());
        for number in 0..200 {
            let frame = tagged(&numbered(number, 60 + 20 * number as usize), 0x2000 | 7);
            assert_eq!(delivered(&mut exam, &frame), [frame], "{number}");
        }
        exam.receives_numbered_frames(1000, 1514);
    }
}

#[test]
fn l1_flows_are_spread_over_queues_and_each_stays_on_one() {
    for options in kinds() {
        let mut exam = exam_with(options, pairs(4));
        assert_eq!((exam.queues().receive.len(), exam.queues().transmit.len()), (4, 4));
        let mut used = [0; 4];
        for flow in 0..256u16 {
            // All bits of the port differ: the hash is linear, and its key drawn by lot.
            let frame = packet(Ip::V4, Transport::Tcp, flow.wrapping_mul(40_503), b"flow");
            for _ in 0..4 {
                exam.function.arrive(frame.clone());
            }
            let counts: Vec<usize> = (0..4).map(|queue| exam.receive(queue).len()).collect();
            assert_eq!(counts.iter().sum::<usize>(), 4);
            used[counts.iter().position(|count| *count == 4).expect("one queue")] += 1;
        }
        assert!(used.iter().all(|flows| *flows > 7), "{used:?}");
        for queue in 0..4 {
            let frame = numbered(queue as u32, 500);
            assert!(exam.send(queue, &frame, Offload::NONE));
            assert_eq!(exam.function.take_sent(), Some(frame));
        }
        exam.no_faults();
    }
}

#[test]
fn l1_where_the_vf_has_fewer_queues_or_the_pf_no_rss_that_is_told() {
    let mut exam = exam_with(Options { pairs: 2, vectors: 3, ..Options::default() }, pairs(8));
    assert_eq!(exam.queues().receive.len(), 2);
    assert!(told(&mut exam, "8 queue pairs are wanted and 2 used"));
    let capabilities = granted::SERIES_800 & !granted::RSS_PF;
    let mut exam = exam_with(Options { capabilities, ..Options::default() }, pairs(4));
    assert_eq!(exam.queues().receive.len(), 1);
    assert!(told(&mut exam, "does not spread frames"));
    exam.sends_numbered_frames(3, 100);
}

#[test]
fn l1_an_address_that_is_wished_for_is_taken_or_its_refusal_told() {
    let wished = MacAddress([0x52, 0x54, 0, 0xaa, 0xbb, 0xcc]);
    let wishes = || Wishes { mac: Some(wished), ..Wishes::default() };
    let exam = exam_with(Options { promiscuous: Promiscuous::Pretended, ..Options::default() }, wishes());
    assert_eq!(exam.device.identity().mac, Some(wished));
    assert!(change(&exam, |model, _| model.has_address(wished.0) && !model.has_address(MAC.0)));
    exam.no_faults();
    let mut exam = exam_with(Options { fixed_mac: true, ..Options::default() }, wishes());
    assert_eq!(exam.device.identity().mac, Some(MAC));
    assert!(told(&mut exam, "ip link set eth2 vf 3 mac 52:54:00:aa:bb:cc"));
}

#[test]
fn l1_without_an_address_one_is_drawn_and_kept() {
    let mut exam = exam_with(Options { mac: None, ..Options::default() }, Wishes::default());
    let mac = exam.device.identity().mac.unwrap();
    assert!(mac.is_valid_unicast() && change(&exam, |model, _| model.has_address(mac.0)));
    assert!(told(&mut exam, "drawn by lot"));
    exam.stop();
    exam.restart();
    assert_eq!(exam.device.identity().mac, Some(mac));
    exam.no_faults();
    let options = Options { mac: None, fixed_mac: true, ..Options::default() };
    let refused = open_with(Wishes::default())(InProcess::new(Model::new(options)));
    let Err(DeviceError::NotReady(text)) = refused else { panic!("{refused:?}") };
    assert!(text.contains("ip link set eth2 vf 3 mac MAC"), "{text}");
}

#[test]
fn l1_a_pf_that_refuses_promiscuous_mode_is_told_once_with_the_remedy() {
    for status in [-5, -64] {
        let options = Options { promiscuous: Promiscuous::Refused(status), ..Options::default() };
        let mut exam = exam_with(options, Wishes::default());
        assert!(told(&mut exam, "refuses promiscuous mode") && told(&mut exam, "all multicast groups"));
        let to = |mac: [u8; 6]| [&mac[..], &numbered(1, 100)[6..]].concat();
        assert!(delivered(&mut exam, &to([0x52, 0x54, 0, 0, 0, 9])).is_empty());
        // Groups that everybody uses arrive all the same.
        assert_eq!(delivered(&mut exam, &to([0x33, 0x33, 0, 0, 0, 1])).len(), 1);
        exam.stop();
        exam.restart();
        exam.events.clear();
        let events = exam.device.service();
        assert!(!events.iter().any(|event| matches!(event, DeviceEvent::Notice(_))), "{events:?}");
        exam.no_faults();
    }
    let options = Options { promiscuous: Promiscuous::GroupsOnly, ..Options::default() };
    let mut exam = exam_with(options, Wishes::default());
    assert!(told(&mut exam, "refuses promiscuous mode"));
    let all =
        |event: &DeviceEvent| matches!(event, DeviceEvent::Notice(text) if text.contains("all multicast"));
    assert!(!exam.events.iter().any(all));
}

#[test]
fn l1_a_port_with_a_smaller_mtu_sends_and_receives_what_fits() {
    let mut exam = exam_with(Options { max_mtu: 1522, ..Options::default() }, Wishes::default());
    assert_eq!(exam.device.identity().max_frame, 1518);
    exam.sends_numbered_frames(200, 1518);
    exam.receives_numbered_frames(200, 1518);
    assert!(exam.send(0, &numbered(1, 1519), Offload::NONE));
    assert_eq!(exam.function.take_sent(), None);
    assert!(delivered(&mut exam, &numbered(1, 1519)).is_empty());
    exam.no_faults();
}

#[test]
fn l1_it_counts_what_the_pf_counts_over_resets() {
    let mut exam = exam();
    exam.sends_numbered_frames(10, 100);
    exam.receives_numbered_frames(20, 100);
    let before = exam.device.statistics();
    assert_eq!((before.tx_frames, before.rx_frames), (10, 20));
    exam.stop();
    exam.restart();
    exam.sends_numbered_frames(5, 100);
    let after = exam.device.statistics();
    assert_eq!((after.tx_frames, after.rx_frames), (15, 20));
    assert_eq!((counter(&mut exam, "tx_unicast"), counter(&mut exam, "rx_unicast")), (15, 20));
    // More than there are descriptors for.
    (0..1500).for_each(|number| exam.function.arrive(numbered(number, 100)));
    assert!(exam.device.statistics().rx_missed > 0);
}

#[test]
fn l1_frames_cost_no_register_read_and_a_burst_one_write() {
    let mut exam = exam();
    let before = exam.function.accesses();
    let mut received = 0;
    for number in 0..320 {
        assert!(exam.send(0, &numbered(number, 100), Offload::NONE));
        exam.function.arrive(numbered(number, 100));
        received += exam.receive(0).len();
    }
    let after = exam.function.accesses();
    assert_eq!((received, after.0), (320, before.0));
    // The exam sends bursts of one frame.
    assert!(after.1 - before.1 <= 320 + 320 / 32 + 1, "{}", after.1 - before.1);
}

#[test]
fn l1_a_sleeper_is_woken_by_the_next_frame_and_only_then() {
    let mut exam = exam_with(Options::default(), pairs(2));
    let rings = |exam: &mut Exam<Model>, queue: usize| {
        let Some(bell) = exam.queues().receive[queue].bell() else { return false };
        let mut fds = [PollFd::new(&bell, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    };
    let hush = |exam: &mut Exam<Model>| {
        let bell = exam.queues().receive[0].bell().unwrap();
        rustix::io::read(bell.as_fd(), &mut [0u8; 8]).unwrap();
    };
    for _ in 0..3 {
        exam.function.arrive(numbered(1, 100));
        assert!(!rings(&mut exam, 0), "nobody sleeps");
        assert_eq!(exam.queues().receive[0].arm(), Armed::Ready);
        exam.receive(0);
        // The interrupt of what was there has come by now.
        hush(&mut exam);
        assert_eq!(exam.queues().receive[0].arm(), Armed::Rings);
        assert!(!rings(&mut exam, 0), "nothing has come");
        exam.function.arrive(numbered(1, 100));
        assert!(rings(&mut exam, 0) && !rings(&mut exam, 1));
        hush(&mut exam);
        exam.queues().receive[0].disarm();
        assert_eq!(exam.receive(0).len(), 1);
    }
    exam.no_faults();
}

#[test]
fn l1_interrupt_0_that_goes_on_by_itself_is_no_bell() {
    let mut exam = exam_with(Options::series_700(), Wishes::default());
    assert!(exam.queues().receive[0].bell().is_none());
    assert_eq!(exam.queues().receive[0].arm(), Armed::Silent);
    exam.receives_numbered_frames(100, 1514);
}

// What is done to it.

/// Traffic is back within two seconds of the moment at which it is lost, and nothing forbidden was done.
fn recovers(exam: &mut Exam<Model>) {
    let start = Instant::now();
    assert!(exam.hears(|event| matches!(event, DeviceEvent::ResetNeeded { .. })), "{:?}", exam.events);
    assert!(exam.recovers() && exam.traffic_is_back(), "{:?}", exam.events);
    assert!(start.elapsed() < RECOVERY);
    assert!(exam.link_comes_up());
    exam.no_faults();
}

#[test]
fn l1_a_reset_by_the_pf_is_recovered_from() {
    for options in kinds() {
        let mut exam = exam_with(options, pairs(2));
        assert!(exam.link_comes_up());
        for _ in 0..3 {
            change(&exam, |model, _| model.begin_reset());
            recovers(&mut exam);
        }
    }
}

#[test]
fn l1_a_reset_that_lasts_is_waited_for() {
    let mut exam = exam();
    assert!(exam.link_comes_up());
    change(&exam, |model, _| {
        model.stuck = true;
        model.begin_reset();
    });
    assert!(exam.hears(|event| matches!(event, DeviceEvent::ResetNeeded { .. })));
    exam.stop();
    let cause = exam.device.start().unwrap_err();
    assert!(cause.to_string().contains("does not end a reset"), "{cause}");
    change(&exam, |model, _| model.stuck = false);
    assert!(exam.recovers() && exam.traffic_is_back());
    exam.no_faults();
}

#[test]
fn l1_an_announced_reset_is_recovered_from_whether_it_comes_or_not() {
    for comes in [true, false] {
        let mut exam = exam();
        assert!(exam.link_comes_up());
        change(&exam, |model, bus| model.announce_reset(bus));
        assert!(exam.hears(|event| {
            matches!(event, DeviceEvent::ResetNeeded { reason } if reason.contains("about to reset"))
        }));
        if comes {
            change(&exam, |model, _| model.begin_reset());
        }
        assert!(exam.recovers() && exam.traffic_is_back());
        exam.no_faults();
    }
}

#[test]
fn l1_a_pf_driver_that_goes_away_is_waited_for() {
    let mut exam = exam();
    assert!(exam.link_comes_up());
    change(&exam, |model, bus| {
        model.announce_close(bus);
        model.pf_silent = true;
    });
    assert!(exam.hears(|event| {
        matches!(event, DeviceEvent::ResetNeeded { reason } if reason.contains("driver of the PF eth2 goes away"))
    }));
    exam.stop();
    let cause = exam.device.start().unwrap_err();
    assert!(cause.to_string().contains("ip link set eth2 up"), "{cause}");
    change(&exam, |model, _| model.pf_silent = false);
    assert!(exam.recovers() && exam.traffic_is_back());
    exam.no_faults();
}

#[test]
fn l1_while_firmware_or_pf_are_silent_frames_pass_and_that_is_told_once() {
    for firmware in [true, false] {
        let mut exam = exam();
        assert!(exam.link_comes_up());
        let silence = |exam: &Exam<Model>, silent| {
            change(exam, |model, _| {
                *(if firmware { &mut model.firmware_silent } else { &mut model.pf_silent }) = silent;
            });
        };
        silence(&exam, true);
        let silent = |event: &DeviceEvent| matches!(event, DeviceEvent::Notice(text) if text.contains("the PF does not answer any more"));
        let deadline = Instant::now() + RECOVERY;
        let mut times = 0;
        while Instant::now() < deadline && times == 0 {
            exam.device.statistics();
            times += exam.device.service().iter().filter(|event| silent(event)).count();
        }
        times += exam.device.service().iter().filter(|event| silent(event)).count();
        assert_eq!(times, 1);
        exam.sends_numbered_frames(100, 1514);
        exam.receives_numbered_frames(100, 1514);
        let start = Instant::now();
        exam.stop();
        assert!(start.elapsed() < Duration::from_millis(150), "{:?}", start.elapsed());
        assert_eq!(exam.function.resets(), 1, "what the PF did not switch off is reset");
        let cause = exam.device.start().unwrap_err();
        assert!(
            matches!(&cause, DeviceError::NotReady(text) if text.contains("ip link set eth2 up")),
            "{cause}"
        );
        silence(&exam, false);
        assert!(exam.recovers() && exam.traffic_is_back());
        exam.no_faults();
    }
}

#[test]
fn l1_an_admin_queue_that_fails_is_recovered_from() {
    let mut exam = exam();
    assert!(exam.link_comes_up());
    change(&exam, |model, _| model.break_admin());
    recovers(&mut exam);
}

#[test]
fn l1_messages_that_were_lost_are_counted() {
    let mut exam = exam();
    assert!(exam.link_comes_up());
    change(&exam, |model, bus| (0..100).for_each(|_| model.set_link(bus, true)));
    exam.device.service();
    assert_eq!(counter(&mut exam, "admin_overflows"), 1);
    change(&exam, |model, bus| model.set_link(bus, false));
    assert!(exam.hears(|event| *event == DeviceEvent::Link(Link::Down)));
    exam.no_faults();
}

#[test]
fn l1_the_link_flaps() {
    let mut exam = exam();
    for _ in 0..3 {
        assert!(exam.link_comes_up());
        change(&exam, |model, bus| model.set_link(bus, false));
        assert!(exam.hears(|event| *event == DeviceEvent::Link(Link::Down)));
        change(&exam, |model, bus| model.set_link(bus, true));
    }
    assert!(exam.link_comes_up() && exam.traffic_is_back());
    exam.no_faults();
}

#[test]
fn l1_lost_interrupts_lose_no_frame() {
    let mut exam = exam();
    change(&exam, |_, bus| bus.lose_interrupts(true));
    assert_eq!(exam.queues().receive[0].arm(), Armed::Rings);
    exam.function.arrive(numbered(0, 100));
    // Somebody looks before long; then the queue is as it was.
    assert_eq!(exam.receive(0).len(), 1);
    exam.queues().receive[0].disarm();
    exam.receives_numbered_frames(100, 1514);
}

#[test]
fn l1_damaged_frames_are_dropped_and_counted() {
    for options in kinds() {
        let mut exam = exam_with(options, Wishes::default());
        change(&exam, |model, _| model.damage = 5);
        for number in 0..8 {
            exam.function.arrive(numbered(number, 3000));
        }
        let received: Vec<_> = exam.receive(0).into_iter().map(|(frame, _)| frame).collect();
        assert_eq!(received, [5, 6, 7].map(|number| numbered(number, 3000)));
        assert_eq!(counter(&mut exam, "rx_dropped_damaged"), 5);
        assert_eq!(exam.device.statistics().rx_errors, 5);
        exam.no_faults();
    }
}

#[test]
fn l1_a_message_that_the_pf_refuses_is_an_error_that_names_it() {
    for verb in [3, 6, 7, 8] {
        let function = InProcess::new(Model::new(Options::default()));
        function.with(|model, _| model.refuses = Some((verb, -5)));
        let cause = match open_with(Wishes::default())(Arc::clone(&function)) {
            Err(cause) => cause,
            Ok(mut device) => {
                let cause = device.start().unwrap_err();
                function.with(|model, _| model.refuses = None);
                let queues = device.start().unwrap();
                device.stop(queues);
                cause
            }
        };
        let text = cause.to_string();
        assert!(text.contains(&format!("refuses message {verb} with status -5")), "{text}");
        assert_eq!((function.with(|model, _| model.queues_on()), function.take_faults()), (0, Vec::new()));
    }
}

#[test]
fn l1_what_can_be_lived_without_may_be_refused() {
    // Addresses, VLANs, modes, RSS.
    for verb in [10, 14, 23, 24, 25, 26, 28, 55] {
        for options in kinds() {
            let function = InProcess::new(Model::new(options));
            function.with(|model, _| model.refuses = Some((verb, -64)));
            let mut device = open_with(pairs(2))(Arc::clone(&function)).unwrap();
            let queues = device.start().unwrap();
            device.stop(queues);
            assert_eq!(function.take_faults(), []);
        }
    }
}

#[test]
fn l1_a_pf_of_another_protocol_is_refused() {
    let open = |version| {
        let options = Options { version, ..Options::default() };
        open_with(Wishes::default())(InProcess::new(Model::new(options)))
    };
    assert!(matches!(open((2, 0)), Err(DeviceError::Unsupported(text)) if text.contains("virtchnl 2.0")));
    assert!(open((1, 1)).is_ok());
}

#[test]
fn l1_a_device_that_leaves_is_told_and_stopped() {
    let mut exam = exam();
    exam.function.set_gone(true);
    assert!(exam.hears(|event| matches!(event, DeviceEvent::Gone { .. })));
    let start = Instant::now();
    assert!(exam.receive(0).is_empty());
    exam.stop();
    assert!(start.elapsed() < Duration::from_millis(150));
    assert!(matches!(exam.device.start(), Err(DeviceError::NotFound(_))));
    assert_eq!(exam.function.mappings(), 1, "the admin queue's");
}

#[test]
fn l1_dropping_it_quiets_it_and_unmaps_all() {
    let function = InProcess::new(Model::new(Options::default()));
    let mut device = open_with(pairs(2))(Arc::clone(&function)).unwrap();
    let queues = device.start().unwrap();
    assert_eq!(function.with(|model, _| model.queues_on()), 4);
    drop(device);
    assert_eq!(function.with(|model, _| model.queues_on()), 0);
    drop(queues);
    assert_eq!((function.mappings(), function.take_faults()), (0, Vec::new()));
}

// What the model notices.

#[test]
fn l1_the_model_notices_what_is_forbidden() {
    let forbidden: [(u32, u32, &str); 11] = [
        (0x0000, 1024, "tail 1024 of transmit queue 0"),
        (0x0000, 1, "0 bytes at 0x0"),
        (0x0004, 1, "transmit queue 1, which is off"),
        (0x2000, 4096, "tail 4096 of receive queue 0"),
        (0x3800, 1 << 18, "reserved bits"),
        (0x383c, 1, "there is none"),
        (0x6400, 3, "head of an admin ring is moved"),
        (0x8400, 32, "admin tail 32"),
        (0x8000, 1 << 20, "admin ring length"),
        (0x7c00, 4, "not aligned"),
        (0x1000, 0, "no register 0x1000"),
    ];
    for (register, value, words) in forbidden {
        let exam = exam();
        let registers = Arc::clone(&exam.function).bar(0, 0, 0x10000, Caching::Uncached).unwrap();
        registers.write(register, value);
        let faults = exam.function.take_faults();
        assert!(faults.iter().any(|fault| fault.to_string().contains(words)), "{register:#x}: {faults:?}");
    }
    let exam = exam();
    let registers = Arc::clone(&exam.function).bar(0, 0, 0x10000, Caching::Uncached).unwrap();
    registers.read16(0x8800);
    registers.read(0x9000);
    assert_eq!(exam.function.take_faults().len(), 2);
}

// Devices that are wrong.

/// A driver that runs before its device goes wrong.
fn wrong(wrong: Wrong, options: Options) -> Exam<Model> {
    let exam = exam_with(options, Wishes::default());
    change(&exam, |model, _| model.wrong = Some(wrong));
    exam
}

/// What is wrong in received frames: none is delivered, each is counted, and when the device is right again, so is all.
fn receives_nothing(kind: Wrong, name: &str) {
    for options in kinds() {
        let mut exam = wrong(kind, options);
        for number in 0..40 {
            exam.function.arrive(tagged(&numbered(number, 300), 7));
        }
        assert!(exam.receive(0).is_empty(), "{kind:?}");
        assert_eq!(counter(&mut exam, name), 40, "{kind:?}");
        change(&exam, |model, _| model.wrong = None);
        exam.receives_numbered_frames(2000, 1514);
    }
}

#[test]
fn l1_wrong_lengths_are_not_believed() {
    receives_nothing(Wrong::WrongLength, "rx_dropped_impossible");
}

#[test]
fn l1_frames_that_the_device_calls_damaged_are_not_delivered() {
    receives_nothing(Wrong::Damaged, "rx_dropped_damaged");
}

#[test]
fn l1_a_device_that_takes_tags_out_against_its_orders_changes_nothing() {
    for options in kinds() {
        let mut exam = wrong(Wrong::StripsTags, options);
        let frame = tagged(&numbered(1, 300), 7);
        assert_eq!(delivered(&mut exam, &frame), [frame]);
        exam.no_faults();
    }
}

#[test]
fn l1_frames_that_never_end_are_dropped_and_the_next_one_with_them() {
    let mut exam = wrong(Wrong::NoEnd, Options::default());
    (0..40).for_each(|number| exam.function.arrive(numbered(number, 300)));
    assert!(exam.receive(0).is_empty());
    change(&exam, |model, _| model.wrong = None);
    assert!(delivered(&mut exam, &numbered(1, 300)).is_empty());
    assert_eq!(counter(&mut exam, "rx_dropped_impossible"), 1);
    exam.receives_numbered_frames(2000, 1514);
}

#[test]
fn l1_a_verdict_that_is_wrong_is_left_to_the_guest() {
    for options in kinds() {
        let mut exam = wrong(Wrong::WrongVerdict, options);
        exam.function.arrive(packet(Ip::V4, Transport::Tcp, 5, b"hello"));
        let received = exam.receive(0);
        assert_eq!((received.len(), received[0].1.checksum), (1, Checksum::Unknown));
    }
}

#[test]
fn l1_descriptors_that_are_not_done_are_not_touched() {
    let mut exam = wrong(Wrong::WrongDone, Options::default());
    (0..40).for_each(|number| exam.function.arrive(numbered(number, 300)));
    assert!(exam.receive(0).is_empty());
    change(&exam, |model, _| model.wrong = None);
    assert!(exam.recovers() && exam.traffic_is_back());
    exam.no_faults();
}

#[test]
fn l1_without_write_back_the_ring_fills_and_nothing_hangs() {
    let mut exam = wrong(Wrong::NoWriteBack, Options::default());
    let taken = (0..3000).filter(|number| exam.send(0, &numbered(*number, 100), Offload::NONE)).count();
    assert_eq!(taken, 1023);
    change(&exam, |model, _| model.wrong = None);
    assert!(!exam.send(0, &numbered(1, 100), Offload::NONE), "what was not written back never will be");
    assert!(exam.recovers() && exam.traffic_is_back());
    exam.no_faults();
}

#[test]
fn l1_without_write_back_the_vf_is_reset() {
    for options in kinds() {
        exam_with(options, Wishes::default()).notices_a_stall(Stall {
            set: |model, _, stalls| model.wrong = stalls.then_some(Wrong::NoWriteBack),
            set_link: |model, bus, up| model.set_link(bus, up),
            limit: PATIENCE.stall,
            worker_looks: true,
        });
    }
}

#[test]
fn l1_without_interrupts_frames_are_there_when_looked_for() {
    let mut exam = wrong(Wrong::NoInterrupt, Options::default());
    assert_eq!(exam.queues().receive[0].arm(), Armed::Rings);
    exam.receives_numbered_frames(100, 1514);
}

#[test]
fn l1_answers_that_are_none_are_not_taken_for_some() {
    for (kind, words) in [
        (Wrong::AnswerBit, "the PF does not answer"),
        (Wrong::ShortAnswer, "makes no sense"),
        (Wrong::WrongHead, "the admin queue has failed"),
        (Wrong::UndoneMessage, "the admin queue has failed"),
    ] {
        let function = InProcess::new(Model::new(Options::default()));
        function.with(|model, _| model.wrong = Some(kind));
        let start = Instant::now();
        let Err(cause) = open_with(Wishes::default())(Arc::clone(&function)) else { panic!("{kind:?}") };
        assert!(cause.to_string().contains(words), "{kind:?}: {cause}");
        assert!(start.elapsed() < Duration::from_millis(500));
        function.with(|model, _| model.wrong = None);
        assert!(open_with(Wishes::default())(function).is_ok(), "{kind:?}");
    }
}

#[test]
fn l1_an_admin_queue_that_goes_wrong_while_it_runs_is_recovered_from() {
    for kind in [Wrong::WrongHead, Wrong::UndoneMessage] {
        let mut exam = wrong(kind, Options::default());
        change(&exam, |model, bus| model.set_link(bus, true));
        assert!(exam.hears(|event| matches!(event, DeviceEvent::ResetNeeded { .. })), "{kind:?}");
        change(&exam, |model, _| model.wrong = None);
        assert!(exam.recovers() && exam.traffic_is_back(), "{kind:?}");
    }
}

#[test]
fn l1_a_pf_that_grants_what_nobody_asked_for_changes_nothing() {
    let function = InProcess::new(Model::new(Options::default()));
    function.with(|model, _| model.wrong = Some(Wrong::TooGenerous));
    let mut device = open_with(pairs(200))(Arc::clone(&function)).unwrap();
    let queues = device.start().unwrap();
    assert_eq!(queues.receive.len(), 4);
    device.stop(queues);
    assert_eq!(function.take_faults(), []);
}
