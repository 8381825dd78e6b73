//! Models as vfio-user servers: QEMU's `vfio-user-pci` (from 10.1 on) gives them to a virtual machine, whose kernel drives
//! them with the driver that it has for the silicon.
//!
//! ```text
//!   QEMU ── socket ──▶ Server ──▶ Function ──▶ Model        accesses, DMA mappings, interrupts: one thread
//!                                  │     ▲
//!                        frames sent     frames that arrive  and time that passes: another thread
//!                                  ▼     │
//!   QEMU ── socket ──▶ Server ──▶ Function ──▶ Model
//! ```
//!
//! There are always two, joined by a wire: what one sends arrives at the other, so that the virtual machine's own network
//! stack is the far side of both, and judges every frame.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR5_REGION_INDEX,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};

use crate::bus::Bus;
use crate::config::{Asked, Config, SIZE};
use crate::fault::Fault;
use crate::model::{Model, Size};

/// How often a model is told that time passes.
const TICK: Duration = Duration::from_millis(10);
/// Frames that arrive before the driver may do something in between: fewer than a ring has descriptors.
const BURST: usize = 64;

/// Something that is done to a model behind its driver's back, in words: `link down`. Whether the model knows it.
pub type Command<M> = fn(&mut M, &mut Bus, &str) -> bool;

/// What happened to a model while it was served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Register reads.
    pub reads: u64,
    /// Register writes.
    pub writes: u64,
    /// Frames that left it.
    pub sent: u64,
    /// Frames that reached it; it may have missed them.
    pub arrived: u64,
    /// Frames that found no descriptor.
    pub missed: u64,
    /// Interrupts that it raised.
    pub interrupts: u64,
    /// Resets of the function.
    pub resets: u64,
    /// What its driver did that it must not.
    pub faults: u64,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reads, writes, sent, arrived, missed, interrupts, resets, faults } = self;
        write!(
            f,
            "{faults} faults, {sent} frames sent, {arrived} arrived, {missed} missed, {interrupts} interrupts, \
             {reads} register reads, {writes} writes, {resets} resets"
        )
    }
}

/// A model with its surroundings.
struct Inner<M> {
    number: usize,
    start: Instant,
    model: M,
    bus: Bus,
    config: Config,
    totals: Totals,
    /// Its client has left, and with it the memory.
    left: bool,
    /// To the other one.
    out: Sender<Vec<u8>>,
}

impl<M: Model> Inner<M> {
    fn say(&self, what: impl fmt::Display) {
        eprintln!("{:9.3} {}: {what}", self.start.elapsed().as_secs_f64(), self.number);
    }

    /// What has left the model goes on its way; what its driver did wrong is told.
    fn settle(&mut self) {
        while let Some(frame) = self.bus.wire.take_sent() {
            self.totals.sent += 1;
            // The other one may have ended before.
            drop(self.out.send(frame));
        }
        for fault in self.bus.take_faults() {
            self.totals.faults += 1;
            self.say(format_args!("FAULT: {fault}"));
        }
        (self.totals.missed, self.totals.interrupts) = (self.bus.wire.missed, self.bus.raised());
    }

    /// The size of an access to a BAR, if a processor makes such a one and the BAR reaches so far.
    fn size(&mut self, bar: u8, offset: u64, len: usize, write: bool) -> Option<Size> {
        let room = self.config.bars.get(usize::from(bar)).copied().unwrap_or(0);
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= room);
        let size = Size::of(len).filter(|_| inside && offset.is_multiple_of(len as u64));
        if size.is_none() {
            self.bus.fault(Fault::Access { bar, offset, size: len, write });
        }
        size
    }

    fn read(&mut self, region: u32, offset: u64, bytes: &mut [u8]) {
        match bar(region) {
            Some(bar) => {
                self.totals.reads += 1;
                let value = match self.size(bar, offset, bytes.len(), false) {
                    Some(size) => self.model.read(&mut self.bus, bar, offset, size),
                    None => u64::MAX,
                };
                for (byte, read) in bytes.iter_mut().zip(value.to_le_bytes()) {
                    *byte = read;
                }
            }
            None if region == VFIO_PCI_CONFIG_REGION_INDEX => self.config.read(offset as usize, bytes),
            None => bytes.fill(0),
        }
        self.settle();
    }

    fn write(&mut self, region: u32, offset: u64, bytes: &[u8]) {
        if let Some(bar) = bar(region) {
            self.totals.writes += 1;
            if let Some(size) = self.size(bar, offset, bytes.len(), true) {
                let mut value = [0; 8];
                value[..bytes.len()].copy_from_slice(bytes);
                self.model.write(&mut self.bus, bar, offset, size, u64::from_le_bytes(value));
                self.model.poll(&mut self.bus);
            }
        } else if region == VFIO_PCI_CONFIG_REGION_INDEX {
            let asked = self.config.write(offset as usize, bytes);
            let master = self.config.is_bus_master();
            self.bus.set_master(master);
            if asked == Asked::Reset {
                self.reset();
            }
        }
        self.settle();
    }

    fn reset(&mut self) {
        self.totals.resets += 1;
        self.config.reset();
        self.bus.set_master(false);
        self.model.reset(&mut self.bus);
        self.settle();
    }

    /// Gives the model `len` bytes of `file`, from `at` on, as `iova`.
    fn map(&mut self, iova: u64, len: u64, file: &File, at: u64, writable: bool) -> io::Result<()> {
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a new mapping, at a place of the kernel's choice.
        let ptr =
            unsafe { mmap(std::ptr::null_mut(), len as usize, protection, MapFlags::SHARED, file, at) }?;
        let Some(ptr) = NonNull::new(ptr.cast()) else { return Err(io::ErrorKind::OutOfMemory.into()) };
        // SAFETY: it stays until `unmap` takes it away, which takes it from the bus first; nobody else has its address.
        unsafe { self.bus.map(iova, len, ptr, writable) };
        Ok(())
    }

    fn unmap(&mut self, iova: u64, len: u64) {
        for (ptr, len) in self.bus.unmap(iova, len) {
            // SAFETY: `map` made it, and the bus no longer has it. One that cannot be unmapped stays: nobody uses it.
            let _ = unsafe { munmap(ptr.as_ptr().cast(), len as usize) };
        }
    }

    /// Vectors `start` and `count - 1` more ring `bells`, as far as there are any.
    fn listen(&mut self, start: u32, count: u32, bells: Vec<File>) {
        let mut bells = bells.into_iter();
        // No vectors at all: interrupts are switched off.
        let vectors = if count == 0 { 0..u32::from(self.config.vectors) } else { start..start + count };
        for vector in vectors {
            self.bus.listen(u16::try_from(vector).unwrap_or(u16::MAX), bells.next());
        }
    }
}

/// The BAR that is a region.
fn bar(region: u32) -> Option<u8> {
    (VFIO_PCI_BAR0_REGION_INDEX..=VFIO_PCI_BAR5_REGION_INDEX).contains(&region).then_some(region as u8)
}

/// A model as a function of QEMU's.
struct Function<M>(Arc<Mutex<Inner<M>>>);

impl<M> Clone for Function<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: Model> Function<M> {
    fn new(number: usize, model: M, out: Sender<Vec<u8>>) -> Self {
        let (config, start) = (model.config(), Instant::now());
        let mut bus = Bus::new(config.vectors, model.dma_bits());
        bus.join_mappings();
        let mut inner =
            Inner { number, start, model, bus, config, totals: Totals::default(), left: false, out };
        inner.model.reset(&mut inner.bus);
        Self(Arc::new(Mutex::new(inner)))
    }

    fn lock(&self) -> MutexGuard<'_, Inner<M>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What can be asked of it.
    fn server(&self, socket: &Path) -> io::Result<Server> {
        let config = self.lock().config.clone();
        let regions = (0..VFIO_PCI_NUM_REGIONS).map(|index| {
            let size = match bar(index) {
                Some(bar) => config.bars.get(usize::from(bar)).copied().unwrap_or(0),
                None if index == VFIO_PCI_CONFIG_REGION_INDEX => SIZE as u64,
                None => 0,
            };
            let flags = if size > 0 { VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE } else { 0 };
            let argsz = size_of::<vfio_region_info>() as u32;
            let region_info = vfio_region_info { argsz, index, size, flags, ..Default::default() };
            ServerRegion { region_info, sparse_areas: Vec::new(), mmap_fd: None }
        });
        let irqs = (0..VFIO_PCI_NUM_IRQS).map(|index| {
            let is_msix = index == VFIO_PCI_MSIX_IRQ_INDEX;
            let (flags, count) =
                if is_msix { (VFIO_IRQ_INFO_EVENTFD, config.vectors.into()) } else { (0, 0) };
            IrqInfo { index, flags, count }
        });
        // One that an earlier server left behind.
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Server::new(socket, true, irqs.collect(), regions.collect()).map_err(io::Error::other)
    }

    /// Frames arrive and time passes, until nobody is left who sends.
    fn live(&self, arriving: &Receiver<Vec<u8>>) {
        loop {
            let first = match arriving.recv_timeout(TICK) {
                Ok(frame) => Some(frame),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let inner = &mut *self.lock();
            if inner.left {
                return;
            }
            for frame in first.into_iter().chain(arriving.try_iter().take(BURST - 1)) {
                inner.totals.arrived += 1;
                inner.bus.wire.arrive(frame);
            }
            inner.model.poll(&mut inner.bus);
            inner.settle();
        }
    }
}

// No method returns an error: the protocol's answer to one confuses QEMU.
impl<M: Model> ServerBackend for Function<M> {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.lock().read(region, offset, data);
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.lock().write(region, offset, data);
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        // Memory without a file (the BIOS) is out of reach.
        let Some(file) = file else { return Ok(()) };
        let mut inner = self.lock();
        if let Err(error) = inner.map(address, size, &file, offset, flags.contains(DmaMapFlags::WRITE)) {
            inner.say(format_args!("cannot map {size} bytes for {address:#x}: {error}"));
        }
        Ok(())
    }

    fn dma_unmap(&mut self, flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        let all = flags.contains(DmaUnmapFlags::UNMAP_ALL);
        let (address, size) = if all { (0, u64::MAX) } else { (address, size) };
        self.lock().unmap(address, size);
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.lock().reset();
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        _flags: u32,
        start: u32,
        count: u32,
        bells: Vec<File>,
    ) -> io::Result<()> {
        if index == VFIO_PCI_MSIX_IRQ_INDEX {
            self.lock().listen(start, count, bells);
        }
        Ok(())
    }
}

/// Serves two models, joined by a wire, on two sockets, to one client each; returns when both clients have left. Meanwhile
/// each line `NUMBER WORDS` of the standard input has `command` do that to the model of that number, 0 or 1.
///
/// Faults are told on the standard error as they happen. A model that panics has a fault more.
///
/// # Errors
/// The sockets cannot be made.
pub fn serve_pair<M: Model>(
    sockets: [&Path; 2],
    models: [M; 2],
    command: Command<M>,
) -> io::Result<[Totals; 2]> {
    let ((to_0, at_0), (to_1, at_1)) = (channel(), channel());
    let [first, second] = models;
    let functions = [Function::new(0, first, to_1), Function::new(1, second, to_0)];
    let servers = [functions[0].server(sockets[0])?, functions[1].server(sockets[1])?];
    eprintln!("listening");

    let commanded = functions.clone();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let Some((number, words)) = line.split_once(' ') else { continue };
            let Some(function) = number.parse().ok().and_then(|n: usize| commanded.get(n)) else { continue };
            let inner = &mut *function.lock();
            if inner.left {
                continue;
            }
            let known = command(&mut inner.model, &mut inner.bus, words);
            inner.model.poll(&mut inner.bus);
            inner
                .say(format_args!("{words}{}", if known { "" } else { ": the model knows no such command" }));
            inner.settle();
        }
    });
    for (function, arriving) in functions.clone().into_iter().zip([at_0, at_1]) {
        thread::spawn(move || function.live(&arriving));
    }
    thread::scope(|scope| {
        for (function, server) in functions.clone().into_iter().zip(&servers) {
            scope.spawn(move || {
                let mut served = function.clone();
                let ended = catch_unwind(AssertUnwindSafe(|| server.run(&mut served)));
                let mut inner = function.lock();
                match ended {
                    Ok(Ok(())) => inner.say("its client has left"),
                    Ok(Err(error)) => inner.say(format_args!("its client is lost: {error}")),
                    Err(_) => inner.totals.faults += 1,
                }
                inner.left = true;
                inner.unmap(0, u64::MAX);
            });
        }
    });
    Ok(functions.map(|function| function.lock().totals))
}
