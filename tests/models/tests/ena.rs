//! The `ena` driver against our model of the device: rung L1.

#![allow(clippy::panic, reason = "tests fail by panicking")]

use std::num::NonZero;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use models::ena::{Ena as Device, Llq, Order, Settings, Wrong};
use models::exam::{RECOVERY, numbered};
use models::packets::{Ip, Transport, packet};
use models::{Exam, InProcess, Stall};
use pmd::device::{Armed, ReceiveQueue as _};
use pmd::ena::{Ena, Patience, Setup};
use pmd::pci::PciFunction;
use pmd::vf::{Place, Vf, Wishes};
use pmd::{
    Address, Checksum, Device as _, DeviceError, DeviceEvent, Link, MacAddress, Offload, TransmitQueue as _,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Limits that no working model comes near to, and that a test can wait for.
const PATIENCE: Patience = Patience {
    longest: Duration::from_millis(200),
    read: Duration::from_millis(30),
    keep_alive: Duration::from_millis(600),
    completion: Duration::from_millis(300),
};

fn setup(wishes: Wishes) -> Setup {
    let address = Address::new(0, 0, 6, 0).unwrap_or_else(|| panic!("no address"));
    Setup { place: Place { address, pf: None }, wishes, patience: PATIENCE }
}

fn wishes(queue_pairs: u16) -> Wishes {
    let queue_pairs = NonZero::new(queue_pairs).unwrap_or(NonZero::<u16>::MIN);
    Wishes { queue_pairs, ..Wishes::default() }
}

fn open(function: Arc<InProcess<Device>>, pairs: u16) -> Result<Vf<Ena>, DeviceError> {
    Ena::open(function as Arc<dyn PciFunction>, setup(wishes(pairs)))
}

fn exam(settings: Settings) -> Exam<Device> {
    Exam::start(Device::new(settings), |function| open(function, 1))
}

fn generations() -> [Settings; 3] {
    [Settings::first(), Settings::nitro(), Settings::newest()]
}

/// Whether the driver asks for a reset within two seconds, with a reason that says so, and traffic is back within two more.
fn is_reset_for(exam: &mut Exam<Device>, words: &str) -> bool {
    let heard =
        exam.hears(|event| matches!(event, DeviceEvent::ResetNeeded { reason } if reason.contains(words)));
    exam.function.with(|model, _| {
        model.wrong = None;
        model.troubles = Default::default();
        model.order = Order::InOrder;
    });
    heard && exam.recovers() && exam.traffic_is_back()
}

mod what_every_driver_shows {
    use super::*;

    #[test]
    fn the_link_comes_up_with_the_address_that_the_network_gave() {
        for settings in generations() {
            let (mac, speed) = (settings.mac, settings.speed);
            let mut exam = exam(settings);
            let up = Link::Up { speed };
            assert!(exam.hears(|event| *event == DeviceEvent::Link(up)), "{:?}", exam.events);
            let identity = exam.device.identity();
            assert_eq!((identity.mac, identity.max_frame), (Some(MacAddress(mac)), 9234));
            assert!(identity.filters_by_mac);
            let told = |event: &DeviceEvent| matches!(event, DeviceEvent::Notice(text) if text.contains("no promiscuous mode"));
            assert!(exam.events.iter().any(told), "{:?}", exam.events);
            exam.no_faults();
        }
    }

    #[test]
    fn a_hundred_thousand_frames_each_way_with_descriptors_in_memory_of_the_host() {
        let mut exam = exam(Settings::first());
        exam.sends_numbered_frames(100_000, 1514);
        exam.receives_numbered_frames(100_000, 1514);
    }

    #[test]
    fn a_hundred_thousand_frames_each_way_with_descriptors_in_the_device() {
        let mut exam = exam(Settings::newest());
        exam.sends_numbered_frames(100_000, 1514);
        exam.receives_numbered_frames(100_000, 1514);
    }

    #[test]
    fn jumbo_frames_each_way() {
        for settings in generations() {
            let mut exam = exam(settings);
            exam.sends_numbered_frames(5_000, 9230);
            exam.receives_numbered_frames(5_000, 9230);
        }
    }

    #[test]
    fn checksums_and_segmentation_are_right_on_the_far_side() {
        for settings in generations() {
            let mut exam = exam(settings.clone());
            exam.fills_in_checksums();
            let capabilities = exam.queues().transmit[0].capabilities();
            let bits = settings.transmit_offloads;
            assert_eq!(capabilities.tcp_v4, bits >> 5 & 1 != 0);
            assert_eq!((capabilities.tcp_v6, capabilities.ecn), (bits >> 6 & 1 != 0, bits >> 7 & 1 != 0));
            if capabilities.tcp_v4 {
                exam.cuts_tcp();
            }
            // Frames with and without work after each other: what the device remembers is not used for the wrong one.
            exam.sends_numbered_frames(50, 1514);
            exam.fills_in_checksums();
        }
    }

    #[test]
    fn a_device_that_fills_in_checksums_over_ipv4_alone_is_left_none() {
        let mut exam = exam(Settings { transmit_offloads: 0b11, ..Settings::nitro() });
        assert!(!exam.queues().transmit[0].capabilities().checksum);
        exam.sends_numbered_frames(10, 1514);
    }

    #[test]
    fn tagged_frames_pass_both_ways_as_they_are() {
        for settings in generations() {
            let mut exam = exam(settings);
            let mut frame = packet(Ip::V4, Transport::Udp, 9, &[7; 1468]);
            frame.splice(12..12, [0x81, 0, 0x60, 5]);
            assert!(exam.send(0, &frame, Offload::NONE));
            assert_eq!(exam.function.take_sent(), Some(frame.clone()));
            exam.function.arrive(frame.clone());
            let received: Vec<Vec<u8>> = exam.receive(0).into_iter().map(|(frame, _)| frame).collect();
            assert_eq!(received, [frame]);
            exam.no_faults();
        }
    }

    #[test]
    fn checksums_of_frames_that_arrive_are_believed_when_they_are_right() {
        for settings in generations() {
            let verifies_v6 = settings.receive_offloads >> 2 & 1 != 0;
            let mut exam = exam(settings);
            for ip in [Ip::V4, Ip::V6] {
                for transport in [Transport::Tcp, Transport::Udp] {
                    let good = packet(ip, transport, 1, b"hello");
                    let mut bad = good.clone();
                    *bad.last_mut().unwrap() ^= 1;
                    exam.function.arrive(good);
                    exam.function.arrive(bad);
                    let seen: Vec<Checksum> =
                        exam.receive(0).iter().map(|(_, offload)| offload.checksum).collect();
                    assert!(ip == Ip::V4 || verifies_v6);
                    assert_eq!(seen, [Checksum::Valid, Checksum::Unknown], "{ip:?} {transport:?}");
                }
            }
            exam.no_faults();
        }
    }

    #[test]
    fn flows_are_spread_over_four_queues_and_each_stays_on_one() {
        let mut exam = Exam::start(Device::new(Settings::newest()), |function| open(function, 4));
        assert_eq!((exam.queues().receive.len(), exam.queues().transmit.len()), (4, 4));
        let mut frames = [0; 4];
        // The hash's key is drawn: so many flows that hardly any key leaves a queue few.
        for flow in 0..256 {
            let frame = packet(Ip::V4, Transport::Udp, flow * 251, b"flow");
            let mut queues = Vec::new();
            for _ in 0..3 {
                exam.function.arrive(frame.clone());
                let found = (0..4).find(|queue| !exam.receive(*queue).is_empty()).unwrap();
                queues.push(found);
                frames[found] += 1;
            }
            queues.dedup();
            assert_eq!(queues.len(), 1, "flow {flow}");
        }
        assert!(frames.iter().all(|count| *count >= 48), "{frames:?}");
        for queue in 0..4 {
            let frame = numbered(queue as u32, 700);
            assert!(exam.send(queue, &frame, Offload::NONE));
            assert_eq!(exam.function.take_sent(), Some(frame));
        }
        exam.no_faults();
    }

    #[test]
    fn fewer_queues_than_wanted_are_told() {
        let mut exam = Exam::start(Device::new(Settings::first()), |function| open(function, 8));
        assert_eq!(exam.queues().receive.len(), 2);
        let told = |event: &DeviceEvent| matches!(event, DeviceEvent::Notice(text) if text.contains("8 queues") && text.contains("has 2"));
        assert!(exam.hears(told), "{:?}", exam.events);
        let spread = |event: &DeviceEvent| matches!(event, DeviceEvent::Notice(text) if text.contains("does not let flows be spread"));
        assert!(exam.hears(spread), "{:?}", exam.events);
    }

    #[test]
    fn a_wish_for_another_address_is_answered() {
        let wished = MacAddress([0x52, 0x54, 0, 0, 0, 9]);
        let mut exam = Exam::start(Device::new(Settings::nitro()), |function| {
            let wishes = Wishes { mac: Some(wished), ..Wishes::default() };
            Ena::open(function as Arc<dyn PciFunction>, setup(wishes))
        });
        let told = |event: &DeviceEvent| matches!(event, DeviceEvent::Notice(text) if text.contains(&wished.to_string()));
        assert!(exam.hears(told), "{:?}", exam.events);
        assert_ne!(exam.device.identity().mac, Some(wished));
    }

    #[test]
    fn a_sleeper_is_woken_by_a_frame_for_its_queue_and_no_other() {
        let mut exam = Exam::start(Device::new(Settings::newest()), |function| open(function, 4));
        let bells: Vec<_> = exam
            .queues()
            .receive
            .iter()
            .map(|queue| queue.bell().unwrap().try_clone_to_owned().unwrap())
            .collect();
        let rings = |queue: usize| {
            let mut fds = [PollFd::new(&bells[queue], PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
        };
        exam.function.arrive(numbered(0, 60));
        assert!((0..4).all(|queue| !rings(queue)), "nobody sleeps");
        // What came while nobody slept may still wake who falls asleep.
        (0..4).for_each(|queue| {
            exam.receive(queue);
            assert_eq!(exam.queues().receive[queue].arm(), Armed::Rings);
            let _ = rustix::io::read(&bells[queue], &mut [0; 8]);
        });
        for flow in 0..32 {
            let armed: Vec<Armed> = exam.queues().receive.iter_mut().map(|queue| queue.arm()).collect();
            assert_eq!(armed, [Armed::Rings; 4]);
            exam.function.arrive(packet(Ip::V6, Transport::Tcp, flow * 1019, b""));
            let woken: Vec<usize> = (0..4).filter(|queue| rings(*queue)).collect();
            for queue in &woken {
                assert_eq!(exam.receive(*queue).len(), 1);
                rustix::io::read(&bells[*queue], &mut [0; 8]).unwrap();
            }
            assert_eq!(woken.len(), 1, "flow {flow}");
        }
        exam.no_faults();
    }

    #[test]
    fn counters_go_on_over_a_reset() {
        let mut exam = exam(Settings::newest());
        exam.sends_numbered_frames(5, 1514);
        exam.stop();
        exam.restart();
        exam.sends_numbered_frames(2, 1514);
        exam.receives_numbered_frames(3, 1514);
        let now = exam.device.statistics();
        assert_eq!((now.tx_frames, now.rx_frames, now.rx_missed, now.tx_errors), (7, 3, 0, 0));
        exam.function.with(|model, _| model.allowances = [1, 2, 3, 4, 5, 600]);
        let named = exam.device.counters();
        let value = |wanted: &str| named.iter().find(|(name, _)| *name == wanted).unwrap().1;
        assert_eq!((value("bw_in_allowance_exceeded"), value("linklocal_allowance_exceeded")), (1, 5));
        assert_eq!(value("conntrack_allowance_available"), 600);
        // More than the ring and the buffers hold.
        for number in 0..1100 {
            exam.function.arrive(numbered(number, 60));
        }
        let missed = exam.device.statistics().rx_missed;
        assert!((77..77 + 32).contains(&missed), "{missed}");
        let named = exam.device.counters();
        assert!(named.contains(&("rx_overruns", missed)) && named.contains(&("pps_allowance_exceeded", 3)));
    }

    #[test]
    fn older_devices_count_allowances_as_one() {
        let mut exam = exam(Settings::nitro());
        exam.function.with(|model, _| model.allowances = [1, 2, 3, 4, 5, 6]);
        let named = exam.device.counters();
        assert!(named.contains(&("conntrack_allowance_exceeded", 4)), "{named:?}");
        assert!(named.contains(&("conntrack_allowance_available", 0)), "{named:?}");
    }
}

mod low_latency_queues {
    use super::*;

    #[test]
    fn an_uncached_mapping_is_told_once() {
        let mut exam = Exam::start(Device::new(Settings::nitro()), |function| {
            function.refuse_write_combining();
            open(function, 2)
        });
        let told = |event: &DeviceEvent| matches!(event, DeviceEvent::Notice(text) if text.contains("write-combining"));
        assert!(exam.hears(told), "{:?}", exam.events);
        exam.stop();
        exam.restart();
        let _ = exam.device.service();
        let events = exam.device.service();
        assert!(!events.iter().any(told), "{events:?}");
        exam.sends_numbered_frames(100, 1514);
    }

    #[test]
    fn a_write_combining_mapping_is_not_told() {
        let mut exam = exam(Settings::nitro());
        assert!(exam.link_comes_up());
        let told = |event: &DeviceEvent| matches!(event, DeviceEvent::Notice(text) if text.contains("write-combining"));
        assert!(!exam.events.iter().any(told), "{:?}", exam.events);
    }

    #[test]
    fn entries_of_every_size_are_filled() {
        for entries in [1, 2, 4] {
            let llq =
                Some(Llq { entries, recommended: 1, depth: 512, meta_always: entries == 4, burst: 2048 });
            let mut exam = exam(Settings { llq, ..Settings::newest() });
            exam.sends_numbered_frames(2_000, 9230);
            exam.fills_in_checksums();
            exam.cuts_tcp();
        }
    }

    #[test]
    fn entries_are_wide_where_the_device_recommends_it() {
        for (recommended, headers) in [(4, 224), (1, 96), (0, 96)] {
            let llq = Some(Llq { entries: 5, recommended, depth: 512, meta_always: true, burst: 2048 });
            let mut exam = exam(Settings { llq, ..Settings::newest() });
            assert_eq!(exam.queues().transmit[0].capabilities().limits.headers, headers);
            exam.sends_numbered_frames(1_000, 9230);
            exam.fills_in_checksums();
            exam.cuts_tcp();
        }
    }

    #[test]
    fn a_long_burst_is_cut_where_the_device_wants_a_doorbell() {
        let mut exam = exam(Settings::newest());
        let mut bytes: Vec<Vec<u8>> =
            (0..32).map(|number| numbered(number, 60 + 50 * number as usize)).collect();
        let mut burst = pmd::Burst::new();
        for (number, frame) in bytes.iter_mut().enumerate() {
            let start = std::ptr::NonNull::new(frame.as_mut_ptr()).unwrap();
            // SAFETY: the frames outlive the burst and nobody touches them meanwhile.
            let segment = unsafe { pmd::Segment::new(start, frame.len() as u32) };
            assert!(burst.push(segment, pmd::Token(number as u32)));
        }
        let (_, before) = exam.function.accesses();
        let accepted = exam.queues().transmit[0].transmit(burst.frames());
        assert_eq!(accepted, pmd::Accepted::Copied(32));
        // 8 entries of 16 words a doorbell.
        assert_eq!(exam.function.accesses().1 - before, 32 * 16 + 4);
        for frame in bytes {
            assert_eq!(exam.function.take_sent(), Some(frame));
        }
        exam.no_faults();
    }

    #[test]
    fn a_device_that_refuses_them_gets_descriptors_in_memory_of_the_host() {
        let llq = Some(Llq { entries: 0, recommended: 1, depth: 512, meta_always: false, burst: 0 });
        let mut exam = exam(Settings { llq, ..Settings::nitro() });
        exam.sends_numbered_frames(1_000, 1514);
        exam.fills_in_checksums();
    }
}

mod completions {
    use super::*;

    #[test]
    fn frames_may_be_completed_in_any_order() {
        for settings in generations() {
            let mut exam = exam(settings);
            exam.function.with(|model, _| model.order = Order::Reversed);
            exam.sends_numbered_frames(10_000, 1514);
            exam.sends_numbered_frames(2_000, 9000);
            assert!(
                !exam.device.service().iter().any(|event| matches!(event, DeviceEvent::ResetNeeded { .. }))
            );
        }
    }

    #[test]
    fn a_device_that_completes_nothing_takes_a_ring_and_is_reset() {
        for settings in generations() {
            let mut exam = exam(settings);
            exam.function.with(|model, _| model.order = Order::Held);
            let taken =
                (0..2000).take_while(|number| exam.send(0, &numbered(*number, 60), Offload::NONE)).count();
            assert!((500..1024).contains(&taken), "{taken}");
            let start = Instant::now();
            let looking = |exam: &mut Exam<Device>| {
                while start.elapsed() < RECOVERY {
                    exam.send(0, &numbered(0, 60), Offload::NONE);
                    let told = exam.device.service();
                    if told.iter().any(|event| {
                        matches!(event, DeviceEvent::ResetNeeded { reason } if reason.contains("finished none of its frames"))
                    }) {
                        return true;
                    }
                    thread::sleep(Duration::from_millis(5));
                }
                false
            };
            assert!(looking(&mut exam));
            exam.function.with(|model, _| model.order = Order::InOrder);
            assert!(exam.recovers() && exam.traffic_is_back());
            assert!(exam.function.with(|model, _| model.resets.contains(&3)));
            exam.no_faults();
        }
    }

    #[test]
    fn frames_that_the_device_could_not_send_are_counted() {
        let mut exam = exam(Settings::nitro());
        exam.function.with(|model, _| model.troubles.send_errors = true);
        for number in 0..3 {
            assert!(exam.send(0, &numbered(number, 60), Offload::NONE));
        }
        exam.function.with(|model, _| model.troubles.send_errors = false);
        exam.send(0, &numbered(4, 60), Offload::NONE);
        assert!(exam.device.statistics().tx_errors >= 3);
        assert!(exam.traffic_is_back());
        exam.no_faults();
    }

    #[test]
    fn lost_interrupts_stop_no_traffic() {
        let mut exam = exam(Settings::newest());
        exam.function.with(|_, bus| bus.lose_interrupts(true));
        exam.sends_numbered_frames(3_000, 1514);
        exam.receives_numbered_frames(3_000, 1514);
    }
}

mod troubles {
    use super::*;

    #[test]
    fn a_link_that_goes_and_comes_is_told() {
        let mut exam = exam(Settings::newest());
        assert!(exam.link_comes_up());
        exam.function.with(|model, bus| model.set_link(bus, false));
        assert!(exam.hears(|event| *event == DeviceEvent::Link(Link::Down)));
        exam.function.with(|model, bus| model.set_link(bus, true));
        assert!(exam.link_comes_up());
        assert!(exam.traffic_is_back());
        exam.no_faults();
    }

    #[test]
    fn a_device_that_does_not_say_that_it_lives_is_reset() {
        let mut exam = exam(Settings::nitro());
        exam.function.with(|model, _| model.troubles.no_keep_alive = true);
        assert!(is_reset_for(&mut exam, "that it lives"), "{:?}", exam.events);
        assert!(exam.function.with(|model, _| model.resets.contains(&1)));
        exam.no_faults();
    }

    #[test]
    fn the_device_says_itself_how_long_it_may_be_silent() {
        let mut exam = exam(Settings { hints: [0, 100, 0, 0], ..Settings::nitro() });
        exam.function.with(|model, _| model.troubles.no_keep_alive = true);
        let start = Instant::now();
        assert!(is_reset_for(&mut exam, "100ms"), "{:?}", exam.events);
        assert!(start.elapsed() < Duration::from_millis(500));
        // And it may want none at all.
        exam.function.with(|model, bus| model.tell_hints(bus, [0, 0xffff, 0, 0]));
        exam.device.service();
        exam.function.with(|model, _| model.troubles.no_keep_alive = true);
        thread::sleep(Duration::from_millis(700));
        assert!(!exam.device.service().iter().any(|event| matches!(event, DeviceEvent::ResetNeeded { .. })));
    }

    #[test]
    fn a_device_that_lives_is_left_alone() {
        let mut exam = exam(Settings::nitro());
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(1300) {
            let told = exam.device.service();
            assert!(!told.iter().any(|event| matches!(event, DeviceEvent::ResetNeeded { .. })), "{told:?}");
            thread::sleep(Duration::from_millis(20));
        }
        exam.no_faults();
    }

    #[test]
    fn fatal_errors_and_requests_are_answered_with_a_reset() {
        for settings in [Settings::first(), Settings::newest()] {
            let mut exam = exam(settings);
            exam.function.with(|model, bus| model.tell_fatal(bus));
            assert!(is_reset_for(&mut exam, "fatal error"), "{:?}", exam.events);
            exam.function.with(|model, bus| model.ask_for_reset(bus));
            assert!(is_reset_for(&mut exam, "asks to be reset"), "{:?}", exam.events);
            exam.function.with(|model, _| model.troubles.fatal = true);
            assert!(is_reset_for(&mut exam, "only a reset ends"), "{:?}", exam.events);
            exam.no_faults();
        }
    }

    #[test]
    fn warnings_are_told_and_nothing_else() {
        let mut exam = exam(Settings::newest());
        exam.function.with(|model, bus| model.tell_warning(bus));
        assert!(exam.hears(|event| matches!(event, DeviceEvent::Notice(text) if text.contains("warns"))));
        assert!(exam.traffic_is_back());
        let warns =
            |event: &DeviceEvent| matches!(event, DeviceEvent::Notice(text) if text.contains("warns"));
        for _ in 0..3 {
            exam.function.with(|model, bus| model.tell_warning(bus));
            let told = exam.device.service();
            assert!(!told.iter().any(warns), "each is told once: {told:?}");
        }
    }

    #[test]
    fn a_silent_admin_queue_is_noticed_and_the_device_reset() {
        let mut exam = exam(Settings::newest());
        exam.function.with(|model, _| model.troubles.silent_admin = true);
        exam.device.statistics();
        assert!(is_reset_for(&mut exam, "admin queue"), "{:?}", exam.events);
        exam.no_faults();
    }

    #[test]
    fn register_reads_that_are_not_answered_are_noticed() {
        let mut exam = exam(Settings::newest());
        exam.function.with(|model, _| model.troubles.silent_reads = true);
        assert!(is_reset_for(&mut exam, "register reads"), "{:?}", exam.events);
        exam.no_faults();
    }

    #[test]
    fn a_device_that_was_reset_behind_the_drivers_back_is_noticed() {
        let mut exam = exam(Settings::nitro());
        exam.function.with(models::Model::reset);
        assert!(exam.hears(|event| matches!(event, DeviceEvent::ResetNeeded { .. })), "{:?}", exam.events);
        let _ = exam.function.take_faults();
        assert!(exam.recovers() && exam.traffic_is_back());
    }

    #[test]
    fn a_device_that_has_left_is_told_once() {
        let mut exam = exam(Settings::newest());
        exam.function.set_gone(true);
        assert!(exam.hears(|event| matches!(event, DeviceEvent::Gone { .. })));
        assert!(!exam.device.service().iter().any(|event| matches!(event, DeviceEvent::Gone { .. })));
        let start = Instant::now();
        exam.stop();
        assert!(start.elapsed() < Duration::from_millis(100));
        assert!(matches!(exam.device.start(), Err(DeviceError::NotFound(_))));
    }

    #[test]
    fn a_device_that_cannot_be_made_quiet_is_reset_from_outside_in_time() {
        let mut exam = exam(Settings::newest());
        exam.function.with(|model, _| {
            model.troubles.silent_admin = true;
            model.troubles.stuck_reset = true;
        });
        let start = Instant::now();
        let count = exam.function.resets();
        // Its counters are asked for before: that time is not the reset's.
        exam.stop();
        assert!(start.elapsed() < PATIENCE.longest + Duration::from_millis(100), "{:?}", start.elapsed());
        assert_eq!(exam.function.resets(), count + 1);
        exam.function.with(|model, _| model.troubles = Default::default());
        exam.restart();
        assert!(exam.traffic_is_back());
    }

    #[test]
    fn what_stands_in_the_way_of_opening_is_said() {
        type Act = fn(&mut Device);
        let acts: [(Act, &str); 5] = [
            (|model| model.troubles.silent_admin = true, "does not answer"),
            (|model| model.troubles.silent_reads = true, "register read"),
            (|model| model.troubles.stuck_reset = true, "reset does not end"),
            (|model| model.troubles.refuse = Some((8, 1)), "device attributes: it refuses"),
            (|model| model.wrong = Some(Wrong::ReplyBit), "what it was not asked"),
        ];
        for (act, words) in acts {
            let mut model = Device::new(Settings::newest());
            act(&mut model);
            let error = open(InProcess::new(model), 1).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("0000:00:06.0"), "{error}");
        }
        let model = Device::new(Settings { dma_bits: 32, ..Settings::newest() });
        assert!(open(InProcess::new(model), 1).is_ok(), "short addresses are enough here");
    }

    #[test]
    fn a_queue_that_is_not_created_leaves_nothing_behind() {
        let function = InProcess::new(Device::new(Settings::newest()));
        let mut device = open(Arc::clone(&function), 2).unwrap();
        let before = function.mappings();
        function.with(|model, _| model.troubles.refuse = Some((1, 1)));
        let error = device.start().unwrap_err().to_string();
        assert!(error.contains("does not create a queue") && error.contains("no resources"), "{error}");
        assert_eq!(function.mappings(), before);
        function.with(|model, _| model.troubles = Default::default());
        let queues = device.start().unwrap();
        device.stop(queues);
        assert!(function.take_faults().is_empty());
    }
}

mod devices_that_are_wrong {
    use super::*;

    fn wrong(settings: Settings, wrong: Wrong) -> Exam<Device> {
        let exam = exam(settings);
        exam.function.with(|model, _| model.wrong = Some(wrong));
        exam
    }

    /// Frames that the driver delivered of ten that arrived.
    fn delivered(exam: &mut Exam<Device>, len: usize) -> usize {
        let mut count = 0;
        for number in 0..10 {
            let frame = numbered(number, len);
            exam.function.arrive(frame.clone());
            for (received, _) in exam.receive(0) {
                assert!(received == frame, "a damaged frame");
                count += 1;
            }
        }
        count
    }

    #[test]
    fn frames_longer_than_their_buffers_are_dropped_and_counted() {
        let mut exam = wrong(Settings::nitro(), Wrong::Length);
        assert_eq!(delivered(&mut exam, 100), 0);
        assert_eq!(exam.device.statistics().rx_errors, 10);
        exam.function.with(|model, _| model.wrong = None);
        assert!(exam.traffic_is_back());
    }

    #[test]
    fn frames_that_do_not_begin_where_their_buffers_do_are_dropped_and_counted() {
        let mut exam = wrong(Settings::nitro(), Wrong::Offset);
        assert_eq!(delivered(&mut exam, 100), 0);
        assert_eq!(exam.device.statistics().rx_errors, 10);
    }

    #[test]
    fn a_buffer_that_the_device_does_not_have_ends_in_a_reset() {
        let mut exam = wrong(Settings::nitro(), Wrong::StrayBuffer);
        assert_eq!(delivered(&mut exam, 100), 0);
        assert!(is_reset_for(&mut exam, "returned a receive buffer"), "{:?}", exam.events);
        assert!(exam.function.with(|model, _| model.resets.contains(&4)));
    }

    #[test]
    fn a_frame_that_begins_twice_ends_in_a_reset() {
        let mut exam = wrong(Settings::nitro(), Wrong::FirstAgain);
        assert_eq!(delivered(&mut exam, 5000), 0);
        assert!(is_reset_for(&mut exam, "impossible receive completion"), "{:?}", exam.events);
    }

    #[test]
    fn a_frame_that_is_completed_twice_ends_in_a_reset() {
        for settings in generations() {
            let mut exam = wrong(settings, Wrong::CompletedTwice);
            exam.send(0, &numbered(0, 60), Offload::NONE);
            exam.send(0, &numbered(1, 60), Offload::NONE);
            assert!(is_reset_for(&mut exam, "completed a frame"), "{:?}", exam.events);
            assert!(exam.function.with(|model, _| model.resets.contains(&5)));
        }
    }

    #[test]
    fn reserved_bits_of_a_device_that_promised_none_end_in_a_reset() {
        let mut exam = wrong(Settings::newest(), Wrong::ReservedBit);
        exam.send(0, &numbered(0, 60), Offload::NONE);
        exam.send(0, &numbered(1, 60), Offload::NONE);
        assert!(is_reset_for(&mut exam, "impossible transmit completion"), "{:?}", exam.events);
        exam.function.with(|model, _| model.wrong = Some(Wrong::ReservedBit));
        assert_eq!(delivered(&mut exam, 100), 0);
        assert!(is_reset_for(&mut exam, "impossible receive completion"), "{:?}", exam.events);
        // From others, they mean nothing.
        let mut exam = wrong(Settings::nitro(), Wrong::ReservedBit);
        assert_eq!(delivered(&mut exam, 100), 10);
    }

    #[test]
    fn completions_without_a_phase_are_not_taken_for_new_ones() {
        let mut exam = wrong(Settings::first(), Wrong::Phase);
        // The first lap cannot be told; of the second, nothing is believed.
        let mut taken = 0;
        for number in 0..5000 {
            taken += u32::from(exam.send(0, &numbered(number, 60), Offload::NONE));
        }
        assert!((1024..=2048).contains(&taken), "{taken}");
        let start = Instant::now();
        let mut told = false;
        while !told && start.elapsed() < RECOVERY {
            exam.send(0, &numbered(0, 60), Offload::NONE);
            told = exam.device.service().iter().any(|event| matches!(event, DeviceEvent::ResetNeeded { .. }));
            thread::sleep(Duration::from_millis(5));
        }
        assert!(told);
        exam.function.with(|model, _| model.wrong = None);
        assert!(exam.recovers() && exam.traffic_is_back());
    }

    #[test]
    fn a_device_that_writes_nothing_back_delivers_nothing() {
        let mut exam = wrong(Settings::nitro(), Wrong::NoWriteBack);
        assert_eq!(delivered(&mut exam, 100), 0);
        exam.function.with(|model, _| model.wrong = None);
        assert!(exam.traffic_is_back());
    }

    #[test]
    fn a_device_that_never_completes_is_reset() {
        let mut exam = exam(Settings::newest());
        exam.notices_a_stall(Stall {
            set: |model, _, stalls| model.wrong = stalls.then_some(Wrong::NoCompletion),
            set_link: |model, bus, up| model.set_link(bus, up),
            limit: PATIENCE.completion,
            worker_looks: true,
        });
        assert!(
            exam.function.with(|model, _| model.resets.contains(&3)),
            "with the reason that the device knows"
        );
    }

    #[test]
    fn a_device_that_interrupts_nobody_is_polled() {
        let mut exam = wrong(Settings::newest(), Wrong::NoInterrupt);
        exam.receives_numbered_frames(100, 1514);
        assert_eq!(exam.queues().receive[0].arm(), Armed::Rings);
        exam.function.arrive(numbered(0, 60));
        assert_eq!(exam.queues().receive[0].arm(), Armed::Ready);
    }
}
