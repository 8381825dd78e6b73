//! What the device says on its own, and what is wrong with it.

use std::time::Instant;

use super::events::Event;
use super::mmio::Unanswered;
use super::registers::*;
use super::{Ena, REASON_GENERIC, features, reason};
use crate::device::Link;

/// Most kinds of warnings that are told, one each: a device that has more wants attention, not more lines.
const MOST_WARNINGS: usize = 16;

impl Ena {
    /// What the device has said; why it must be reset, if it must.
    pub(super) fn hear(&mut self) -> Option<(u8, String)> {
        let mut trouble = None;
        for event in self.events.read(&self.mmio) {
            // Whatever it says, it lives.
            self.alive = Instant::now();
            match event {
                Event::Link(false) => self.link = Link::Down,
                Event::Link(true) => self.link = Link::Up { speed: self.speed() },
                Event::Hints(hints) => self.take_hints(hints),
                Event::KeepAlive => {}
                Event::Fatal(syndrome) => {
                    let text = format!("the device reports a fatal error, syndrome {syndrome}");
                    trouble = Some((REASON_GENERIC, text));
                }
                Event::ResetRequest(syndrome) => {
                    let text = format!("the device asks to be reset, syndrome {syndrome}");
                    trouble = Some((REASON_GENERIC, text));
                }
                Event::Warning(syndrome) if self.is_new(syndrome) => {
                    self.notices.push(format!("{}: the device warns, syndrome {syndrome}", self.place));
                }
                Event::Warning(_) => {}
                Event::Other(group, syndrome) => {
                    tracing::debug!(device = %self.place, group, syndrome, "unknown event");
                }
            }
        }
        trouble
    }

    /// Whether the operator has not been told of a warning yet, and is to be.
    fn is_new(&mut self, syndrome: u16) -> bool {
        let new = !self.warnings.contains(&syndrome) && self.warnings.len() < MOST_WARNINGS;
        if new {
            self.warnings.push(syndrome);
        }
        new
    }

    /// Mbit/s, from devices that say it.
    pub(super) fn speed(&mut self) -> Option<u32> {
        self.deal.filter(|deal| deal.device.has(features::LINK))?;
        let reply = features::get(&mut self.admin, &self.mmio, features::LINK, 0).ok()?;
        Some(reply[2]).filter(|speed| *speed > 0)
    }

    /// Whether something is wrong that only a reset repairs, and what.
    pub(super) fn trouble(&mut self) -> Option<(u8, String)> {
        if let Some(trouble) = self.hear() {
            return Some(trouble);
        }
        if let Some(breach) = self.health.iter().find_map(|health| health.breach()) {
            return Some((breach as u8, format!("the device {}", breach.what())));
        }
        if self.admin.is_broken() {
            return Some((reason::ADMIN, "the device's admin queue does not answer".to_owned()));
        }
        if let Some(limit) = self.keep_alive.filter(|limit| self.alive.elapsed() > *limit) {
            return Some((
                reason::KEEP_ALIVE,
                format!("the device has not said for {limit:?} that it lives"),
            ));
        }
        match self.mmio.read(DEV_STS) {
            Ok(status) if status & STS_FATAL != 0 => {
                Some((REASON_GENERIC, "the device is in a state that only a reset ends".to_owned()))
            }
            Ok(_) => None,
            Err(Unanswered) => Some((REASON_GENERIC, "the device does not answer register reads".to_owned())),
        }
    }
}
