//! Recording into a capture file: the worker writes records into a ring of bytes, a thread writes those into the file.

use std::fs::File;
use std::io::{self, Write};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::utils::CachePadded;

use super::format::{self, RECORD_HEADER};
use super::pace::Pace;
use crate::device::{Accepted, Completions, DeviceError, TransmitQueue};
use crate::frame::{Frames, Segment};
use crate::software::buffers::Buffers;

/// Bytes of the ring, a power of two: many frames of any length.
const RING: usize = 4 << 20;
/// Bytes of one write, but for a last frame that reaches over it, so that room is made early.
const WRITE: usize = 256 << 10;

/// A ring of bytes with one writer, the worker, and one reader, the thread.
///
/// Positions count all bytes ever written; `read <= written <= read + RING`. Bytes from `read` to `written` are the
/// reader's, the others the writer's.
#[derive(Debug)]
struct Shared {
    memory: Buffers,
    written: CachePadded<AtomicUsize>,
    read: CachePadded<AtomicUsize>,
    /// Frames that the writer has put in, and those of them that are in the file.
    accepted: AtomicU64,
    recorded: AtomicU64,
    stop: AtomicBool,
    /// The file cannot be written to.
    failed: AtomicBool,
}

impl Shared {
    /// The bytes of the ring from position `at`, as many as lie in one piece.
    fn piece(&self, at: usize, len: usize) -> Segment {
        let offset = at & (RING - 1);
        // SAFETY: the memory has `RING` bytes, and lives as long as this.
        let whole = unsafe { Segment::new(self.memory.buffer(0), RING as u32) };
        whole.part(offset as u32, len as u32)
    }

    /// Where the record at position `at`, which must be a whole one, ends.
    fn end_of_record(&self, at: usize) -> usize {
        let mut header = [0; RECORD_HEADER];
        let first = self.piece(at, RECORD_HEADER).copy_to(&mut header);
        self.piece(at.wrapping_add(first), RECORD_HEADER - first).copy_to(&mut header[first..]);
        let record = format::ByteOrder::Little.record(&header);
        at.wrapping_add(RECORD_HEADER + record.captured as usize)
    }
}

/// The thread that writes a file.
#[derive(Debug)]
pub(super) struct Recorder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Writes the beginning of `file`, which `name` names in messages, and what the queue is given from then on. When
    /// that fails a sentence goes to `notices`.
    pub(super) fn start(
        mut file: File,
        name: String,
        notices: Sender<String>,
    ) -> Result<(Self, PcapTransmit), DeviceError> {
        file.write_all(&format::file_header())
            .map_err(|cause| DeviceError::Failed(format!("cannot write to {name}: {cause}")))?;
        let memory = Buffers::new(1, RING)
            .ok_or_else(|| DeviceError::Failed(format!("no memory to record into {name}")))?;
        let shared = Arc::new(Shared {
            memory,
            written: CachePadded::default(),
            read: CachePadded::default(),
            accepted: AtomicU64::new(0),
            recorded: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("pcap-record".to_owned())
            .spawn(move || {
                if let Err(cause) = write_out(&of_thread, file) {
                    of_thread.failed.store(true, Ordering::Release);
                    let _ = notices.send(format!(
                        "cannot write to {name}: {cause}; what the VM sends is lost from now on: make room and add the \
                         device anew"
                    ));
                }
            })
            .map_err(|cause| DeviceError::Failed(format!("no thread to write a capture file: {cause}")))?;
        let transmit = PcapTransmit { shared: Arc::clone(&shared) };
        Ok((Self { shared, thread: Some(thread) }, transmit))
    }

    /// Frames that were accepted and will never be in the file, which cannot be written to.
    pub(super) fn lost(&self) -> u64 {
        if !self.shared.failed.load(Ordering::Acquire) {
            return 0;
        }
        let recorded = self.shared.recorded.load(Ordering::Relaxed);
        self.shared.accepted.load(Ordering::Relaxed).saturating_sub(recorded)
    }

    /// Waits until all is in the file, not longer than `patience`. The queue must not be in use.
    pub(super) fn settle(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let is_behind = || {
            let written = self.shared.written.load(Ordering::Acquire);
            self.shared.read.load(Ordering::Acquire) != written && !self.shared.failed.load(Ordering::Acquire)
        };
        while is_behind() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Recorder {
    /// What was accepted is written first.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes what comes into the ring to `file`, until it is told to stop and all is written.
fn write_out(shared: &Shared, mut file: impl Write) -> io::Result<()> {
    let mut pace = Pace::new();
    loop {
        let stop = shared.stop.load(Ordering::Acquire);
        let read = shared.read.load(Ordering::Relaxed);
        // The writer shows whole records only.
        let written = shared.written.load(Ordering::Acquire);
        if read == written {
            if stop {
                return file.flush();
            }
            pace.wait();
            continue;
        }
        pace.reset();
        let (mut end, mut frames) = (read, 0);
        while end != written && end.wrapping_sub(read) < WRITE {
            end = shared.end_of_record(end);
            frames += 1;
        }
        let mut at = read;
        while at != end {
            let piece = shared.piece(at, end.wrapping_sub(at));
            // SAFETY: these bytes are before `written`, so the writer leaves them alone until `read` is behind them.
            let bytes =
                unsafe { std::slice::from_raw_parts(piece.as_ptr().cast_const(), piece.len() as usize) };
            file.write_all(bytes)?;
            at = at.wrapping_add(bytes.len());
        }
        shared.recorded.fetch_add(frames, Ordering::Relaxed);
        shared.read.store(end, Ordering::Release);
    }
}

/// The sending side of `pcap:FILE`.
#[derive(Debug)]
pub struct PcapTransmit {
    shared: Arc<Shared>,
}

impl PcapTransmit {
    /// Copies `from` to position `at` of the ring, where there is room for it; returns the position behind it.
    #[inline]
    fn put(&self, at: usize, from: &Segment) -> usize {
        let len = from.len() as usize;
        let first = self.shared.piece(at, len);
        first.copy_from_segment(from);
        if (first.len() as usize) < len {
            let rest = from.part(first.len(), u32::MAX);
            self.shared.piece(at.wrapping_add(first.len() as usize), len).copy_from_segment(&rest);
        }
        at.wrapping_add(len)
    }
}

impl TransmitQueue for PcapTransmit {
    fn transmit(&mut self, frames: Frames<'_>) -> Accepted {
        if self.shared.failed.load(Ordering::Acquire) {
            return Accepted::Refused(frames.len());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let read = self.shared.read.load(Ordering::Acquire);
        let mut at = self.shared.written.load(Ordering::Relaxed);
        let mut accepted = 0;
        for (frame, segments) in frames.iter() {
            if RING - at.wrapping_sub(read) < RECORD_HEADER + frame.len() as usize {
                break;
            }
            let mut header = format::record_header(now, frame.len());
            // SAFETY: the header is a local, and done with when `put` returns.
            let header = unsafe { Segment::new(NonNull::from(&mut header).cast(), RECORD_HEADER as u32) };
            at = self.put(at, &header);
            for segment in segments {
                at = self.put(at, segment);
            }
            accepted += 1;
        }
        self.shared.accepted.fetch_add(accepted as u64, Ordering::Relaxed);
        self.shared.written.store(at, Ordering::Release);
        Accepted::Copied(accepted)
    }

    fn reclaim(&mut self, _done: &mut Completions) {}

    fn outstanding(&self) -> usize {
        0
    }

    fn abort(&mut self, _done: &mut Completions) {}
}
