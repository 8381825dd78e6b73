//! The admin queue: commands of the driver, and what they change.

use super::Ena;
use super::queue::{Completions, Submissions};
use super::settings::Wrong;
use crate::bus::Bus;

/// Bytes of a command, and of a reply.
const ENTRY: usize = 64;
const WORDS: usize = ENTRY / 4;
type Entry = [u32; WORDS];

/// Status of a reply (`ena_admin_aq_completion_status`).
mod status {
    pub const NO_RESOURCES: u8 = 1;
    pub const UNSUPPORTED: u8 = 3;
    pub const MALFORMED: u8 = 4;
    pub const ILLEGAL: u8 = 5;
}

/// Numbers of features (`ena_admin_aq_feature_id`).
pub(super) mod feature {
    pub const ATTRIBUTES: u8 = 1;
    pub const MAX_QUEUES: u8 = 2;
    pub const HINTS: u8 = 3;
    pub const LLQ: u8 = 4;
    pub const MAX_QUEUES_EXT: u8 = 7;
    pub const HASH_FUNCTION: u8 = 10;
    pub const OFFLOADS: u8 = 11;
    pub const INDIRECTION: u8 = 12;
    pub const MTU: u8 = 14;
    pub const HASH_INPUT: u8 = 18;
    pub const EVENTS: u8 = 26;
    pub const LINK: u8 = 27;
    pub const HOST: u8 = 28;
}

/// Groups of events that the device can tell.
const EVENT_GROUPS: u32 = 0b1000_1111;
const KEEP_ALIVE_GROUP: u32 = 1 << 4;
/// The table's size: 2 to this power.
const TABLE_LOG: u32 = 7;
/// Completion queues are numbered from here on, so that the two kinds of numbers are not mixed up.
pub(super) const FIRST_COMPLETIONS: u16 = 40;

/// The two rings.
#[derive(Debug, Default)]
pub(super) struct Admin {
    pub commands: u64,
    pub replies: u64,
    pub command_caps: u32,
    pub reply_caps: u32,
    /// Commands taken, and answered.
    head: u16,
    answered: u16,
}

fn bytes_of(entry: &Entry) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    for (word, place) in entry.iter().zip(bytes.as_chunks_mut::<4>().0) {
        *place = word.to_le_bytes();
    }
    bytes
}

fn address(entry: &Entry, at: usize) -> u64 {
    u64::from(entry[at]) | u64::from(entry[at + 1] & 0xffff) << 32
}

/// What the answer to a command is: the reply from word 2 on, or a status.
type Answer = Result<Entry, u8>;

fn reply(words: &[(usize, u32)]) -> Answer {
    let mut entry = [0; WORDS];
    for (at, word) in words {
        entry[*at] = *word;
    }
    Ok(entry)
}

impl Ena {
    /// The driver says that it has submitted `tail` commands so far.
    pub(super) fn commands(&mut self, bus: &mut Bus, tail: u32) {
        let (depth, entry) = (self.admin.command_caps & 0xffff, self.admin.command_caps >> 16);
        if !depth.is_power_of_two()
            || entry as usize != ENTRY
            || self.admin.reply_caps != self.admin.command_caps
        {
            return bus.broken("admin doorbell without a ring of 64-byte commands and as many replies");
        }
        let depth = depth as u16;
        if tail > 0xffff || (tail as u16).wrapping_sub(self.admin.head) > depth {
            return bus.broken(format!("admin doorbell {tail} is outside the ring"));
        }
        if self.troubles.silent_admin {
            return;
        }
        while self.admin.head != tail as u16 {
            let slot = u64::from(self.admin.head % depth);
            let bytes = bus.dma_get(self.admin.commands + slot * ENTRY as u64, ENTRY);
            let mut command = [0; WORDS];
            for (word, bytes) in command.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *word = u32::from_le_bytes(*bytes);
            }
            let phase = u32::from(self.admin.head & depth == 0);
            if command[0] >> 24 & 1 != phase {
                return bus.broken("an admin command has the phase of the lap before");
            }
            if command[0] >> 27 != 0 || command[0] & 0xf000 != 0 {
                bus.broken(format!("reserved bits of an admin command: {:#x}", command[0]));
            }
            self.admin.head = self.admin.head.wrapping_add(1);
            let opcode = (command[0] >> 16) as u8;
            let answer = match self.troubles.refuse {
                Some((refused, status)) if refused == opcode => Err(status),
                _ => self.execute(bus, opcode, &command),
            };
            self.answer(bus, depth, command[0] & 0xfff, answer);
        }
    }

    fn answer(&mut self, bus: &mut Bus, depth: u16, id: u32, answer: Answer) {
        let (mut entry, status) = answer.map_or_else(|status| ([0; WORDS], status), |entry| (entry, 0));
        let phase = u32::from(self.admin.answered & depth == 0);
        let id = if self.wrong == Some(Wrong::ReplyBit) { id | 0x800 } else { id };
        entry[0] = id | u32::from(status) << 16 | phase << 24;
        entry[1] = u32::from(self.admin.head) << 16;
        let at = self.admin.replies + u64::from(self.admin.answered % depth) * ENTRY as u64;
        let bytes = bytes_of(&entry);
        // The phase last.
        bus.dma_write(at + 4, &bytes[4..]);
        bus.dma_write(at, &bytes[..4]);
        self.admin.answered = self.admin.answered.wrapping_add(1);
        self.interrupt_admin(bus);
    }

    fn execute(&mut self, bus: &mut Bus, opcode: u8, command: &Entry) -> Answer {
        match opcode {
            1 => self.create_submissions(bus, command),
            2 => {
                let number = usize::from(command[1] as u16);
                let direction = (command[1] >> 21 & 7) as u8;
                match self.submissions.get_mut(number) {
                    Some(slot) if slot.as_ref().is_some_and(|queue| queue.direction == direction) => {
                        *slot = None;
                        self.waiting.retain(|(queue, _)| *queue != number);
                        reply(&[])
                    }
                    _ => Err(status::ILLEGAL),
                }
            }
            3 => self.create_completions(bus, command),
            4 => {
                let number = usize::from((command[1] as u16).wrapping_sub(FIRST_COMPLETIONS));
                if self.submissions.iter().flatten().any(|queue| queue.completions == number) {
                    bus.broken("a completion queue is destroyed before its submission queue");
                    return Err(status::ILLEGAL);
                }
                match self.completions.get_mut(number).and_then(Option::take) {
                    Some(_) => reply(&[]),
                    None => Err(status::ILLEGAL),
                }
            }
            8 => self.get_feature(bus, command),
            9 => self.set_feature(bus, command),
            11 => self.count(bus, command),
            _ => Err(2),
        }
    }

    fn create_completions(&mut self, bus: &mut Bus, command: &Entry) -> Answer {
        let (words, depth) = (command[1] >> 8 & 0x1f, (command[1] >> 16) as u16);
        let base = address(command, 3);
        if command[1] & 0xe0df != 0 || command[4] >> 16 != 0 {
            bus.broken("reserved bits of CREATE_CQ");
        }
        if !matches!(words, 2 | 4) || !depth.is_power_of_two() || depth > self.settings.depth {
            return Err(status::ILLEGAL);
        }
        if !base.is_multiple_of(4096) {
            bus.broken(format!("a completion ring at {base:#x}, which is no page"));
        }
        let vector = match command[2] {
            u32::MAX => None,
            vector if vector > 0 && vector <= u32::from(self.settings.pairs) => Some(vector as u16),
            vector => {
                bus.broken(format!("a completion queue interrupts with vector {vector}"));
                None
            }
        };
        let Some(number) = self.completions.iter().position(Option::is_none) else {
            return Err(status::NO_RESOURCES);
        };
        self.completions[number] = Some(Completions::new(base, depth, words as usize * 4, vector));
        let number = number as u32;
        reply(&[
            (2, (number + u32::from(FIRST_COMPLETIONS)) | u32::from(depth) << 16),
            (3, super::NUMA + 4 * number),
            (5, super::UNMASK + 4 * vector.map_or(0, u32::from)),
        ])
    }

    fn create_submissions(&mut self, bus: &mut Bus, command: &Entry) -> Answer {
        let direction = (command[1] >> 5 & 7) as u8;
        let (placement, policy) = (command[1] >> 16 & 15, command[1] >> 20 & 7);
        let depth = (command[2] >> 16) as u16;
        let completions = usize::from((command[2] as u16).wrapping_sub(FIRST_COMPLETIONS));
        let base = address(command, 3);
        if command[1] & 0xfe80_ff1f != 0 || command[5..].iter().any(|word| *word != 0) {
            bus.broken("reserved bits of CREATE_SQ");
        }
        if command[1] >> 24 & 1 == 0 {
            bus.broken("a submission ring that is not contiguous");
        }
        let Some(behind) = self.completions.get(completions).and_then(Option::as_ref) else {
            return Err(status::ILLEGAL);
        };
        let size = if direction == 1 { 8 } else { 16 };
        if behind.depth < depth || behind.size != size || policy != 0 || !depth.is_power_of_two() {
            return Err(status::ILLEGAL);
        }
        if self.submissions.iter().flatten().any(|queue| queue.completions == completions) {
            bus.broken("two submission queues with one completion queue");
        }
        let in_device = placement == 3;
        let most = match (direction, self.layout, self.settings.llq) {
            (1, Some(layout), Some(llq)) if in_device => {
                if layout.entry > 128 {
                    llq.depth / 2
                } else {
                    llq.depth
                }
            }
            (1, ..) if self.settings.llq_mandatory => {
                return Err(status::ILLEGAL);
            }
            (1 | 2, ..) if placement == 1 => self.settings.depth,
            _ => return Err(status::ILLEGAL),
        };
        if depth > most {
            return Err(status::ILLEGAL);
        }
        if in_device != (base == 0) || !base.is_multiple_of(4096) {
            bus.broken(format!("a submission ring at {base:#x}"));
        }
        let used = self.submissions.iter().flatten().filter(|queue| queue.direction == direction).count();
        let free = self.submissions.iter().position(Option::is_none);
        let (Some(number), true) = (free, used < usize::from(self.settings.pairs)) else {
            return Err(status::NO_RESOURCES);
        };
        let area = number * self.llq_bytes();
        let area = in_device.then_some(area);
        if let Some(area) = area {
            // What was written there before is nobody's.
            let words = self.llq_bytes() / 8;
            self.written.iter_mut().skip(area / 8).take(words).for_each(|word| *word = false);
        }
        self.submissions[number] = Some(Submissions::new(direction, completions, base, area, depth));
        reply(&[(2, number as u32), (3, super::DOORBELL + 4 * number as u32), (4, area.unwrap_or(0) as u32)])
    }

    /// The features that it has, a bit each.
    fn features(&self) -> u32 {
        let settings = &self.settings;
        let there = [
            (feature::ATTRIBUTES, true),
            (feature::MAX_QUEUES, !settings.tells_directions_apart),
            (feature::HINTS, settings.hints != [0; 4]),
            (feature::LLQ, settings.llq.is_some()),
            (feature::MAX_QUEUES_EXT, settings.tells_directions_apart),
            (feature::HASH_FUNCTION, settings.rss),
            (feature::OFFLOADS, true),
            (feature::INDIRECTION, settings.rss),
            (feature::MTU, true),
            (feature::HASH_INPUT, settings.rss),
            (feature::EVENTS, true),
            (feature::LINK, settings.speed.is_some()),
            (feature::HOST, true),
        ];
        there.iter().filter(|(_, there)| *there).map(|(feature, _)| 1 << feature).sum()
    }

    /// Groups of events that it can tell.
    fn event_groups(&self) -> u32 {
        EVENT_GROUPS | if self.settings.keep_alive.is_some() { KEEP_ALIVE_GROUP } else { 0 }
    }

    fn get_feature(&mut self, bus: &mut Bus, command: &Entry) -> Answer {
        let feature = (command[4] >> 8) as u8;
        if self.features() >> feature & 1 == 0 {
            return Err(status::UNSUPPORTED);
        }
        let settings = self.settings.clone();
        let pairs = u32::from(settings.pairs);
        let depth = u32::from(settings.depth);
        let halves = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        // Meta descriptors included; and buffers of a frame that arrives.
        let descriptors = halves(super::transmit::MOST_DESCRIPTORS, super::receive::MOST_BUFFERS);
        match feature {
            feature::ATTRIBUTES => {
                let [a, b, c, d, e, f] = settings.mac;
                reply(&[
                    (2, 1),
                    (3, 1),
                    (4, self.features()),
                    (5, settings.capabilities),
                    (6, settings.dma_bits),
                    (7, 48),
                    (8, u32::from_le_bytes([a, b, c, d])),
                    (9, u32::from_le_bytes([e, f, 0, 0])),
                    (10, settings.max_mtu),
                ])
            }
            feature::MAX_QUEUES => {
                reply(&[(2, pairs), (3, depth), (4, pairs), (5, depth), (8, 96), (9, descriptors)])
            }
            feature::MAX_QUEUES_EXT => {
                if (command[4] >> 16) as u8 != 1 {
                    return Err(status::ILLEGAL);
                }
                let numbers = (3..7).map(|at| (at, pairs));
                let depths = (7..11).map(|at| (at, depth));
                let rest = [(2, 1), (11, 96), (12, descriptors)];
                reply(&numbers.chain(depths).chain(rest).collect::<Vec<_>>())
            }
            feature::HINTS => {
                let [read, keep_alive, completion, admin] = settings.hints;
                reply(&[(2, halves(read, keep_alive)), (3, halves(completion, 0)), (4, halves(admin, 0))])
            }
            feature::LLQ => {
                let Some(llq) = settings.llq else { return Err(status::UNSUPPORTED) };
                let flags = u16::from(llq.meta_always) | u16::from(llq.burst > 0) << 1;
                reply(&[
                    (2, pairs),
                    (3, llq.depth.into()),
                    (4, 1),
                    (5, llq.entries.into()),
                    (6, 0b0011),
                    (7, 0b11),
                    (8, 1 | u32::from(llq.recommended) << 8),
                    (9, halves(flags, llq.burst)),
                ])
            }
            feature::OFFLOADS => reply(&[
                (2, settings.transmit_offloads),
                (3, settings.receive_offloads),
                (4, settings.receive_offloads),
            ]),
            feature::EVENTS => reply(&[(2, self.event_groups()), (3, self.events.groups)]),
            feature::LINK => reply(&[(2, settings.speed.unwrap_or(0)), (3, 0x80), (4, 2)]),
            feature::INDIRECTION => reply(&[(2, 4 | TABLE_LOG << 16), (3, TABLE_LOG)]),
            feature::HASH_FUNCTION => {
                if command[1] > 0 {
                    let mut bytes = vec![0; 48];
                    bytes[0] = 10;
                    bytes[8..].copy_from_slice(&self.key);
                    self.give(bus, command, &bytes)?;
                }
                reply(&[(2, 1 << 1), (3, 1 << 1), (4, u32::MAX)])
            }
            feature::HASH_INPUT => {
                let kinds = [0x3fu16, 0x3f, 0x3f, 0x3f, 0x0f, 0x0f, 0x0f, 0x03];
                let mut bytes = vec![0; 256];
                for (kind, fields) in kinds.iter().enumerate() {
                    bytes[4 * kind..4 * kind + 2].copy_from_slice(&fields.to_le_bytes());
                }
                self.give(bus, command, &bytes)?;
                reply(&[(2, 0b110)])
            }
            _ => Err(status::UNSUPPORTED),
        }
    }

    /// Writes into the buffer of a command.
    fn give(&self, bus: &mut Bus, command: &Entry, bytes: &[u8]) -> Result<(), u8> {
        if command[0] >> 25 & 3 == 0 || (command[1] as usize) < bytes.len() {
            return Err(status::MALFORMED);
        }
        bus.dma_write(address(command, 2), bytes);
        Ok(())
    }

    /// Reads the buffer of a command.
    fn take(&self, bus: &mut Bus, command: &Entry, len: usize) -> Result<Vec<u8>, u8> {
        if command[0] >> 25 & 3 == 0 || command[1] as usize != len {
            return Err(status::MALFORMED);
        }
        Ok(bus.dma_get(address(command, 2), len))
    }

    fn set_feature(&mut self, bus: &mut Bus, command: &Entry) -> Answer {
        let feature = (command[4] >> 8) as u8;
        if self.features() >> feature & 1 == 0 {
            return Err(status::UNSUPPORTED);
        }
        let value = &command[5..];
        match feature {
            feature::MTU if (68..=self.settings.max_mtu).contains(&value[0]) => self.mtu = value[0],
            feature::EVENTS if value[1] & !self.event_groups() == 0 => self.events.groups = value[1],
            feature::HOST => {
                let page = bus.dma_get(address(command, 5), 4096);
                let specification = u16::from_le_bytes([page[184], page[185]]);
                if specification != 0x200 {
                    bus.broken(format!("the host speaks version {specification:#x} of the specification"));
                }
            }
            feature::LLQ => {
                let enabled: Vec<u16> = value[2..6].iter().map(|word| (word >> 16) as u16).collect();
                let Some(llq) = self.settings.llq else { return Err(status::UNSUPPORTED) };
                let entry = match enabled[1] & llq.entries {
                    1 => 128,
                    2 => 192,
                    4 => 256,
                    _ => return Err(status::ILLEGAL),
                };
                if enabled[0] != 1 || !matches!(enabled[2], 1 | 2) || !matches!(enabled[3], 1 | 2) {
                    return Err(status::ILLEGAL);
                }
                let wanted = u32::from(llq.meta_always) | u32::from(llq.burst > 0) << 1;
                if value[7] & wanted != wanted {
                    // A driver that does not know of them would break them.
                    return Err(status::ILLEGAL);
                }
                self.layout = Some(super::Layout {
                    entry,
                    before_header: enabled[2].into(),
                    per_entry: if enabled[3] == 2 { entry / 16 } else { 1 },
                });
            }
            feature::INDIRECTION => {
                if value[1] & 0xffff != TABLE_LOG || value[2] != u32::MAX {
                    return Err(status::ILLEGAL);
                }
                let bytes = self.take(bus, command, 4 << TABLE_LOG)?;
                let table: Vec<u16> =
                    bytes.as_chunks::<4>().0.iter().map(|[a, b, ..]| u16::from_le_bytes([*a, *b])).collect();
                let receives = |number: &u16| {
                    let queue = self.submissions.get(usize::from(*number)).and_then(Option::as_ref);
                    queue.is_some_and(|queue| queue.direction == 2)
                };
                if !table.iter().all(receives) {
                    return Err(status::ILLEGAL);
                }
                self.table = table;
            }
            feature::HASH_FUNCTION if value[1] == 1 << 1 => {
                let bytes = self.take(bus, command, 48)?;
                if bytes[0] != 10 {
                    return Err(status::ILLEGAL);
                }
                self.key.copy_from_slice(&bytes[8..]);
            }
            feature::HASH_INPUT => {
                self.take(bus, command, 256)?;
            }
            _ => return Err(status::ILLEGAL),
        }
        reply(&[])
    }

    fn count(&mut self, bus: &mut Bus, command: &Entry) -> Answer {
        let counters = &self.counters;
        let words = |values: &[u64]| {
            let halves = values.iter().flat_map(|value| [*value as u32, (value >> 32) as u32]);
            reply(&halves.enumerate().map(|(n, half)| (2 + n, half)).collect::<Vec<_>>())
        };
        match command[4] as u8 {
            0 => words(&[
                counters.sent_bytes,
                counters.sent,
                counters.received_bytes,
                counters.received,
                0,
                counters.send_drops,
                counters.overruns,
            ]),
            2 if self.settings.capabilities & 1 != 0 => words(&self.allowances[..5]),
            4 if self.settings.capabilities >> 2 & 1 != 0 => {
                let asked = command[6];
                if command[1] > 0 {
                    let there = (0..6).filter(|metric| asked >> metric & 1 != 0);
                    let bytes: Vec<u8> =
                        there.flat_map(|metric| self.allowances[metric].to_le_bytes()).collect();
                    if (command[1] as usize) < bytes.len() {
                        return Err(status::MALFORMED);
                    }
                    bus.dma_write(address(command, 2), &bytes);
                }
                words(&[u64::from(asked & 0x3f)])
            }
            _ => Err(status::UNSUPPORTED),
        }
    }
}
