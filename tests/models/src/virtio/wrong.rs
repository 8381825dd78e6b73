//! Ways in which the model can be made wrong on purpose, and options that real devices differ in.

use super::features::*;

/// What is wrong with the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Buffers are taken and never come back.
    NoWriteBack,
    /// Received buffers come back with a length beyond their end.
    LengthBeyondBuffer,
    /// Of a frame that is spread over several buffers, the last comes back so.
    LastLengthBeyondBuffer,
    /// Received buffers come back with a length shorter than the header.
    LengthBelowHeader,
    /// A packed ring's used descriptors have the wrap bits of the lap before.
    WrapBit,
    /// Used entries have an id that no buffer can have.
    UnknownId,
    /// Every used entry is there twice.
    Repeated,
    /// The used index of a split ring jumps ahead.
    IndexJump,
    /// A received frame's header announces no buffer.
    NoBuffers,
    /// It announces one buffer more than there are.
    OneBufferMore,
    /// It announces more buffers than any frame needs.
    ManyBuffers,
    /// A received frame's header asks for a segmentation that there is not.
    UnknownSegmentation,
    /// A received frame's checksum is to be put beyond its end.
    ChecksumBeyondFrame,
    /// No queue interrupts.
    NoInterrupt,
    /// Answers of the control queue have a bit too many.
    AnswerBit,
    /// The device does not say that its reset is over.
    EndlessReset,
    /// Features that it offered are not accepted.
    FeaturesRefused,
}

/// What the device is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Features that it offers.
    pub offered: u64,
    /// Descriptors of each queue.
    pub queue_size: u16,
    /// Pairs of queues.
    pub pairs: u16,
    /// Its address.
    pub mac: [u8; 6],
    /// Its MTU.
    pub mtu: u16,
    /// Control commands (class and command) that it refuses.
    pub refused: Vec<(u8, u8)>,
    /// It filters by address until it is told otherwise.
    pub filters: bool,
    /// It looks at its rings by itself and wants no notifications.
    pub polls: bool,
    /// Sent frames wait until so many are there, and then come back in reverse where that is allowed; received ones take
    /// the buffer that was given last.
    pub holds: usize,
    /// Buffers used in order come back in batches.
    pub batches: bool,
    /// What is wrong with it.
    pub wrong: Option<Wrong>,
}

impl Options {
    /// A device with a split ring that has most of what there is.
    pub fn split() -> Self {
        let offered = [
            VERSION_1,
            ACCESS_PLATFORM,
            CSUM,
            HOST_TSO4,
            HOST_TSO6,
            HOST_ECN,
            GUEST_CSUM,
            GUEST_TSO4,
            GUEST_TSO6,
            GUEST_ECN,
            MRG_RXBUF,
            MTU,
            MAC,
            STATUS,
            CTRL_VQ,
            CTRL_RX,
            CTRL_VLAN,
            GUEST_ANNOUNCE,
            MQ,
            CTRL_MAC_ADDR,
            SPEED_DUPLEX,
        ];
        Self {
            offered: offered.iter().map(|bit| 1 << bit).sum(),
            queue_size: 256,
            pairs: 4,
            mac: [0x52, 0x54, 0, 0, 0, 2],
            mtu: 9000,
            refused: Vec::new(),
            filters: false,
            polls: false,
            holds: 0,
            batches: false,
            wrong: None,
        }
    }

    /// The same with packed rings.
    pub fn packed() -> Self {
        Self::split().with(RING_PACKED)
    }

    /// Interrupts: one a queue, and one for the configuration.
    pub(super) fn vectors(&self) -> u16 {
        2 * self.pairs + 2
    }

    /// With a feature more.
    pub fn with(self, bit: u32) -> Self {
        Self { offered: self.offered | 1 << bit, ..self }
    }

    /// Without a feature.
    pub fn without(self, bit: u32) -> Self {
        Self { offered: self.offered & !(1 << bit), ..self }
    }

    /// Wrong.
    pub fn wrong(self, wrong: Wrong) -> Self {
        Self { wrong: Some(wrong), ..self }
    }
}
