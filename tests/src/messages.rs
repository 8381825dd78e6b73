//! vhost-user messages by hand, right and wrong: what no front end library lets one send.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use relay::driver::nic::GuestNic;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Requests by number, those that tests send.
pub mod request {
    #![allow(missing_docs)]
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SEND_RARP: u32 = 19;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    /// Messages about one ring, with the length of their payload.
    pub const OF_A_RING: [(u32, usize); 8] = [
        (SET_VRING_NUM, 8),
        (SET_VRING_ADDR, 40),
        (SET_VRING_BASE, 8),
        (GET_VRING_BASE, 8),
        (SET_VRING_KICK, 8),
        (SET_VRING_CALL, 8),
        (SET_VRING_ERR, 8),
        (SET_VRING_ENABLE, 8),
    ];
}

/// `SET_VRING_KICK` and its like: no descriptor comes along.
pub const NOFD: u64 = 1 << 8;
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;

/// A message as bytes.
pub fn message(request: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(request, VERSION, payload.len() as u32);
    bytes.extend_from_slice(payload);
    bytes
}

/// The header of a message that wants to be acknowledged.
fn acknowledged(request: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(request, VERSION | NEED_REPLY, payload.len() as u32);
    bytes.extend_from_slice(payload);
    bytes
}

/// A header of any kind.
pub fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    [request, flags, size].into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// A payload of 64-bit words.
pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The payload of a message about a ring's state.
pub fn state(index: u32, value: u32) -> Vec<u8> {
    words(&[u64::from(value) << 32 | u64::from(index)])
}

/// A connection to write messages to.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
}

/// What became of a message that wanted to be acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was obeyed.
    Done,
    /// It was refused.
    Refused,
    /// The connection was closed.
    Closed,
}

impl Wire {
    /// Connects.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Self::over(UnixStream::connect(path)?)
    }

    fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { stream })
    }

    /// The connection of a guest that runs, to say more on it than its front end would.
    pub fn of(nic: &mut GuestNic) -> io::Result<Self> {
        let fd = nic.frontend().as_raw_fd();
        // SAFETY: the front end keeps its socket open as long as it is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
        Self::over(UnixStream::from(fd))
    }

    /// Writes bytes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Writes bytes with descriptors.
    pub fn write_with(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(descriptors));
        Ok(sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
    }

    /// Sends a message that has to be acknowledged, and says what came back.
    pub fn ask(&mut self, request: u32, payload: &[u8], descriptors: &[BorrowedFd<'_>]) -> Answer {
        let sent = self.write_with(&acknowledged(request, payload), descriptors);
        match sent.and_then(|_| self.reply()) {
            Ok((_, payload)) if payload == words(&[0]) => Answer::Done,
            Ok(_) => Answer::Refused,
            Err(_) => Answer::Closed,
        }
    }

    /// The next reply: request and payload.
    pub fn reply(&mut self) -> io::Result<(u32, Vec<u8>)> {
        let mut head = [0; 12];
        self.stream.read_exact(&mut head)?;
        let word = |n: usize| u32::from_ne_bytes([head[n], head[n + 1], head[n + 2], head[n + 3]]);
        let mut payload = vec![0; word(8) as usize];
        self.stream.read_exact(&mut payload)?;
        Ok((word(0), payload))
    }

    /// Whether the other side closes the connection, whatever it says before; within 10 seconds.
    pub fn is_closed(&mut self) -> bool {
        let mut byte = [0; 256];
        loop {
            match self.stream.read(&mut byte) {
                Ok(0) => return true,
                Ok(_) => {}
                // What was not read there resets the connection.
                Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// The stream itself.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
}
