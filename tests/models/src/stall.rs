//! The part of the [examination](crate::exam) about a device that stops finishing what it is to send.

use std::thread;
use std::time::{Duration, Instant};

use pmd::{DeviceEvent, Offload};

use crate::bus::Bus;
use crate::exam::{Exam, RECOVERY, numbered};
use crate::model::Model;

/// Between two questions to the slow side.
const NAP: Duration = Duration::from_millis(2);

/// How a model is made to stall.
#[derive(Clone, Copy, Debug)]
pub struct Stall<M> {
    /// It finishes nothing that it is to send, or does so again.
    pub set: fn(&mut M, &mut Bus, bool),
    /// Its link comes up, or goes down.
    pub set_link: fn(&mut M, &mut Bus, bool),
    /// How long its driver lets it get nowhere.
    pub limit: Duration,
    /// Only its worker sees how far it has got: while that is paused, nobody knows.
    pub worker_looks: bool,
}

impl<M: Model> Exam<M> {
    /// What is told about a reset within so much time; frames are sent meanwhile, or not.
    fn reset_within(&mut self, time: Duration, sends: bool) -> Option<String> {
        let begin = Instant::now();
        while begin.elapsed() < time {
            if sends {
                self.send(0, &numbered(1, 100), Offload::NONE);
            }
            let reset = self.device.service().into_iter().find_map(|event| match event {
                DeviceEvent::ResetNeeded { reason } => Some(reason),
                _ => None,
            });
            if reset.is_some() {
                return reset;
            }
            thread::sleep(NAP);
        }
        None
    }

    /// Expects that a device which finishes nothing is reset after the limit, and traffic back within 2 s of that; and that a
    /// device is left alone which is idle, has no link, or whose worker is paused.
    ///
    /// # Panics
    /// Where it is otherwise.
    pub fn notices_a_stall(&mut self, stall: Stall<M>) {
        let Stall { set, set_link, limit, worker_looks } = stall;
        let (short, long) = (limit / 2, 2 * limit);
        assert!(self.link_comes_up());
        assert_eq!(self.reset_within(long, true), None, "it sends");
        assert_eq!(self.reset_within(long, false), None, "it is idle");
        self.function.with(|model, bus| set(model, bus, true));
        assert_eq!(self.reset_within(short, true), None, "it has had no time yet");
        if worker_looks {
            assert_eq!(self.reset_within(long, false), None, "its worker is paused");
        }
        self.function.with(|model, bus| set_link(model, bus, false));
        assert!(self.hears(|event| matches!(event, DeviceEvent::Link(pmd::Link::Down))));
        assert_eq!(self.reset_within(long, true), None, "its link is down");
        self.function.with(|model, bus| set_link(model, bus, true));
        assert!(self.link_comes_up());
        assert_eq!(self.reset_within(short, true), None, "its link has just come up");
        let reason = self.reset_within(RECOVERY, true).unwrap_or_default();
        assert!(reason.contains("transmit queue 0 has finished none of its frames"), "{reason:?}");
        assert_eq!(self.reset_within(long, true), None, "it is told once");
        let begin = Instant::now();
        self.function.with(|model, bus| set(model, bus, false));
        assert!(self.recovers() && self.traffic_is_back() && begin.elapsed() < RECOVERY);
        self.sends_numbered_frames(100, 1514);
    }
}
