//! The model of Intel's 10-gigabit VF notices what its data sheets forbid, and its PF answers as Linux's does.
//!
//! The driver here is a handful of register writes in the right order, and one wrong thing at a time.

#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use models::InProcess;
use models::ixgbevf::{Api, Ixgbevf, Options, Part, Wrong};
use models::packets::{Ip, Transport, check, packet, partial};
use pmd::memory::{DmaAccess, DmaMap};
use pmd::pci::PciFunction;
use pmd::{Caching, MacAddress, Registers};

const SLOTS: usize = 16;
/// Where things are in the memory, in bytes: rings, the buffers of receive slots, what is sent.
const TX_RING: usize = 0;
const RX_RING: usize = 4096;
const BUFFERS: usize = 8192;
const BUFFER: usize = 2048;
const OUT: usize = BUFFERS + 2 * SLOTS * BUFFER;
const BYTES: usize = OUT + 65536;

const RDLEN: u32 = 0x1008;
const RDT: u32 = 0x1018;
const RXDCTL: u32 = 0x1028;
const SRRCTL: u32 = 0x1014;
const TDLEN: u32 = 0x2008;
const TDT: u32 = 0x2018;
const TXDCTL: u32 = 0x2028;
const ENABLE: u32 = 1 << 25;
const MAILBOX: u32 = 0x2fc;
const WORDS: u32 = 0x200;

// Of a transmit descriptor: EOP, IFCS, RS, advanced data; TSE. Then CC, IXSM, TXSM.
const DATA: u64 = 0x2b30_0000;
const TSE: u64 = 1 << 31;
const CC: u64 = 1 << 39;
const IXSM: u64 = 1 << 40;
const TXSM: u64 = 1 << 41;

struct Driver {
    function: Arc<InProcess<Ixgbevf>>,
    registers: Arc<dyn Registers>,
    memory: Box<[AtomicU64]>,
    iova: u64,
    sent: u32,
}

impl Driver {
    fn new(options: Options) -> Self {
        let function = InProcess::new(Ixgbevf::new(options));
        let registers = Arc::clone(&function).bar(0, 0, 0x4000, Caching::Uncached).unwrap();
        let memory: Box<[AtomicU64]> = (0..BYTES / 8).map(|_| AtomicU64::new(0)).collect();
        // SAFETY: the memory outlives the last access of the device, which works only when it is talked to.
        let iova = unsafe {
            function.map(memory.as_ptr().cast_mut().cast(), BYTES, 4096, DmaAccess::ReadWrite).unwrap()
        };
        PciFunction::set_bus_master(&*function, true).unwrap();
        let mut driver = Self { function, registers, memory, iova, sent: 0 };
        driver.ask(&[1]);
        driver
    }

    /// One that has its first queues on, 8 receive buffers and a context for plain frames.
    fn started(options: Options) -> Self {
        let mut driver = Self::new(options);
        driver.program();
        driver.enable();
        driver.give_buffers(8);
        driver.context(0, 14 << 9, 0, 0);
        driver
    }

    fn write(&self, at: u32, value: u32) {
        self.registers.write(at, value);
    }

    fn program(&self) {
        for (base, ring) in [(0x1000, RX_RING), (0x2000, TX_RING)] {
            let at = self.iova + ring as u64;
            self.write(base, at as u32);
            self.write(base + 4, (at >> 32) as u32);
            self.write(base + 8, (SLOTS * 16) as u32);
            self.write(base + 0x0c, 1 << 9);
        }
        self.write(SRRCTL, 1 << 28 | 1 << 25 | 2);
    }

    fn enable(&self) {
        for at in [RXDCTL, TXDCTL] {
            self.write(at, ENABLE);
            while self.registers.read(at) & ENABLE == 0 {}
        }
    }

    fn give_buffers(&self, count: usize) {
        for slot in 0..count {
            self.put(RX_RING + 16 * slot, self.iova + (BUFFERS + slot * BUFFER) as u64);
            self.put(RX_RING + 16 * slot + 8, 0);
        }
        self.write(RDT, count as u32);
    }

    fn put(&self, at: usize, word: u64) {
        self.memory[at / 8].store(word, Ordering::Relaxed);
    }

    fn get(&self, at: usize) -> u64 {
        self.memory[at / 8].load(Ordering::Relaxed)
    }

    fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        (at..at + len).map(|at| self.get(at & !7).to_le_bytes()[at & 7]).collect()
    }

    /// Puts a descriptor into the next slot and moves the tail over it.
    fn describe(&mut self, words: [u64; 2]) {
        let slot = self.sent as usize % SLOTS;
        self.put(TX_RING + 16 * slot, words[0]);
        self.put(TX_RING + 16 * slot + 8, words[1]);
        self.sent += 1;
        self.write(TDT, self.sent % SLOTS as u32);
    }

    fn context(&mut self, number: u64, lengths: u64, tucmd: u64, mss_l4len: u64) {
        self.describe([lengths, 0x2020_0000 | tucmd | number << 36 | mss_l4len << 32]);
    }

    /// Sends a frame in one piece with more bits in the second word.
    fn send(&mut self, frame: &[u8], payload: usize, more: u64) {
        for (n, chunk) in frame.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.put(OUT + 8 * n, u64::from_le_bytes(word));
        }
        let word = DATA | frame.len() as u64 | (payload as u64) << 46 | more;
        self.describe([self.iova + OUT as u64, word]);
    }

    fn plain(&mut self, more: u64) {
        self.send(&[0x55; 60], 60, more);
    }

    /// Sends a message, and gives the answer.
    fn ask(&mut self, message: &[u32]) -> Vec<u32> {
        self.write(MAILBOX, 4);
        for (n, word) in message.iter().enumerate() {
            self.write(WORDS + 4 * n as u32, *word);
        }
        self.write(MAILBOX, 1);
        assert_eq!(self.registers.read(MAILBOX) & 0x30, 0x30, "it is read and answered");
        self.write(MAILBOX, 4);
        let answer = (0..16).map(|n| self.registers.read(WORDS + 4 * n)).collect();
        self.write(MAILBOX, 2);
        answer
    }

    fn faults(&self) -> Vec<String> {
        self.function.take_faults().iter().map(ToString::to_string).collect()
    }

    /// Frames that came, by what their descriptors say: status and bytes.
    fn received(&self) -> Vec<(u32, Vec<u8>)> {
        let mut frames = Vec::new();
        for slot in 0..SLOTS {
            let word = self.get(RX_RING + 16 * slot + 8);
            if word & 1 != 0 {
                frames.push((word as u32, self.bytes(BUFFERS + slot * BUFFER, (word >> 32) as u16 as usize)));
                self.put(RX_RING + 16 * slot + 8, 0);
            }
        }
        frames
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.function.unmap(self.iova, BYTES);
    }
}

/// `wrong` is noticed, in words that contain `rule`.
fn noticed(rule: &str, options: Options, wrong: impl FnOnce(&mut Driver)) {
    let mut driver = Driver::started(options);
    assert_eq!(driver.faults(), [""; 0], "before: {rule}");
    wrong(&mut driver);
    let faults = driver.faults();
    assert!(faults.iter().any(|fault| fault.contains(rule)), "{rule}: {faults:?}");
}

fn rings(rule: &str, wrong: impl FnOnce(&Driver)) {
    let driver = Driver::new(Options::default());
    driver.program();
    wrong(&driver);
    let faults = driver.faults();
    assert!(faults.iter().any(|fault| fault.contains(rule)), "{rule}: {faults:?}");
}

fn default() -> Options {
    Options::default()
}

#[test]
fn what_a_good_driver_does_is_no_fault_and_arrives() {
    let mut driver = Driver::started(default());
    driver.plain(CC);
    assert_eq!(driver.function.take_sent(), Some(vec![0x55; 60]));
    assert_eq!(driver.get(TX_RING + 24) >> 32, 1, "it is written back");
    let frame = packet(Ip::V4, Transport::Tcp, 9, b"hello");
    let mut frame = [&[0x52, 0x54, 0, 0, 0, 1][..], &frame[6..]].concat();
    frame.resize(60, 0);
    driver.function.arrive(frame.clone());
    // DD, EOP, both checksums looked at and right.
    assert_eq!(driver.received(), [(0x63, frame)]);
    assert_eq!(driver.faults(), [""; 0]);
}

#[test]
fn rings_are_set_up_as_they_must_be() {
    rings("is not on a 128-byte boundary", |driver| driver.write(0x1000, 64));
    rings("no length of a ring", |driver| driver.write(TDLEN, 100));
    rings("without a ring", |driver| {
        driver.write(RDLEN, 0);
        driver.write(RXDCTL, ENABLE);
    });
    rings("DROP_EN", |driver| {
        driver.write(SRRCTL, 1 << 25 | 2);
        driver.write(RXDCTL, ENABLE);
    });
    rings("DESCTYPE", |driver| {
        driver.write(SRRCTL, 1 << 28 | 2);
        driver.write(RXDCTL, ENABLE);
    });
    rings("BSIZEPACKET", |driver| {
        driver.write(SRRCTL, 1 << 28 | 1 << 25 | 17);
        driver.write(RXDCTL, ENABLE);
    });
    rings("bit 12 of DCA_RXCTRL", |driver| {
        driver.write(0x100c, 1 << 12);
        driver.write(RXDCTL, ENABLE);
    });
    rings("DESC_WRO", |driver| {
        driver.write(0x200c, 1 << 11);
        driver.write(TXDCTL, ENABLE);
    });
    rings("both must be 0", |driver| {
        driver.write(0x2010, 3);
        driver.write(TXDCTL, ENABLE);
    });
    rings("before it is enabled", |driver| {
        driver.write(RXDCTL, ENABLE);
        driver.write(RDT, 8);
    });
    rings("the VF has 2", |driver| driver.write(0x10a8, ENABLE));
    rings("RSCEN", |driver| driver.write(0x102c, 1));
    rings("does not write its head back", |driver| driver.write(0x2038, 1));
    rings("at 0x2fc0 of BAR 0", |driver| driver.write(0x2fc0, 0));
    rings("more queues (RQPL)", |driver| driver.write(0x300, 3 << 29));
    rings("three vectors", |driver| driver.write(0x120, 0x84));
    rings("before the hand-shake", |driver| {
        PciFunction::reset(&*driver.function).unwrap();
        driver.write(RXDCTL, ENABLE);
    });
    noticed("the 82599 has no length there", Options { part: Part::I82599, ..default() }, |driver| {
        driver.write(RXDCTL, ENABLE | 1 << 15 | 1518);
    });
}

#[test]
fn rings_are_used_as_they_must_be() {
    noticed("is written while it is enabled", default(), |driver| driver.write(TDLEN, 256));
    noticed("outside its 16 descriptors", default(), |driver| driver.write(TDT, 16));
    noticed("passes the head", default(), |driver| driver.write(RDT, 7));
    noticed("while the device owned it", default(), |driver| {
        driver.put(RX_RING, driver.iova + BUFFERS as u64 + 64);
        driver.function.arrive([&[0xff; 12][..], &[0; 48]].concat());
    });
    noticed("which are not mapped", default(), |driver| {
        driver.describe([driver.iova + BYTES as u64 - 8, DATA | CC | 60 | 60 << 46]);
    });
    noticed("bus master", default(), |driver| {
        PciFunction::set_bus_master(&*driver.function, false).unwrap();
        driver.plain(CC);
    });
}

#[test]
fn descriptors_are_as_they_must_be() {
    noticed("no advanced descriptor", default(), |driver| driver.describe([0, 60]));
    noticed("reserved bits", default(), |driver| driver.plain(CC | 1 << 28));
    noticed("reserved bits", default(), |driver| driver.plain(CC | 1 << 32));
    noticed("without data", default(), |driver| driver.send(&[], 0, CC));
    noticed("a frame without FCS", default(), |driver| {
        let at = driver.iova + OUT as u64;
        driver.describe([at, (DATA & !(1 << 25)) | CC | 60 | 60 << 46]);
    });
    noticed("RS before the end", default(), |driver| {
        let at = driver.iova + OUT as u64;
        driver.describe([at, (DATA & !(1 << 24)) | CC | 60 | 120 << 46]);
    });
    noticed("in the middle of a frame", default(), |driver| {
        let at = driver.iova + OUT as u64;
        driver.describe([at, (DATA & !(9 << 24)) | CC | 60 | 120 << 46]);
        driver.context(0, 14 << 9, 0, 0);
    });
    noticed("every frame must end with RS", default(), |driver| {
        driver.write(TXDCTL, ENABLE | 1 << 16);
        let at = driver.iova + OUT as u64;
        driver.describe([at, (DATA & !(1 << 27)) | CC | 60 | 60 << 46]);
    });
    noticed("PAYLEN 61", default(), |driver| driver.send(&[0; 60], 61, CC));
    noticed("a frame of 13 bytes", default(), |driver| driver.send(&[0; 13], 13, CC));
    noticed("a frame of 9725 bytes", default(), |driver| driver.send(&[0; 9725], 9725, CC));
    noticed("there is no context 2", default(), |driver| driver.context(2, 14 << 9, 0, 0));
    noticed("has reserved bits", default(), |driver| driver.context(0, 14 << 9 | 1 << 32, 0, 0));
}

#[test]
fn frames_refer_to_a_context_where_the_part_wants_one() {
    noticed("needs a context", default(), |driver| driver.plain(0));
    noticed("needs a context", Options { part: Part::X540, ..default() }, |driver| driver.plain(0));
    noticed("was not given", default(), |driver| driver.plain(CC | 1 << 36));
    noticed("MACLEN 0", default(), |driver| {
        driver.context(0, 0, 0, 0);
        driver.plain(CC);
    });
    let mut old = Driver::started(Options { part: Part::I82599, ..default() });
    old.plain(0);
    assert_eq!((old.faults(), old.function.take_sent().is_some()), (vec![], true));
}

/// Lengths of Ethernet, IPv4 and TCP headers; TUCMD of TCP over IPv4; MSS and length of the TCP header.
const TCP_V4: (u64, u64, u64) = (14 << 9 | 20, 3 << 10, 1000 << 16 | 20 << 8);

/// A TCP packet to be cut: the checksum of IPv4 is 0, that of TCP is the pseudo header's without length.
fn to_cut(len: usize) -> Vec<u8> {
    let mut frame = partial(Ip::V4, Transport::Tcp, 5, &vec![7; len]);
    frame[24..26].fill(0);
    let sum = models::work::pseudo(&frame, 14, 6, 0);
    frame[50..52].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn a_frame_is_cut_as_its_context_says() {
    let mut driver = Driver::started(default());
    let (lengths, tucmd, mss) = TCP_V4;
    driver.context(1, lengths, tucmd, mss);
    driver.send(&to_cut(2500), 2500, CC | TSE | IXSM | TXSM | 1 << 36);
    let sent: Vec<_> = std::iter::from_fn(|| driver.function.take_sent()).collect();
    let lengths: Vec<_> = sent.iter().map(|frame| check(frame).unwrap().payload.len()).collect();
    assert_eq!((lengths, driver.faults()), (vec![1000, 1000, 500], vec![]));
}

#[test]
fn what_is_asked_of_a_frame_fits_its_headers() {
    let (lengths, tucmd, mss) = TCP_V4;
    let cut = CC | TSE | IXSM | TXSM;
    let asked =
        |rule: &str, (lengths, tucmd, mss): (u64, u64, u64), frame: Vec<u8>, payload: usize, more: u64| {
            noticed(rule, default(), |driver| {
                driver.context(0, lengths, tucmd, mss);
                driver.send(&frame, payload, more);
            });
        };
    let good = to_cut(2500);
    asked("PAYLEN 2554", TCP_V4, good.clone(), 2554, cut);
    asked("without IXSM over IPv4", TCP_V4, good.clone(), 2500, cut & !IXSM);
    asked("without TXSM", TCP_V4, good.clone(), 2500, cut & !TXSM);
    asked("MSS 0", (lengths, tucmd, 20 << 8), good.clone(), 2500, cut);
    asked("L4LEN 24", (lengths, tucmd, mss & !0xff00 | 24 << 8), good.clone(), 2500, cut);
    asked("IPLEN 24", (14 << 9 | 24, tucmd, mss), good.clone(), 2500, cut);
    asked("ethertype", (18 << 9 | 20, tucmd, mss), good.clone(), 2500, cut);
    asked("IPV4 false", (lengths, 2 << 10, mss), good.clone(), 2500, cut);
    asked("L4T says protocol 17", (lengths, 1 << 10, mss), good.clone(), 2500, cut);
    asked("L4T 2", (lengths, 5 << 10, mss), good.clone(), 2500, cut);
    let mut filled = good.clone();
    filled[24] = 1;
    asked("whose checksum is 0", TCP_V4, filled, 2500, cut);
    let mut with_length = good.clone();
    with_length[50] ^= 1;
    asked("is that of the pseudo header", TCP_V4, with_length, 2500, cut);
}

#[test]
fn the_mailbox_is_taken_before_it_is_used() {
    noticed("without having been taken", default(), |driver| driver.write(WORDS, 1));
    noticed("without having taken the mailbox", default(), |driver| driver.write(MAILBOX, 1));
    noticed("has not read the one before", default(), |driver| {
        driver.function.with(|model, _| model.options().slowness = 3);
        for _ in 0..2 {
            driver.write(MAILBOX, 4);
            driver.write(MAILBOX, 1);
        }
    });
}

const YES: u32 = 0xa000_0000;
const NO: u32 = 0x6000_0000;

#[test]
fn the_pf_speaks_the_languages_it_knows() {
    for (api, number) in [(Api::V10, 0), (Api::V11, 2), (Api::V13, 4), (Api::V15, 6)] {
        let mut driver = Driver::new(Options { api, part: Part::X540, ..default() });
        assert_eq!(driver.ask(&[8, 7])[0], NO | 8, "1.6");
        assert_eq!(driver.ask(&[8, 1])[0], NO | 8, "2.0");
        assert_eq!(driver.ask(&[8, number])[0], YES | 8);
        let queues = driver.ask(&[9]);
        assert_eq!(queues[0], if api >= Api::V11 { YES } else { NO } | 9);
        assert_eq!(driver.ask(&[0x0a])[0], if api >= Api::V12 { YES } else { NO } | 0x0a);
        assert_eq!(driver.ask(&[0x0c, 3])[0], if api >= Api::V13 { YES } else { NO } | 0x0c);
        if api > Api::V10 {
            assert_eq!(queues[1..5], [2, 2, 0, 0]);
            assert_eq!(driver.ask(&[8, number + 1])[0], NO | 8);
        }
        assert_eq!(driver.faults(), [""; 0]);
    }
}

#[test]
fn the_pf_trusts_a_vf_or_grants_it_less() {
    let mut driver = Driver::new(Options { trusted: false, ..default() });
    driver.ask(&[8, 6]);
    assert_eq!(driver.ask(&[2, 0x0102_0302, 0x0605])[0], NO | 2, "another address");
    assert_eq!(driver.ask(&[0x0c, 3])[..2], [YES | 0x0c, 1], "groups by hash instead of everything");
    driver.function.with(|model, _| model.options().trusted = true);
    assert_eq!(driver.ask(&[2, 0x0102_0302, 0x0605])[0], YES | 2);
    assert_eq!(driver.ask(&[0x0c, 3])[..2], [YES | 0x0c, 3]);
    driver.function.with(|model, _| model.options().mac = None);
    assert_eq!(driver.ask(&[1])[0], 0x4000_0001, "no address");
    driver.function.with(|model, bus| model.begin_pf_reset(bus));
    assert_eq!(driver.registers.read(MAILBOX) & 0x40, 0x40);
    driver.function.with(|model, bus| model.end_pf_reset(bus));
    assert_eq!(driver.registers.read(MAILBOX) & 0xd0, 0x90, "it is over, and the PF has something to say");
    assert_eq!(driver.ask(&[5, 1518])[0], 0x4000_0005, "nothing before the next hand-shake");
}

fn to(mac: [u8; 6], tag: Option<u8>) -> Vec<u8> {
    let mut frame = [&mac[..], &[2, 0, 0, 0, 0, 9, 0x88, 0xb5]].concat();
    frame.resize(60, 3);
    if let Some(vlan) = tag {
        frame.splice(12..12, [0x81, 0, 0, vlan]);
    }
    frame
}

#[test]
fn only_what_the_pf_lets_pass_arrives() {
    let mut driver = Driver::started(default());
    let own = MacAddress([0x52, 0x54, 0, 0, 0, 1]).0;
    let group = [0x33, 0x33, 0, 0, 0x12, 0x34];
    let passes = |driver: &mut Driver, frame: Vec<u8>| {
        driver.function.arrive(frame);
        driver.give_one_back();
        driver.received().len() == 1
    };
    assert!(passes(&mut driver, to(own, None)) && passes(&mut driver, to([0xff; 6], None)));
    assert!(!passes(&mut driver, to([2, 0, 0, 0, 0, 5], None)));
    assert!(!passes(&mut driver, to(group, None)));
    // The hash is of bits 47 to 36: 0x341.
    driver.ask(&[0x0001_0003, 0x341]);
    assert!(passes(&mut driver, to(group, None)));
    assert!(!passes(&mut driver, to(own, Some(5))));
    driver.ask(&[0x0001_0004, 5]);
    assert!(passes(&mut driver, to(own, Some(5))));
    driver.ask(&[8, 6]);
    driver.ask(&[0x0c, 3]);
    assert!(passes(&mut driver, to([2, 0, 0, 0, 0, 5], None)) && !passes(&mut driver, to(own, Some(6))));
    driver.ask(&[5, 1518]);
    assert!(!passes(&mut driver, vec![0xff; 1515]) && passes(&mut driver, vec![0xff; 1514]));
    assert_eq!(driver.faults(), [""; 0]);
}

impl Driver {
    /// Gives a slot more than before.
    fn give_one_back(&self) {
        let tail = self.registers.read(RDT);
        let head = self.registers.read(0x1010);
        if (tail + 16 - head) % 16 < 8 {
            let slot = tail as usize;
            self.put(RX_RING + 16 * slot, self.iova + (BUFFERS + slot * BUFFER) as u64);
            self.write(RDT, (tail + 1) % SLOTS as u32);
        }
    }
}

#[test]
fn what_finds_no_buffers_is_missed_whole() {
    let driver = Driver::started(default());
    for _ in 0..9 {
        driver.function.arrive(to([0xff; 6], None));
    }
    assert_eq!(driver.received().len(), 8);
    assert_eq!(driver.function.with(|_, bus| bus.wire.missed), 1);
    assert_eq!(driver.faults(), [""; 0]);
}

#[test]
fn flows_go_to_queues_by_the_table_of_the_vf() {
    let driver = Driver::started(default());
    // Two queues, the table's entries all 1, TCP over IPv4 hashed.
    driver.write(0x300, 1 << 29);
    (0..16).for_each(|n| driver.write(0x3200 + 4 * n, 0x0101_0101));
    (0..10).for_each(|n| driver.write(0x3100 + 4 * n, 0x1234_5678 + n));
    driver.write(0x3000, 1 | 1 << 16);
    let arrive = |transport| {
        let frame = packet(Ip::V4, transport, 77, b"");
        driver.function.arrive([&[0xff; 6][..], &frame[6..]].concat());
        driver.received().len()
    };
    assert_eq!(arrive(Transport::Udp), 1, "not hashed: queue 0");
    assert_eq!(arrive(Transport::Tcp), 0, "queue 1, which is off");
    assert_eq!(driver.function.with(|_, bus| bus.wire.missed), 1);
    assert_eq!(driver.faults(), [""; 0]);
}

#[test]
fn a_wrong_model_is_wrong() {
    let frame = to([0xff; 6], None);
    for (wrong, seen) in [
        (None, vec![(3, 60)]),
        (Some(Wrong::ShortLength), vec![(3, 56)]),
        (Some(Wrong::LongLength), vec![(3, 0xffff)]),
        (Some(Wrong::NoLength), vec![(3, 0)]),
        (Some(Wrong::NoEnd), vec![(1, 60)]),
        (Some(Wrong::NotDone), vec![]),
    ] {
        let driver = Driver::started(default());
        driver.function.with(|model, _| model.wrong = wrong);
        driver.function.arrive(frame.clone());
        let word = driver.get(RX_RING + 8);
        let got = if word & 1 != 0 { vec![(word as u32, (word >> 32) as u16 as usize)] } else { vec![] };
        assert_eq!(got, seen, "{wrong:?}");
    }
    for (wrong, seen) in [(None, 1), (Some(Wrong::NoWriteBack), 0), (Some(Wrong::WrongDoneBit), 2)] {
        let mut driver = Driver::started(default());
        driver.function.with(|model, _| model.wrong = wrong);
        driver.plain(CC);
        assert_eq!(driver.get(TX_RING + 24) >> 32 & 3, seen, "{wrong:?}");
    }
}
