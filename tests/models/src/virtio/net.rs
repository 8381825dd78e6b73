//! What the function does with frames, and what it is told through its control queue (virtio 1.3, 5.1.6).

use super::features::*;
use super::queue::Chain;
use super::wrong::Wrong;
use super::{VirtioNet, queue};
use crate::bus::Bus;
use crate::work::{Lengths, cut_tcp, fill_over_partial};

/// Bytes of the header before each frame (5.1.6).
const HEADER: usize = 12;
const NEEDS_CSUM: u8 = 1;
const TCP_V4: u8 = 1;
const TCP_V6: u8 = 4;
const ECN: u8 = 0x80;
/// Longest frame that is still to be cut (5.1.6.3.1).
const LONGEST: usize = 65_550;

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |two| u16::from_le_bytes([two[0], two[1]]))
}

/// Where the Ethernet header of a frame ends.
fn behind_tags(frame: &[u8]) -> usize {
    let mut at = 12;
    while matches!(frame.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xa8])) {
        at += 4;
    }
    at + 2
}

/// The addresses of two lists, each behind its length (5.1.6.5.2): of stations, then of groups.
fn listed(lists: &[u8]) -> Option<Vec<[u8; 6]>> {
    let (mut macs, mut rest) = (Vec::new(), lists);
    for group in [0, 1] {
        let (count, behind) = rest.split_first_chunk::<4>()?;
        let len = usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(6)?;
        let entries = behind.get(..len)?;
        macs.extend(entries.chunks_exact(6).filter_map(|mac| <[u8; 6]>::try_from(mac).ok()));
        if entries.chunks_exact(6).any(|mac| mac[0] & 1 != group) {
            return None;
        }
        rest = behind.get(len..)?;
    }
    rest.is_empty().then_some(macs)
}

impl VirtioNet {
    /// Sends what is in queue `number`, unless it waits for more.
    pub(super) fn send(&mut self, bus: &mut Bus, number: usize) {
        if self.frozen {
            return;
        }
        while let Some(chain) = self.queues[number].chains.pop_front() {
            let bytes = chain.read(bus);
            if chain.room() > 0 {
                bus.broken("a frame to be sent has descriptors to write");
            }
            match self.finish(&bytes) {
                // A device that is wrong on purpose may see anything.
                Err(fault) if self.options.wrong.is_none() => bus.broken(fault),
                Err(_) => {}
                Ok(frames) if self.link => frames.into_iter().for_each(|frame| bus.wire.send(frame)),
                Ok(_) => {}
            }
            self.held.push_back((number, chain));
        }
        if self.held.len() > self.options.holds {
            self.give_back_held(bus);
        }
    }

    /// Gives back the buffers of all frames that were sent.
    pub fn give_back_held(&mut self, bus: &mut Bus) {
        let mut held: Vec<(usize, Chain)> = self.held.drain(..).collect();
        if self.options.holds > 0 && !self.taken.has(IN_ORDER) {
            held.reverse();
        }
        for (number, chain) in &held {
            self.queues[*number].done(bus, chain, 0);
        }
        self.queues.iter_mut().filter(|queue| queue.enabled).for_each(|queue| queue.publish(bus));
    }

    /// The frames that a sent buffer becomes on the wire.
    fn finish(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let (Some(header), Some(frame)) = (bytes.get(..HEADER), bytes.get(HEADER..)) else {
            return Err(format!("{} bytes are no header", bytes.len()));
        };
        let (flags, kind, size) = (header[0], header[1], usize::from(half(header, 4)));
        let (start, offset) = (usize::from(half(header, 6)), usize::from(half(header, 8)));
        if half(header, 10) != 0 || flags & !NEEDS_CSUM != 0 {
            return Err(format!("a header with bits that only devices set: {header:x?}"));
        }
        if frame.len() < 14 || frame.len() > LONGEST {
            return Err(format!("a frame of {} bytes", frame.len()));
        }
        let longest = if self.taken.has(MTU) { usize::from(self.options.mtu) + 18 } else { LONGEST };
        if kind == 0 && frame.len() > longest {
            return Err(format!("a frame of {} bytes is longer than the MTU", frame.len()));
        }
        if flags == 0 {
            return if header.iter().all(|byte| *byte == 0) {
                Ok(vec![frame.to_vec()])
            } else {
                Err(format!("a header that asks for nothing, and is not zero: {header:x?}"))
            };
        }
        if !self.taken.has(CSUM) || start + offset + 2 > frame.len() {
            return Err(format!("a checksum at {start} + {offset} in {} bytes", frame.len()));
        }
        let mut frame = frame.to_vec();
        if kind == 0 {
            if size != 0 {
                return Err("a size of segments without segmentation".to_owned());
            }
            fill_over_partial(&mut frame, start, offset, offset == 6);
            return Ok(vec![frame]);
        }
        let bit = match kind & !ECN {
            TCP_V4 => HOST_TSO4,
            TCP_V6 => HOST_TSO6,
            _ => return Err(format!("segmentation of type {kind:#x}")),
        };
        if !self.taken.has(bit) || kind & ECN != 0 && !self.taken.has(HOST_ECN) || size == 0 || offset != 16 {
            return Err(format!("segmentation of type {kind:#x} into {size} bytes, which was not agreed on"));
        }
        let l2 = behind_tags(&frame);
        let l4 = usize::from(frame.get(start + 12).copied().unwrap_or(0) >> 4) * 4;
        if start <= l2 || usize::from(half(header, 2)) < start + 20 {
            return Err(format!("headers of {} bytes, and TCP begins at {start}", half(header, 2)));
        }
        Ok(cut_tcp(&frame, Lengths { l2, l3: start - l2, l4 }, size))
    }

    /// Whether a frame from the wire is for this function.
    fn is_wanted(&self, frame: &[u8]) -> bool {
        let tagged = matches!(frame.get(12..14), Some([0x81, 0x00]));
        let vlan = frame.get(14..16).map_or(0, |tag| u16::from_be_bytes([tag[0], tag[1]]) & 0xfff);
        if tagged && self.taken.has(CTRL_VLAN) && !self.told.vlans.contains(&vlan) {
            return false;
        }
        let group = frame.first().is_some_and(|first| first & 1 != 0);
        let own = frame.get(..6) == Some(&self.mac);
        let all = frame.get(..6) == Some(&[0xff; 6]);
        let listed = self.told.listed.iter().any(|mac| frame.get(..6) == Some(mac));
        self.told.promiscuous || own || all || listed || group && self.told.all_multicast
    }

    /// The queue that a frame goes to.
    fn chosen(&self, frame: &[u8]) -> usize {
        let at = behind_tags(frame) + 20;
        // Any function of the flow: which one the standard leaves open without RSS.
        let ports = frame.get(at..at + 4).unwrap_or_default();
        let hash =
            ports.iter().fold(0usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(*byte)));
        match self.told.table.len() {
            0 => hash % usize::from(self.told.pairs.max(1)),
            len => usize::from(self.told.table[hash % len]),
        }
    }

    /// Takes in what is on the wire.
    pub(super) fn receive(&mut self, bus: &mut Bus) {
        while let Some(frame) = bus.wire.take_arriving() {
            if !self.is_running() || !self.link {
                bus.wire.missed += 1;
            } else if self.is_wanted(&frame) {
                self.deliver(bus, &[0; 10], &frame);
            }
        }
    }

    /// Hands the driver a frame with the first ten bytes of its header; without room for it, it is missed.
    pub fn deliver(&mut self, bus: &mut Bus, header: &[u8; 10], frame: &[u8]) {
        let number = 2 * self.chosen(frame);
        let (merged, wrong, last) = (
            self.taken.has(MRG_RXBUF),
            self.options.wrong,
            self.options.holds > 0 && !self.taken.has(IN_ORDER),
        );
        let Some(queue) = self.queues.get_mut(number) else { return };
        let needed = HEADER + frame.len();
        let (mut chains, mut room) = (Vec::new(), 0);
        while room < needed && (merged || chains.is_empty()) {
            let chain = if last { queue.chains.pop_back() } else { queue.chains.pop_front() };
            let Some(chain) = chain else { break };
            room += chain.room() as usize;
            chains.push(chain);
        }
        if room < needed {
            bus.wire.missed += 1;
            let back = chains.into_iter().rev();
            return back.for_each(|chain| {
                if last { queue.chains.push_back(chain) } else { queue.chains.push_front(chain) }
            });
        }
        let mut bytes = [&header[..], &[0, 0], frame].concat();
        match wrong {
            Some(Wrong::UnknownSegmentation) => bytes[..2].copy_from_slice(&[1, 0x23]),
            Some(Wrong::ChecksumBeyondFrame) => {
                bytes[..10].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0])
            }
            _ => {}
        }
        let announced = match wrong {
            Some(Wrong::NoBuffers) => 0,
            Some(Wrong::OneBufferMore) => chains.len() as u16 + 1,
            Some(Wrong::ManyBuffers) => 0xffff,
            _ => chains.len() as u16,
        };
        bytes[10..12].copy_from_slice(&announced.to_le_bytes());
        let mut rest = &bytes[..];
        for chain in &chains {
            let written = chain.write(bus, rest);
            rest = &rest[written as usize..];
            let beyond = wrong == Some(Wrong::LastLengthBeyondBuffer) && rest.is_empty() && chains.len() > 1;
            queue.done(bus, chain, if beyond { written + 5000 } else { written });
        }
        queue.publish(bus);
    }

    /// Does what the control queue asks for.
    pub(super) fn obey(&mut self, bus: &mut Bus, number: usize) {
        if self.silent {
            return;
        }
        while let Some(chain) = self.queues[number].chains.pop_front() {
            let bytes = chain.read(bus);
            if chain.room() != 1 || bytes.len() < 2 {
                bus.broken(format!(
                    "a command of {} bytes with {} for the answer",
                    bytes.len(),
                    chain.room()
                ));
            }
            let (class, command) =
                (bytes.first().copied().unwrap_or(0xff), bytes.get(1).copied().unwrap_or(0xff));
            let refused = self.options.refused.contains(&(class, command));
            let mut answer = u8::from(refused);
            if !refused && let Err(fault) = self.carry_out(class, command, bytes.get(2..).unwrap_or_default())
            {
                bus.broken(fault);
                answer = 1;
            }
            if self.options.wrong == Some(Wrong::AnswerBit) {
                answer |= 0x80;
            }
            let written = chain.write(bus, &[answer]);
            self.queues[number].done(bus, &chain, written);
        }
        self.queues[number].publish(bus);
    }

    fn carry_out(&mut self, class: u8, command: u8, data: &[u8]) -> Result<(), String> {
        let need = |bit: u32| {
            if self.taken.has(bit) {
                Ok(())
            } else {
                Err(format!("command {class}.{command} without feature {bit}"))
            }
        };
        let most = self.options.pairs;
        match (class, command, data) {
            (0, 0, [on @ 0..=1]) => {
                need(CTRL_RX)?;
                self.told.promiscuous = *on == 1;
            }
            (0, 1, [on @ 0..=1]) => {
                need(CTRL_RX)?;
                self.told.all_multicast = *on == 1;
            }
            (1, 0, lists) => {
                need(CTRL_RX)?;
                self.told.listed = listed(lists).ok_or_else(|| format!("lists of addresses: {lists:x?}"))?;
            }
            (1, 1, mac) if mac.len() == 6 => {
                need(CTRL_MAC_ADDR)?;
                self.mac.copy_from_slice(mac);
            }
            (2, 0, [low, high @ 0..=15]) => {
                need(CTRL_VLAN)?;
                self.told.vlans.insert(u16::from_le_bytes([*low, *high]));
            }
            (2, 1, [low, high @ 0..=15]) => {
                need(CTRL_VLAN)?;
                self.told.vlans.remove(&u16::from_le_bytes([*low, *high]));
            }
            (3, 0, []) => {
                need(GUEST_ANNOUNCE)?;
                if !self.announce {
                    return Err("an announcement that nobody asked for".to_owned());
                }
                self.announce = false;
                self.told.announced += 1;
            }
            (4, 0, [low, high]) => {
                need(MQ)?;
                let pairs = u16::from_le_bytes([*low, *high]);
                self.check_pairs(pairs, most)?;
                self.told.pairs = pairs;
                self.told.table.clear();
            }
            (4, 1, data) => {
                need(RSS)?;
                self.spread(data, most)?;
            }
            _ => return Err(format!("command {class}.{command} with {data:x?}")),
        }
        Ok(())
    }

    fn check_pairs(&self, pairs: u16, most: u16) -> Result<(), String> {
        let ready = |pair: usize| [2 * pair, 2 * pair + 1].iter().all(|n| self.queues[*n].enabled);
        if pairs == 0 || pairs > most || !(0..usize::from(pairs)).all(ready) {
            return Err(format!("{pairs} pairs of queues, of which some are absent or not enabled"));
        }
        Ok(())
    }

    /// A table by which flows are spread (5.1.6.5.6.1).
    fn spread(&mut self, data: &[u8], most: u16) -> Result<(), String> {
        let entries = usize::from(half(data, 4)) + 1;
        let table: Vec<u16> = (0..entries).map(|n| half(data, 8 + 2 * n)).collect();
        let at = 8 + 2 * entries;
        let (pairs, key) = (half(data, at), data.get(at + 2).copied().unwrap_or(0));
        if data.len() != at + 3 + usize::from(key) || !entries.is_power_of_two() || entries > 128 || key > 40
        {
            return Err(format!(
                "a table of {entries} entries with a key of {key} bytes in {} bytes",
                data.len()
            ));
        }
        self.check_pairs(pairs, most)?;
        if table.iter().any(|queue| *queue >= pairs) || data[..4] == [0; 4] {
            return Err("a table that names queues which are not used, or hashes nothing".to_owned());
        }
        self.told.pairs = pairs;
        self.told.key = data[at + 3..].to_vec();
        self.told.table = table;
        Ok(())
    }

    /// A queue that receives, to look at.
    pub fn receiving(&self, pair: usize) -> Option<&queue::Queue> {
        self.queues.get(2 * pair)
    }
}
