//! A vhost-user connection as a stream of whole messages.
//!
//! Never blocks on the peer: half a message is kept until the rest comes (for a limited time), and a peer that does not
//! read its replies is given up.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use thiserror::Error;

use super::message::{HEADER, Header, MAX_PAYLOAD, ProtocolError};

/// The first message must come within this time, and the rest of each message after its beginning. Front ends speak at
/// once; what connects and is silent would keep the VM from its socket.
const MESSAGE_TIME: Duration = Duration::from_secs(5);
/// A reply must be taken within this time.
const REPLY_TIME: Duration = Duration::from_secs(1);
/// Descriptors that one `recvmsg` can bring (`SCM_MAX_FD`); room for all, so that none is lost unseen.
const MAX_DESCRIPTORS: usize = 253;

/// Why a connection ended.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// The peer closed it.
    #[error("the front end closed the connection")]
    Closed,
    /// The peer broke the protocol.
    #[error("the front end broke the protocol: {0}")]
    Protocol(#[from] ProtocolError),
    /// The peer stopped in the middle of a message, or never began one.
    #[error("the front end did not send a whole message within 5 s")]
    HalfMessage,
    /// The peer does not read.
    #[error("the front end does not read its replies")]
    NotReading,
    /// The kernel reported an error.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A message with its descriptors.
#[derive(Debug)]
pub struct Message {
    /// The header.
    pub header: Header,
    /// The payload, `header.size` bytes.
    pub payload: Vec<u8>,
    /// Descriptors that came along, at most as many as the request may carry.
    pub descriptors: Vec<OwnedFd>,
}

/// One front end's connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// Since when a message is waited for.
    began: Option<Instant>,
}

impl Connection {
    /// Takes a connected socket.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, buffer: Vec::new(), descriptors: Vec::new(), began: Some(Instant::now()) })
    }

    /// What to poll for reading.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Process id of the peer, for the log.
    pub fn peer(&self) -> Option<i32> {
        rustix::net::sockopt::socket_peercred(&self.stream).ok().map(|peer| peer.pid.as_raw_nonzero().get())
    }

    /// The next whole message; `None` when it is not there yet.
    pub fn receive(&mut self) -> Result<Option<Message>, ConnectionError> {
        loop {
            let header = match self.buffer.first_chunk::<HEADER>() {
                Some(bytes) => Some(Header::parse(*bytes)?),
                None => None,
            };
            if let Some(header) = &header {
                let count = self.descriptors.len();
                if count > header.shape.descriptors {
                    return Err(ProtocolError::TooManyDescriptors { request: header.request, count }.into());
                }
            }
            let wanted = HEADER + header.map_or(0, |header| header.size);
            if self.buffer.len() == wanted
                && let Some(header) = header
            {
                let payload = self.buffer.split_off(HEADER);
                self.buffer.clear();
                self.began = None;
                return Ok(Some(Message {
                    header,
                    payload,
                    descriptors: std::mem::take(&mut self.descriptors),
                }));
            }
            match self.read(wanted - self.buffer.len()) {
                Ok(0) if self.buffer.is_empty() => return Err(ConnectionError::Closed),
                Ok(0) => return Err(ConnectionError::HalfMessage),
                Ok(_) => self.began = Some(self.began.unwrap_or_else(Instant::now)),
                Err(ConnectionError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    let late = self.began.is_some_and(|began| began.elapsed() > MESSAGE_TIME);
                    return if late { Err(ConnectionError::HalfMessage) } else { Ok(None) };
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn read(&mut self, len: usize) -> Result<usize, ConnectionError> {
        let mut bytes = [0; MAX_PAYLOAD];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(&mut bytes[..len.min(MAX_PAYLOAD)])];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = recvmsg(&self.stream, &mut pieces, &mut control, flags).map_err(io::Error::from)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        // Checked before the header is whole too: descriptors sent byte by byte must not use up the process's limit.
        let header_is_whole = self.buffer.len() + received.bytes >= HEADER;
        let too_many = !header_is_whole && self.descriptors.len() > super::message::MOST_DESCRIPTORS;
        if received.flags.contains(ReturnFlags::CTRUNC) || too_many {
            return Err(io::Error::other("more descriptors than a message can carry").into());
        }
        self.buffer.extend_from_slice(&bytes[..received.bytes]);
        Ok(received.bytes)
    }

    /// Sends a reply, with a descriptor if one goes along.
    pub fn send(&mut self, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<(), ConnectionError> {
        let deadline = Instant::now() + REPLY_TIME;
        let mut rest = bytes;
        while !rest.is_empty() {
            // It goes with the first byte.
            let along = descriptor.filter(|_| rest.len() == bytes.len());
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if let Some(fd) = &along {
                control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
            }
            match sendmsg(&self.stream, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL) {
                Ok(n) => rest = &rest[n..],
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(ConnectionError::NotReading);
                    }
                    let timeout = Timespec::try_from(left).ok();
                    let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
                    match poll(&mut fds, timeout.as_ref()) {
                        Ok(_) | Err(rustix::io::Errno::INTR) => {}
                        Err(error) => return Err(io::Error::from(error).into()),
                    }
                }
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vhost::vhost_user::message::FrontendReq;

    fn pair() -> (UnixStream, Connection) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (theirs, Connection::new(ours).unwrap())
    }

    fn message(request: FrontendReq, payload: &[u8]) -> Vec<u8> {
        let mut bytes = super::super::message::reply(request, payload);
        bytes[4] = 1;
        bytes
    }

    fn send_with(peer: &UnixStream, bytes: &[u8], count: usize) {
        let file = std::fs::File::open("/dev/null").unwrap();
        let descriptors = vec![file.as_fd(); count];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(peer, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    }

    #[test]
    fn a_message_in_single_bytes_arrives_whole() {
        let (mut peer, mut connection) = pair();
        let bytes = message(FrontendReq::SET_FEATURES, &5u64.to_ne_bytes());
        for byte in &bytes {
            assert!(connection.receive().unwrap().is_none());
            peer.write_all(&[*byte]).unwrap();
        }
        let message = connection.receive().unwrap().unwrap();
        assert_eq!(
            (message.header.request, &message.payload[..]),
            (FrontendReq::SET_FEATURES, &5u64.to_ne_bytes()[..])
        );
        assert!(connection.receive().unwrap().is_none());
    }

    #[test]
    fn two_messages_in_one_write_stay_two() {
        let (mut peer, mut connection) = pair();
        let mut bytes = message(FrontendReq::GET_FEATURES, &[]);
        bytes.extend(message(FrontendReq::SET_OWNER, &[]));
        peer.write_all(&bytes).unwrap();
        assert_eq!(connection.receive().unwrap().unwrap().header.request, FrontendReq::GET_FEATURES);
        assert_eq!(connection.receive().unwrap().unwrap().header.request, FrontendReq::SET_OWNER);
        drop(peer);
        assert!(matches!(connection.receive(), Err(ConnectionError::Closed)));
    }

    #[test]
    fn surplus_descriptors_end_the_connection_and_are_closed() {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let (peer, mut connection) = pair();
        let before = open();
        for count in [1, 9, 253] {
            let (peer, mut connection) = pair();
            send_with(&peer, &message(FrontendReq::GET_FEATURES, &[]), count);
            assert!(matches!(connection.receive(), Err(ConnectionError::Protocol(_))), "{count} descriptors");
        }
        send_with(&peer, &message(FrontendReq::SET_VRING_CALL, &0u64.to_ne_bytes()), 1);
        assert_eq!(connection.receive().unwrap().unwrap().descriptors.len(), 1);
        // Other tests of this process open and close files too; a leak here would be 263.
        assert!(open() < before + 100);
    }

    #[test]
    fn garbage_and_half_messages_end_the_connection() {
        let (mut peer, mut connection) = pair();
        peer.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(matches!(connection.receive(), Err(ConnectionError::Protocol(_))));
        let (mut peer, mut connection) = pair();
        peer.write_all(&[1, 0, 0]).unwrap();
        assert!(connection.receive().unwrap().is_none());
        drop(peer);
        assert!(matches!(connection.receive(), Err(ConnectionError::HalfMessage)));
    }

    #[test]
    fn a_peer_that_does_not_read_is_given_up() {
        let (_peer, mut connection) = pair();
        let start = Instant::now();
        let flood = vec![0; 16 << 20];
        assert!(matches!(connection.send(&flood, None), Err(ConnectionError::NotReading)));
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
