//! Parts of the [examination](crate::exam) that kindred drivers take: those of Intel's VFs, which share rings and mailbox.

#![allow(clippy::panic, reason = "an exam is a test: it fails by panicking")]

use std::os::fd::AsFd;

use pmd::{
    Accepted, Armed, Burst, Checksum, Completions, DeviceError, DeviceEvent, Link, Offload, ReceiveQueue,
    Segmentation, Token, TransmitQueue,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::bus::Bus;
use crate::exam::{Exam, numbered};
use crate::guest::Guest;
use crate::model::Model;
use crate::packets::{Ip, Transport, check, packet, partial};

impl<M: Model> Exam<M> {
    /// Whether the operator is told something with these words within two seconds.
    pub fn tells(&mut self, words: &str) -> bool {
        self.hears(|event| matches!(event, DeviceEvent::Notice(notice) if notice.contains(words)))
    }

    /// Whether a reset is asked for within two seconds.
    pub fn asks_to_be_reset(&mut self) -> bool {
        self.hears(|event| matches!(event, DeviceEvent::ResetNeeded { .. }))
    }

    /// Whether the bell of receive queue `queue` has rung since the last call.
    pub fn rings(&mut self, queue: usize) -> bool {
        let Some(bell) = self.queues().receive.get(queue).and_then(ReceiveQueue::bell) else { return false };
        let mut looked = [PollFd::from_borrowed_fd(bell.as_fd(), PollFlags::IN)];
        let rung = poll(&mut looked, Some(&Timespec::default())) == Ok(1);
        let _ = rung.then(|| rustix::io::read(bell, &mut [0; 8]));
        rung
    }

    /// Sends the longest IP packet that there is, to be cut, with headers of 54 bytes.
    ///
    /// # Panics
    /// Where a segment is missing or wrong.
    pub fn cuts_the_longest_frame(&mut self) {
        let payload = vec![5; 65535 - 40];
        let offload = Offload {
            checksum: Checksum::Partial { start: 34, offset: 16 },
            segmentation: Segmentation::TcpV4,
            ecn: true,
            segment_size: 1448,
            header_length: 54,
        };
        assert!(self.send(0, &partial(Ip::V4, Transport::Tcp, 9, &payload), offload));
        let cut: Vec<_> = std::iter::from_fn(|| self.function.take_sent()).collect();
        assert_eq!(cut.len(), payload.len().div_ceil(1448));
        let sent = cut.iter().map(|frame| check(frame).map_or(0, |seen| seen.payload.len()));
        assert_eq!(sent.sum::<usize>(), payload.len());
        self.no_faults();
    }

    /// Has TCP and UDP arrive, right and wrong, and expects that what is right is said to be, and nothing of the rest.
    ///
    /// # Panics
    /// Where a verdict is another.
    pub fn judges_what_arrives(&mut self) {
        for ip in [Ip::V4, Ip::V6] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let right = packet(ip, transport, 9, b"hello");
                let wrong = [&right[..right.len() - 1], b"x"].concat();
                self.function.arrive(right.clone());
                self.function.arrive(wrong.clone());
                let received = self.receive(0);
                let verdicts: Vec<_> =
                    received.iter().map(|(frame, offload)| (frame, offload.checksum)).collect();
                let expected = [(&right, Checksum::Valid), (&wrong, Checksum::Unknown)];
                assert_eq!(verdicts, expected, "{ip:?} {transport:?}");
            }
        }
        self.function.arrive(numbered(1, 100));
        assert_eq!(self.receive(0)[0].1.checksum, Checksum::Unknown, "no TCP, no UDP");
        self.no_faults();
    }

    /// Has the link go and come three times, with this speed.
    ///
    /// # Panics
    /// Where that is not told each time, or traffic does not come back.
    pub fn tells_of_its_link(&mut self, set_link: impl Fn(&mut M, &mut Bus, bool), speed: u32) {
        assert!(self.link_comes_up());
        for _ in 0..3 {
            for (up, link) in [(false, Link::Down), (true, Link::Up { speed: Some(speed) })] {
                self.function.with(|model, bus| set_link(model, bus, up));
                assert!(self.hears(|event| *event == DeviceEvent::Link(link)));
            }
        }
        assert!(self.traffic_is_back());
        self.no_faults();
    }

    /// Of a VF to which nobody gave an address: one is drawn by lot, told, and kept over a stop.
    ///
    /// # Panics
    /// Where it is not.
    pub fn keeps_the_address_that_was_drawn(&mut self) {
        let mac = self.device.identity().mac;
        assert!(mac.is_some() && self.tells("drawn by lot"));
        self.stop();
        self.restart();
        assert_eq!(self.device.identity().mac, mac);
        self.no_faults();
    }

    /// Loses all interrupts, and expects that whoever arms again, as a worker does after its longest sleep, sees what is there.
    ///
    /// # Panics
    /// Where frames are not seen.
    pub fn loses_no_frames_with_its_interrupts(&mut self) {
        self.function.with(|_, bus| bus.lose_interrupts(true));
        self.sees_what_came_without_an_interrupt();
        self.no_faults();
    }

    /// Sleeps for a frame of which no interrupt tells.
    ///
    /// # Panics
    /// Where an interrupt came, or the frame is not seen.
    pub fn sees_what_came_without_an_interrupt(&mut self) {
        assert_eq!(self.queues().receive[0].arm(), Armed::Rings);
        self.function.arrive(numbered(1, 100));
        assert!(!self.rings(0));
        assert_eq!(self.queues().receive[0].arm(), Armed::Ready);
        assert_eq!(self.receive(0).len(), 1);
    }

    /// The device leaves: that is told once, nothing hangs, and its memory is given back.
    ///
    /// # Panics
    /// Where it is otherwise.
    pub fn leaves(&mut self) {
        self.function.set_gone(true);
        assert!(self.hears(|event| matches!(event, DeviceEvent::Gone { .. })));
        self.send(0, &numbered(1, 100), Offload::NONE);
        self.receive(0);
        self.stop();
        assert!(matches!(self.device.start(), Err(DeviceError::NotFound(_))));
        assert!(!self.device.service().iter().any(|event| matches!(event, DeviceEvent::Gone { .. })));
        assert_eq!(self.function.mappings(), 0);
    }

    /// Sends from a guest's memory a frame that is cut and one that is not, while the device, held by `hold`, does not look yet;
    /// the guest changes its headers meanwhile.
    ///
    /// # Panics
    /// Where other headers are sent than were handed over, or the frames do not come back.
    pub fn sends_from_guest_memory(&mut self, hold: impl Fn(&mut M, &mut Bus, bool)) {
        let guest = Guest::of(self, 1 << 20);
        let payload: Vec<u8> = (0..60_000u32).map(|n| ((n * 13) >> 3) as u8).collect();
        let frame = partial(Ip::V6, Transport::Tcp, 9, &payload);
        let offload = Offload {
            checksum: Checksum::Partial { start: 54, offset: 16 },
            segmentation: Segmentation::TcpV6,
            segment_size: 1428,
            header_length: 74,
            ..Offload::NONE
        };
        let plain = numbered(3, 1514);
        let mut burst = Burst::new();
        assert!(burst.push_whole(guest.write(4096, &frame), Token(1), offload));
        assert!(burst.push_whole(guest.write(1 << 19, &plain), Token(2), Offload::NONE));
        self.function.with(|model, bus| hold(model, bus, true));
        assert_eq!(self.queues().transmit[0].transmit(burst.frames()), Accepted::Borrowed(2));
        // The guest thinks better of its headers: they are sent as they were checked.
        guest.write(4096, &[0xff; 74]);
        self.function.with(|model, bus| hold(model, bus, false));
        let mut sent: Vec<_> = std::iter::from_fn(|| self.function.take_sent()).collect();
        assert_eq!(sent.pop(), Some(plain));
        let joined: Vec<u8> = sent
            .iter()
            .flat_map(|frame| check(frame).unwrap_or_else(|fault| panic!("{fault}")).payload)
            .collect();
        assert!(joined == payload);
        let mut done = Completions::new();
        self.queues().transmit[0].reclaim(&mut done);
        assert_eq!(done[..], [Token(1), Token(2)]);
        self.no_faults();
    }
}
