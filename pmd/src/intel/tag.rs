//! A VLAN tag that the device took out of a frame: it goes back to where it was, in front of the EtherType.
//!
//! ```text
//!   buffer   [ addresses ][ EtherType, payload … ]
//!   frame    [ addresses ][ tag ][ EtherType, payload … ]      three segments; the tag has memory of its own
//! ```

use crate::frame::{Burst, Segment};
use crate::memory::DmaSlice;

/// Bytes of both addresses, which the tag follows (IEEE 802.1Q, 9.1).
pub const ADDRESSES: u32 = 12;
/// Bytes of a tag.
pub const TAG: usize = 4;

/// Adds `part`, the first of a frame and longer than [`ADDRESSES`], with its tag in it. The tag is kept in `tags`, which has
/// [`TAG`] bytes for each buffer, with buffer `first`. Gives back what the burst has no room for.
#[cold]
pub fn push_tagged(
    burst: &mut Burst,
    tags: &DmaSlice,
    first: u32,
    part: Segment,
    tag: &[u8; TAG],
) -> Result<(), Segment> {
    let kept = tags.segment(first as usize * TAG, TAG as u32);
    kept.copy_from(tag);
    burst.push_segment(part.part(0, ADDRESSES))?;
    burst.push_segment(kept)?;
    burst.push_segment(part.part(ADDRESSES, u32::MAX))
}
