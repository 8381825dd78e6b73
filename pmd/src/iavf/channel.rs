//! Questions to the PF and its answers, with what it says in between.

use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::admin::{AdminError, AdminQueue, Message, Patience};
use super::registers::*;
use super::virtchnl::{Event, read_event, verb};
use crate::registers::{ALL_ONES, Registers};

/// Why a question has no good answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ChannelError {
    /// It was not carried.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The PF did not answer in time.
    #[error("the PF does not answer")]
    Silent,
    /// A reset does not end.
    #[error("the PF does not end a reset of the VF")]
    InReset,
    /// The PF refused: verb and status of virtchnl.
    #[error("the PF refuses message {0} with status {1}")]
    Refused(u32, i32),
    /// The PF granted, with an answer that makes no sense.
    #[error("the PF answers message {0} with what makes no sense")]
    Nonsense(u32),
    /// The PF speaks another major version.
    #[error("the PF speaks virtchnl {0}.{1}; 1.1 is known here")]
    Version(u32, u32),
}

impl ChannelError {
    /// Whether the device has left the machine.
    pub fn is_gone(&self) -> bool {
        *self == Self::Admin(AdminError::Gone)
    }
}

/// Most things that the PF says on its own which are kept.
const MOST_EVENTS: usize = 64;
/// Messages that are taken at one look.
const MOST_MESSAGES: usize = 64;

/// The way to the PF.
#[derive(Debug)]
pub struct Channel {
    admin: AdminQueue,
    registers: Arc<dyn Registers>,
    /// How events tell speeds.
    advanced_speed: bool,
    events: Vec<Event>,
    /// Counters that came after nobody waited for them any more.
    late_counters: Option<Vec<u8>>,
    /// When counters were asked for that have not come.
    counters_asked: Option<Instant>,
    /// Messages that nobody had asked for.
    strays: u64,
    /// Times that messages of the PF were lost.
    overflows: u64,
    /// After one time-out the PF is not asked again until the next reset: every question would cost the full time.
    silent: bool,
}

impl Channel {
    /// The way through `admin`.
    pub fn new(admin: AdminQueue, registers: Arc<dyn Registers>) -> Self {
        Self {
            admin,
            registers,
            advanced_speed: false,
            events: Vec::new(),
            late_counters: None,
            counters_asked: None,
            strays: 0,
            overflows: 0,
            silent: false,
        }
    }

    /// How long it waits.
    pub fn patience(&self) -> Patience {
        self.admin.patience()
    }

    /// Events tell speeds in Mbit/s, or as bits.
    pub fn set_advanced_speed(&mut self, advanced: bool) {
        self.advanced_speed = advanced;
    }

    /// Messages that nobody had asked for, and times that messages were lost.
    pub fn oddities(&self) -> (u64, u64) {
        (self.strays, self.overflows)
    }

    /// Whether a reset is under way, or the one that was is not over: registers of the queues mean nothing then.
    fn reset_state(&self) -> Result<u32, AdminError> {
        match self.registers.read(VFGEN_RSTAT) {
            ALL_ONES => Err(AdminError::Gone),
            state => Ok(state & RSTAT_MASK),
        }
    }

    /// Waits for the end of a reset, if there is one.
    pub fn wait_for_reset(&self, limit: Duration) -> Result<(), ChannelError> {
        let over = self.patience().wait(limit, || match self.reset_state() {
            Err(gone) => Some(Err(gone.into())),
            Ok(RSTAT_COMPLETED | RSTAT_ACTIVE) => Some(Ok(())),
            Ok(_) => None,
        });
        over.unwrap_or(Err(ChannelError::InReset))
    }

    /// Waits until a reset has begun: it switches the admin queue off first.
    pub fn wait_for_reset_to_begin(&self, limit: Duration) -> Result<(), ChannelError> {
        let begun = self.patience().wait(limit, || match self.admin.check() {
            Err(AdminError::Reset) => Some(Ok(())),
            Err(AdminError::Gone) => Some(Err(AdminError::Gone.into())),
            _ => None,
        });
        begun.unwrap_or(Err(ChannelError::Silent))
    }

    /// Has the PF reset the VF, and waits until that is done. What an earlier user of the VF has left behind goes away, and
    /// the way is closed.
    pub fn reset(&mut self) -> Result<(), ChannelError> {
        let limit = self.patience().reset;
        self.admin.post(verb::RESET_VF)?;
        self.wait_for_reset_to_begin(limit)?;
        self.wait_for_reset(limit)
    }

    /// Opens the way, with nothing under way.
    pub fn open(&mut self) -> Result<(), ChannelError> {
        (self.silent, self.late_counters, self.counters_asked) = (false, None, None);
        self.events.clear();
        Ok(self.admin.start()?)
    }

    /// Closes it: the device does no DMA for messages any more.
    pub fn close(&mut self) {
        self.admin.stop();
    }

    /// Sends something that has no answer, or one that comes when it comes.
    pub fn tell(&mut self, verb: u32, data: &[u8]) -> Result<(), ChannelError> {
        self.tell_within(self.patience().firmware, verb, data)
    }

    fn tell_within(&mut self, limit: Duration, verb: u32, data: &[u8]) -> Result<(), ChannelError> {
        if self.silent {
            return Err(ChannelError::Silent);
        }
        let sent = self.admin.send(limit, verb, data);
        // What firmware refuses it has at least taken.
        self.silent = !matches!(sent, Ok(()) | Err(AdminError::Refused(_)));
        Ok(sent?)
    }

    /// Asks the PF, and returns what a good answer says.
    pub fn ask(&mut self, verb: u32, data: &[u8]) -> Result<Vec<u8>, ChannelError> {
        self.ask_within(self.patience().answer, verb, data)
    }

    /// As [`ask`](Self::ask), but firmware and PF may take at most `limit` each.
    pub fn ask_within(&mut self, limit: Duration, verb: u32, data: &[u8]) -> Result<Vec<u8>, ChannelError> {
        let patience = self.patience();
        self.tell_within(limit.min(patience.firmware), verb, data)?;
        let answer = patience.wait(limit, || self.hear(Some(verb)).transpose());
        match answer {
            Some(Ok(Message { status: 0, data, .. })) => Ok(data),
            Some(Ok(message)) => Err(ChannelError::Refused(verb, message.status)),
            Some(Err(cause)) => Err(cause),
            None => {
                self.silent = true;
                Err(self.admin.check().err().map_or(ChannelError::Silent, ChannelError::Admin))
            }
        }
    }

    /// Takes what the PF has said until it is about `wanted`.
    fn hear(&mut self, wanted: Option<u32>) -> Result<Option<Message>, ChannelError> {
        for _ in 0..MOST_MESSAGES {
            let Some(message) = self.admin.receive()? else { return Ok(None) };
            match message.verb {
                verb if wanted == Some(verb) => return Ok(Some(message)),
                verb::EVENT => {
                    let event = read_event(&message.data, self.advanced_speed);
                    if self.events.len() < MOST_EVENTS {
                        self.events.extend(event);
                    }
                }
                verb::GET_STATS => {
                    self.counters_asked = None;
                    self.late_counters = (message.status == 0).then_some(message.data);
                }
                _ => self.strays += 1,
            }
        }
        Ok(None)
    }

    /// Takes what the PF has said on its own, and looks whether the way is still open.
    pub fn listen(&mut self) -> Result<Vec<Event>, ChannelError> {
        let trouble = self.admin.check()?;
        self.overflows += u64::from(trouble.overflow);
        if !matches!(self.reset_state()?, RSTAT_COMPLETED | RSTAT_ACTIVE) {
            return Err(AdminError::Reset.into());
        }
        self.hear(None)?;
        Ok(std::mem::take(&mut self.events))
    }

    /// Whether the PF has stopped answering.
    pub fn is_silent(&self) -> bool {
        self.silent
    }

    /// Asks for counters unless they are on their way, and waits for them a little; what does not come in time comes with
    /// a later call. `None` where nothing has come.
    pub fn counters(&mut self, limit: Duration, request: &[u8]) -> Option<Vec<u8>> {
        match self.counters_asked {
            None => {
                self.tell(verb::GET_STATS, request).ok()?;
                self.counters_asked = Some(Instant::now());
            }
            Some(asked) if asked.elapsed() > self.patience().answer => self.silent = true,
            Some(_) => {}
        }
        let patience = self.patience();
        let _ = patience.wait(limit, || {
            let heard = self.hear(None).is_err();
            (heard || self.counters_asked.is_none()).then_some(())
        });
        self.late_counters.take()
    }
}
