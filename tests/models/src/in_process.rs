//! A model as a PCI function of this process: what VFIO would give a driver.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pmd::memory::{DmaAccess, DmaMap};
use pmd::pci::PciFunction;
use pmd::vfio::IovaAllocator;
use pmd::{Caching, DeviceError, Registers};
use rustix::event::{EventfdFlags, eventfd};

use crate::bus::Bus;
use crate::config::{Asked, Config};
use crate::fault::Fault;
use crate::model::{Model, Size};
use crate::rate::ticks;

/// A model, its surroundings, and what is done to both behind a driver's back.
#[derive(Debug)]
pub struct InProcess<M: Model> {
    inner: Mutex<Inner<M>>,
    iova: Mutex<IovaAllocator>,
    /// Bits of addresses that the driver wants.
    dma_bits: AtomicU32,
    /// The function has left: all reads give ones.
    gone: AtomicBool,
    removal: AtomicBool,
    shared: AtomicBool,
    /// Nothing translates its addresses.
    physical: AtomicBool,
    /// BARs are mapped uncached, whatever a driver wishes.
    uncached: AtomicBool,
    resets: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    /// Ticks that register accesses took, which is when the model works.
    ticks: AtomicU64,
    left_out: AtomicBool,
}

#[derive(Debug)]
struct Inner<M> {
    model: M,
    bus: Bus,
    config: Config,
}

impl<M: Model> InProcess<M> {
    /// A function that is this model, as after power-on.
    pub fn new(mut model: M) -> Arc<Self> {
        let config = model.config();
        let bits = model.dma_bits();
        let mut bus = Bus::new(config.vectors, bits);
        model.reset(&mut bus);
        // As behind an IOMMU: addresses that have nothing to do with those of the process.
        let ranges = [0..=0xfedf_ffff, 0xfef0_0000..=u64::MAX];
        Arc::new(Self {
            inner: Mutex::new(Inner { model, bus, config }),
            iova: Mutex::new(IovaAllocator::new(&ranges, u64::BITS)),
            dma_bits: AtomicU32::new(bits.min(40)),
            gone: AtomicBool::new(false),
            removal: AtomicBool::new(false),
            shared: AtomicBool::new(false),
            physical: AtomicBool::new(false),
            uncached: AtomicBool::new(false),
            resets: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            left_out: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner<M>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the model behind the driver's back; then time passes for it.
    pub fn with<T>(&self, act: impl FnOnce(&mut M, &mut Bus) -> T) -> T {
        let Inner { model, bus, .. } = &mut *self.lock();
        let result = act(model, bus);
        model.poll(bus);
        result
    }

    /// A frame arrives from the wire.
    pub fn arrive(&self, frame: Vec<u8>) {
        self.with(|_, bus| bus.wire.arrive(frame));
    }

    /// The next frame that the device put on the wire.
    pub fn take_sent(&self) -> Option<Vec<u8>> {
        self.lock().bus.wire.take_sent()
    }

    /// What the driver did that it must not, since the last call.
    pub fn take_faults(&self) -> Vec<Fault> {
        self.lock().bus.take_faults()
    }

    /// Pieces of memory that the device reaches.
    pub fn mappings(&self) -> usize {
        self.lock().bus.mappings()
    }

    /// The function leaves the machine, or comes back.
    pub fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Ordering::Relaxed);
    }

    /// Its owner wants it back.
    pub fn request_removal(&self) {
        self.removal.store(true, Ordering::Relaxed);
    }

    /// Another function reaches the same memory.
    pub fn set_shared(&self, shared: bool) {
        self.shared.store(shared, Ordering::Relaxed);
    }

    /// Maps BARs uncached from now on, as a kernel does that offers nothing else.
    pub fn refuse_write_combining(&self) {
        self.uncached.store(true, Ordering::Relaxed);
    }

    /// Addresses are physical ones, or no longer.
    pub fn set_physical(&self, physical: bool) {
        self.physical.store(physical, Ordering::Relaxed);
    }

    /// Memory is found at this address and above, as in a space that is almost used up.
    pub fn lend_from(&self, first: u64) {
        let mut free = self.iova.lock().unwrap_or_else(PoisonError::into_inner);
        free.restrict(&[first..=u64::MAX]);
    }

    /// Function level resets so far.
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Relaxed)
    }

    /// Register reads and writes of the driver so far.
    pub fn accesses(&self) -> (u64, u64) {
        (self.reads.load(Ordering::Relaxed), self.writes.load(Ordering::Relaxed))
    }

    /// Ticks that the model has taken for what a driver asked of it.
    pub fn ticks_in_model(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }

    /// From now on, what the model does is left out of instruction counts, or no longer. Only while they count, since to begin
    /// with leaving out is to end it where they do not.
    pub fn leave_out(&self, on: bool) {
        self.left_out.store(on, Ordering::Relaxed);
    }

    fn timed<T>(&self, access: impl FnOnce() -> T) -> T {
        let start = ticks();
        let result = if self.left_out.load(Ordering::Relaxed) { left_out(access) } else { access() };
        self.ticks.fetch_add(ticks() - start, Ordering::Relaxed);
        result
    }

    fn is_inside(&self, inner: &mut Inner<M>, bar: u8, offset: u64, size: Size, write: bool) -> bool {
        let bytes = size.bytes() as u64;
        let room = inner.config.bars.get(usize::from(bar)).copied().unwrap_or(0);
        let inside = offset.is_multiple_of(bytes) && offset.checked_add(bytes).is_some_and(|end| end <= room);
        if !inside {
            inner.bus.fault(Fault::Access { bar, offset, size: size.bytes(), write });
        }
        inside
    }

    fn read(&self, bar: u8, offset: u64, size: Size) -> u64 {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.lock();
        if self.gone.load(Ordering::Relaxed) || !self.is_inside(&mut inner, bar, offset, size, false) {
            return u64::MAX;
        }
        let Inner { model, bus, .. } = &mut *inner;
        model.read(bus, bar, offset, size)
    }

    fn write(&self, bar: u8, offset: u64, size: Size, value: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.lock();
        if self.gone.load(Ordering::Relaxed) || !self.is_inside(&mut inner, bar, offset, size, true) {
            return;
        }
        let Inner { model, bus, .. } = &mut *inner;
        model.write(bus, bar, offset, size, value);
        model.poll(bus);
    }

    fn reset_inner(&self, inner: &mut Inner<M>) {
        self.resets.fetch_add(1, Ordering::Relaxed);
        inner.config.reset();
        inner.bus.set_master(false);
        inner.model.reset(&mut inner.bus);
    }

    /// Writes the configuration space as a driver would.
    pub fn write_config(&self, offset: u16, bytes: &[u8]) {
        let mut inner = self.lock();
        let asked = inner.config.write(usize::from(offset), bytes);
        let master = inner.config.is_bus_master();
        inner.bus.set_master(master);
        if asked == Asked::Reset {
            self.reset_inner(&mut inner);
        }
    }
}

impl<M: Model> DmaMap for InProcess<M> {
    unsafe fn map(
        &self,
        ptr: *mut u8,
        len: usize,
        align: usize,
        access: DmaAccess,
    ) -> Result<u64, DeviceError> {
        let failed = |what: &str| DeviceError::Failed(format!("cannot map {len} bytes: {what}"));
        let ptr = NonNull::new(ptr).ok_or_else(|| failed("a null pointer"))?;
        let mut free = self.iova.lock().unwrap_or_else(PoisonError::into_inner);
        let bits = self.dma_bits.load(Ordering::Relaxed);
        let iova = free.allocate_below(len as u64, align as u64, bits).ok_or_else(|| failed("no room"))?;
        // SAFETY: the caller's promise is the same.
        unsafe { self.lock().bus.map(iova, len as u64, ptr, access == DmaAccess::ReadWrite) };
        Ok(iova)
    }

    fn is_physical(&self) -> bool {
        self.physical.load(Ordering::Relaxed)
    }

    fn unmap(&self, iova: u64, len: usize) {
        let mut inner = self.lock();
        if inner.bus.unmap(iova, len as u64).len() != 1 {
            inner.bus.broken(format!("{len} bytes at {iova:#x} are unmapped that were not mapped so"));
        }
        self.iova.lock().unwrap_or_else(PoisonError::into_inner).release(iova, len as u64);
    }
}

impl<M: Model> PciFunction for InProcess<M> {
    fn reset(&self) -> io::Result<()> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.reset_inner(&mut self.lock());
        Ok(())
    }

    fn set_bus_master(&self, on: bool) -> io::Result<()> {
        let mut inner = self.lock();
        inner.config.set_bus_master(on);
        inner.bus.set_master(on);
        Ok(())
    }

    fn read_config(&self, offset: u16, bytes: &mut [u8]) -> io::Result<()> {
        match self.gone.load(Ordering::Relaxed) {
            true => bytes.fill(0xff),
            false => self.lock().config.read(usize::from(offset), bytes),
        }
        Ok(())
    }

    fn bar(
        self: Arc<Self>,
        index: u8,
        start: u64,
        len: usize,
        caching: Caching,
    ) -> Result<Arc<dyn Registers>, DeviceError> {
        let room = self.lock().config.bars.get(usize::from(index)).copied().unwrap_or(0);
        if start.checked_add(len as u64).is_none_or(|end| end > room) {
            return Err(DeviceError::Unsupported(format!("BAR {index} has {room} bytes")));
        }
        let refused = self.uncached.load(Ordering::Relaxed);
        let caching = if refused { Caching::Uncached } else { caching };
        Ok(Arc::new(Window { function: self, bar: index, start, caching }))
    }

    fn set_dma_bits(&self, bits: u32) {
        self.dma_bits.store(bits, Ordering::Relaxed);
    }

    fn interrupts(&self, count: usize) -> io::Result<Vec<OwnedFd>> {
        let mut inner = self.lock();
        if count > usize::from(inner.config.vectors) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut bells = Vec::with_capacity(count);
        for vector in 0..inner.config.vectors {
            let mut bell = None;
            if usize::from(vector) < count {
                let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                bell = Some(File::from(event.try_clone()?));
                bells.push(event);
            }
            inner.bus.listen(vector, bell);
        }
        Ok(bells)
    }

    fn shares_address_space(&self) -> bool {
        self.shared.load(Ordering::Relaxed)
    }

    fn removal_requested(&self) -> bool {
        self.removal.load(Ordering::Relaxed)
    }
}

/// Instruction counts know this function by its name.
#[inline(never)]
fn left_out<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// A part of a BAR.
struct Window<M: Model> {
    function: Arc<InProcess<M>>,
    bar: u8,
    start: u64,
    caching: Caching,
}

impl<M: Model> fmt::Debug for Window<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BAR {} from {:#x}", self.bar, self.start)
    }
}

impl<M: Model> Window<M> {
    fn load(&self, offset: u32, size: Size) -> u64 {
        let function = &self.function;
        function.timed(|| function.read(self.bar, self.start + u64::from(offset), size))
    }

    fn store(&self, offset: u32, size: Size, value: u64) {
        // What the processor has stored before is there for the device.
        std::sync::atomic::fence(Ordering::SeqCst);
        let function = &self.function;
        function.timed(|| function.write(self.bar, self.start + u64::from(offset), size, value));
    }
}

impl<M: Model> Registers for Window<M> {
    fn read(&self, offset: u32) -> u32 {
        self.load(offset, Size::Word) as u32
    }

    fn write(&self, offset: u32, value: u32) {
        self.store(offset, Size::Word, value.into());
    }

    fn read8(&self, offset: u32) -> u8 {
        self.load(offset, Size::Byte) as u8
    }

    fn read16(&self, offset: u32) -> u16 {
        self.load(offset, Size::Half) as u16
    }

    fn write8(&self, offset: u32, value: u8) {
        self.store(offset, Size::Byte, value.into());
    }

    fn write16(&self, offset: u32, value: u16) {
        self.store(offset, Size::Half, value.into());
    }

    fn write64(&self, offset: u32, value: u64) {
        self.store(offset, Size::Double, value);
    }

    fn caching(&self) -> Caching {
        self.caching
    }
}
