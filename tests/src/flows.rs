//! Numbered frames of several flows, and a check that each flow comes back whole and in order.

use std::time::Duration;

use relay::driver::nic::GuestNic;

use crate::wait::within;
use models::packets::{Ip, Transport, packet};

/// Frames under way at once on a queue pair, at most.
const WINDOW: u32 = 100;

/// Writes frames of some flows and checks those that come back.
#[derive(Debug)]
pub struct Flows {
    /// A whole frame of each flow, of the longest size.
    templates: Vec<Vec<u8>>,
    sizes: Vec<usize>,
    /// Frames of each flow that were sent.
    pub sent: Vec<u32>,
    /// Frames of each flow that came back.
    pub received: Vec<u32>,
    scratch: Vec<u8>,
}

/// Where the number of a frame stands: behind Ethernet, IPv4 and UDP.
const NUMBER: usize = 14 + 20 + 8;

impl Flows {
    /// `flows` UDP flows whose frames have these sizes (60 bytes at least) in turn.
    pub fn new(flows: u16, sizes: &[usize]) -> Self {
        let longest = sizes.iter().copied().max().unwrap_or(60);
        let template = |flow: u16| {
            let payload: Vec<u8> =
                (0..longest - NUMBER).map(|at| (at * 7 + usize::from(flow)) as u8).collect();
            packet(Ip::V4, Transport::Udp, 1000 + flow, &payload)
        };
        Self {
            templates: (0..flows).map(template).collect(),
            sizes: sizes.to_vec(),
            sent: vec![0; flows.into()],
            received: vec![0; flows.into()],
            scratch: Vec::new(),
        }
    }

    /// The frame with this number of a flow.
    pub fn write(&mut self, flow: usize, number: u32) -> &[u8] {
        let size = self.sizes[number as usize % self.sizes.len()];
        self.scratch.clear();
        self.scratch.extend_from_slice(&self.templates[flow][..size]);
        self.scratch[NUMBER..NUMBER + 2].copy_from_slice(&(flow as u16).to_be_bytes());
        self.scratch[NUMBER + 2..NUMBER + 6].copy_from_slice(&number.to_be_bytes());
        &self.scratch
    }

    /// Takes note of a frame that came back.
    ///
    /// # Panics
    /// When it is not the next of its flow, or has changed.
    pub fn check(&mut self, frame: &[u8]) {
        assert!(frame.len() >= 60, "a frame of {} bytes", frame.len());
        let flow = usize::from(u16::from_be_bytes([frame[NUMBER], frame[NUMBER + 1]]));
        assert!(flow < self.received.len(), "a frame of no flow");
        let number = self.received[flow];
        assert!(
            frame == self.write(flow, number),
            "frame {number} of flow {flow} is another, or has changed"
        );
        self.received[flow] += 1;
    }

    /// Frames of a flow that are under way.
    fn under_way(&self, flow: usize) -> u32 {
        self.sent[flow] - self.received[flow]
    }

    /// Sends `each` more frames of every flow, flow n on pair n modulo their number, through something that returns them,
    /// and expects them all.
    ///
    /// # Panics
    /// When one is missing for 20 seconds, changed or out of order in its flow.
    pub fn exchange(&mut self, nic: &mut GuestNic, each: u32) {
        let goal: Vec<u32> = self.sent.iter().map(|sent| sent + each).collect();
        let complete = within(Duration::from_secs(20), || {
            self.turn(nic, &goal);
            self.received == goal
        });
        assert!(complete, "of {goal:?} frames {:?} were sent and {:?} came back", self.sent, self.received);
        assert!(within(Duration::from_secs(10), || nic.take_sent() == 0), "buffers come back");
    }

    /// Sends `each` more frames of every flow from one guest to another, flow n on pair n modulo their number, and expects
    /// them all.
    ///
    /// # Panics
    /// When one is missing for 20 seconds, changed or out of order in its flow.
    pub fn carry(&mut self, from: &mut GuestNic, to: &mut GuestNic, each: u32) {
        let goal: Vec<u32> = self.sent.iter().map(|sent| sent + each).collect();
        let window = Self::room(from).min(Self::room(to));
        let complete = within(Duration::from_secs(20), || {
            self.send(from, &goal, window);
            to.receive(64, |frame| self.check(frame));
            self.received == goal
        });
        assert!(complete, "of {goal:?} frames {:?} were sent and {:?} arrived", self.sent, self.received);
        assert!(within(Duration::from_secs(10), || from.take_sent() == 0), "buffers come back");
    }

    /// Sends what may be sent on the way to `goal`, and takes in what has come back.
    pub fn turn(&mut self, nic: &mut GuestNic, goal: &[u32]) {
        self.send(nic, goal, Self::room(nic));
        nic.receive(64, |frame| self.check(frame));
    }

    /// Frames that may be under way to a guest: one that has to wait for a receive buffer is dropped in the end.
    fn room(nic: &GuestNic) -> u32 {
        WINDOW.min(u32::from(nic.options().queue_size) / 2) * nic.pairs() as u32
    }

    fn send(&mut self, nic: &mut GuestNic, goal: &[u32], window: u32) {
        nic.take_sent();
        let window = (window / self.sent.len() as u32).max(1);
        for (flow, goal) in goal.iter().enumerate() {
            let pair = flow % nic.pairs();
            while self.sent[flow] < *goal && self.under_way(flow) < window {
                let number = self.sent[flow];
                if !nic.send_on(pair, &[0; 12], self.write(flow, number)) {
                    break;
                }
                self.sent[flow] += 1;
            }
        }
        nic.flush();
    }
}
