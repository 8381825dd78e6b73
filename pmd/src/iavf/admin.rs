//! The admin queue: messages of up to 4 KiB each way, through two rings of descriptors.
//!
//! ```text
//!  0  flags │ opcode │ length │ return value        8  virtchnl verb │ virtchnl status        16  0 │ buffer address
//! ```
//!
//! Firmware carries them between VF and PF (XL710 data sheet, chapter 7.10; layout and flags: Intel's `iavf_adminq_cmd.h`).
//! It is only polled, on control threads.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::registers::*;
use crate::device::DeviceError;
use crate::memory::{DmaMap, DmaMemory, DmaSlice};
use crate::registers::{ALL_ONES, Registers};
use crate::vf::watchdog::STALL;

/// Descriptors of each ring.
const ENTRIES: u16 = 32;
/// Bytes of one descriptor.
const DESCRIPTOR: usize = 32;
/// Bytes of one buffer: the longest message.
pub const LONGEST_MESSAGE: usize = 4096;
const RING_BYTES: usize = ENTRIES as usize * DESCRIPTOR;

/// Flags of a descriptor: the device is done with it; it failed.
const DONE: u16 = 1;
const FAILED: u16 = 1 << 2;
/// The buffer is longer than 512 bytes.
const LARGE: u16 = 1 << 9;
/// The device reads the buffer; there is a buffer; no interrupt.
const READ: u16 = 1 << 10;
const BUFFER: u16 = 1 << 12;
const SILENT: u16 = 1 << 13;
const USUAL_BUFFER: usize = 512;

/// Opcodes of the firmware: the queue is given up; a message to the PF, and one from it.
const QUEUE_SHUTDOWN: u16 = 0x0003;
const TO_PF: u16 = 0x0801;
const FROM_PF: u16 = 0x0802;

/// How long to wait for whom.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Time between two looks.
    pub interval: Duration,
    /// For firmware to take a message.
    pub firmware: Duration,
    /// For the PF to answer one.
    pub answer: Duration,
    /// For a reset to end.
    pub reset: Duration,
    /// For a transmit queue that gets nowhere, with a link.
    pub stall: Duration,
}

impl Default for Patience {
    /// What Intel's drivers wait: 250 ms for firmware, 2 s for the PF, 5 s for a reset.
    fn default() -> Self {
        Self {
            interval: Duration::from_micros(500),
            firmware: Duration::from_millis(250),
            answer: Duration::from_secs(2),
            reset: Duration::from_secs(5),
            stall: STALL,
        }
    }
}

impl Patience {
    /// Looks until there is a result, for at most `limit`.
    pub fn wait<T>(&self, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(result) = look() {
                return Some(result);
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(self.interval);
        }
    }
}

/// Why a message was not carried.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AdminError {
    /// Firmware did not take it in time.
    #[error("the firmware does not take messages")]
    Silent,
    /// Firmware refused it.
    #[error("the firmware refuses a message with error {0}")]
    Refused(u16),
    /// The queue reported a critical error, or something impossible.
    #[error("the admin queue has failed")]
    Broken,
    /// The queue was switched off: the VF was reset.
    #[error("the VF was reset")]
    Reset,
    /// Registers read as ones.
    #[error("the device does not answer")]
    Gone,
}

/// A virtchnl message, either way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// What it is about.
    pub verb: u32,
    /// The PF's verdict; 0 is good.
    pub status: i32,
    /// What it says.
    pub data: Vec<u8>,
}

/// What the errors of the queue were since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    /// Messages of the PF were lost.
    pub overflow: bool,
}

/// The VF's side of it.
#[derive(Debug)]
pub struct AdminQueue {
    registers: Arc<dyn Registers>,
    patience: Patience,
    send: DmaSlice,
    receive: DmaSlice,
    send_buffer: DmaSlice,
    receive_buffers: DmaSlice,
    /// The descriptors that are used next.
    next_send: u16,
    next_receive: u16,
}

impl AdminQueue {
    /// The queue of these registers, switched off, with memory that `map` makes reachable. `name` is seen in
    /// `/proc/PID/maps`.
    pub fn new(
        registers: Arc<dyn Registers>,
        map: Arc<dyn DmaMap>,
        name: &str,
        patience: Patience,
    ) -> Result<Self, DeviceError> {
        let sizes = [RING_BYTES, RING_BYTES, LONGEST_MESSAGE, usize::from(ENTRIES) * LONGEST_MESSAGE];
        let memory = DmaMemory::new(map, DmaMemory::needed(&sizes), name)?;
        let [send, receive, send_buffer, receive_buffers] = memory.carve(sizes)?;
        Ok(Self {
            registers,
            patience,
            send,
            receive,
            send_buffer,
            receive_buffers,
            next_send: 0,
            next_receive: 0,
        })
    }

    /// How long it waits.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Switches it on, empty.
    pub fn start(&mut self) -> Result<(), AdminError> {
        (self.next_send, self.next_receive) = (0, 0);
        for slot in 0..ENTRIES {
            self.give_buffer(slot);
        }
        fence(Ordering::Release);
        for (queue, ring, tail) in [(ATQ, &self.send, 0), (ARQ, &self.receive, ENTRIES - 1)] {
            let write = |offset, value| self.registers.write(offset, value);
            write(queue.head, 0);
            write(queue.tail, 0);
            write(queue.base_low, ring.iova() as u32);
            write(queue.base_high, (ring.iova() >> 32) as u32);
            write(queue.length, u32::from(ENTRIES) | LENGTH_ENABLE);
            write(queue.tail, u32::from(tail));
            match self.registers.read(queue.base_low) {
                ALL_ONES => return Err(AdminError::Gone),
                low if low == ring.iova() as u32 => {}
                _ => return Err(AdminError::Broken),
            }
        }
        Ok(())
    }

    /// Switches it off: no message comes any more.
    pub fn stop(&mut self) {
        if self.registers.read(ATQ.length) & LENGTH_ENABLE == 0 || self.check().is_err() {
            return self.switch_off();
        }
        // Firmware is told, as Intel's drivers do; what it says to that does not matter.
        let unloading = 1;
        self.describe(QUEUE_SHUTDOWN, 0, &[], unloading);
        let _ = self.taken(Duration::from_millis(5));
        self.switch_off();
    }

    fn switch_off(&self) {
        for queue in [ATQ, ARQ] {
            for offset in [queue.length, queue.head, queue.tail, queue.base_low, queue.base_high] {
                self.registers.write(offset, 0);
            }
        }
    }

    /// Gives the device the receive buffer of `slot`.
    fn give_buffer(&mut self, slot: u16) {
        let at = usize::from(slot) * DESCRIPTOR / 8;
        let iova = self.receive_buffers.iova() + u64::from(slot) * LONGEST_MESSAGE as u64;
        self.receive.store(at + 1, 0);
        self.receive.store(at + 2, 0);
        self.receive.store(at + 3, iova.rotate_left(32));
        self.receive.store(at, u64::from(BUFFER | LARGE) | (LONGEST_MESSAGE as u64) << 32);
    }

    /// Fills the next descriptor, and lets the device have it.
    fn describe(&mut self, opcode: u16, verb: u32, data: &[u8], parameter: u32) {
        let mut flags = SILENT;
        if !data.is_empty() {
            self.send_buffer.segment(0, LONGEST_MESSAGE as u32).copy_from(data);
            flags |= BUFFER | READ;
        }
        if data.len() > USUAL_BUFFER {
            flags |= LARGE;
        }
        let at = usize::from(self.next_send) * DESCRIPTOR / 8;
        let address = if data.is_empty() { 0 } else { self.send_buffer.iova() };
        self.send.store(at + 1, verb.into());
        self.send.store(at + 2, parameter.into());
        self.send.store(at + 3, address.rotate_left(32));
        self.send.store(at, u64::from(flags) | u64::from(opcode) << 16 | (data.len() as u64) << 32);
        self.next_send = (self.next_send + 1) % ENTRIES;
        fence(Ordering::Release);
        self.registers.write(ATQ.tail, self.next_send.into());
    }

    /// Waits until firmware has taken what was described last.
    fn taken(&self, limit: Duration) -> Result<(), AdminError> {
        let (next, registers) = (u32::from(self.next_send), &self.registers);
        let head = self.patience.wait(limit, || match registers.read(ATQ.head) {
            ALL_ONES => Some(Err(AdminError::Gone)),
            head if head & HEAD_MASK == next => Some(Ok(())),
            _ => None,
        });
        match head {
            Some(result) => result?,
            None => return Err(self.check().err().unwrap_or(AdminError::Silent)),
        }
        fence(Ordering::Acquire);
        let at = usize::from((self.next_send + ENTRIES - 1) % ENTRIES) * DESCRIPTOR / 8;
        let first = self.send.load(at);
        match (first as u16, (first >> 48) as u16) {
            (flags, _) if flags & DONE == 0 => Err(AdminError::Broken),
            (flags, code) if flags & FAILED != 0 || code & 0xff != 0 => Err(AdminError::Refused(code)),
            _ => Ok(()),
        }
    }

    /// Sends the PF a message without data, and does not wait until firmware has it: what it asks for may take the queue
    /// away.
    pub fn post(&mut self, verb: u32) -> Result<(), AdminError> {
        self.check()?;
        self.describe(TO_PF, verb, &[], 0);
        Ok(())
    }

    /// Sends the PF a message, whose data must not be longer than [`LONGEST_MESSAGE`], and waits until firmware has it.
    pub fn send(&mut self, limit: Duration, verb: u32, data: &[u8]) -> Result<(), AdminError> {
        if data.len() > LONGEST_MESSAGE {
            return Err(AdminError::Broken);
        }
        self.check()?;
        self.describe(TO_PF, verb, data, 0);
        self.taken(limit)
    }

    /// The next message of the PF, if there is one. Two register reads where there is none.
    pub fn receive(&mut self) -> Result<Option<Message>, AdminError> {
        // A device that fills its queue without end is listened to again, but not now.
        for _ in 0..ENTRIES {
            let head = self.registers.read(ARQ.head);
            if head == ALL_ONES {
                return Err(AdminError::Gone);
            }
            let head = head & HEAD_MASK;
            if head == u32::from(self.next_receive) {
                return Ok(None);
            }
            if head >= u32::from(ENTRIES) {
                return Err(AdminError::Broken);
            }
            fence(Ordering::Acquire);
            let slot = self.next_receive;
            let at = usize::from(slot) * DESCRIPTOR / 8;
            let (first, second) = (self.receive.load(at), self.receive.load(at + 1));
            let (flags, opcode) = (first as u16, (first >> 16) as u16);
            let len = usize::from((first >> 32) as u16).min(LONGEST_MESSAGE);
            let mut data = vec![0; len];
            let start = usize::from(slot) * LONGEST_MESSAGE;
            self.receive_buffers.segment(start, len as u32).copy_to(&mut data);
            self.give_buffer(slot);
            self.next_receive = (slot + 1) % ENTRIES;
            fence(Ordering::Release);
            self.registers.write(ARQ.tail, slot.into());
            if flags & DONE == 0 {
                return Err(AdminError::Broken);
            }
            // Other opcodes are not for VFs; what failed says nothing.
            if opcode == FROM_PF && flags & FAILED == 0 {
                return Ok(Some(Message { verb: second as u32, status: (second >> 32) as i32, data }));
            }
        }
        Ok(None)
    }

    /// Whether both halves are still on and well; their errors that can be survived are cleared.
    pub fn check(&self) -> Result<Trouble, AdminError> {
        let mut trouble = Trouble::default();
        for queue in [ATQ, ARQ] {
            let length = self.registers.read(queue.length);
            if length == ALL_ONES {
                return Err(AdminError::Gone);
            }
            if length & LENGTH_ENABLE == 0 {
                return Err(AdminError::Reset);
            }
            if length & LENGTH_CRITICAL != 0 {
                return Err(AdminError::Broken);
            }
            if length & (LENGTH_OVERFLOW | LENGTH_VF_ERROR) != 0 {
                trouble.overflow |= length & LENGTH_OVERFLOW != 0;
                self.registers.write(queue.length, length & !(LENGTH_OVERFLOW | LENGTH_VF_ERROR));
            }
        }
        Ok(trouble)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Plain;
    use super::*;
    use crate::memory::dma::tests::{FakeMap, OFFSET};
    use proptest::prelude::*;

    const QUICK: Patience = Patience {
        interval: Duration::from_micros(1),
        firmware: Duration::ZERO,
        answer: Duration::ZERO,
        reset: Duration::ZERO,
        stall: Duration::from_millis(20),
    };

    fn queue() -> (AdminQueue, Arc<Plain>) {
        let registers = Arc::new(Plain::default());
        let shared = Arc::clone(&registers) as Arc<dyn Registers>;
        let mut queue = AdminQueue::new(shared, Arc::new(FakeMap::default()), "test", QUICK).unwrap();
        queue.start().unwrap();
        (queue, registers)
    }

    /// A device that says all the time that there is one more message, of a kind that is none of ours.
    #[derive(Debug)]
    struct Chatter(std::sync::atomic::AtomicU64, std::sync::atomic::AtomicU32);

    impl Registers for Chatter {
        fn read(&self, offset: u32) -> u32 {
            if offset != ARQ.head {
                return 32 | LENGTH_ENABLE;
            }
            let n = self.1.fetch_add(1, Ordering::Relaxed);
            let base = self.0.load(Ordering::Relaxed);
            if base != 0 {
                (0..ENTRIES).for_each(|slot| write(base, slot, [1, 0, 0, 0]));
            }
            (n + 1) % u32::from(ENTRIES)
        }

        fn write(&self, _: u32, _: u32) {}
    }

    #[test]
    fn a_device_that_chatters_is_listened_to_for_one_round() {
        let chatter = Arc::new(Chatter(0.into(), 0.into()));
        let shared = Arc::clone(&chatter) as Arc<dyn Registers>;
        let mut queue = AdminQueue::new(shared, Arc::new(FakeMap::default()), "test", QUICK).unwrap();
        chatter.0.store(queue.receive.iova(), Ordering::Relaxed);
        assert!(matches!(queue.receive(), Ok(None)));
        assert_eq!(chatter.1.load(Ordering::Relaxed), u32::from(ENTRIES));
    }

    /// Writes a descriptor as the device does.
    fn write(base: u64, slot: u16, words: [u64; 4]) {
        let descriptor = (base - OFFSET + u64::from(slot) * DESCRIPTOR as u64) as *mut u64;
        for (n, word) in words.into_iter().enumerate() {
            // SAFETY: the queue keeps its rings mapped; the test is single-threaded.
            unsafe { descriptor.add(n).write_volatile(word) };
        }
    }

    #[test]
    fn a_message_is_described_as_firmware_wants_it() {
        let (mut queue, registers) = queue();
        registers.write(ATQ.head, 1);
        write(queue.send.iova(), 0, [0; 4]);
        assert_eq!(queue.send(Duration::ZERO, 6, &[7; 600]), Err(AdminError::Broken), "nobody took it");
        let (first, second) = (queue.send.load(0), queue.send.load(1));
        assert_eq!((first, second), (0x0258_0801_3600, 6));
        assert_eq!(queue.send.load(3).rotate_left(32), queue.send_buffer.iova());
        assert_eq!((registers.read(ATQ.tail), registers.read(ATQ.length)), (1, 0x8000_0020));
        assert_eq!((registers.read(ARQ.tail), queue.receive.load(0)), (31, 0x1000_0000_1200));
    }

    #[test]
    fn what_firmware_refuses_and_what_it_does_not_take_are_told_apart() {
        let (mut queue, registers) = queue();
        assert_eq!(queue.send(Duration::ZERO, 1, &[]), Err(AdminError::Silent));
        registers.write(ATQ.length, 32 | LENGTH_ENABLE | LENGTH_CRITICAL);
        assert_eq!(queue.send(Duration::ZERO, 1, &[]), Err(AdminError::Broken));
        registers.write(ATQ.length, 32);
        assert_eq!(queue.send(Duration::ZERO, 1, &[]), Err(AdminError::Reset));
        registers.write(ATQ.length, 32 | LENGTH_ENABLE);
        registers.write(ATQ.head, ALL_ONES);
        assert_eq!(queue.send(Duration::ZERO, 1, &[]), Err(AdminError::Gone));
    }

    #[test]
    fn a_message_of_the_pf_is_read_once() {
        let (mut queue, registers) = queue();
        queue.receive_buffers.segment(0, 4).copy_from(&[1, 2, 3, 4]);
        write(queue.receive.iova(), 0, [0x0004_0802_1203, 17 | (-5i32 as u32 as u64) << 32, 0, 0]);
        registers.write(ARQ.head, 1);
        let message = Message { verb: 17, status: -5, data: vec![1, 2, 3, 4] };
        assert_eq!(queue.receive(), Ok(Some(message)));
        assert_eq!(queue.receive(), Ok(None));
        assert_eq!(registers.read(ARQ.tail), 0);
    }

    proptest! {
        #[test]
        fn no_device_makes_it_panic_or_read_more_than_a_buffer(
            steps in prop::collection::vec((any::<u32>(), 0u32..40, any::<[u64; 4]>(), any::<bool>()), 1..100)
        ) {
            let (mut queue, registers) = queue();
            for (length, head, words, send) in steps {
                registers.write(ARQ.head, head);
                registers.write(ATQ.head, head);
                write(queue.receive.iova(), head as u16 % ENTRIES, words);
                write(queue.send.iova(), head as u16 % ENTRIES, words);
                if send {
                    let _ = queue.send(Duration::ZERO, 1, &[0; 100]);
                }
                for _ in 0..ENTRIES {
                    match queue.receive() {
                        Ok(Some(message)) => prop_assert!(message.data.len() <= LONGEST_MESSAGE),
                        _ => break,
                    }
                }
                let _ = queue.check();
                registers.write(ARQ.length, length | LENGTH_ENABLE);
            }
        }
    }
}
