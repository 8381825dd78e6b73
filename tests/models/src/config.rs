//! The configuration space of a function (PCI Local Bus 3.0, chapter 6): 256 bytes.

/// Bytes of it.
pub const SIZE: usize = 256;
/// Where the capabilities are; both are always there.
const MSIX: usize = 0x70;
const EXPRESS: usize = 0xa0;
/// Command register: memory space and bus master.
const COMMAND: usize = 4;
const COMMAND_MASTER: u8 = 1 << 2;
/// Device control of the PCI Express capability: its highest bit starts a reset (7.5.3.4).
const DEVICE_CONTROL: usize = EXPRESS + 8;

/// What a function says of itself, and what its driver set there.
#[derive(Clone, Debug)]
pub struct Config {
    bytes: [u8; SIZE],
    /// Bytes of each BAR; 0 where there is none.
    pub bars: [u64; 6],
    /// Interrupts of its MSI-X capability.
    pub vectors: u16,
}

/// What a write to the configuration space asks of the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing more.
    Nothing,
    /// A function level reset.
    Reset,
}

impl Config {
    /// An Ethernet controller with these ids. `bars` are sizes, each a power of two, of 64-bit memory BARs at even numbers
    /// (0, 2, 4); `table` is the BAR with the MSI-X table, which no driver writes: the kernel does, in the first bytes from
    /// `table_at` on, and the pending bits follow half a page later.
    pub fn ethernet(ids: (u16, u16), bars: [u64; 6], vectors: u16, table: u8, table_at: u32) -> Self {
        let mut config = Self { bytes: [0; SIZE], bars, vectors };
        config.set(0, &ids.0.to_le_bytes());
        config.set(2, &ids.1.to_le_bytes());
        // Status: there is a list of capabilities.
        config.set(6, &[0x10]);
        config.set(8, &[1, 0, 0, 2]);
        for (bar, size) in bars.iter().enumerate().filter(|(_, size)| **size > 0) {
            assert!(size.is_power_of_two() && bar % 2 == 0, "BAR {bar} of {size} bytes");
            config.set(0x10 + 4 * bar, &4u32.to_le_bytes());
        }
        config.set(0x2c, &ids.0.to_le_bytes());
        config.set(0x2e, &1u16.to_le_bytes());
        config.set(0x34, &[MSIX as u8]);
        config.set(MSIX, &[0x11, EXPRESS as u8]);
        config.set(MSIX + 2, &(vectors - 1).to_le_bytes());
        config.set(MSIX + 4, &(table_at | u32::from(table)).to_le_bytes());
        config.set(MSIX + 8, &((table_at + 0x800) | u32::from(table)).to_le_bytes());
        // An endpoint, version 2, that can be reset on its own.
        config.set(EXPRESS, &[0x10, 0]);
        config.set(EXPRESS + 2, &2u16.to_le_bytes());
        config.set(EXPRESS + 4, &(1u32 << 28).to_le_bytes());
        config
    }

    /// Sets the revision.
    pub fn revision(mut self, revision: u8) -> Self {
        self.set(8, &[revision]);
        self
    }

    /// Sets the ids of the board.
    pub fn subsystem(mut self, vendor: u16, device: u16) -> Self {
        self.set(0x2c, &vendor.to_le_bytes());
        self.set(0x2e, &device.to_le_bytes());
        self
    }

    /// Marks a BAR as prefetchable.
    pub fn prefetchable(mut self, bar: usize) -> Self {
        self.bytes[0x10 + 4 * bar] |= 8;
        self
    }

    /// Puts a capability that begins with `bytes` at the front of the list: its id, a place for the next one's address, and
    /// what follows.
    ///
    /// # Panics
    /// Where it does not fit, or something is there.
    pub fn capability(mut self, at: usize, bytes: &[u8]) -> Self {
        assert!(
            at >= 0x40 && self.bytes[at..at + bytes.len()].iter().all(|byte| *byte == 0),
            "not free: {at:#x}"
        );
        let first = self.bytes[0x34];
        self.set(at, bytes);
        self.set(at + 1, &[first]);
        self.set(0x34, &[at as u8]);
        self
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Reads bytes; zeros past the end.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes bytes, as far as they can be written.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Asked {
        let mut asked = Asked::Nothing;
        for (at, byte) in (offset..).zip(bytes) {
            match at {
                // Memory space, bus master, interrupt disable; the interrupt line; the control word of MSI-X.
                COMMAND => self.bytes[at] = byte & 0x47,
                5 => self.bytes[at] = byte & 4,
                0x3c => self.bytes[at] = *byte,
                _ if at == MSIX + 3 => self.bytes[at] = self.bytes[at] & 0x07 | byte & 0xc0,
                _ if at == DEVICE_CONTROL + 1 && byte & 0x80 != 0 => asked = Asked::Reset,
                _ => {}
            }
        }
        asked
    }

    /// Whether the function may do DMA.
    pub fn is_bus_master(&self) -> bool {
        self.bytes[COMMAND] & COMMAND_MASTER != 0
    }

    /// Allows or forbids DMA.
    pub fn set_bus_master(&mut self, on: bool) {
        let command = &mut self.bytes[COMMAND];
        *command = if on { *command | COMMAND_MASTER } else { *command & !COMMAND_MASTER };
    }

    /// As after power-on.
    pub fn reset(&mut self) {
        self.bytes[COMMAND] = 0;
        self.bytes[5] = 0;
        self.bytes[MSIX + 3] &= 0x07;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::ethernet((0x8086, 0x1565), [0x4000, 0, 0, 0, 0x4000, 0], 3, 4, 0)
    }

    #[test]
    fn what_a_driver_may_set_is_set_and_nothing_else() {
        let mut config = config();
        let before = config.bytes;
        assert_eq!(config.write(0, &[0xff; 4]), Asked::Nothing);
        assert_eq!(config.bytes, before);
        config.write(COMMAND, &[0xff, 0xff]);
        assert!(config.is_bus_master());
        assert_eq!(config.bytes[4..6], [0x47, 4]);
        config.reset();
        assert!(!config.is_bus_master() && config.bytes == before);
    }

    #[test]
    fn a_reset_is_asked_for_through_the_express_capability() {
        assert_eq!(config().write(DEVICE_CONTROL, &[0, 0x80]), Asked::Reset);
        assert_eq!(config().write(DEVICE_CONTROL, &[0xff, 0x7f]), Asked::Nothing);
    }
}
