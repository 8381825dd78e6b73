//! The PF as it answers through the mailbox: as Linux's does, up to API 1.5. The verbs and versions are those of Intel's
//! published base code (`ixgbe_mbx.h`).

use std::collections::BTreeSet;

use pmd::MacAddress;

use super::{Options, Part, Wrong};

/// Words in the mailbox.
pub const WORDS: usize = 16;
/// One message.
pub type Message = [u32; WORDS];

pub const SUCCESS: u32 = 1 << 31;
pub const FAILURE: u32 = 1 << 30;
pub const CTS: u32 = 1 << 29;
/// What the PF says on its own.
pub const CONTROL: u32 = 0x100;

const RESET: u32 = 0x01;
const SET_MAC: u32 = 0x02;
const SET_MULTICAST: u32 = 0x03;
const SET_VLAN: u32 = 0x04;
const SET_LPE: u32 = 0x05;
const SET_MACVLAN: u32 = 0x06;
const API_NEGOTIATE: u32 = 0x08;
const GET_QUEUES: u32 = 0x09;
const GET_RETA: u32 = 0x0a;
const GET_RSS_KEY: u32 = 0x0b;
const UPDATE_XCAST_MODE: u32 = 0x0c;
const GET_LINK_STATE: u32 = 0x10;

/// Longest frame of the port, with FCS.
pub const LONGEST_FRAME: u32 = 9728;
/// Longest frame of a usual network, with FCS.
const USUAL_FRAME: u32 = 1518;
/// Entries of the PF's redirection table.
pub const RETA: usize = 128;
/// Bytes of its hash key.
pub const RSS_KEY: usize = 40;

/// Versions of the mailbox's language. Their numbers on the wire are not in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Api {
    /// 1.0
    V10,
    /// 1.1: tells how many queues there are.
    V11,
    /// 1.2: tells the redirection table, takes multicast modes.
    V12,
    /// 1.3: takes the promiscuous mode.
    V13,
    /// 1.4: IPsec.
    V14,
    /// 1.5: a mailbox with acknowledgements on both sides.
    V15,
}

impl Api {
    fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::V10,
            2 => Self::V11,
            3 => Self::V12,
            4 => Self::V13,
            5 => Self::V14,
            6 => Self::V15,
            _ => return None,
        })
    }

    /// As people write it: `1.3`.
    pub fn named(name: &str) -> Option<Self> {
        let (_, version) = [
            ("1.0", Self::V10),
            ("1.1", Self::V11),
            ("1.2", Self::V12),
            ("1.3", Self::V13),
            ("1.4", Self::V14),
            ("1.5", Self::V15),
        ]
        .into_iter()
        .find(|(known, _)| *known == name)?;
        Some(version)
    }
}

/// What a VF receives beside its own frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Broadcasts.
    #[default]
    None,
    /// Groups whose hashes it has told.
    Multi,
    /// All groups.
    AllMulti,
    /// Everything.
    Promiscuous,
}

/// What the PF knows of the VF.
#[derive(Debug)]
pub struct Pf {
    /// It listens to the VF: the VF has said hello since the last reset.
    pub clear_to_send: bool,
    /// What they speak.
    pub api: Api,
    /// The VF's address.
    pub mac: Option<MacAddress>,
    /// More addresses of the VF.
    pub macvlans: Vec<MacAddress>,
    hashes: BTreeSet<u16>,
    /// VLANs whose frames the VF gets.
    pub vlans: BTreeSet<u16>,
    /// What else it gets.
    pub mode: Mode,
    /// Longest frame that the port receives, with FCS and without tag.
    pub max_frame: u32,
    /// The VF may receive (VFRE).
    pub may_receive: bool,
    /// Verbs heard, the latest last.
    pub heard: Vec<Message>,
}

fn mac_of(message: &Message) -> MacAddress {
    MacAddress::from_u64(u64::from(message[1]) | u64::from(message[2]) << 32)
}

impl Pf {
    pub fn new(options: &Options) -> Self {
        Self {
            clear_to_send: false,
            api: Api::V10,
            mac: options.mac,
            macvlans: Vec::new(),
            hashes: BTreeSet::new(),
            vlans: BTreeSet::new(),
            mode: Mode::None,
            max_frame: if options.pf_jumbo { LONGEST_FRAME } else { USUAL_FRAME },
            may_receive: true,
            heard: Vec::new(),
        }
    }

    /// Forgets what the VF has told.
    pub fn forget(&mut self, options: &Options) {
        let heard = std::mem::take(&mut self.heard);
        *self = Self { max_frame: self.max_frame, heard, ..Self::new(options) };
    }

    /// Whether a frame is for the VF.
    pub fn takes(&self, frame: &[u8]) -> bool {
        let Some(to) = frame.get(..6) else { return false };
        let is_mine = |mac: &MacAddress| mac.0[..] == *to;
        let address = if to == [0xff; 6] {
            true
        } else if to[0] & 1 == 0 {
            self.mode == Mode::Promiscuous
                || self.mac.iter().any(is_mine)
                || self.macvlans.iter().any(is_mine)
        } else {
            let hash = u16::from_le_bytes([to[4], to[5]]) >> 4;
            self.mode >= Mode::AllMulti || self.hashes.contains(&hash)
        };
        let vlan = match frame.get(12..16) {
            Some(&[0x81, 0x00, high, low]) => self.vlans.contains(&(u16::from_be_bytes([high, low]) & 0xfff)),
            _ => true,
        };
        address && vlan && self.may_receive
    }

    /// The answer to a message, its result in the first word.
    pub fn answer(&mut self, message: &Message, options: &Options, wrong: Option<Wrong>) -> Message {
        self.heard.push(*message);
        let mut reply = *message;
        let verb = message[0] & 0xffff;
        if verb == RESET {
            self.forget(options);
            self.clear_to_send = true;
            reply[0] = RESET | if options.mac.is_some() { SUCCESS } else { FAILURE };
            if wrong == Some(Wrong::ResetReplyWithCts) {
                reply[0] |= CTS;
            }
            if let Some(mac) = options.mac {
                (reply[1], reply[2]) = (mac.to_u64() as u32, (mac.to_u64() >> 32) as u32);
            }
            // Hashes of groups are bits 47 to 36 of their addresses.
            reply[3] = 0;
            return reply;
        }
        if !self.clear_to_send {
            reply[0] |= FAILURE;
            return reply;
        }
        let granted = self.carry_out(verb, message, &mut reply, options);
        reply[0] |= CTS | if granted { SUCCESS } else { FAILURE };
        match wrong {
            Some(Wrong::OtherVerb) => reply[0] ^= 0x40,
            Some(Wrong::BothVerdicts) => reply[0] |= SUCCESS | FAILURE,
            _ => {}
        }
        reply
    }

    fn carry_out(&mut self, verb: u32, message: &Message, reply: &mut Message, options: &Options) -> bool {
        let argument = message[0] >> 16 & 0xff;
        match verb {
            SET_MAC => {
                let mac = mac_of(message);
                let forced = options.mac.is_some_and(|own| own != mac) && !options.trusted;
                if forced || !mac.is_valid_unicast() {
                    return false;
                }
                self.mac = Some(mac);
                true
            }
            SET_MULTICAST => {
                let words = &message[1..];
                let hashes = words.iter().flat_map(|word| [*word as u16, (word >> 16) as u16]);
                self.hashes = hashes.take(argument as usize).map(|hash| hash & 0xfff).collect();
                argument <= 30
            }
            SET_VLAN if message[1] > 4095 => false,
            SET_VLAN => {
                let vlan = message[1] as u16;
                if argument != 0 {
                    self.vlans.insert(vlan)
                } else {
                    self.vlans.remove(&vlan)
                };
                options.grants_vlans
            }
            SET_LPE => self.set_longest_frame(message[1], options),
            SET_MACVLAN if argument == 0 => {
                self.macvlans.clear();
                true
            }
            SET_MACVLAN => {
                if argument == 1 {
                    self.macvlans.clear();
                }
                self.macvlans.push(mac_of(message));
                mac_of(message).is_valid_unicast() && options.trusted
            }
            API_NEGOTIATE => match Api::of(message[1]).filter(|api| *api <= options.api) {
                Some(api) => {
                    self.api = api;
                    true
                }
                None => false,
            },
            GET_QUEUES if self.api >= Api::V11 => {
                reply[1..5].copy_from_slice(&[options.queues.into(), options.queues.into(), 0, 0]);
                true
            }
            GET_RETA if self.api >= Api::V12 && options.part < Part::X550 => {
                reply[1..1 + RETA / 16].fill(0);
                for n in 0..RETA {
                    reply[1 + n / 16] |= (options.pf_reta(n) as u32 & 3) << (2 * (n % 16));
                }
                true
            }
            GET_RSS_KEY if self.api >= Api::V12 && options.part < Part::X550 => {
                for (word, bytes) in reply[1..].iter_mut().zip(pf_key().chunks_exact(4)) {
                    *word = u32::from_le_bytes(bytes.try_into().unwrap_or_default());
                }
                true
            }
            UPDATE_XCAST_MODE if self.api >= Api::V12 => {
                let mode = match message[1] {
                    0 => Mode::None,
                    1 => Mode::Multi,
                    2 => Mode::AllMulti,
                    3 if self.api >= Api::V13 => Mode::Promiscuous,
                    _ => return false,
                };
                // It does not refuse, it grants less: the answer says what.
                let mode = if options.trusted { mode } else { mode.min(Mode::Multi) };
                if mode == Mode::Promiscuous && !(options.pf_promiscuous && options.part > Part::I82599) {
                    return false;
                }
                self.mode = mode;
                reply[1] = mode as u32;
                true
            }
            GET_LINK_STATE if self.api >= Api::V12 => {
                reply[1] = options.allows_link.into();
                true
            }
            _ => false,
        }
    }

    /// `longest` is with FCS, and without tag.
    fn set_longest_frame(&mut self, longest: u32, options: &Options) -> bool {
        if options.part == Part::I82599 {
            // Its VFs have jumbo frames where the PF has them, and then only those that speak 1.1.
            let pf_jumbo = self.max_frame > USUAL_FRAME;
            self.may_receive = if pf_jumbo { self.api >= Api::V11 } else { longest <= USUAL_FRAME };
            if !self.may_receive {
                return false;
            }
        }
        if longest > LONGEST_FRAME {
            return false;
        }
        self.max_frame = self.max_frame.max(longest);
        true
    }
}

/// The PF's hash key.
pub fn pf_key() -> [u8; RSS_KEY] {
    std::array::from_fn(|n| (n as u8).wrapping_mul(37) ^ 0x6d)
}
