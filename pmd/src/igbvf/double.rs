//! A double of the VF's registers and of the PF behind its mailbox, for tests of the slow side.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::registers::*;
use crate::intel::family::ring;
use crate::intel::mailbox::{Patience, bit};
use crate::intel::message::{ACK, CLEAR_TO_SEND, Message, NACK, WORDS, verb};
use crate::mac::MacAddress;
use crate::registers::{ALL_ONES, Registers};

/// Waits next to nothing.
pub(crate) const IMPATIENT: Patience =
    Patience { interval: Duration::from_micros(1), looks: 20, stall: Duration::from_secs(1) };

#[derive(Debug)]
pub(crate) struct Pf {
    pub control: u32,
    pub words: Message,
    pub mac: MacAddress,
    /// The PF knows no MAC address for this VF.
    pub no_mac: bool,
    /// The PF refuses other addresses.
    pub keeps_mac: bool,
    /// The PF refuses this VLAN.
    pub refused_vlan: u32,
    /// The PF does not answer.
    pub silent: bool,
    /// Registers read as ones.
    pub gone: bool,
    /// A ping comes before the next answer.
    pub ping_first: bool,
    /// Longest frame, with FCS, that the PF grants.
    pub longest: u32,
    pub unicast_promiscuous: bool,
    pub multicast_promiscuous: bool,
    /// Every message, in order.
    pub heard: Vec<Message>,
    registers: HashMap<u32, u32>,
    writes: HashMap<u32, usize>,
}

#[derive(Debug)]
pub(crate) struct Double {
    pf: Mutex<Pf>,
    reads: AtomicUsize,
}

impl Double {
    pub fn new() -> Arc<Self> {
        let pf = Pf {
            control: 0,
            words: [0; WORDS],
            mac: MacAddress([0x52, 0x54, 0, 0, 0, 0x10]),
            no_mac: false,
            keeps_mac: false,
            refused_vlan: u32::MAX,
            silent: false,
            gone: false,
            ping_first: false,
            longest: RINGS.longest_frame,
            unicast_promiscuous: false,
            multicast_promiscuous: true,
            heard: Vec::new(),
            registers: HashMap::from([(STATUS, STATUS_LU | 2 << STATUS_SPEED_SHIFT)]),
            writes: HashMap::new(),
        };
        Arc::new(Self { pf: Mutex::new(pf), reads: AtomicUsize::new(0) })
    }

    pub fn mac(&self) -> MacAddress {
        self.pf.lock().unwrap().mac
    }

    pub fn set(&self, change: impl FnOnce(&mut Pf)) {
        change(&mut self.pf.lock().unwrap());
    }

    /// Sets a register behind the driver's back.
    pub fn poke(&self, offset: u32, value: u32) {
        self.pf.lock().unwrap().registers.insert(offset, value);
    }

    /// Reads a register as the device itself does: it is no access of the driver's.
    pub fn peek(&self, offset: u32) -> u32 {
        self.pf.lock().unwrap().registers.get(&offset).copied().unwrap_or(0)
    }

    /// The PF says something on its own.
    pub fn say(&self, word: u32) {
        self.set(|pf| {
            pf.words[0] = word;
            pf.control |= bit::PFSTS;
        });
    }

    pub fn heard(&self, verb: u32) -> Vec<Message> {
        self.pf.lock().unwrap().heard.iter().filter(|message| message[0] & 0xffff == verb).copied().collect()
    }

    pub fn writes(&self, offset: u32) -> usize {
        self.pf.lock().unwrap().writes.get(&offset).copied().unwrap_or(0)
    }

    pub fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }
}

impl Pf {
    fn answer(&mut self) {
        self.heard.push(self.words);
        self.control |= bit::PFACK;
        if std::mem::take(&mut self.ping_first) {
            self.words[0] = 0x0100 | CLEAR_TO_SEND;
            self.control |= bit::PFSTS;
            return;
        }
        let word = self.words[0];
        let granted = match word & 0xffff {
            verb::RESET => {
                self.words[1] = self.mac.to_u64() as u32;
                self.words[2] = (self.mac.to_u64() >> 32) as u32;
                !self.no_mac
            }
            verb::SET_MAC => !self.keeps_mac,
            verb::SET_VLAN => self.words[1] != self.refused_vlan,
            verb::SET_LONGEST_FRAME => self.words[1] <= self.longest,
            verb::SET_PROMISCUOUS => {
                (word & 1 << 16 == 0 || self.unicast_promiscuous)
                    && (word & 1 << 17 == 0 || self.multicast_promiscuous)
            }
            _ => true,
        };
        self.words[0] = word | CLEAR_TO_SEND | if granted { ACK } else { NACK };
        self.control |= bit::PFSTS;
    }

    fn mailbox(&mut self, value: u32) {
        self.control = self.control & !bit::VFU | value & bit::VFU;
        if value & bit::REQ != 0 && !self.silent {
            self.answer();
        }
        // Once the ping has been read, the answer follows.
        if value & bit::ACK != 0
            && self.words[0] == 0x0100 | CLEAR_TO_SEND
            && let Some(last) = self.heard.pop()
        {
            self.words = last;
            self.answer();
        }
    }
}

const V2PMAILBOX: u32 = MAILBOX.control;
const VMBMEM: u32 = MAILBOX.words;

impl Registers for Double {
    fn read(&self, offset: u32) -> u32 {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let mut pf = self.pf.lock().unwrap();
        match offset {
            _ if pf.gone => ALL_ONES,
            V2PMAILBOX => {
                let value = pf.control;
                pf.control &= !bit::CLEARED_BY_READ;
                value
            }
            _ if (VMBMEM..VMBMEM + 64).contains(&offset) => pf.words[(offset - VMBMEM) as usize / 4],
            _ => pf.registers.get(&offset).copied().unwrap_or(0),
        }
    }

    fn write(&self, offset: u32, value: u32) {
        let mut pf = self.pf.lock().unwrap();
        *pf.writes.entry(offset).or_default() += 1;
        match offset {
            V2PMAILBOX => pf.mailbox(value),
            _ if (VMBMEM..VMBMEM + 64).contains(&offset) => pf.words[(offset - VMBMEM) as usize / 4] = value,
            CTRL if value & CTRL_RST != 0 => {
                for queue in 0..2 {
                    pf.registers.remove(&RINGS.receive_at(queue, ring::CONTROL));
                    pf.registers.remove(&RINGS.transmit_at(queue, ring::CONTROL));
                }
            }
            _ => {
                pf.registers.insert(offset, value);
            }
        }
    }
}
