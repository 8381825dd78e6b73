//! What a generation of the device offers, and what is wrong with one on purpose.

use std::time::Duration;

/// Memory of the device for descriptors and headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Llq {
    /// Sizes of an entry: 1 is 128 bytes, 2 is 192, 4 is 256, together in any way.
    pub entries: u16,
    /// The size that it recommends; 0 for none.
    pub recommended: u16,
    /// Entries of a queue.
    pub depth: u16,
    /// Meta descriptors are not remembered.
    pub meta_always: bool,
    /// Bytes between two doorbells; 0 for any number.
    pub burst: u16,
}

/// A generation, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Device of the PCI ids.
    pub device: u16,
    /// The address of the interface.
    pub mac: [u8; 6],
    /// Queues each way.
    pub pairs: u16,
    /// Entries of a ring.
    pub depth: u16,
    /// Longest packet.
    pub max_mtu: u32,
    /// Registers are read directly, not through memory.
    pub direct_reads: bool,
    /// Tells queues of both directions apart (`ENA_ADMIN_MAX_QUEUES_EXT`).
    pub tells_directions_apart: bool,
    /// Memory for descriptors.
    pub llq: Option<Llq>,
    /// Descriptors stay in memory of the host only where there is no other (from generation 6 on).
    pub llq_mandatory: bool,
    /// What is done for frames that are sent: bits of `ena_admin_feature_offload_desc`.
    pub transmit_offloads: u32,
    /// What is checked of frames that arrive.
    pub receive_offloads: u32,
    /// Flows are spread.
    pub rss: bool,
    /// Capabilities: bits of `ena_admin_aq_caps_id`.
    pub capabilities: u32,
    /// Says how often it lives; not at all where there is none.
    pub keep_alive: Option<Duration>,
    /// Limits that it wants in ms: register read, keep-alive, completion, admin command; 0 for the driver's own.
    pub hints: [u16; 4],
    /// Bits of an address.
    pub dma_bits: u32,
    /// Mbit/s, if it says so.
    pub speed: Option<u32>,
}

impl Settings {
    /// The first: descriptors in memory of the host, registers that are read directly, checksums over IPv4 and IPv6.
    pub fn first() -> Self {
        Self {
            device: 0xec20,
            mac: [0x02, 0x11, 0x22, 0x33, 0x44, 0x55],
            pairs: 2,
            depth: 1024,
            max_mtu: 9216,
            direct_reads: true,
            tells_directions_apart: false,
            llq: None,
            llq_mandatory: false,
            transmit_offloads: 0b0_1011,
            receive_offloads: 0b0111,
            rss: false,
            capabilities: 0,
            keep_alive: None,
            hints: [0; 4],
            dma_bits: 48,
            speed: None,
        }
    }

    /// One with low latency queues that remembers meta descriptors, and cuts TCP over IPv4.
    pub fn nitro() -> Self {
        Self {
            device: 0xec21,
            pairs: 4,
            direct_reads: false,
            tells_directions_apart: true,
            llq: Some(Llq { entries: 1, recommended: 1, depth: 512, meta_always: false, burst: 0 }),
            transmit_offloads: 0b0011_1111,
            receive_offloads: 0b1111,
            rss: true,
            capabilities: 1,
            keep_alive: Some(Duration::from_millis(200)),
            ..Self::first()
        }
    }

    /// The newest: remembers nothing, takes a bounded burst, cuts all TCP, promises that reserved bits are 0.
    pub fn newest() -> Self {
        Self {
            llq: Some(Llq { entries: 5, recommended: 1, depth: 512, meta_always: true, burst: 1024 }),
            llq_mandatory: true,
            transmit_offloads: 0b1111_1111,
            capabilities: 0b1_0101,
            speed: Some(100_000),
            ..Self::nitro()
        }
    }
}

/// What the device does that it must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Frames that are sent are never completed.
    NoCompletion,
    /// Frames that arrive are never written back.
    NoWriteBack,
    /// A frame that arrives is said to be longer than its buffer.
    Length,
    /// The phase of completions never changes.
    Phase,
    /// Completions interrupt nobody.
    NoInterrupt,
    /// Answers of the admin queue have a bit too many in the command's number.
    ReplyBit,
    /// A frame that was sent is completed twice.
    CompletedTwice,
    /// A buffer comes back that the device does not have.
    StrayBuffer,
    /// Every buffer of a frame is said to be its first.
    FirstAgain,
    /// A frame does not begin where its buffer does.
    Offset,
    /// A reserved bit of completions is set.
    ReservedBit,
}

/// In which order frames that were sent are completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As they were sent, at once.
    #[default]
    InOrder,
    /// Some at a time, the last first.
    Reversed,
    /// Never.
    Held,
}

/// What goes wrong, while it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Commands are not answered.
    pub silent_admin: bool,
    /// Commands with this opcode are refused, with this status.
    pub refuse: Option<(u8, u8)>,
    /// Register reads through memory are not answered.
    pub silent_reads: bool,
    /// A reset never begins.
    pub stuck_reset: bool,
    /// It says no more that it lives.
    pub no_keep_alive: bool,
    /// Only a reset helps, as its status says.
    pub fatal: bool,
    /// Frames that are sent are lost, as their completions say.
    pub send_errors: bool,
}
