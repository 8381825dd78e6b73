//! The mailbox between VF and PF: who may write, who is told, and the bits that vanish when they are read.
//!
//! ```text
//!  VF                                      PF
//!  VFU: takes the words, writes them
//!  REQ (gives the words back) ───────────▶ reads them
//!                             ◀─────────── PFACK, later PFSTS with the answer in the words
//!  VFU: takes the words, reads them
//!  ACK (gives the words back) ───────────▶
//! ```

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use thiserror::Error;

use self::bit::*;
use super::message::{Answer, CLEAR_TO_SEND, Message, WORDS, answer};
use crate::registers::{ALL_ONES, Registers};
use crate::vf::watchdog::STALL;

/// Bits of the control register: the same in all families (82576 data sheet, chapter 8.14; 82599 data sheet, VFMAILBOX).
pub mod bit {
    /// A message for the PF is ready.
    pub const REQ: u32 = 1;
    /// The PF's message has been read.
    pub const ACK: u32 = 1 << 1;
    /// The words are the VF's.
    pub const VFU: u32 = 1 << 2;
    /// The PF has written a message; cleared when read.
    pub const PFSTS: u32 = 1 << 4;
    /// The PF has read our message; cleared when read.
    pub const PFACK: u32 = 1 << 5;
    /// The PF is in reset.
    pub const RSTI: u32 = 1 << 6;
    /// The PF's reset is over; cleared when read.
    pub const RSTD: u32 = 1 << 7;
    /// Bits that vanish when the register is read.
    pub const CLEARED_BY_READ: u32 = PFSTS | PFACK | RSTD;
}

/// Where a family keeps its mailbox.
#[derive(Clone, Copy, Debug)]
pub struct MailboxPlace {
    /// V2PMAILBOX, VFMAILBOX: its control register.
    pub control: u32,
    /// VMBMEM, VFMBMEM: the first of its words.
    pub words: u32,
}

/// How long to wait for the PF, and for the device.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Time between two looks.
    pub interval: Duration,
    /// Looks at a bit that the PF is to set.
    pub looks: u32,
    /// For a transmit queue that gets nowhere, with a link.
    pub stall: Duration,
}

impl Default for Patience {
    /// 2000 looks, 500 µs apart: the time that Intel's drivers give the PF.
    fn default() -> Self {
        Self { interval: Duration::from_micros(500), looks: 2000, stall: STALL }
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum MailboxError {
    /// The PF did not answer in time.
    #[error("the PF does not answer")]
    Silent,
    /// The PF is in reset, or its interface is down.
    #[error("the PF is in reset")]
    PfInReset,
    /// Registers read as ones.
    #[error("the device does not answer")]
    Gone,
}

/// What the PF said without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PfNotice {
    /// Nothing happened.
    Nothing,
    /// The PF greeted the VF, which may go on (it does when the link changes).
    Ping,
    /// The PF was reset, or has forgotten this VF: a new hand-shake is due.
    Reset,
    /// Registers read as ones.
    Gone,
}

/// The VF's side of the mailbox.
#[derive(Debug)]
pub struct Mailbox {
    registers: Arc<dyn Registers>,
    place: MailboxPlace,
    /// Bits that a read has cleared in the register and nobody has asked for yet.
    seen: u32,
    patience: Patience,
    /// After one time-out the PF is not asked again: every further message would cost the full time.
    silent: bool,
}

impl Mailbox {
    /// The mailbox at `place` of these registers.
    pub fn new(registers: Arc<dyn Registers>, place: MailboxPlace, patience: Patience) -> Self {
        Self { registers, place, seen: 0, patience, silent: false }
    }

    /// How long it waits.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    fn look(&mut self) -> Result<u32, MailboxError> {
        let value = self.registers.read(self.place.control);
        if value == ALL_ONES {
            return Err(MailboxError::Gone);
        }
        self.seen |= value & CLEARED_BY_READ;
        Ok(value | self.seen)
    }

    /// Whether `bit` is set, or was when somebody else read the register; it counts once.
    fn take(&mut self, bit: u32) -> Result<bool, MailboxError> {
        let set = self.look()? & bit != 0;
        self.seen &= !bit;
        Ok(set)
    }

    fn wait_for(&mut self, bit: u32) -> Result<(), MailboxError> {
        for _ in 0..self.patience.looks {
            if self.take(bit)? {
                return Ok(());
            }
            thread::sleep(self.patience.interval);
        }
        self.silent = true;
        Err(MailboxError::Silent)
    }

    /// Waits until the PF is out of reset, and listens to it anew.
    pub fn restart(&mut self) -> Result<(), MailboxError> {
        self.silent = false;
        self.seen = 0;
        for _ in 0..self.patience.looks {
            if self.look()? & RSTI == 0 {
                self.seen = 0;
                return Ok(());
            }
            thread::sleep(self.patience.interval);
        }
        Err(MailboxError::PfInReset)
    }

    /// Takes the words.
    fn lock(&mut self) -> Result<(), MailboxError> {
        for _ in 0..self.patience.looks {
            self.registers.write(self.place.control, VFU);
            if self.look()? & VFU != 0 {
                return Ok(());
            }
            thread::sleep(self.patience.interval);
        }
        self.silent = true;
        Err(MailboxError::Silent)
    }

    fn send(&mut self, message: &Message) -> Result<(), MailboxError> {
        self.lock()?;
        // What the PF wrote before is overwritten here: news of it would be taken for news of this message.
        self.seen &= !(PFSTS | PFACK);
        for (at, word) in (self.place.words..).step_by(4).zip(message) {
            self.registers.write(at, *word);
        }
        self.registers.write(self.place.control, REQ);
        self.wait_for(PFACK)
    }

    fn receive(&mut self) -> Result<Message, MailboxError> {
        self.lock()?;
        let mut message = [0; WORDS];
        for (at, word) in (self.place.words..).step_by(4).zip(&mut message) {
            *word = self.registers.read(at);
        }
        self.registers.write(self.place.control, ACK);
        Ok(message)
    }

    /// Sends a message with `verb` and returns what the PF answers to it.
    pub fn ask(&mut self, verb: u32, message: &Message) -> Result<(Answer, Message), MailboxError> {
        if self.silent {
            return Err(MailboxError::Silent);
        }
        self.send(message)?;
        // The PF may have had something of its own to say first.
        for _ in 0..ANSWERS {
            self.wait_for(PFSTS)?;
            let reply = self.receive()?;
            if let Some(answer) = answer(verb, &reply) {
                return Ok((answer, reply));
            }
        }
        self.silent = true;
        Err(MailboxError::Silent)
    }

    /// Hears what the PF says on its own. One register read where it says nothing.
    pub fn listen(&mut self) -> PfNotice {
        match self.look() {
            Err(_) => PfNotice::Gone,
            Ok(value) if value & (RSTI | RSTD) != 0 => PfNotice::Reset,
            Ok(value) if value & PFSTS != 0 => {
                self.seen &= !PFSTS;
                match self.receive() {
                    Err(MailboxError::Gone) => PfNotice::Gone,
                    Err(_) => PfNotice::Reset,
                    Ok(message) if message[0] & CLEAR_TO_SEND == 0 => PfNotice::Reset,
                    Ok(_) => PfNotice::Ping,
                }
            }
            Ok(_) => PfNotice::Nothing,
        }
    }
}

/// Messages read until one is the answer.
const ANSWERS: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::igbvf::double::{Double, IMPATIENT};
    use crate::igbvf::registers::MAILBOX;
    use crate::intel::message::{self as words, verb};

    fn mailbox(double: &Arc<Double>) -> Mailbox {
        Mailbox::new(Arc::clone(double) as Arc<dyn Registers>, MAILBOX, IMPATIENT)
    }

    #[test]
    fn a_question_is_answered() {
        let double = Double::new();
        let mut mailbox = mailbox(&double);
        let (answer, reply) = mailbox.ask(verb::RESET, &words::plain(verb::RESET)).unwrap();
        assert_eq!((answer, words::mac_of(&reply)), (Answer::Granted, double.mac()));
        assert_eq!(mailbox.listen(), PfNotice::Nothing);
    }

    #[test]
    fn a_ping_before_the_answer_is_not_the_answer() {
        let double = Double::new();
        double.set(|pf| pf.ping_first = true);
        let mut mailbox = mailbox(&double);
        assert_eq!(mailbox.ask(verb::RESET, &words::plain(verb::RESET)).unwrap().0, Answer::Granted);
    }

    #[test]
    fn bits_that_a_read_clears_are_remembered() {
        let double = Double::new();
        let mut mailbox = mailbox(&double);
        double.set(|pf| pf.control |= PFSTS | PFACK);
        assert!(mailbox.take(PFACK).unwrap());
        assert_eq!(double.read(MAILBOX.control) & CLEARED_BY_READ, 0);
        assert!(mailbox.take(PFSTS).unwrap());
        assert!(!mailbox.take(PFSTS).unwrap());
    }

    #[test]
    fn after_one_time_out_every_message_fails_at_once_until_the_restart() {
        let double = Double::new();
        double.set(|pf| pf.silent = true);
        let mut mailbox = mailbox(&double);
        let ask =
            |mailbox: &mut Mailbox| mailbox.ask(verb::RESET, &words::plain(verb::RESET)).map(|(a, _)| a);
        assert_eq!(ask(&mut mailbox), Err(MailboxError::Silent));
        double.set(|pf| pf.silent = false);
        assert_eq!(ask(&mut mailbox), Err(MailboxError::Silent));
        mailbox.restart().unwrap();
        assert_eq!(ask(&mut mailbox), Ok(Answer::Granted));
    }

    #[test]
    fn resets_pings_and_absence_are_told_apart() {
        let double = Double::new();
        let mut mailbox = mailbox(&double);
        double.say(0x0100 | CLEAR_TO_SEND);
        assert_eq!(mailbox.listen(), PfNotice::Ping);
        double.say(0x0100);
        assert_eq!(mailbox.listen(), PfNotice::Reset);
        double.set(|pf| pf.control |= RSTD);
        assert_eq!(mailbox.listen(), PfNotice::Reset);
        double.set(|pf| pf.control |= RSTI);
        assert_eq!(mailbox.restart(), Err(MailboxError::PfInReset));
        double.set(|pf| pf.gone = true);
        assert_eq!(mailbox.listen(), PfNotice::Gone);
        assert_eq!(mailbox.restart(), Err(MailboxError::Gone));
    }
}
