//! The control BAR as memory, which it is.

use super::control::MACADDR;

/// Bytes of it.
pub const SIZE: usize = 0x8000;

/// Bytes, read and written at any size.
#[derive(Debug)]
pub struct Words(Box<[u8]>);

impl Words {
    pub fn new() -> Self {
        Self(vec![0; SIZE].into_boxed_slice())
    }

    pub fn clear(&mut self) {
        self.0.fill(0);
    }

    pub fn get(&self, at: u64, bytes: usize) -> u64 {
        let at = at as usize;
        let mut value = [0; 8];
        if let Some(there) = self.0.get(at..at + bytes) {
            value[..bytes].copy_from_slice(there);
        }
        u64::from_le_bytes(value)
    }

    pub fn put(&mut self, at: u64, bytes: usize, value: u64) {
        let at = at as usize;
        if let Some(there) = self.0.get_mut(at..at + bytes) {
            there.copy_from_slice(&value.to_le_bytes()[..bytes]);
        }
    }

    pub fn get8(&self, at: u64) -> u8 {
        self.get(at, 1) as u8
    }

    pub fn get16(&self, at: u64) -> u16 {
        self.get(at, 2) as u16
    }

    pub fn get32(&self, at: u64) -> u32 {
        self.get(at, 4) as u32
    }

    pub fn get64(&self, at: u64) -> u64 {
        self.get(at, 8)
    }

    pub fn put8(&mut self, at: u64, value: u8) {
        self.put(at, 1, u64::from(value));
    }

    pub fn put32(&mut self, at: u64, value: u32) {
        self.put(at, 4, u64::from(value));
    }

    /// Adds to a counter of 64 bits.
    pub fn add(&mut self, at: u64, more: u64) {
        self.put(at, 8, self.get64(at).wrapping_add(more));
    }

    pub fn slice(&self, at: u64, len: usize) -> &[u8] {
        self.0.get(at as usize..at as usize + len).unwrap_or_default()
    }

    pub fn mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.get32(MACADDR).to_be_bytes();
        let [e, f] = self.get16(MACADDR + 6).to_be_bytes();
        [a, b, c, d, e, f]
    }

    pub fn put_mac(&mut self, mac: [u8; 6]) {
        let [a, b, c, d, e, f] = mac;
        self.put32(MACADDR, u32::from_be_bytes([a, b, c, d]));
        self.put(MACADDR + 6, 2, u64::from(u16::from_be_bytes([e, f])));
    }
}
