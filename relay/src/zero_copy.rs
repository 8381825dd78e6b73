//! Zero-copy: a device that sends from the guest's memory, instead of from a copy.
//!
//! ```text
//!   session of the guest                control thread of the device
//!   rings stop, frames come back
//!   set_memory ── queues copy ────────▶ unmap what has gone
//!   rings start: frames are copied      map what has come, piece by piece
//!   rings go on: frames are borrowed ◀─ let_device_in ── queues have windows
//! ```
//!
//! The device only ever gets to read. What it cannot reach, for whatever reason, is copied, so nobody waits for a mapping;
//! the reason is logged, and shown with the relay's device.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

use pmd::Device;
use pmd::memory::{DmaMap, GuestWindow, GuestWindows};

use crate::guest::memory::GuestMemory;
use crate::relay::Relay;

/// Bytes that are mapped at once, at most: bringing in the pages of as many takes a good part of a second.
const PIECE: usize = 1 << 30;

/// How far a relay's devices are let into the guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Not at all: each frame is copied once, in each direction.
    #[default]
    Off,
    /// They send from it.
    Transmit,
}

/// What came of the wish for zero-copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopyState {
    /// Frames are copied: nobody wants it otherwise, or there is no guest, or its memory is being mapped.
    #[default]
    Copying,
    /// The device sends from so many bytes of the guest's memory.
    Sending(u64),
    /// Frames are copied, for this reason.
    Refused(String),
}

/// The memory of a guest, as far as it matters to a device.
#[derive(Clone, Debug, Default)]
pub enum Shared {
    /// There is none.
    #[default]
    Nothing,
    /// The guest is behind a virtual IOMMU.
    Translated,
    /// This.
    Memory(Arc<GuestMemory>),
}

impl PartialEq for Shared {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Memory(one), Self::Memory(other)) => Arc::ptr_eq(one, other),
            (one, other) => std::mem::discriminant(one) == std::mem::discriminant(other),
        }
    }
}

/// Memory to map, and through what.
type Reach = (Arc<GuestMemory>, Arc<dyn DmaMap>);

/// Whether there is more to do at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Done,
    MoreToDo,
}

/// A window and the mapping that it looks into.
#[derive(Debug)]
struct Mapped {
    window: Arc<GuestWindow>,
    keeper: Arc<dyn Any + Send + Sync>,
}

/// A piece of memory that a window should look into.
struct Wanted {
    start: NonNull<u8>,
    len: usize,
    keeper: Arc<dyn Any + Send + Sync>,
}

impl Wanted {
    fn is(&self, mapped: &Mapped) -> bool {
        // An address alone may have been given to another mapping meanwhile.
        mapped.window.start() == self.start.as_ptr() as usize && Arc::ptr_eq(&mapped.keeper, &self.keeper)
    }
}

/// What of a guest's memory a device is let into; the device's control thread has it.
#[derive(Debug, Default)]
pub(crate) struct Mapper {
    mapped: Vec<Mapped>,
    /// The memory whose windows the device's queues have.
    given: Option<Shared>,
    /// The memory that could not be mapped, and why.
    failed: Option<(Shared, String)>,
    state: ZeroCopyState,
}

impl Mapper {
    /// The device has new queues.
    pub(crate) fn forget_queues(&mut self) {
        self.given = None;
    }

    /// Takes one step towards a `device` that is let into the memory that the guest has now. It is mapped once the device
    /// runs: until then firmware and boot loaders change it every now and then.
    pub(crate) fn follow(&mut self, relay: &Relay, device: &dyn Device, running: bool) -> Step {
        let shared = relay.shared();
        if self.given.as_ref().is_some_and(|given| *given != shared) {
            self.given = None;
        }
        let (memory, dma) = match self.examine(&shared, device) {
            Ok(Some(both)) => both,
            Ok(None) => {
                self.let_go(relay);
                self.show(relay, ZeroCopyState::Copying);
                return Step::Done;
            }
            Err(reason) => {
                self.let_go(relay);
                self.show(relay, ZeroCopyState::Refused(reason));
                return Step::Done;
            }
        };
        if self.given.is_some() {
            return Step::Done;
        }
        let wanted: Vec<Wanted> = memory.pages().flat_map(pieces).collect();
        // What goes here is in no queue's windows any more: the memory was changed before, with the queues at home.
        self.mapped.retain(|mapped| wanted.iter().any(|wanted| wanted.is(mapped)));
        if !running {
            self.show(relay, ZeroCopyState::Copying);
            return Step::Done;
        }
        if let Some(next) = wanted.iter().find(|wanted| !self.mapped.iter().any(|mapped| wanted.is(mapped))) {
            let keeper = Arc::clone(&next.keeper);
            // SAFETY: the keeper keeps the mapping where it is, and guest memory is never referenced.
            match unsafe { GuestWindow::map(&dma, next.start, next.len, Arc::clone(&keeper)) } {
                Ok(window) => self.mapped.push(Mapped { window: Arc::new(window), keeper }),
                Err(cause) => self.failed = Some((shared, cause.to_string())),
            }
            return Step::MoreToDo;
        }
        let windows = self.mapped.iter().map(|mapped| Arc::clone(&mapped.window)).collect();
        let windows = Arc::new(GuestWindows::new(windows));
        if !relay.let_device_in(&shared, &windows) {
            return Step::MoreToDo;
        }
        self.given = Some(shared);
        self.show(relay, ZeroCopyState::Sending(windows.bytes()));
        Step::Done
    }

    /// What there is to map; `None` where there is nothing, an error where it must not or cannot be.
    fn examine(&mut self, shared: &Shared, device: &dyn Device) -> Result<Option<Reach>, String> {
        let memory = match shared {
            Shared::Nothing => return Ok(None),
            Shared::Translated => {
                return Err(
                    "the guest is behind a virtual IOMMU, whose translations come and go; start the VM \
                            without iommu_platform=on for this NIC"
                        .to_owned(),
                );
            }
            Shared::Memory(memory) => memory,
        };
        // Not tried again until the memory is another.
        self.failed.take_if(|(failed, _)| failed != shared);
        if let Some((_, reason)) = &self.failed {
            return Err(reason.clone());
        }
        Ok(Some((Arc::clone(memory), device.guest_dma()?)))
    }

    /// Takes the device's access away.
    fn let_go(&mut self, relay: &Relay) {
        if self.given.take().is_some() {
            relay.keep_device_out();
        }
        self.mapped.clear();
    }

    /// Says how things are, if they are not as they were.
    fn show(&mut self, relay: &Relay, state: ZeroCopyState) {
        if self.state == state {
            return;
        }
        match &state {
            ZeroCopyState::Copying => {}
            ZeroCopyState::Sending(bytes) => tracing::info!(
                "relay {}: zero-copy: the device sends from the guest's memory ({} MiB)",
                relay.id(),
                bytes >> 20
            ),
            ZeroCopyState::Refused(reason) => {
                tracing::warn!("relay {}: zero-copy is refused, frames are copied: {reason}", relay.id());
            }
        }
        if let Some(slot) = &mut relay.lock().device {
            slot.status.zero_copy = state.clone();
        }
        self.state = state;
    }
}

/// A mapping in pieces of at most [`PIECE`] bytes.
fn pieces(
    (start, len, keeper): (NonNull<u8>, usize, Arc<dyn Any + Send + Sync>),
) -> impl Iterator<Item = Wanted> {
    (0..len).step_by(PIECE).map(move |at| {
        // SAFETY: `at` is within the mapping, which is `len` bytes long.
        let start = unsafe { start.add(at) };
        Wanted { start, len: PIECE.min(len - at), keeper: Arc::clone(&keeper) }
    })
}
