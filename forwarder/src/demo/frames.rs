//! Frames that know who they are.
//!
//! ```text
//!  0      6      12         14       22       30                        length
//!  to     from   ethertype  number   sent at  pattern, by position ...
//!                88b5       u64      u64 ns
//! ```

/// IEEE 802 "local experimental ethertype 1".
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const NUMBER: usize = 14;
const SENT: usize = 22;
const PATTERN: usize = 30;

/// Sizes in bytes, in turn: what a wire carries (no FCS), small ones twice as often.
pub(super) const SIZES: [usize; 8] = [60, 1514, 60, 124, 508, 60, 1020, 252];
const LONGEST: usize = 1514;

/// Writes and checks frames.
pub(super) struct Frames {
    frame: [u8; LONGEST],
}

/// What a frame that came back says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) number: u64,
    /// Nanoseconds, on the sender's clock.
    pub(super) sent: u64,
}

impl Frames {
    pub(super) fn new() -> Self {
        let mut frame: [u8; LONGEST] = std::array::from_fn(|at| (at.wrapping_mul(31) >> 2) as u8);
        frame[..6].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 2]);
        frame[6..12].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 1]);
        frame[12..14].copy_from_slice(&ETHERTYPE);
        Self { frame }
    }

    /// The frame of this number, at this time.
    pub(super) fn write(&mut self, number: u64, sent: u64) -> &[u8] {
        self.frame[NUMBER..SENT].copy_from_slice(&number.to_le_bytes());
        self.frame[SENT..PATTERN].copy_from_slice(&sent.to_le_bytes());
        &self.frame[..SIZES[(number % SIZES.len() as u64) as usize]]
    }

    /// What a frame says, if every byte of it is as it was sent.
    pub(super) fn check(&self, frame: &[u8]) -> Option<Label> {
        let word = |at: usize| Some(u64::from_le_bytes(*frame.get(at..)?.first_chunk()?));
        let label = Label { number: word(NUMBER)?, sent: word(SENT)? };
        let size = SIZES[(label.number % SIZES.len() as u64) as usize];
        let same = frame.len() == size
            && frame[..NUMBER] == self.frame[..NUMBER]
            && frame[PATTERN..] == self.frame[PATTERN..size];
        same.then_some(label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_is_noticed_wherever_it_is() {
        let mut frames = Frames::new();
        let sent = frames.write(9, 77).to_vec();
        assert_eq!(frames.check(&sent), Some(Label { number: 9, sent: 77 }));
        for at in (0..NUMBER).chain(PATTERN..sent.len()) {
            let mut changed = sent.clone();
            changed[at] ^= 1;
            assert_eq!(frames.check(&changed), None, "byte {at}");
        }
        assert_eq!(frames.check(&sent[..sent.len() - 1]), None);
        assert_eq!(frames.check(&[]), None);
    }
}
