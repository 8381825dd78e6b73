//! The control queue: what is asked of the device while it runs (virtio 1.3, 5.1.6.5).
//!
//! One command at a time: class, command and data for the device to read, then a byte that it answers with.

use std::thread;
use std::time::{Duration, Instant};

use super::ring::{Piece, Ring};
use super::transport::Doorbell;
use crate::mac::MacAddress;
use crate::memory::DmaSlice;

/// Most bytes of a command; [`Command::Hash`] is the longest.
pub const COMMAND_BYTES: usize = 512;
/// Bytes of memory for a command and its answer.
pub const BYTES: usize = COMMAND_BYTES + 1;
/// Before the device answers.
const NO_ANSWER: u8 = 0xff;
const OK: u8 = 0;

/// Something to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Receive frames for all stations.
    Promiscuous,
    /// Receive frames for all groups.
    AllMulticast,
    /// Take this address.
    Address(MacAddress),
    /// Let frames of this VLAN pass.
    Vlan(u16),
    /// Use so many pairs of queues.
    Pairs(u16),
    /// Choose the receive queue by a hash.
    Hash(&'a Hash),
    /// It was seen that the link is to be announced.
    Announced,
}

/// How received flows are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash {
    /// Kinds of packets that are hashed (5.1.6.4.3.3).
    pub types: u32,
    /// Entries of the table, each of which names a receive queue: a power of two, at most 128.
    pub entries: u16,
    /// Pairs of queues.
    pub pairs: u16,
    /// Bytes of the key that are used, at most 40.
    pub key: u8,
}

/// Most entries of a table, and bytes of a key.
pub const MOST_ENTRIES: u16 = 128;
pub const MOST_KEY: u8 = 40;

/// The key that spreads flows evenly and that everybody uses (Microsoft, "Verifying the RSS hash calculation").
const KEY: [u8; MOST_KEY as usize] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
    0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
    0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

impl Command<'_> {
    /// As the device reads it.
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Promiscuous => vec![0, 0, 1],
            Self::AllMulticast => vec![0, 1, 1],
            Self::Address(mac) => [&[1, 1][..], &mac.0].concat(),
            Self::Vlan(id) => [&[2, 0][..], &id.to_le_bytes()].concat(),
            Self::Announced => vec![3, 0],
            Self::Pairs(pairs) => [&[4, 0][..], &pairs.to_le_bytes()].concat(),
            Self::Hash(hash) => {
                let mut bytes = vec![4, 1];
                bytes.extend(hash.types.to_le_bytes());
                bytes.extend((hash.entries - 1).to_le_bytes());
                // What is not hashed goes to the first queue.
                bytes.extend(0u16.to_le_bytes());
                (0..hash.entries).for_each(|n| bytes.extend((n % hash.pairs).to_le_bytes()));
                bytes.extend(hash.pairs.to_le_bytes());
                bytes.push(hash.key);
                bytes.extend(&KEY[..usize::from(hash.key.min(MOST_KEY))]);
                bytes
            }
        }
    }
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Granted,
    /// The device does not want to.
    Refused,
    /// It said nothing, or nonsense. It is not asked again.
    Silent,
}

/// The control queue.
#[derive(Debug)]
pub struct Control {
    ring: Ring,
    doorbell: Doorbell,
    memory: DmaSlice,
    size: u16,
    /// Id of the next command.
    next: u16,
    patience: Duration,
    silent: bool,
}

impl Control {
    /// A queue over `ring` of `size` descriptors, with [`BYTES`] of `memory`, that waits so long for an answer.
    pub fn new(ring: Ring, size: u16, doorbell: Doorbell, memory: DmaSlice, patience: Duration) -> Self {
        Self { ring, doorbell, memory, size, next: 0, patience, silent: false }
    }

    /// Asks the device, and waits for what it says.
    pub fn ask(&mut self, command: Command<'_>) -> Answer {
        let bytes = command.bytes();
        if self.silent || bytes.len() > COMMAND_BYTES || self.ring.room() < 2 {
            return Answer::Silent;
        }
        self.memory.segment(0, COMMAND_BYTES as u32).copy_from(&bytes);
        let answer = self.memory.segment(COMMAND_BYTES, 1);
        answer.write_array(&[NO_ANSWER]);
        let iova = self.memory.iova();
        let id = self.next;
        self.next = (id + 2) & (self.size - 1);
        self.ring.give(
            id,
            &[
                Piece { iova, len: bytes.len() as u32, write: false },
                Piece { iova: iova + COMMAND_BYTES as u64, len: 1, write: true },
            ],
        );
        if self.ring.show() {
            self.doorbell.ring(&self.ring);
        }
        let deadline = Instant::now() + self.patience;
        loop {
            match self.ring.take() {
                Ok(Some(_)) => break,
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_micros(100)),
                Ok(None) | Err(_) => {
                    self.silent = true;
                    return Answer::Silent;
                }
            }
        }
        match answer.read_array() {
            Some([OK]) => Answer::Granted,
            Some([NO_ANSWER]) | None => Answer::Silent,
            Some(_) => Answer::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_written_as_the_standard_has_them() {
        let mac = MacAddress([2, 0, 0, 0, 0, 7]);
        for (command, bytes) in [
            (Command::Promiscuous, &[0, 0, 1][..]),
            (Command::AllMulticast, &[0, 1, 1]),
            (Command::Address(mac), &[1, 1, 2, 0, 0, 0, 0, 7]),
            (Command::Vlan(0x123), &[2, 0, 0x23, 1]),
            (Command::Announced, &[3, 0]),
            (Command::Pairs(3), &[4, 0, 3, 0]),
        ] {
            assert_eq!(command.bytes(), bytes);
        }
        let hash = Hash { types: 0x3f, entries: 4, pairs: 3, key: 2 };
        let bytes = [4, 1, 0x3f, 0, 0, 0, 3, 0, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 3, 0, 2, 0x6d, 0x5a];
        assert_eq!(Command::Hash(&hash).bytes(), bytes);
        let longest = Hash { types: 0, entries: MOST_ENTRIES, pairs: 128, key: MOST_KEY };
        assert!(Command::Hash(&longest).bytes().len() <= COMMAND_BYTES);
    }
}
