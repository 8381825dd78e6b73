//! What the firmware prepends to a received frame.
//!
//! ```text
//!   chained   [types: 4 bits each, the first lowest][field][field] …     numbers big-endian
//!   single    [type of the hash][hash]
//! ```
//!
//! Nothing of it is used here; but a frame whose metadata does not add up does not start where it should.

/// Types of fields (`NFP_NET_META_`).
const HASH: u32 = 1;
const MARK: u32 = 2;
const VLAN: u32 = 4;
const PORTID: u32 = 5;
const CSUM: u32 = 6;
const IPSEC: u32 = 9;
/// In a field about a VLAN tag: it was taken off the frame (`NFP_NET_META_VLAN_STRIP`).
const STRIPPED: u32 = 1 << 31;
/// Bytes of the types, and of every field.
const WORD: usize = 4;

/// Whether a chain adds up to all of `bytes`, and its frame is whole and for this VF.
#[inline]
pub fn is_sound_chain(bytes: &[u8]) -> bool {
    let mut words = bytes.as_chunks::<WORD>().0.iter().map(|word| u32::from_be_bytes(*word));
    let Some(mut types) = words.next().filter(|_| bytes.len().is_multiple_of(WORD)) else {
        return false;
    };
    while types != 0 {
        let Some(field) = words.next() else { return false };
        match types & 0xf {
            // The next type is that of the hash.
            HASH => types >>= 4,
            MARK | CSUM | IPSEC => {}
            VLAN if field & STRIPPED == 0 => {}
            PORTID if field == 0 => {}
            _ => return false,
        }
        types >>= 4;
    }
    words.next().is_none()
}

/// Whether metadata that is no chain has a length that it can have.
#[inline]
pub fn is_sound_single(len: u32) -> bool {
    matches!(len, 0 | 8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chain(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    #[test]
    fn a_chain_adds_up_or_not() {
        for good in [&[0][..], &[HASH | 5 << 4, 7], &[MARK | HASH << 4 | 5 << 8, 7, 7], &[VLAN, 0x0100_0001]]
        {
            assert!(is_sound_chain(&chain(good)), "{good:x?}");
        }
        for bad in
            [&[][..], &[HASH | 5 << 4], &[HASH | 5 << 4, 7, 7], &[3, 0], &[VLAN, STRIPPED], &[PORTID, 1]]
        {
            assert!(!is_sound_chain(&chain(bad)), "{bad:x?}");
        }
        assert!(!is_sound_chain(&[0; 5]) && !is_sound_chain(&[0; 3]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            is_sound_chain(&bytes);
        }
    }
}
