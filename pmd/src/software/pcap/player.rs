//! Playing a capture file: a thread reads it into blocks, out of which frames are lent.
//!
//! ```text
//!   file ── thread ──▶ block [ len | frame ][ len | frame ] … [ 0 ] ── filled ──▶ worker: lent, and when all are back
//!                        ▲───────────────────── empty ◀──────────────────────────┘
//! ```

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use crossbeam::queue::ArrayQueue;

use super::MAX_FRAME;
use super::format::{self, ByteOrder, FILE_HEADER, RECORD_HEADER, Record};
use super::pace::Pace;
use crate::device::{Armed, DeviceError, ReceiveQueue};
use crate::frame::{Burst, MIN_FRAME, Segment, Token};
use crate::software::buffers::Buffers;

/// Blocks of frames, and bytes of each.
const BLOCKS: u32 = 16;
const BLOCK: usize = 256 << 10;
/// Bytes of the length before each frame of a block, and at its end.
const LENGTH: usize = 4;

/// What the thread and the worker share.
#[derive(Debug)]
struct Shared {
    memory: Buffers,
    /// Blocks with frames, in the order of the file.
    filled: ArrayQueue<u32>,
    /// Blocks without.
    empty: ArrayQueue<u32>,
    stop: AtomicBool,
    /// No block will be filled any more.
    ended: AtomicBool,
    /// Frames that were left out: cut off when they were captured, or too short or too long for a frame.
    left_out: AtomicU64,
}

/// The thread that reads a file.
#[derive(Debug)]
pub(super) struct Player {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Player {
    /// Begins to read `file`, which `name` names in messages; what there is to say in the end goes to `notices`.
    pub(super) fn start(
        mut file: File,
        name: String,
        notices: Sender<String>,
    ) -> Result<(Self, PcapReceive), DeviceError> {
        let mut header = [0; FILE_HEADER];
        let order = match file.read_exact(&mut header) {
            Ok(()) => ByteOrder::of_file(&header),
            Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => Err(format::FormatError::NoCapture),
            Err(cause) => return Err(DeviceError::Failed(format!("cannot read {name}: {cause}"))),
        }
        .map_err(|cause| DeviceError::Unsupported(format!("cannot play {name}: {cause}")))?;
        let memory = Buffers::new(BLOCKS, BLOCK)
            .ok_or_else(|| DeviceError::Failed(format!("no memory to play {name}")))?;
        let shared = Arc::new(Shared {
            memory,
            filled: ArrayQueue::new(BLOCKS as usize),
            empty: ArrayQueue::new(BLOCKS as usize),
            stop: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            left_out: AtomicU64::new(0),
        });
        for block in 0..BLOCKS {
            let _ = shared.empty.push(block);
        }
        let reader = Reader {
            shared: Arc::clone(&shared),
            frames: Frames { file: BufReader::with_capacity(BLOCK, file), order },
            played: 0,
        };
        let thread = std::thread::Builder::new()
            .name("pcap-play".to_owned())
            .spawn(move || {
                let shared = Arc::clone(&reader.shared);
                let said = reader.run(&name);
                shared.ended.store(true, Ordering::Release);
                if let Some(text) = said {
                    let _ = notices.send(text);
                }
            })
            .map_err(|cause| DeviceError::Failed(format!("no thread to read a capture file: {cause}")))?;
        let receive = PcapReceive::new(Some(Arc::clone(&shared)));
        Ok((Self { shared, thread: Some(thread) }, receive))
    }

    /// Frames that were left out so far.
    pub(super) fn left_out(&self) -> u64 {
        self.shared.left_out.load(Ordering::Relaxed)
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The records of a file.
struct Frames<R> {
    file: R,
    order: ByteOrder,
}

impl<R: Read> Frames<R> {
    /// The header of the next record; `None` at the end of the file.
    fn next(&mut self) -> io::Result<Option<Record>> {
        let mut header = [0; RECORD_HEADER];
        let mut len = 0;
        while len < RECORD_HEADER {
            match self.file.read(&mut header[len..]) {
                Ok(0) if len == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => len += n,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
        let record = self.order.record(&header);
        if record.captured > format::LONGEST {
            return Err(io::Error::other("a record is longer than any frame"));
        }
        Ok(Some(record))
    }

    fn skip(&mut self, len: u32) -> io::Result<()> {
        let skipped = io::copy(&mut self.file.by_ref().take(u64::from(len)), &mut io::sink())?;
        if skipped == u64::from(len) { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

struct Reader<R> {
    shared: Arc<Shared>,
    frames: Frames<R>,
    /// Frames that were put into blocks.
    played: u64,
}

impl<R: Read> Reader<R> {
    /// Reads the file to its end; what there is to say then, or `None` when it was told to stop.
    fn run(mut self, name: &str) -> Option<String> {
        let mut pending = None;
        let mut pace = Pace::new();
        let end = loop {
            if self.shared.stop.load(Ordering::Relaxed) {
                return None;
            }
            let Some(block) = self.shared.empty.pop() else {
                pace.wait();
                continue;
            };
            pace.reset();
            let filled = self.fill(block, &mut pending);
            let _ = self.shared.filled.push(block);
            match filled {
                Ok(true) => {}
                Ok(false) => break None,
                Err(cause) => break Some(cause),
            }
        };
        let Self { shared, played, .. } = self;
        let left_out = match shared.left_out.load(Ordering::Relaxed) {
            0 => String::new(),
            n => format!("; {n} were left out (cut off by the capture, or no Ethernet frames)"),
        };
        Some(match end {
            None => format!("{name} was read to its end: {played} frames{left_out}"),
            Some(cause) => format!("{name} is faulty behind {played} frames ({cause}){left_out}"),
        })
    }

    /// Fills a block; `false` at the end of the file. A record that has no room any more is `pending` then.
    fn fill(&mut self, block: u32, pending: &mut Option<Record>) -> io::Result<bool> {
        // SAFETY: the block has so many bytes. Its number came out of the queue, so nobody else has it.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(self.shared.memory.buffer(block).as_ptr(), BLOCK) };
        let mut at = 0;
        let result = loop {
            let next = match pending.take() {
                Some(record) => Ok(Some(record)),
                None => self.frames.next(),
            };
            let record = match next {
                Ok(Some(record)) => record,
                Ok(None) => break Ok(false),
                Err(cause) => break Err(cause),
            };
            if record.captured < record.original || !(MIN_FRAME..=MAX_FRAME).contains(&record.captured) {
                self.shared.left_out.fetch_add(1, Ordering::Relaxed);
                match self.frames.skip(record.captured) {
                    Ok(()) => continue,
                    Err(cause) => break Err(cause),
                }
            }
            let end = at + LENGTH + record.captured as usize;
            if end + LENGTH > BLOCK {
                *pending = Some(record);
                break Ok(true);
            }
            if let Err(cause) = self.frames.file.read_exact(&mut bytes[at + LENGTH..end]) {
                break Err(cause);
            }
            bytes[at..at + LENGTH].copy_from_slice(&record.captured.to_ne_bytes());
            at = end;
            self.played += 1;
        };
        bytes[at..at + LENGTH].fill(0);
        result
    }
}

/// The receiving side of `pcap:FILE`.
#[derive(Debug)]
pub struct PcapReceive {
    /// `None` when there is no file to play.
    shared: Option<Arc<Shared>>,
    /// The block that frames are taken from, and where the next one is.
    current: Option<(u32, usize)>,
    /// Of each block, how many frames are lent.
    lent: [u32; BLOCKS as usize],
}

impl PcapReceive {
    fn new(shared: Option<Arc<Shared>>) -> Self {
        Self { shared, current: None, lent: [0; BLOCKS as usize] }
    }

    /// One that receives nothing.
    pub(super) fn silent() -> Self {
        Self::new(None)
    }

    /// Takes back all frames that are lent. Whoever had them uses them no more.
    pub(super) fn take_back(&mut self) {
        for block in 0..BLOCKS {
            if std::mem::take(&mut self.lent[block as usize]) > 0 {
                self.recycle(block);
            }
        }
    }

    /// Gives `block` back if nothing is left of it.
    fn recycle(&mut self, block: u32) {
        let is_current = self.current.is_some_and(|(current, _)| current == block);
        if let Some(shared) = &self.shared
            && !is_current
            && self.lent[block as usize] == 0
        {
            let _ = shared.empty.push(block);
        }
    }
}

/// The frame at `at` of a block; `None` at its end.
///
/// # Safety
/// `block` must be a filled one and `at` 0 or behind an earlier frame of it; the block must stay as it is until the frame
/// is done with.
#[inline]
unsafe fn frame_at(block: NonNull<u8>, at: usize) -> Option<Segment> {
    // SAFETY: a length is there, by the caller's promise; it need not be aligned.
    let len = unsafe { block.add(at).cast::<u32>().read_unaligned() };
    // SAFETY: a frame of that length is behind it.
    (len > 0).then(|| unsafe { Segment::new(block.add(at + LENGTH), len) })
}

impl ReceiveQueue for PcapReceive {
    fn receive(&mut self, burst: &mut Burst) {
        while burst.room() > 0 {
            let Some(shared) = &self.shared else { return };
            let (block, at) = match self.current {
                Some(current) => current,
                None => match shared.filled.pop() {
                    Some(block) => (block, 0),
                    None => return,
                },
            };
            // SAFETY: the block came out of the queue of filled ones and is given back when no frame of it is lent.
            match unsafe { frame_at(shared.memory.buffer(block), at) } {
                Some(frame) => {
                    self.current = Some((block, at));
                    if !burst.push(frame, Token(block)) {
                        return;
                    }
                    self.current = Some((block, at + LENGTH + frame.len() as usize));
                    self.lent[block as usize] += 1;
                }
                None => {
                    self.current = None;
                    self.recycle(block);
                }
            }
        }
    }

    fn release(&mut self, token: Token) {
        if let Some(lent) = self.lent.get_mut(token.0 as usize) {
            debug_assert!(*lent > 0);
            *lent = lent.saturating_sub(1);
            if *lent == 0 {
                self.recycle(token.0);
            }
        }
    }

    /// The thread rings for nobody; but nothing comes after the end of the file.
    fn arm(&mut self) -> Armed {
        let Some(shared) = &self.shared else { return Armed::Rings };
        let ended = shared.ended.load(Ordering::Acquire);
        match self.current.is_some() || !shared.filled.is_empty() {
            true => Armed::Ready,
            false if ended => Armed::Rings,
            false => Armed::Silent,
        }
    }

    fn can_wait(&self) -> bool {
        true
    }
}
