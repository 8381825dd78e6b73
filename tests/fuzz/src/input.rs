//! The fuzzer's bytes as a sequence of numbers.

/// What is left of the input. Where it ends, everything is zero.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// The whole input.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes: at most so many.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// The next 8 bits.
    pub fn u8(&mut self) -> u8 {
        self.u64_of(1) as u8
    }

    /// The next 16 bits.
    pub fn u16(&mut self) -> u16 {
        self.u64_of(2) as u16
    }

    /// The next 32 bits.
    pub fn u32(&mut self) -> u32 {
        self.u64_of(4) as u32
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> u64 {
        self.u64_of(8)
    }

    fn u64_of(&mut self, len: usize) -> u64 {
        self.bytes(len).iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}
