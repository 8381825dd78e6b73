//! A network card as a guest's driver sees it, over a real vhost-user socket.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use thiserror::Error;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::memory::GuestRam;
use super::split::{Descriptor, DriverRing, INDIRECT, NEXT, WRITE, write_descriptor};
use crate::net::header;

/// Virtqueue index of the receive queue.
const RECEIVE: usize = 0;
/// Virtqueue index of the transmit queue.
const TRANSMIT: usize = 1;
const HEADER: u32 = header::LENGTH;

/// Why the card could not be brought up.
#[derive(Debug, Error)]
pub enum NicError {
    /// The vhost-user conversation failed.
    #[error("vhost-user: {0}")]
    Protocol(#[from] vhost::Error),
    /// The connection could not be made.
    #[error("vhost-user connection: {0}")]
    Connection(#[from] vhost::vhost_user::Error),
    /// Memory or an eventfd could not be had.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other side does not offer something that was asked for.
    #[error("the device offers features {offered:#x}, which lack {missing:#x}")]
    Features {
        /// Bits that the device offers.
        offered: u64,
        /// Bits that were asked for and are not offered.
        missing: u64,
    },
}

/// What kind of driver to play.
#[derive(Clone, Copy, Debug)]
pub struct NicOptions {
    /// Descriptors in each ring; a power of two.
    pub queue_size: u16,
    /// Size of every buffer in bytes, header included.
    pub buffer: u32,
    /// Negotiate mergeable receive buffers.
    pub mergeable: bool,
    /// Send through indirect tables.
    pub indirect: bool,
    /// Put the header into a buffer of its own, as drivers without `ANY_LAYOUT` do.
    pub separate_header: bool,
    /// Announce memory by `ADD_MEM_REG` instead of `SET_MEM_TABLE`.
    pub memory_slots: bool,
}

impl Default for NicOptions {
    fn default() -> Self {
        Self {
            queue_size: 256,
            buffer: 2048,
            mergeable: false,
            indirect: false,
            separate_header: false,
            memory_slots: false,
        }
    }
}

/// A network card of a built-in guest.
#[derive(Debug)]
pub struct GuestNic {
    frontend: FrontendHandle,
    ram: GuestRam,
    receive: DriverRing,
    transmit: DriverRing,
    options: NicOptions,
    receive_buffers: u64,
    transmit_buffers: u64,
    tables: u64,
    free: Vec<u16>,
    frame: Vec<u8>,
    call: [EventFd; 2],
    kick: [EventFd; 2],
}

struct FrontendHandle(Frontend);

impl std::fmt::Debug for FrontendHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Frontend")
    }
}

impl GuestNic {
    /// Connects to a vhost-user socket, negotiates, shares memory, and starts one queue pair with all receive buffers
    /// posted.
    pub fn connect(path: &Path, options: NicOptions) -> Result<Self, NicError> {
        Self::bring_up(Frontend::connect(path, 2)?, options)
    }

    /// The same over a connection that is there already: that of a back end which connected to us.
    pub fn over(stream: UnixStream, options: NicOptions) -> Result<Self, NicError> {
        Self::bring_up(Frontend::from_stream(stream, 2), options)
    }

    fn bring_up(mut frontend: Frontend, options: NicOptions) -> Result<Self, NicError> {
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        let mut features = 1 << VIRTIO_F_VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        features |= u64::from(options.mergeable) << VIRTIO_NET_F_MRG_RXBUF;
        features |= u64::from(options.indirect) << VIRTIO_RING_F_INDIRECT_DESC;
        if features & !offered != 0 {
            return Err(NicError::Features { offered, missing: features & !offered });
        }
        let wanted = VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        let protocol = frontend.get_protocol_features()? & wanted;
        frontend.set_protocol_features(protocol)?;
        frontend.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(features)?;

        let entries = u64::from(options.queue_size);
        let buffers = entries * u64::from(options.buffer);
        let mut ram =
            GuestRam::new(0x4000_0000, (2 * buffers + 128 * entries + (1 << 20)).next_multiple_of(1 << 21))?;
        let receive = DriverRing::new(&mut ram, options.queue_size)?;
        let transmit = DriverRing::new(&mut ram, options.queue_size)?;
        let receive_buffers = ram.allocate(buffers, 4096)?;
        let transmit_buffers = ram.allocate(buffers, 4096)?;
        let tables = ram.allocate(32 * entries, 64)?;
        // A header of its own takes a second descriptor, in the ring or in the table.
        let slots = if options.separate_header && !options.indirect { entries / 2 } else { entries };
        let eventfds =
            || -> io::Result<[EventFd; 2]> { Ok([EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?]) };
        let mut nic = Self {
            frontend: FrontendHandle(frontend),
            ram,
            receive,
            transmit,
            options,
            receive_buffers,
            transmit_buffers,
            tables,
            free: (0..slots as u16).rev().collect(),
            frame: Vec::new(),
            call: eventfds()?,
            kick: eventfds()?,
        };
        nic.share_memory()?;
        for slot in 0..options.queue_size {
            nic.post_receive(slot);
        }
        nic.receive.publish(&nic.ram);
        nic.start_queues()?;
        Ok(nic)
    }

    fn share_memory(&mut self) -> Result<(), NicError> {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: self.ram.gpa(),
            memory_size: self.ram.size(),
            userspace_addr: self.ram.user(),
            mmap_offset: 0,
            mmap_handle: self.ram.file().as_raw_fd(),
        };
        if self.options.memory_slots {
            self.frontend.0.add_mem_region(&region)?;
        } else {
            self.frontend.0.set_mem_table(&[region])?;
        }
        Ok(())
    }

    fn start_queues(&mut self) -> Result<(), NicError> {
        for (index, ring) in [(RECEIVE, &self.receive), (TRANSMIT, &self.transmit)] {
            let frontend = &mut self.frontend.0;
            let addresses = VringConfigData {
                queue_max_size: ring.size,
                queue_size: ring.size,
                flags: 0,
                desc_table_addr: self.ram.user_of(ring.descriptors),
                used_ring_addr: self.ram.user_of(ring.used),
                avail_ring_addr: self.ram.user_of(ring.available),
                log_addr: None,
            };
            frontend.set_vring_num(index, ring.size)?;
            frontend.set_vring_addr(index, &addresses)?;
            frontend.set_vring_base(index, ring.next_used)?;
            frontend.set_vring_call(index, &self.call[index])?;
            frontend.set_vring_kick(index, &self.kick[index])?;
            frontend.set_vring_enable(index, true)?;
        }
        Ok(())
    }

    /// Stops both queues; returns where the device says they stand (receive, transmit).
    pub fn stop_queues(&mut self) -> Result<(u16, u16), NicError> {
        let receive = self.frontend.0.get_vring_base(RECEIVE)?;
        let transmit = self.frontend.0.get_vring_base(TRANSMIT)?;
        Ok((receive as u16, transmit as u16))
    }

    /// Starts the queues again where they stood.
    pub fn restart_queues(&mut self) -> Result<(), NicError> {
        self.start_queues()
    }

    /// The vhost-user front end, for messages that are not about frames.
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend.0
    }

    /// The guest's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The transmit ring and the memory it is in, to write to by hand.
    pub fn transmit_ring(&mut self) -> (&mut DriverRing, &GuestRam) {
        (&mut self.transmit, &self.ram)
    }

    /// Frames that can be sent before one must come back.
    pub fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// Longest frame in bytes that fits into a transmit buffer.
    pub fn max_frame(&self) -> usize {
        (self.options.buffer - HEADER) as usize
    }

    /// Queues a frame; `false` when all buffers are in use. The device sees it after [`flush`](Self::flush).
    ///
    /// # Panics
    /// When the frame is longer than [`max_frame`](Self::max_frame).
    pub fn send(&mut self, frame: &[u8]) -> bool {
        assert!(frame.len() <= self.max_frame(), "frame of {} bytes", frame.len());
        let Some(slot) = self.free.pop() else { return false };
        let at = self.transmit_buffers + u64::from(slot) * u64::from(self.options.buffer);
        self.ram.write(at, &header::plain(0));
        self.ram.write(at + u64::from(HEADER), frame);
        let len = frame.len() as u32;
        let whole = Descriptor { addr: at, len: HEADER + len, flags: 0, next: 0 };
        let first = Descriptor { addr: at, len: HEADER, flags: NEXT, next: 1 };
        let second = Descriptor { addr: at + u64::from(HEADER), len, flags: 0, next: 0 };
        let table = self.tables + 32 * u64::from(slot);
        let head = match (self.options.indirect, self.options.separate_header) {
            (false, false) => {
                self.transmit.set(&self.ram, slot, whole);
                slot
            }
            (false, true) => {
                self.transmit.set(&self.ram, 2 * slot, Descriptor { next: 2 * slot + 1, ..first });
                self.transmit.set(&self.ram, 2 * slot + 1, second);
                2 * slot
            }
            (true, separate) => {
                let pieces: &[Descriptor] = if separate { &[first, second] } else { &[whole] };
                for (n, piece) in pieces.iter().enumerate() {
                    write_descriptor(&self.ram, table + 16 * n as u64, *piece);
                }
                let len = 16 * pieces.len() as u32;
                self.transmit.set(&self.ram, slot, Descriptor { addr: table, len, flags: INDIRECT, next: 0 });
                slot
            }
        };
        self.transmit.push(&self.ram, head);
        true
    }

    /// Shows the device what was queued and kicks it if it wants that.
    pub fn flush(&mut self) {
        self.transmit.publish(&self.ram);
        if self.transmit.used_flags(&self.ram) & 1 == 0 {
            let _ = self.kick[TRANSMIT].write(1);
        }
    }

    /// Takes back the buffers of frames that were sent; returns how many.
    pub fn take_sent(&mut self) -> usize {
        let mut n = 0;
        while let Some((head, _)) = self.transmit.pop(&self.ram) {
            let per_slot = if self.options.separate_header && !self.options.indirect { 2 } else { 1 };
            self.free.push(head as u16 / per_slot);
            n += 1;
        }
        n
    }

    /// Calls `each` with every frame that has arrived, at most `limit`, and posts its buffers again; returns how many.
    pub fn receive(&mut self, limit: usize, mut each: impl FnMut(&[u8])) -> usize {
        let mut frames = 0;
        let mut frame = std::mem::take(&mut self.frame);
        while frames < limit
            && let Some((head, written)) = self.receive.pop(&self.ram)
        {
            frame.resize(written as usize, 0);
            self.ram.read(self.receive_buffer(head as u16), &mut frame);
            let buffers = frame.get(10..12).map_or(1, |n| u16::from_le_bytes([n[0], n[1]]));
            self.post_receive(head as u16);
            for _ in 1..buffers {
                // The device publishes all buffers of a frame at once, so the rest is there.
                let Some((head, written)) = self.receive.pop(&self.ram) else { break };
                let at = frame.len();
                frame.resize(at + written as usize, 0);
                self.ram.read(self.receive_buffer(head as u16), &mut frame[at..]);
                self.post_receive(head as u16);
            }
            each(frame.get(HEADER as usize..).unwrap_or_default());
            frames += 1;
        }
        self.frame = frame;
        if frames > 0 {
            self.receive.publish(&self.ram);
        }
        frames
    }

    fn receive_buffer(&self, slot: u16) -> u64 {
        self.receive_buffers + u64::from(slot) * u64::from(self.options.buffer)
    }

    fn post_receive(&mut self, slot: u16) {
        let descriptor =
            Descriptor { addr: self.receive_buffer(slot), len: self.options.buffer, flags: WRITE, next: 0 };
        self.receive.set(&self.ram, slot, descriptor);
        self.receive.push(&self.ram, slot);
    }

    /// Asks not to be interrupted (a driver that polls), or to be interrupted again.
    pub fn set_polling(&mut self, polling: bool) {
        self.receive.set_flags(&self.ram, u16::from(polling));
        self.transmit.set_flags(&self.ram, u16::from(polling));
    }

    /// The eventfds that the device interrupts: receive, transmit.
    pub fn interrupts(&self) -> &[EventFd; 2] {
        &self.call
    }
}
