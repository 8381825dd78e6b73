//! The examination that every VF driver takes against the model of its device: the same questions for all.
//!
//! What is particular to a family (its mailbox, its PF, its ways to fail) is asked by its own tests, which drive the model
//! through [`Exam::function`]. Every part ends with [`Exam::no_faults`].

#![allow(clippy::panic, reason = "an exam is a test: it fails by panicking")]

use std::fs;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmd::frame::gather;
use pmd::{
    Accepted, Burst, Checksum, Completions, Device, DeviceError, DeviceEvent, Link, Offload, Queues,
    ReceiveQueue, Segment, Segmentation, Token, TransmitQueue,
};

use crate::in_process::InProcess;
use crate::model::Model;
use crate::packets::{Ip, Transport, check, partial};

/// Traffic is back after a fault within this time.
pub const RECOVERY: Duration = Duration::from_secs(2);
/// Largest frame that an exam makes, in bytes.
const ROOM: usize = 1 << 17;

/// A driver with the model of its device.
#[derive(Debug)]
pub struct Exam<M: Model> {
    /// The device's side.
    pub function: Arc<InProcess<M>>,
    /// The driver.
    pub device: Box<dyn Device>,
    queues: Option<Queues>,
    /// What `service` has told.
    pub events: Vec<DeviceEvent>,
    buffer: Box<[u8]>,
}

/// The numbered frame of a length: any damage, loss, repetition or change of order shows. From 60 bytes on.
pub fn numbered(number: u32, len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> =
        (0..len).map(|at| (at as u32).wrapping_mul(31).wrapping_add(number) as u8).collect();
    frame[..12].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame[14..18].copy_from_slice(&number.to_be_bytes());
    frame
}

/// The length of a numbered frame, all from 60 to `longest` in turn.
pub fn length(number: u32, longest: usize) -> usize {
    60 + (number as usize * 7) % (longest - 59)
}

impl<M: Model> Exam<M> {
    /// Opens the driver on a model with `open`, and starts it.
    ///
    /// # Panics
    /// Where it does not open or start.
    pub fn start<D: Device + 'static>(
        model: M,
        open: impl FnOnce(Arc<InProcess<M>>) -> Result<D, DeviceError>,
    ) -> Self {
        let function = InProcess::new(model);
        let device = open(Arc::clone(&function)).unwrap_or_else(|cause| panic!("not opened: {cause}"));
        let buffer = vec![0; ROOM].into_boxed_slice();
        let mut exam = Self { function, device: Box::new(device), queues: None, events: Vec::new(), buffer };
        exam.restart();
        exam
    }

    /// Starts the device.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn restart(&mut self) {
        self.queues = Some(self.device.start().unwrap_or_else(|cause| panic!("not started: {cause}")));
    }

    /// Stops the device.
    pub fn stop(&mut self) {
        if let Some(queues) = self.queues.take() {
            self.device.stop(queues);
        }
    }

    /// Its queues.
    ///
    /// # Panics
    /// Where the device is stopped.
    pub fn queues(&mut self) -> &mut Queues {
        self.queues.as_mut().unwrap_or_else(|| panic!("the device is stopped"))
    }

    /// Whether a link that is up is told within two seconds.
    pub fn link_comes_up(&mut self) -> bool {
        self.hears(|event| matches!(event, DeviceEvent::Link(Link::Up { .. })))
    }

    /// Whether an event is told within two seconds; those before it are forgotten, those with it kept.
    pub fn hears(&mut self, wanted: impl Fn(&DeviceEvent) -> bool) -> bool {
        let deadline = Instant::now() + RECOVERY;
        loop {
            let told = self.device.service();
            self.events.extend(told);
            if self.events.iter().any(&wanted) {
                self.events.retain(|event| !wanted(event));
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Does what the daemon does with a device that asks to be reset: stop, then start until that succeeds, for two
    /// seconds; whether it runs again.
    pub fn recovers(&mut self) -> bool {
        let deadline = Instant::now() + RECOVERY;
        self.stop();
        loop {
            let told = self.device.service();
            self.events.extend(told);
            match self.device.start() {
                Ok(queues) => {
                    self.queues = Some(queues);
                    return true;
                }
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                Err(_) => return false,
            }
        }
    }

    /// Sends one frame through transmit queue `queue`; whether it was taken.
    ///
    /// The frame is handed over in up to three pieces, none of which may be a word of the driver's own.
    pub fn send(&mut self, queue: usize, frame: &[u8], offload: Offload) -> bool {
        self.buffer[..frame.len()].copy_from_slice(frame);
        let Some(start) = NonNull::new(self.buffer.as_mut_ptr()) else { return false };
        // SAFETY: the buffer is longer than the frame and nobody has a reference to it while the burst is used; a driver
        // without guest memory copies what it is given.
        let whole = unsafe { Segment::new(start, frame.len() as u32) };
        let mut burst = Burst::new();
        // Headers that a NIC reads come in one piece.
        let first = if offload.is_done() { 13 } else { u32::from(offload.header_length).max(64) };
        let mut at = 0;
        for piece in [first, 200, u32::MAX] {
            let part = whole.part(at, piece.min(frame.len() as u32 - at));
            if part.len() > 0 && burst.push_segment(part).is_err() {
                return false;
            }
            at += part.len();
        }
        let taken = burst.finish_frame_with(Token(7), offload);
        let Some(queue) = self.queues().transmit.get_mut(queue) else { return false };
        queue.reclaim(&mut Completions::new());
        taken && queue.transmit(burst.frames()) == Accepted::Copied(1)
    }

    /// All frames that receive queue `queue` has, at most one burst, with what is known of them.
    pub fn receive(&mut self, queue: usize) -> Vec<(Vec<u8>, Offload)> {
        let mut burst = Burst::new();
        let Some(queue) = self.queues().receive.get_mut(queue) else { return Vec::new() };
        queue.receive(&mut burst);
        let mut frames = Vec::new();
        for (frame, segments) in burst.frames().iter() {
            let mut bytes = vec![0; frame.len() as usize];
            assert_eq!(gather(segments, &mut bytes), bytes.len());
            frames.push((bytes, *frame.offload()));
        }
        let tokens: Vec<Token> = burst.frames().iter().map(|(frame, _)| frame.token()).collect();
        burst.clear();
        tokens.into_iter().for_each(|token| queue.release(token));
        frames
    }

    /// Sends numbered frames `0..count` of 60 to `longest` bytes and expects each on the wire, whole and in order.
    ///
    /// # Panics
    /// When one is lost, damaged, repeated or out of order.
    pub fn sends_numbered_frames(&mut self, count: u32, longest: usize) {
        for number in 0..count {
            let frame = numbered(number, length(number, longest));
            let deadline = Instant::now() + RECOVERY;
            while !self.send(0, &frame, Offload::NONE) {
                assert!(Instant::now() < deadline, "frame {number} is not taken");
            }
            let sent = self.function.take_sent();
            assert!(sent.as_ref() == Some(&frame), "frame {number}: {:?} bytes", sent.map(|sent| sent.len()));
        }
        assert_eq!(self.function.take_sent(), None);
        self.no_faults();
    }

    /// Has numbered frames `0..count` of 60 to `longest` bytes arrive and expects each from receive queue 0, whole and in
    /// order; 20 are on their way at a time.
    ///
    /// # Panics
    /// When one is lost, damaged, repeated or out of order.
    pub fn receives_numbered_frames(&mut self, count: u32, longest: usize) {
        let (mut arrived, mut received) = (0, 0);
        let mut deadline = Instant::now() + RECOVERY;
        while received < count {
            while arrived < count && arrived - received < 20 {
                self.function.arrive(numbered(arrived, length(arrived, longest)));
                arrived += 1;
            }
            for (frame, offload) in self.receive(0) {
                assert!(frame == numbered(received, length(received, longest)), "frame {received}");
                assert!(offload.is_done());
                received += 1;
                deadline = Instant::now() + RECOVERY;
            }
            assert!(Instant::now() < deadline, "frame {received} is not received");
        }
        assert!(self.receive(0).is_empty());
        self.no_faults();
    }

    /// Leaves checksums of TCP and UDP over IPv4 and IPv6, with and without a VLAN tag, to the device, and checks them on
    /// the wire.
    ///
    /// # Panics
    /// When one is wrong, or a frame is not sent.
    pub fn fills_in_checksums(&mut self) {
        assert!(self.queues().transmit[0].capabilities().checksum);
        for (ip, transport, tagged) in kinds() {
            for len in [0, 1, 7, 1000] {
                let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
                let (frame, offload) = left_to_device(ip, transport, tagged, &payload);
                assert!(self.send(0, &frame, offload), "{ip:?} {transport:?}");
                let sent = self.function.take_sent().unwrap_or_default();
                let sent = untag(sent, tagged, ip.transport_at() + transport.header() + len);
                let seen = check(&sent).map(|seen| seen.payload);
                assert!(seen.as_ref() == Ok(&payload), "{ip:?} {transport:?} {tagged} {len}: {seen:?}");
            }
        }
        self.no_faults();
    }

    /// Has the device cut TCP over IPv4 and IPv6, with and without a VLAN tag, and checks each segment on the wire.
    ///
    /// # Panics
    /// When a segment is wrong, too long or missing.
    pub fn cuts_tcp(&mut self) {
        let capabilities = self.queues().transmit[0].capabilities();
        assert!(capabilities.tcp_v4);
        for (ip, _, tagged) in kinds().filter(|(ip, transport, _)| {
            *transport == Transport::Tcp && (*ip == Ip::V4 || capabilities.tcp_v6)
        }) {
            for (len, size) in [(1000, 1000), (1001, 1000), (9000, 1448), (60_000, 1400), (3000, 100)] {
                let payload: Vec<u8> = (0..len).map(|n: usize| ((n * 13) >> 3) as u8).collect();
                let (frame, offload) = left_to_device(ip, Transport::Tcp, tagged, &payload);
                let segmentation = if ip == Ip::V4 { Segmentation::TcpV4 } else { Segmentation::TcpV6 };
                let offload = Offload { segmentation, segment_size: size, ..offload };
                assert!(self.send(0, &frame, offload), "{ip:?} {len} {size}");
                let (mut joined, mut sequence) = (Vec::new(), None);
                while let Some(sent) = self.function.take_sent() {
                    let more = usize::from(size).min(len - joined.len());
                    let sent = untag(sent, tagged, ip.transport_at() + 20 + more);
                    let seen = check(&sent).unwrap_or_else(|fault| panic!("{ip:?} {len} {size}: {fault}"));
                    assert!(seen.payload.len() <= usize::from(size));
                    assert_eq!(seen.sequence, *sequence.get_or_insert(seen.sequence) + joined.len() as u32);
                    joined.extend(seen.payload);
                    let last = joined.len() == len;
                    assert_eq!(seen.flags & 8 != 0, last, "PSH is on the last segment only");
                }
                assert!(joined == payload, "{ip:?} {len} {size}: {} bytes", joined.len());
            }
        }
        self.no_faults();
    }

    /// Stops and starts it 100 times, with traffic each time, and expects no mapping, descriptor or file to leak.
    ///
    /// # Panics
    /// When something leaks or traffic stops.
    pub fn stops_and_starts_100_times(&mut self) {
        let mut first = None;
        for round in 0..100 {
            self.stop();
            let stopped = (self.function.mappings(), open_files());
            assert_eq!(*first.get_or_insert(stopped), stopped, "mappings and files after {round} rounds");
            self.restart();
            self.sends_numbered_frames(3, 1514);
            self.receives_numbered_frames(3, 1514);
        }
    }

    /// Whether traffic goes both ways, within two seconds.
    pub fn traffic_is_back(&mut self) -> bool {
        let deadline = Instant::now() + RECOVERY;
        while self.function.take_sent().is_some() {}
        let (out, back) = (numbered(1, 100), numbered(2, 200));
        let (mut sent, mut received) = (false, false);
        while Instant::now() < deadline && !(sent && received) {
            let told = self.device.service();
            self.events.extend(told);
            if !sent {
                self.send(0, &out, Offload::NONE);
                sent = std::iter::from_fn(|| self.function.take_sent()).any(|frame| frame == out);
            }
            if !received {
                self.function.arrive(back.clone());
                let queues = self.queues().receive.len();
                received = (0..queues).any(|n| self.receive(n).iter().any(|(frame, _)| *frame == back));
            }
        }
        sent && received
    }

    /// Expects that the driver has done nothing that it must not.
    ///
    /// # Panics
    /// With what it has done.
    pub fn no_faults(&self) {
        let faults: Vec<String> = self.function.take_faults().iter().map(ToString::to_string).collect();
        assert!(faults.is_empty(), "{faults:#?}");
    }
}

impl<M: Model> Drop for Exam<M> {
    fn drop(&mut self) {
        self.stop();
    }
}

fn kinds() -> impl Iterator<Item = (Ip, Transport, bool)> {
    [Ip::V4, Ip::V6].into_iter().flat_map(|ip| {
        [Transport::Tcp, Transport::Udp]
            .into_iter()
            .flat_map(move |transport| [false, true].map(|tagged| (ip, transport, tagged)))
    })
}

const TAG: [u8; 4] = [0x81, 0, 0x20, 7];

/// A frame whose checksum is left to the device, as the relay hands it over.
fn left_to_device(ip: Ip, transport: Transport, tagged: bool, payload: &[u8]) -> (Vec<u8>, Offload) {
    let mut frame = partial(ip, transport, 1000, payload);
    if tagged {
        frame.splice(12..12, TAG);
    }
    let start = ip.transport_at() + if tagged { TAG.len() } else { 0 };
    let offload = Offload {
        checksum: Checksum::Partial { start: start as u16, offset: transport.checksum_at() as u16 },
        header_length: (start + transport.header()) as u16,
        ..Offload::NONE
    };
    (frame, offload)
}

/// What is in a frame of at least `len` bytes behind its tag; what fills it up to the shortest frame is cut off.
fn untag(mut frame: Vec<u8>, tagged: bool, len: usize) -> Vec<u8> {
    if tagged {
        assert_eq!(frame.get(12..16), Some(&TAG[..]), "its tag");
        frame.drain(12..16);
    }
    frame.truncate(len.max(1));
    frame
}

/// Files that this process has open.
fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}
