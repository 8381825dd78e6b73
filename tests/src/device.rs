//! Device doubles: what a test needs to see of a device, and the misbehaviour that hardware seldom shows.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pmd::memory::{DmaAccess, DmaMap, GuestWindows};
use pmd::{
    Accepted, Armed, Burst, Completions, Device, DeviceError, DeviceEvent, DeviceStatistics, Frames,
    Identity, MacAddress, Queues, Receive, ReceiveQueue, Segment, Token, Transmit, TransmitQueue,
};

/// What a test and a device double share.
#[derive(Debug, Default)]
pub struct Bench {
    /// Frames that were sent, as they were read at that moment.
    pub sent: Vec<Vec<u8>>,
    /// Frames that will be received.
    pub to_receive: VecDeque<Vec<u8>>,
    /// Borrowed frames that are under way.
    pub borrowed: Vec<Token>,
    /// Whether sent frames stay under way instead of completing.
    pub withhold: bool,
    /// Whether nothing is taken any more.
    pub full: bool,
    /// Events that the next look at the device brings.
    pub events: Vec<DeviceEvent>,
    /// How often the device was started, stopped, and had frames taken back.
    pub starts: usize,
    /// See `starts`.
    pub stops: usize,
    /// See `starts`.
    pub aborts: usize,
    /// How many starts fail from now on.
    pub failing_starts: usize,
    /// Receive buffers that are lent out.
    pub lent: usize,
    /// Rings when there is something to receive, in a device that has this when it starts; the test rings it.
    pub bell: Option<Arc<OwnedFd>>,
    /// What of guests' memory is mapped for the device: addresses and lengths.
    pub mapped: Vec<(u64, usize)>,
    /// Why it is not to be let into a guest's memory.
    pub kept_out: Option<String>,
    /// Mappings that still succeed; `None`: all.
    pub mappings_left: Option<usize>,
    /// Frames that were sent from memory that is mapped.
    pub sent_from_windows: usize,
    /// Whether received frames may wait for the guest.
    pub can_wait: bool,
}

/// A device that borrows what it sends, as a VF with zero-copy does.
#[derive(Clone, Debug)]
pub struct Borrower {
    identity: Identity,
    bench: Arc<Mutex<Bench>>,
}

impl Borrower {
    /// A device whose doings the returned bench shows and rules.
    pub fn new() -> (Self, Arc<Mutex<Bench>>) {
        let bench = Arc::new(Mutex::new(Bench::default()));
        let identity = Identity {
            name: "borrower".to_owned(),
            driver: "double",
            mac: Some(MacAddress([0x52, 0x54, 0, 0, 0, 9])),
            max_frame: 1518,
            filters_by_mac: true,
            at_pf: None,
        };
        (Self { identity, bench: Arc::clone(&bench) }, bench)
    }
}

/// Looks at a bench.
pub fn look(bench: &Mutex<Bench>) -> MutexGuard<'_, Bench> {
    bench.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device for Borrower {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn start(&mut self) -> Result<Queues, DeviceError> {
        let mut bench = look(&self.bench);
        if bench.failing_starts > 0 {
            bench.failing_starts -= 1;
            return Err(DeviceError::Failed("the double does not start".to_owned()));
        }
        bench.starts += 1;
        let transmit =
            BorrowingTransmit { bench: Arc::clone(&self.bench), windows: Arc::default(), dead: false };
        let bell = bench.bell.clone();
        let receive = LendingReceive { bench: Arc::clone(&self.bench), lent: Vec::new(), bell };
        Ok(Queues {
            transmit: vec![Transmit::Other(Box::new(transmit))],
            receive: vec![Receive::Other(Box::new(receive))],
        })
    }

    fn stop(&mut self, queues: Queues) {
        drop(queues);
        let mut bench = look(&self.bench);
        assert!(bench.borrowed.is_empty(), "stopped with frames of the guest in its queue");
        bench.stops += 1;
    }

    fn guest_dma(&self) -> Result<Arc<dyn DmaMap>, String> {
        let map = Arc::new(BenchMap(Arc::clone(&self.bench)));
        look(&self.bench).kept_out.clone().map_or(Ok(map), Err)
    }

    fn service(&mut self) -> Vec<DeviceEvent> {
        std::mem::take(&mut look(&self.bench).events)
    }

    fn statistics(&mut self) -> DeviceStatistics {
        DeviceStatistics::default()
    }
}

/// Notes what is mapped. A device finds memory where we do.
#[derive(Debug)]
struct BenchMap(Arc<Mutex<Bench>>);

impl DmaMap for BenchMap {
    unsafe fn map(
        &self,
        ptr: *mut u8,
        len: usize,
        _align: usize,
        access: DmaAccess,
    ) -> Result<u64, DeviceError> {
        assert_eq!(access, DmaAccess::Read, "nobody writes into a guest's memory but we");
        let mut bench = look(&self.0);
        match &mut bench.mappings_left {
            Some(0) => return Err(DeviceError::Failed("the double has no room left".to_owned())),
            Some(left) => *left -= 1,
            None => {}
        }
        bench.mapped.push((ptr as u64, len));
        Ok(ptr as u64)
    }

    fn unmap(&self, iova: u64, len: usize) {
        let mut bench = look(&self.0);
        assert!(bench.borrowed.is_empty(), "unmapped with frames of the guest under way");
        let at = bench.mapped.iter().position(|mapped| *mapped == (iova, len));
        assert!(at.is_some_and(|at| bench.mapped.swap_remove(at) == (iova, len)), "{iova:#x} is not mapped");
    }
}

#[derive(Debug)]
struct BorrowingTransmit {
    bench: Arc<Mutex<Bench>>,
    windows: Arc<GuestWindows>,
    dead: bool,
}

impl TransmitQueue for BorrowingTransmit {
    fn transmit(&mut self, frames: Frames<'_>) -> Accepted {
        let mut bench = look(&self.bench);
        if bench.full || self.dead {
            return Accepted::Borrowed(0);
        }
        for (frame, segments) in frames.iter() {
            let mut bytes = vec![0; frame.len() as usize];
            pmd::frame::gather(segments, &mut bytes);
            let reached = |segment: &Segment| self.windows.find(segment, &mut 0).is_some();
            bench.sent_from_windows += usize::from(segments.iter().all(reached));
            bench.sent.push(bytes);
            bench.borrowed.push(frame.token());
        }
        Accepted::Borrowed(frames.len())
    }

    fn reclaim(&mut self, done: &mut Completions) {
        let mut bench = look(&self.bench);
        if bench.withhold {
            return;
        }
        // The last first: completions come in any order.
        while done.len() < done.capacity()
            && let Some(token) = bench.borrowed.pop()
        {
            done.push(token);
        }
    }

    fn outstanding(&self) -> usize {
        look(&self.bench).borrowed.len()
    }

    fn set_guest_memory(&mut self, windows: Arc<GuestWindows>) {
        self.windows = windows;
    }

    fn abort(&mut self, done: &mut Completions) {
        self.dead = true;
        let mut bench = look(&self.bench);
        bench.aborts += 1;
        while done.len() < done.capacity()
            && let Some(token) = bench.borrowed.pop()
        {
            done.push(token);
        }
    }
}

#[derive(Debug)]
struct LendingReceive {
    bench: Arc<Mutex<Bench>>,
    /// Frames that are lent out, by token; boxed so that they stay where they are.
    lent: Vec<Option<Box<[u8]>>>,
    bell: Option<Arc<OwnedFd>>,
}

impl ReceiveQueue for LendingReceive {
    fn receive(&mut self, burst: &mut Burst) {
        let mut bench = look(&self.bench);
        while burst.room() > 0
            && let Some(bytes) = bench.to_receive.pop_front()
        {
            let mut bytes = bytes.into_boxed_slice();
            let Some(start) = NonNull::new(bytes.as_mut_ptr()) else { continue };
            // SAFETY: the box is kept in `lent`, where nobody touches it, until the token comes back.
            let segment = unsafe { Segment::new(start, bytes.len() as u32) };
            burst.push(segment, Token(self.lent.len() as u32));
            self.lent.push(Some(bytes));
            bench.lent += 1;
        }
    }

    fn release(&mut self, token: Token) {
        let lent = self.lent.get_mut(token.0 as usize).and_then(Option::take);
        assert!(lent.is_some(), "buffer {token:?} came back twice");
        look(&self.bench).lent -= 1;
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(|bell| bell.as_fd())
    }

    fn arm(&mut self) -> Armed {
        match &self.bell {
            _ if !look(&self.bench).to_receive.is_empty() => Armed::Ready,
            Some(_) => Armed::Rings,
            None => Armed::Silent,
        }
    }

    fn can_wait(&self) -> bool {
        look(&self.bench).can_wait
    }
}

impl Drop for LendingReceive {
    fn drop(&mut self) {
        look(&self.bench).lent = 0;
    }
}
