//! The virtual function of Intel's 10-gigabit NICs: 82599, X540, X550 and X552, with the PF behind its mailbox.
//!
//! Written from the 82599 and X550 data sheets (chapters 7 and 9: virtual function device) and the constants of Intel's
//! published base code. Not modelled: IPsec, tunnels, FCoE, LinkSec, header split, coalescing, head write-back, interrupt
//! moderation, traffic classes.

#![allow(missing_docs, reason = "registers are named as in the data sheet")]

mod interrupts;
mod pf;
mod registers;
mod ring;
mod rx;
mod tx;

pub use pf::{Api, Mode, Pf};

use std::collections::VecDeque;

use pmd::MacAddress;

use crate::bus::Bus;
use crate::config::Config;
use crate::fault::Fault;
use crate::model::{Model, Size};
use crate::rss::{Flow, toeplitz};
use interrupts::{Interrupts, VECTORS};
use pf::{CONTROL, CTS, Message, RETA, WORDS, pf_key};
use registers::*;
use rx::{Receive, Received};
use tx::Transmit;

/// Queues that a VF has registers for.
const QUEUES: usize = 8;
/// Reads as VFSTATUS: no meaning, but it is not all ones.
const STATUS: u32 = 0x0008_0000;

/// Which silicon it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// 82599: context descriptors only where they are needed; jumbo frames only where the PF has them.
    I82599,
    /// X540: every frame refers to a context.
    X540,
    /// X550: as X540, and each VF has its own RSS.
    X550,
    /// X552 (X550EM_x): as X550.
    X552,
}

impl Part {
    fn device_id(self) -> u16 {
        match self {
            Self::I82599 => 0x10ed,
            Self::X540 => 0x1515,
            Self::X550 => 0x1565,
            Self::X552 => 0x15a8,
        }
    }
}

/// How the VF and its PF are set up.
#[derive(Clone, Debug)]
pub struct Options {
    pub part: Part,
    /// The address that the PF has for the VF.
    pub mac: Option<MacAddress>,
    /// The newest language that the PF speaks.
    pub api: Api,
    /// Queues of the VF each way: 1, 2, 4 or 8.
    pub queues: u16,
    /// The PF trusts the VF (`ip link set PF vf N trust on`): other addresses, all groups.
    pub trusted: bool,
    /// The PF is promiscuous itself, without which no VF can be.
    pub pf_promiscuous: bool,
    /// The PF takes jumbo frames from the start.
    pub pf_jumbo: bool,
    /// The PF accepts VLAN filters.
    pub grants_vlans: bool,
    /// The PF lets the VF have a link (`ip link set PF vf N state auto`).
    pub allows_link: bool,
    /// Looks at VFMAILBOX that the PF lets pass before it answers.
    pub slowness: u32,
    /// Where all statistics start: they wrap.
    pub statistics: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            part: Part::X550,
            mac: Some(MacAddress([0x52, 0x54, 0, 0, 0, 1])),
            api: Api::V15,
            queues: 2,
            trusted: true,
            pf_promiscuous: true,
            pf_jumbo: false,
            grants_vlans: true,
            allows_link: true,
            slowness: 0,
            statistics: 0,
        }
    }
}

impl Options {
    /// The PF's redirection table.
    fn pf_reta(&self, n: usize) -> usize {
        n % usize::from(self.queues)
    }
}

/// What is wrong with the model, on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// What was sent is not written back.
    NoWriteBack,
    /// What was sent is written back with another bit.
    WrongDoneBit,
    /// Frames that were received are said to be 4 bytes shorter.
    ShortLength,
    /// Frames that were received are said to be longer than any buffer.
    LongLength,
    /// Frames that were received are said to have no bytes.
    NoLength,
    /// No descriptor is the last of its frame.
    NoEnd,
    /// What was received is written back without DD.
    NotDone,
    /// No interrupt.
    NoInterrupt,
    /// The answer to a reset has CTS, which no driver expects there.
    ResetReplyWithCts,
    /// The PF does not say that it has read a message.
    NoAcknowledge,
    /// Answers are to another question.
    OtherVerb,
    /// Answers say yes and no.
    BothVerdicts,
    /// The link is never up.
    NoLink,
    /// Queues cannot be switched off.
    NeverOff,
}

impl Wrong {
    /// As scripts say it: the name above.
    pub fn named(name: &str) -> Option<Self> {
        use Wrong::*;
        let all = [
            NoWriteBack,
            WrongDoneBit,
            ShortLength,
            LongLength,
            NoLength,
            NoEnd,
            NotDone,
            NoInterrupt,
            ResetReplyWithCts,
            NoAcknowledge,
            OtherVerb,
            BothVerdicts,
            NoLink,
            NeverOff,
        ];
        all.into_iter().find(|wrong| format!("{wrong:?}") == name)
    }
}

/// Statistics, as wide as the registers.
#[derive(Clone, Copy, Debug, Default)]
struct Statistics {
    received: u32,
    received_bytes: u64,
    groups: u32,
    sent: u32,
    sent_bytes: u64,
}

impl Statistics {
    fn starting_at(value: u32) -> Self {
        // Bytes have 36 bits: the highest four are over this value.
        let bytes = 0xf_0000_0000 | u64::from(value);
        let bytes = if value == 0 { 0 } else { bytes };
        Self { received: value, received_bytes: bytes, groups: value, sent: value, sent_bytes: bytes }
    }
}

/// The VF's side of the mailbox, in silicon.
#[derive(Debug, Default)]
struct Mailbox {
    words: Message,
    /// Bits that the VF has not seen.
    news: u32,
    /// The words are the VF's.
    vfu: bool,
    resetting: bool,
    /// A message of the VF that the PF has not read, and the looks until it does.
    request: Option<(Message, u32)>,
    /// What the PF has to say, when the words are free.
    outgoing: VecDeque<Message>,
    /// The PF's last message has not been taken.
    unread: bool,
}

/// The VF.
#[derive(Debug)]
pub struct Ixgbevf {
    options: Options,
    /// What is wrong with it; may be changed at any time.
    pub wrong: Option<Wrong>,
    /// The PF does not answer.
    pub silent: bool,
    /// Frames that are yet to arrive damaged.
    pub damaged: u32,
    pf: Pf,
    mailbox: Mailbox,
    interrupts: Interrupts,
    receive: [Receive; QUEUES],
    transmit: [Transmit; QUEUES],
    psrtype: u32,
    mrqc: u32,
    key: [u32; 10],
    reta: [u32; 16],
    statistics: Statistics,
    link: bool,
    paused: bool,
    /// Frames that were not for the VF, or too long for it.
    pub refused: u64,
}

impl Ixgbevf {
    /// A VF of a PF whose link is up.
    pub fn new(options: Options) -> Self {
        let checks = options.part > Part::I82599;
        Self {
            wrong: None,
            silent: false,
            damaged: 0,
            pf: Pf::new(&options),
            mailbox: Mailbox::default(),
            interrupts: Interrupts::default(),
            receive: std::array::from_fn(Receive::new),
            transmit: std::array::from_fn(|n| Transmit::new(n, checks)),
            psrtype: 0,
            mrqc: 0,
            key: [0; 10],
            reta: [0; 16],
            statistics: Statistics::starting_at(options.statistics),
            link: true,
            paused: false,
            refused: 0,
            options,
        }
    }

    /// What the PF knows and has heard.
    pub fn pf(&self) -> &Pf {
        &self.pf
    }

    /// How it is set up; what is changed is so from the next message on.
    pub fn options(&mut self) -> &mut Options {
        &mut self.options
    }

    /// The cable is pulled or plugged; the PF tells its VFs.
    pub fn set_link(&mut self, bus: &mut Bus, up: bool) {
        self.link = up;
        self.ping(bus);
    }

    /// Nothing leaves any more, as when the other side pauses; or again.
    pub fn set_paused(&mut self, bus: &mut Bus, paused: bool) {
        self.paused = paused;
        self.transmit_all(bus);
    }

    /// The PF says that it is there.
    pub fn ping(&mut self, bus: &mut Bus) {
        let mut message = [0; WORDS];
        message[0] = CONTROL | if self.pf.clear_to_send { CTS } else { 0 };
        self.mailbox.outgoing.push_back(message);
        self.post(bus);
    }

    /// The PF is reset: every queue is off, the VF is forgotten, and nobody answers.
    pub fn begin_pf_reset(&mut self, bus: &mut Bus) {
        self.reset_queues();
        self.pf.forget(&self.options);
        self.mailbox = Mailbox { resetting: true, ..Mailbox::default() };
        self.interrupts.mail(bus);
    }

    /// The PF is back, and says so.
    pub fn end_pf_reset(&mut self, bus: &mut Bus) {
        self.mailbox.resetting = false;
        self.mailbox.news |= RSTD;
        self.ping(bus);
    }

    /// Does what a script says: `link down`, `link up`, `pf reset`, `pf back`, `lose interrupts`, `keep interrupts`, `right`,
    /// `wrong NAME`; whether it knows that.
    pub fn command(&mut self, bus: &mut Bus, words: &str) -> bool {
        match words {
            "link down" => self.set_link(bus, false),
            "link up" => self.set_link(bus, true),
            "pf reset" => self.begin_pf_reset(bus),
            "pf back" => self.end_pf_reset(bus),
            "lose interrupts" => bus.lose_interrupts(true),
            "keep interrupts" => bus.lose_interrupts(false),
            "right" => self.wrong = None,
            _ => match words.strip_prefix("wrong ").and_then(Wrong::named) {
                Some(wrong) => self.wrong = Some(wrong),
                None => return false,
            },
        }
        true
    }

    fn reset_queues(&mut self) {
        self.receive.iter_mut().for_each(Receive::reset);
        self.transmit.iter_mut().for_each(Transmit::reset);
        self.psrtype = 0;
    }

    fn reset_vf(&mut self) {
        self.reset_queues();
        self.interrupts.reset();
        self.mrqc = 0;
        self.mailbox = Mailbox { resetting: self.mailbox.resetting, ..Mailbox::default() };
    }

    // The mailbox.

    /// The PF writes what it has to say, if the words are free.
    fn post(&mut self, bus: &mut Bus) {
        if self.mailbox.vfu || self.mailbox.unread || self.silent || self.mailbox.resetting {
            return;
        }
        if let Some(message) = self.mailbox.outgoing.pop_front() {
            self.mailbox.words = message;
            self.mailbox.unread = true;
            self.mailbox.news |= PFSTS;
            self.interrupts.mail(bus);
        }
    }

    /// The PF reads what the VF has written.
    fn hear(&mut self, bus: &mut Bus) {
        if self.silent || self.mailbox.resetting {
            return;
        }
        let Some((message, _)) = self.mailbox.request.take_if(|(_, looks)| *looks == 0) else { return };
        if self.wrong != Some(Wrong::NoAcknowledge) {
            self.mailbox.news |= PFACK;
            self.interrupts.mail(bus);
        }
        let reply = self.pf.answer(&message, &self.options, self.wrong);
        // An answer comes before what was to be said anyway.
        self.mailbox.outgoing.push_front(reply);
        self.post(bus);
    }

    fn read_mailbox(&mut self, bus: &mut Bus) -> u32 {
        if let Some((_, looks)) = &mut self.mailbox.request {
            *looks = looks.saturating_sub(1);
        }
        self.hear(bus);
        let mailbox = &mut self.mailbox;
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        let state = bit(mailbox.vfu, VFU) | bit(mailbox.resetting, RSTI);
        state | std::mem::take(&mut mailbox.news) & CLEARED_BY_READ
    }

    fn write_mailbox(&mut self, bus: &mut Bus, value: u32) {
        let had = self.mailbox.vfu;
        self.mailbox.vfu = value & VFU != 0;
        if value & ACK != 0 {
            self.mailbox.unread = false;
        }
        if value & REQ != 0 {
            if !had {
                bus.broken("a message to the PF without having taken the mailbox (VFU)");
            }
            if self.mailbox.request.is_some() && !self.silent && !self.mailbox.resetting {
                bus.broken("a message to the PF, which has not read the one before");
            }
            // What was said before is overwritten.
            self.mailbox.unread = false;
            self.mailbox.request = Some((self.mailbox.words, self.options.slowness));
            self.hear(bus);
        }
        self.post(bus);
    }

    // Frames.

    /// The queue for a frame, with type and value of its hash.
    fn queue_for(&self, frame: &[u8]) -> (usize, (u32, u32)) {
        let own = self.options.part >= Part::X550;
        let shift = self.psrtype >> 29;
        let Some(flow) = Flow::of(frame).filter(|_| !own || self.mrqc & RSS_ON != 0) else {
            return (0, (0, 0));
        };
        let fields = if own { self.mrqc } else { HASH_IPV4 | HASH_IPV4_TCP | HASH_IPV6 | HASH_IPV6_TCP };
        let (ports, addresses) = match (flow.version, flow.protocol) {
            (4, 6) => ((HASH_IPV4_TCP, 1), (HASH_IPV4, 2)),
            (4, 17) => ((HASH_IPV4_UDP, 7), (HASH_IPV4, 2)),
            (4, _) => ((0, 0), (HASH_IPV4, 2)),
            (_, 6) => ((HASH_IPV6_TCP, 3), (HASH_IPV6, 5)),
            (_, 17) => ((HASH_IPV6_UDP, 8), (HASH_IPV6, 5)),
            _ => ((0, 0), (HASH_IPV6, 5)),
        };
        let (input, kind) = if fields & ports.0 != 0 && !flow.ports.is_empty() {
            ([&flow.addresses[..], &flow.ports[..]].concat(), ports.1)
        } else if fields & addresses.0 != 0 {
            (flow.addresses, addresses.1)
        } else {
            return (0, (0, 0));
        };
        let key: Vec<u8> = match own {
            true => self.key.iter().flat_map(|word| word.to_le_bytes()).collect(),
            false => pf_key().to_vec(),
        };
        let hash = toeplitz(&key, &input);
        let entry = match own {
            true => (self.reta[hash as usize % 64 / 4] >> (8 * (hash % 4)) & 63) as usize,
            false => self.options.pf_reta(hash as usize % RETA),
        };
        // The VF uses 2^RQPL queues.
        (entry & ((1 << shift.min(3)) - 1), (kind, hash))
    }

    fn receive_one(&mut self, bus: &mut Bus, frame: &[u8]) {
        let tagged = frame.get(12..14) == Some(&[0x81, 0]);
        let longest = self.pf.max_frame as usize + if tagged { 4 } else { 0 };
        if !self.is_link_up() || !self.pf.takes(frame) || frame.len() + 4 > longest {
            self.refused += 1;
            return;
        }
        let (queue, hash) = self.queue_for(frame);
        let bad = self.damaged > 0;
        match self.receive[queue].receive(bus, frame, hash, bad, self.wrong) {
            Received::Delivered => {
                self.damaged = self.damaged.saturating_sub(1);
                if !bad {
                    self.statistics.received = self.statistics.received.wrapping_add(1);
                    self.statistics.received_bytes += frame.len() as u64 + 4;
                    if frame[0] & 1 != 0 {
                        self.statistics.groups = self.statistics.groups.wrapping_add(1);
                    }
                }
                self.interrupts.received(bus, queue);
            }
            Received::Missed => bus.wire.missed += 1,
            Received::TooLong => self.refused += 1,
        }
    }

    fn transmit_all(&mut self, bus: &mut Bus) {
        for queue in 0..QUEUES {
            if self.paused || self.transmit[queue].ring.given.is_empty() {
                continue;
            }
            let (frames, told) = self.transmit[queue].work(bus, self.wrong);
            for frame in frames {
                self.statistics.sent = self.statistics.sent.wrapping_add(1);
                self.statistics.sent_bytes += frame.len() as u64 + 4;
                if self.is_link_up() {
                    bus.wire.send(frame);
                }
            }
            if told {
                self.interrupts.transmitted(bus, queue);
            }
        }
    }

    fn is_link_up(&self) -> bool {
        self.link && !self.mailbox.resetting
    }

    // Registers.

    fn read_register(&mut self, bus: &mut Bus, at: u32) -> Option<u32> {
        let bytes = |bytes: u64, upper: bool| if upper { (bytes >> 32) as u32 & 15 } else { bytes as u32 };
        Some(match at {
            VFCTRL => 0,
            VFSTATUS => STATUS,
            VFLINKS if self.is_link_up() && self.wrong != Some(Wrong::NoLink) => LINK_UP | LINK_10G,
            VFLINKS | VFFRTIMER => 0,
            VTEICR => self.interrupts.take_causes(),
            VTEIMS => self.interrupts.mask,
            VTEIAC => self.interrupts.auto_clear,
            VTEIAM => self.interrupts.auto_mask,
            VTIVAR_MISC => self.interrupts.misc,
            VFMAILBOX => self.read_mailbox(bus),
            VFPSRTYPE => self.psrtype,
            VFMRQC => self.mrqc,
            VFGPRC => self.statistics.received,
            VFGPTC => self.statistics.sent,
            VFMPRC => self.statistics.groups,
            VFGORC_LSB | VFGORC_MSB => bytes(self.statistics.received_bytes, at == VFGORC_MSB),
            VFGOTC_LSB | VFGOTC_MSB => bytes(self.statistics.sent_bytes, at == VFGOTC_MSB),
            _ => {
                let entry = |base: u32, count: usize| word(at, base, count);
                if let Some(n) = entry(VTIVAR, 4) {
                    self.interrupts.vectors[n]
                } else if let Some(n) = entry(VFMBMEM, WORDS) {
                    self.mailbox.words[n]
                } else if let Some(n) = entry(VTEITR, VECTORS.into()) {
                    self.interrupts.moderation[n]
                } else if let Some(n) = entry(VFRETA, 16) {
                    self.reta[n]
                } else if let Some((n, register)) = queue(at, RECEIVE) {
                    let off = self.receive[n].ring.works();
                    let value = self.receive[n].read(register)?;
                    if self.wrong == Some(Wrong::NeverOff) && off {
                        self.receive[n].ring.state = ring::State::On;
                    }
                    value
                } else {
                    let (n, register) = queue(at, TRANSMIT)?;
                    self.transmit[n].read(register)?
                }
            }
        })
    }

    /// Writes a register; whether there is such a one.
    fn write_register(&mut self, bus: &mut Bus, at: u32, value: u32) -> bool {
        match at {
            VFCTRL if value & RST != 0 => self.reset_vf(),
            VFCTRL => {}
            VTEICR => self.interrupts.clear_causes(value),
            VTEICS => self.interrupts.set_causes(bus, value),
            VTEIMS => self.interrupts.unmask(bus, value),
            VTEIMC => self.interrupts.mask &= !value,
            VTEIAC => self.interrupts.auto_clear = value,
            VTEIAM => self.interrupts.auto_mask = value,
            VTIVAR_MISC => self.interrupts.set_misc(bus, value),
            VFMAILBOX => self.write_mailbox(bus, value),
            VFPSRTYPE => {
                if 1 << (value >> 29) > u32::from(self.options.queues) {
                    bus.broken(format!("VFPSRTYPE = {value:#x}: more queues (RQPL) than the VF has"));
                }
                self.psrtype = value;
            }
            VFMRQC => self.mrqc = value,
            _ => {
                let entry = |base: u32, count: usize| word(at, base, count);
                if let Some(n) = entry(VTIVAR, 4) {
                    self.interrupts.set_vectors(bus, n, value);
                } else if let Some(n) = entry(VFMBMEM, WORDS) {
                    if !self.mailbox.vfu {
                        bus.broken("the mailbox is written without having been taken (VFU)");
                    }
                    self.mailbox.words[n] = value;
                } else if let Some(n) = entry(VTEITR, VECTORS.into()) {
                    self.interrupts.moderation[n] = value;
                } else if let Some(n) = entry(VFRSSRK, 10) {
                    self.key[n] = value;
                } else if let Some(n) = entry(VFRETA, 16) {
                    self.reta[n] = value;
                } else if let Some((n, register)) = queue(at, RECEIVE) {
                    self.allowed(bus, n, register, value);
                    let limits = self.options.part > Part::I82599;
                    return self.receive[n].write(bus, register, value, limits);
                } else if let Some((n, register)) = queue(at, TRANSMIT) {
                    self.allowed(bus, n, register, value);
                    let known = self.transmit[n].write(bus, register, value);
                    self.transmit_all(bus);
                    return known;
                } else {
                    return false;
                }
            }
        }
        true
    }

    /// Only queues that the VF has may be enabled, and none before its PF listens to it.
    fn allowed(&self, bus: &mut Bus, queue: usize, register: u32, value: u32) {
        if register == DCTL && value & ENABLE != 0 {
            if queue >= usize::from(self.options.queues) {
                bus.broken(format!("queue {queue} is enabled, the VF has {}", self.options.queues));
            }
            if !self.pf.clear_to_send && !self.mailbox.resetting {
                bus.broken(format!("queue {queue} is enabled before the hand-shake with the PF"));
            }
        }
    }
}

/// Which of `count` registers from `base` on.
fn word(at: u32, base: u32, count: usize) -> Option<usize> {
    let n = at.checked_sub(base)? as usize / 4;
    (n < count).then_some(n)
}

/// Which queue's register, and which.
fn queue(at: u32, base: u32) -> Option<(usize, u32)> {
    let n = at.checked_sub(base)? as usize / 64;
    (n < QUEUES).then_some((n, at % 64))
}

impl Model for Ixgbevf {
    fn config(&self) -> Config {
        Config::ethernet((0x8086, self.options.part.device_id()), [0x4000, 0, 0, 0, 0x4000, 0], VECTORS, 4, 0)
    }

    fn read(&mut self, bus: &mut Bus, bar: u8, offset: u64, size: Size) -> u64 {
        let value =
            (bar == 0 && size == Size::Word).then(|| self.read_register(bus, offset as u32)).flatten();
        value.map_or_else(
            || {
                bus.fault(Fault::Access { bar, offset, size: size.bytes(), write: false });
                u64::MAX
            },
            u64::from,
        )
    }

    fn write(&mut self, bus: &mut Bus, bar: u8, offset: u64, size: Size, value: u64) {
        self.interrupts.mute = self.wrong == Some(Wrong::NoInterrupt);
        let known = bar == 0 && size == Size::Word && self.write_register(bus, offset as u32, value as u32);
        if !known {
            bus.fault(Fault::Access { bar, offset, size: size.bytes(), write: true });
        }
    }

    fn poll(&mut self, bus: &mut Bus) {
        self.interrupts.mute = self.wrong == Some(Wrong::NoInterrupt);
        self.hear(bus);
        self.post(bus);
        while let Some(frame) = bus.wire.take_arriving() {
            self.receive_one(bus, &frame);
        }
    }

    fn reset(&mut self, _: &mut Bus) {
        self.reset_vf();
        (self.key, self.reta) = ([0; 10], [0; 16]);
        self.pf.forget(&self.options);
        // The PF has come up before its VF.
        self.mailbox.news = RSTD;
        self.statistics = Statistics::starting_at(self.options.statistics);
    }
}

/// Two VFs with these options, in words: `82599`, `x540`, `x550`, `x552`, `api=1.3`, `queues=4`; `None` where one is
/// unknown. Their addresses end in 1 and 2.
pub fn pair(words: &[&str]) -> Option<[Ixgbevf; 2]> {
    let mut options = Options { queues: 2, ..Options::default() };
    for word in words {
        match word.split_once('=') {
            None if *word == "82599" => options.part = Part::I82599,
            None if *word == "x540" => options.part = Part::X540,
            None if *word == "x550" => options.part = Part::X550,
            None if *word == "x552" => options.part = Part::X552,
            None if *word == "pf-jumbo" => options.pf_jumbo = true,
            Some(("api", version)) => options.api = Api::named(version)?,
            Some(("queues", count)) => options.queues = count.parse().ok()?,
            _ => return None,
        }
    }
    Some([1, 2].map(|last| {
        let mac = Some(MacAddress([0x52, 0x54, 0, 0, 0, last]));
        Ixgbevf::new(Options { mac, ..options.clone() })
    }))
}
