//! What these VFs and their PFs say to each other beyond [`intel::message`](crate::intel::message): the verbs and versions of
//! Intel's published base code (`ixgbe_mbx.h`).

use crate::intel::message::{Message, plain};

/// Verbs.
pub mod verb {
    /// Which version both speak.
    pub const NEGOTIATE: u32 = 0x08;
    /// How many queues there are; from 1.1 on.
    pub const GET_QUEUES: u32 = 0x09;
    /// What beside its own frames the VF receives; from 1.2 on.
    pub const UPDATE_XCAST_MODE: u32 = 0x0c;
    /// Whether the PF lets the VF have a link; from 1.2 on.
    pub const GET_LINK_STATE: u32 = 0x10;
}

/// Versions of the language, the newest last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Api {
    /// 1.0, which is spoken where nothing was agreed.
    #[default]
    V10,
    /// 1.1: queues are told.
    V11,
    /// 1.2: modes for groups, the state of the link.
    V12,
    /// 1.3: promiscuous mode.
    V13,
    /// 1.4: IPsec, which is not used.
    V14,
    /// 1.5.
    V15,
}

impl Api {
    /// All versions, the newest first, as they are tried.
    pub const NEWEST_FIRST: [Self; 6] = [Self::V15, Self::V14, Self::V13, Self::V12, Self::V11, Self::V10];

    /// How it is told: in the order in which they were thought of, 2.0 among them.
    pub fn number(self) -> u32 {
        match self {
            Self::V10 => 0,
            Self::V11 => 2,
            Self::V12 => 3,
            Self::V13 => 4,
            Self::V14 => 5,
            Self::V15 => 6,
        }
    }
}

/// What beside its own frames a VF receives; each has those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Broadcasts.
    #[default]
    Broadcast,
    /// Groups by their hashes.
    Hashed,
    /// All groups.
    Groups,
    /// Everything.
    Promiscuous,
}

impl Mode {
    /// As it is told.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The mode that a PF says it has granted.
    pub fn of(number: u32) -> Option<Self> {
        [Self::Broadcast, Self::Hashed, Self::Groups, Self::Promiscuous].get(number as usize).copied()
    }
}

/// Asks to speak `api`.
pub fn negotiate(api: Api) -> Message {
    let mut message = plain(verb::NEGOTIATE);
    message[1] = api.number();
    message
}

/// Asks for `mode`.
pub fn xcast(mode: Mode) -> Message {
    let mut message = plain(verb::UPDATE_XCAST_MODE);
    message[1] = mode.number();
    message
}

/// Queue pairs that an answer to [`verb::GET_QUEUES`] tells of: the fewer of both directions, 1 to 8.
pub fn queue_pairs(answer: &Message) -> u16 {
    answer[1].min(answer[2]).clamp(1, 8) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_base_code() {
        assert_eq!(Api::NEWEST_FIRST.map(Api::number), [6, 5, 4, 3, 2, 0]);
        assert!(Api::NEWEST_FIRST.is_sorted_by(|a, b| a > b));
        assert_eq!(negotiate(Api::V13)[..3], [8, 4, 0]);
        assert_eq!(xcast(Mode::Promiscuous)[..2], [0xc, 3]);
        assert_eq!((Mode::of(2), Mode::of(4)), (Some(Mode::Groups), None));
        let mut answer = plain(verb::GET_QUEUES);
        for (transmit, receive, pairs) in [(4, 2, 2), (0, 4, 1), (u32::MAX, u32::MAX, 8)] {
            (answer[1], answer[2]) = (transmit, receive);
            assert_eq!(queue_pairs(&answer), pairs);
        }
    }
}
