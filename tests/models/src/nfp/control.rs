//! The words of the control BAR, and what the firmware makes of them.

use super::words::SIZE;
use super::{Nfp, Path, Wrong, receive, transmit};
use crate::bus::Bus;
use crate::model::Size;

const CTRL: u64 = 0x00;
const UPDATE: u64 = 0x04;
const TXRS_ENABLE: u64 = 0x08;
const RXRS_ENABLE: u64 = 0x10;
const MTU: u64 = 0x18;
const FLBUFSZ: u64 = 0x1c;
pub const LSC: u64 = 0x20;
pub const MACADDR: u64 = 0x24;
const VERSION: u64 = 0x30;
const STS: u64 = 0x34;
const CAP: u64 = 0x38;
const MAX_TXRINGS: u64 = 0x3c;
const MAX_RXRINGS: u64 = 0x40;
const MAX_MTU: u64 = 0x44;
const START_TXQ: u64 = 0x48;
const START_RXQ: u64 = 0x4c;
const RX_OFFSET: u64 = 0x50;
const TLV_BASE: u64 = 0x58;
const CTRL_WORD1: u64 = 0x98;
const CAP_WORD1: u64 = 0xa4;
pub const RSS_CTRL: u64 = 0x100;
pub const RSS_KEY: u64 = 0x104;
pub const RSS_ITBL: u64 = 0x12c;
pub const TXR_ADDR: u64 = 0x200;
pub const TXR_WB_ADDR: u64 = 0x400;
pub const TXR_SZ: u64 = 0x600;
pub const TXR_VEC: u64 = 0x640;
pub const RXR_ADDR: u64 = 0x800;
pub const RXR_SZ: u64 = 0xa00;
pub const RXR_VEC: u64 = 0xa40;
/// Cause and mask of each interrupt.
pub const ICR: u64 = 0xc00;
const ICR_END: u64 = 0xd00;
pub const ICR_RXTX: u8 = 1;
pub const ICR_LSC: u8 = 2;
/// Counters.
pub const STATS: u64 = 0xd00;
const MBOX: u64 = 0x1800;

/// Bits of CTRL and CAP.
pub const ENABLE: u32 = 1 << 0;
/// Frames for others.
pub const PROMISC: u32 = 1 << 1;
/// Broadcast.
pub const L2BC: u32 = 1 << 2;
/// Groups.
pub const L2MC: u32 = 1 << 3;
/// Checksums are checked.
pub const RXCSUM: u32 = 1 << 4;
/// Checksums are filled in.
pub const TXCSUM: u32 = 1 << 5;
/// Frames in pieces.
pub const GATHER: u32 = 1 << 9;
/// TCP is cut, version 1.
pub const LSO: u32 = 1 << 10;
/// VLANs are filtered.
pub const CTAG_FILTER: u32 = 1 << 11;
/// Rings may change.
pub const RINGCFG: u32 = 1 << 16;
/// Several receive rings, version 1.
pub const RSS: u32 = 1 << 17;
/// Read pointers in memory.
pub const TXRWB: u32 = 1 << 21;
/// TCP is cut.
pub const LSO2: u32 = 1 << 28;
/// Several receive rings.
pub const RSS2: u32 = 1 << 29;
/// The address may change while it is on.
pub const LIVE_ADDR: u32 = 1 << 31;
/// Bit of word 1: free lists before the NIC is on.
pub const FREELIST_EN: u32 = 1 << 6;

const UPDATE_GEN: u32 = 1 << 0;
const UPDATE_RING: u32 = 1 << 1;
const UPDATE_RSS: u32 = 1 << 2;
const UPDATE_MSIX: u32 = 1 << 5;
const UPDATE_MACADDR: u32 = 1 << 11;
const UPDATE_MBOX: u32 = 1 << 12;
const UPDATE_KNOWN: u32 = UPDATE_GEN | UPDATE_RING | UPDATE_RSS | UPDATE_MSIX | UPDATE_MACADDR | UPDATE_MBOX;
const UPDATE_ERR: u32 = 1 << 31;

/// Sizes of rings, as powers of two: `min_qc_size` and `max_qc_size` of Linux's table of devices.
fn ring_sizes(device: u16) -> std::ops::RangeInclusive<u8> {
    if device == 0x3803 { 9..=16 } else { 8..=18 }
}

/// What it was switched on with.
#[derive(Debug)]
pub struct Enabled {
    pub ctrl: u32,
    pub mtu: u32,
    pub buffer: u32,
    /// Free lists are taken, and frames are not, yet.
    pub lists_only: bool,
    pub transmit: Vec<Option<transmit::Ring>>,
    pub receive: Vec<Option<receive::Ring>>,
}

impl Nfp {
    /// Whether there is metadata in chains.
    pub(super) fn is_chained(&self) -> bool {
        let cap = self.settings.cap;
        self.settings.major == 4 || cap & RSS == 0 || cap & RSS2 != 0
    }

    pub(super) fn show_link(&mut self) {
        // 25 Gbit/s.
        self.words.put32(STS, if self.link { 4 << 1 | 1 } else { 0 });
    }

    pub(super) fn load_firmware(&mut self) {
        self.enabled = None;
        self.vlans.clear();
        self.pending.fill(false);
        self.words.clear();
        let settings = &self.settings;
        let extend = u32::from(settings.path == Path::Nfdk);
        for (at, value) in [
            (VERSION, extend << 24 | u32::from(settings.major) << 8 | 2),
            (CAP, settings.cap),
            (CAP_WORD1, settings.cap_word1),
            (MAX_TXRINGS, settings.rings),
            (MAX_RXRINGS, settings.rings),
            (MAX_MTU, settings.mtu),
            // The upper bits number the island, and are not part of the queue.
            (START_TXQ, 0x100_0000 | super::FIRST_TX as u32),
            (START_RXQ, 0x100_0000 | super::FIRST_RX as u32),
            (RX_OFFSET, settings.rx_offset),
        ] {
            self.words.put32(at, value);
        }
        for (at, word) in (TLV_BASE..).step_by(4).zip(&settings.structures) {
            self.words.put32(at, *word);
        }
        self.mac = settings.mac.unwrap_or_default();
        self.words.put_mac(self.mac);
        self.show_link();
    }

    /// The mailbox: where it begins and ends.
    fn mailbox(&self) -> (u64, u64) {
        let mut at = TLV_BASE;
        while at < SIZE as u64 {
            let header = self.words.get32(at);
            match header >> 16 & 0x7fff {
                4 => return (at + 4, at + 4 + u64::from(header & 0xffff)),
                0 | 2 => break,
                _ => at += 4 + u64::from(header & 0xffff),
            }
        }
        (MBOX, MBOX + 0x200)
    }

    pub(super) fn write_word(&mut self, bus: &mut Bus, offset: u64, size: Size, value: u64) {
        let end = offset + size.bytes() as u64;
        let mailbox = self.mailbox();
        let writable = [
            (CTRL, MACADDR + 8),
            (0x60, CAP_WORD1),
            (RSS_CTRL, RSS_ITBL + 0x80),
            (TXR_ADDR, ICR_END),
            mailbox,
        ];
        if !writable.iter().any(|(first, last)| *first <= offset && end <= *last) {
            return bus.broken(format!("{value:#x} is written to {offset:#x}, which is read-only"));
        }
        let rings = (TXRS_ENABLE..MTU).contains(&offset) || (TXR_ADDR..ICR).contains(&offset);
        let on = self.enabled.as_ref().is_some_and(|_| self.words.get32(CTRL) & ENABLE != 0);
        // Interrupt moderation may change at any time; a driver that switches off clears the enabled rings first.
        let tunes = (0x700..0x800).contains(&offset) || (0xb00..ICR).contains(&offset);
        let clears = (TXRS_ENABLE..MTU).contains(&offset) && value == 0;
        if rings && on && !tunes && !clears {
            bus.broken(format!("{offset:#x} of the rings is written while they are on"));
        }
        self.words.put(offset, size.bytes(), value);
        if (ICR..ICR_END).contains(&offset) && value == 0 {
            self.unmask(bus, offset - ICR);
        }
    }

    /// The config queue has moved: takes over what was changed.
    pub(super) fn take_over(&mut self, bus: &mut Bus) {
        if self.is_dead || self.is(Wrong::NoAnswer) {
            return;
        }
        let update = self.words.get32(UPDATE);
        if update == 0 || update & !UPDATE_KNOWN != 0 {
            bus.broken(format!("an update of {update:#x}"));
        }
        self.updates += 1;
        let accepted = self.apply(bus, update);
        let error = !accepted || self.is(Wrong::ErrorBit);
        self.words.put32(UPDATE, if error { update | UPDATE_ERR } else { 0 });
    }

    fn apply(&mut self, bus: &mut Bus, update: u32) -> bool {
        let ctrl = self.words.get32(CTRL);
        let word1 = self.words.get32(CTRL_WORD1);
        if ctrl & !self.settings.cap != 0 || word1 & !self.settings.cap_word1 != 0 {
            bus.broken(format!("{ctrl:#x} and {word1:#x} are switched on, not all of which is offered"));
        }
        let offered = self.settings.mac.filter(|_| self.settings.mac_is_fixed);
        if update & (UPDATE_MACADDR | UPDATE_GEN) != 0 && ctrl & ENABLE != 0 || update & UPDATE_MACADDR != 0 {
            let mac = self.words.mac();
            if offered.is_some_and(|offered| offered != mac) {
                return false;
            }
            if mac[0] & 1 != 0 || mac == [0; 6] {
                bus.broken(format!("{mac:x?} is no address of a station"));
            }
            let live = self.enabled.is_some() && update & UPDATE_MACADDR != 0 && mac != self.mac;
            if live && ctrl & LIVE_ADDR == 0 && self.settings.cap & LIVE_ADDR == 0 {
                bus.broken("the address is changed while it is on");
            }
            self.mac = mac;
        }
        if update & UPDATE_MBOX != 0 {
            return self.answer_mailbox(bus);
        }
        if update & (UPDATE_GEN | UPDATE_RING) == 0 {
            return true;
        }
        let lists_only = ctrl & ENABLE == 0 && word1 & FREELIST_EN != 0;
        match &mut self.enabled {
            _ if ctrl & ENABLE == 0 && !lists_only => {
                self.enabled = None;
                self.vlans.clear();
                true
            }
            Some(on) => {
                (on.ctrl, on.lists_only) = (ctrl, lists_only);
                true
            }
            None => self.switch_on(bus, ctrl, update, lists_only),
        }
    }

    fn switch_on(&mut self, bus: &mut Bus, ctrl: u32, update: u32, lists_only: bool) -> bool {
        let (tx, rx) = (self.words.get64(TXRS_ENABLE), self.words.get64(RXRS_ENABLE));
        let (mtu, buffer) = (self.words.get32(MTU), self.words.get32(FLBUFSZ) & 0xff_ffff);
        let rings = self.settings.rings;
        let mut rule = |holds: bool, what: &str| {
            if !holds {
                bus.broken(format!("switched on with {what}"));
            }
        };
        rule(update & UPDATE_RING != 0, "no update of the rings");
        rule(tx != 0 && rx != 0 && (tx | rx) >> rings == 0, "rings that it does not have");
        rule((68..=self.settings.mtu).contains(&mtu), "an impossible MTU");
        rule(buffer >= mtu + 22 + self.settings.rx_offset.max(8), "buffers that do not hold an MTU");
        let rss = ctrl & (RSS | RSS2) != 0;
        rule(!rss || update & UPDATE_RSS != 0, "flows to be spread that it was not told how to");
        rule(rss || rx.count_ones() == 1, "several receive rings and no way to spread flows");
        if rss {
            let table = self.words.slice(RSS_ITBL, 0x80);
            rule(table.iter().all(|ring| rx >> ring & 1 != 0), "a table that names rings which are off");
            rule(self.words.get32(RSS_CTRL) & 0x7f == 0x7f, "a mask that is not the table's");
            rule(self.words.get32(RSS_CTRL) >> 24 == 1, "a hash that is not Toeplitz's");
        }
        let sizes = ring_sizes(self.settings.device);
        let bits = crate::model::Model::dma_bits(self);
        let ring = |n: u64, addr: u64, size: u64| {
            let (iova, log2) = (self.words.get64(addr + 8 * n), self.words.get8(size + n));
            (
                iova,
                1u32 << log2.min(18),
                sizes.contains(&log2) && iova % 128 == 0 && iova >> bits == 0 && iova != 0,
            )
        };
        let (mut transmit, mut receive, mut right) = (Vec::new(), Vec::new(), true);
        for n in 0..u64::from(rings) {
            transmit.push((tx >> n & 1 != 0).then(|| {
                let (iova, size, is_right) = ring(n, TXR_ADDR, TXR_SZ);
                right &= is_right;
                let write_back = (ctrl & TXRWB != 0).then(|| self.words.get64(TXR_WB_ADDR + 8 * n));
                right &= write_back.is_none_or(|iova| iova != 0 && iova % 8 == 0);
                transmit::Ring::new(iova, size, self.words.get8(TXR_VEC + n), write_back)
            }));
            receive.push((rx >> n & 1 != 0).then(|| {
                let (iova, size, is_right) = ring(n, RXR_ADDR, RXR_SZ);
                right &= is_right;
                receive::Ring::new(iova, size, self.words.get8(RXR_VEC + n))
            }));
        }
        rule(right, "a ring of an impossible size or at an impossible address");
        self.enabled = Some(Enabled { ctrl, mtu, buffer, lists_only, transmit, receive });
        true
    }

    fn answer_mailbox(&mut self, bus: &mut Bus) -> bool {
        let (at, _) = self.mailbox();
        let (command, value) = (self.words.get32(at), self.words.get32(at + 8));
        let vlan = value as u16;
        let known = matches!(command, 1 | 2) && value >> 16 == 0x8100 && (1..4095).contains(&vlan);
        if !known {
            bus.broken(format!("the mailbox has the command {command} about {value:#x}"));
        }
        self.vlans.retain(|there| *there != vlan);
        if command == 1 && known {
            self.vlans.push(vlan);
        }
        self.words.put32(at + 4, if known { 0 } else { 22 });
        true
    }
}
