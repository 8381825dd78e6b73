//! The vhost-user protocol on one page: which messages there are, how long, with how many descriptors.
//!
//! The payload types are those of the `vhost` crate. Its session loop is not used: it ends the connection on messages
//! that QEMU sends as a matter of course (`SET_VRING_ENABLE` before `SET_FEATURES`, for one).

use thiserror::Error;
use vhost::vhost_user::message::{FrontendReq, VhostUserInflight};

/// Length of a message header in bytes: request, flags, payload size; 32 bits each, in the host's byte order.
pub const HEADER: usize = 12;
/// Longest payload that is accepted. The longest legal one, a memory table of 8 regions, has 264 bytes.
pub const MAX_PAYLOAD: usize = 4096;

/// Flags, low two bits: protocol version, always 1.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
/// Flag: this is a reply.
const REPLY: u32 = 1 << 2;
/// Flag: the sender wants an answer even if the message has none (`REPLY_ACK`).
const NEED_REPLY: u32 = 1 << 3;

/// A message that breaks the protocol: the connection ends.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProtocolError {
    /// No such request.
    #[error("unknown request {0}")]
    UnknownRequest(u32),
    /// Flags that a front end never sets, or another version.
    #[error("request {request} with flags {flags:#x}")]
    BadFlags {
        /// Request number.
        request: u32,
        /// The flags.
        flags: u32,
    },
    /// The payload cannot be that of the request.
    #[error("{request:?} with {size} bytes of payload")]
    BadSize {
        /// The request.
        request: FrontendReq,
        /// Payload size in bytes.
        size: u32,
    },
    /// More file descriptors than the request may carry.
    #[error("{request:?} with {count} file descriptors")]
    TooManyDescriptors {
        /// The request.
        request: FrontendReq,
        /// How many came.
        count: usize,
    },
}

/// Length of the description of in-flight memory in bytes, with what C adds at its end.
const INFLIGHT: usize = size_of::<VhostUserInflight>();

/// Descriptors that any request may carry, at most: those of a memory table.
pub const MOST_DESCRIPTORS: usize = 8;

/// What the table says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Shortest and longest payload in bytes.
    pub payload: (usize, usize),
    /// File descriptors, at most.
    pub descriptors: usize,
    /// Whether the answer is part of the request itself.
    pub answers: bool,
}

/// The table. A request that is not in it is none that this device negotiates.
pub fn shape(request: FrontendReq) -> Option<Shape> {
    use FrontendReq as R;
    let exact = |len, descriptors, answers| Some(Shape { payload: (len, len), descriptors, answers });
    match request {
        R::GET_FEATURES
        | R::GET_PROTOCOL_FEATURES
        | R::GET_QUEUE_NUM
        | R::GET_MAX_MEM_SLOTS
        | R::GET_STATUS => exact(0, 0, true),
        R::SET_OWNER | R::RESET_OWNER | R::RESET_DEVICE => exact(0, 0, false),
        R::SET_FEATURES | R::SET_PROTOCOL_FEATURES | R::SET_STATUS | R::NET_SET_MTU | R::SEND_RARP => {
            exact(8, 0, false)
        }
        R::GET_INFLIGHT_FD => exact(INFLIGHT, 0, true),
        R::SET_INFLIGHT_FD => exact(INFLIGHT, 1, false),
        R::SET_LOG_BASE => exact(16, 1, true),
        R::SET_LOG_FD => Some(Shape { payload: (0, 8), descriptors: 1, answers: false }),
        R::SET_BACKEND_REQ_FD => Some(Shape { payload: (0, 8), descriptors: 1, answers: false }),
        R::IOTLB_MSG => exact(super::iotlb::MESSAGE, 0, false),
        R::SET_MEM_TABLE => {
            Some(Shape { payload: (8, 8 + 8 * 32), descriptors: MOST_DESCRIPTORS, answers: false })
        }
        R::ADD_MEM_REG => exact(40, 1, false),
        // Front ends may or may not send the region's descriptor along; it is not needed.
        R::REM_MEM_REG => exact(40, 1, false),
        R::SET_VRING_NUM | R::SET_VRING_BASE | R::SET_VRING_ENABLE => exact(8, 0, false),
        R::SET_VRING_ADDR => exact(40, 0, false),
        R::GET_VRING_BASE => exact(8, 0, true),
        R::SET_VRING_KICK | R::SET_VRING_CALL | R::SET_VRING_ERR => exact(8, 1, false),
        _ => None,
    }
}

/// A message header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The request.
    pub request: FrontendReq,
    /// Its row in the table.
    pub shape: Shape,
    /// Whether the sender waits for an acknowledgement.
    pub need_reply: bool,
    /// Payload size in bytes.
    pub size: usize,
}

impl Header {
    /// Reads and checks a header.
    pub fn parse(bytes: [u8; HEADER]) -> Result<Self, ProtocolError> {
        let word = |n: usize| u32::from_ne_bytes([bytes[n], bytes[n + 1], bytes[n + 2], bytes[n + 3]]);
        let (number, flags, size) = (word(0), word(4), word(8));
        let request = FrontendReq::try_from(number).map_err(|_| ProtocolError::UnknownRequest(number))?;
        let shape = shape(request).ok_or(ProtocolError::UnknownRequest(number))?;
        if flags & VERSION_MASK != VERSION || flags & REPLY != 0 {
            return Err(ProtocolError::BadFlags { request: number, flags });
        }
        let (shortest, longest) = shape.payload;
        if !(shortest..=longest).contains(&(size as usize)) || size as usize > MAX_PAYLOAD {
            return Err(ProtocolError::BadSize { request, size });
        }
        Ok(Self { request, shape, need_reply: flags & NEED_REPLY != 0, size: size as usize })
    }
}

/// A whole reply to `request`.
pub fn reply(request: FrontendReq, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    for word in [request as u32, VERSION | REPLY, payload.len() as u32] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(request: u32, flags: u32, size: u32) -> Result<Header, ProtocolError> {
        let mut bytes = [0; HEADER];
        for (slot, word) in bytes.chunks_mut(4).zip([request, flags, size]) {
            slot.copy_from_slice(&word.to_ne_bytes());
        }
        Header::parse(bytes)
    }

    #[test]
    fn only_well_formed_headers_pass() {
        let good = header(FrontendReq::SET_FEATURES as u32, 1 | NEED_REPLY, 8).unwrap();
        assert!(good.need_reply && good.size == 8);
        assert!(matches!(header(0, 1, 0), Err(ProtocolError::UnknownRequest(0))));
        assert!(matches!(header(u32::MAX, 1, 0), Err(ProtocolError::UnknownRequest(_))));
        assert!(matches!(header(1, 2, 0), Err(ProtocolError::BadFlags { .. })), "version 2");
        assert!(matches!(header(1, 5, 0), Err(ProtocolError::BadFlags { .. })), "a reply");
        assert!(matches!(header(2, 1, 7), Err(ProtocolError::BadSize { .. })));
        assert!(matches!(header(5, 1, u32::MAX), Err(ProtocolError::BadSize { .. })));
    }

    #[test]
    fn a_reply_is_a_version_1_reply() {
        let bytes = reply(FrontendReq::GET_FEATURES, &7u64.to_ne_bytes());
        assert_eq!(bytes.len(), 20);
        assert_eq!(bytes[4..8], 5u32.to_ne_bytes());
    }
}
