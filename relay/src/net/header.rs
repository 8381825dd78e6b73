//! The virtio-net header that stands before every frame in a ring (virtio 1.3, section 5.1.6).
//!
//! ```text
//!  0      1         2         4          6            8             10
//!  flags  gso_type  hdr_len   gso_size   csum_start   csum_offset   num_buffers      little-endian
//! ```

use pmd::Segment;

/// Length of the header in bytes with `VIRTIO_F_VERSION_1` or `VIRTIO_NET_F_MRG_RXBUF`.
pub const LENGTH: u32 = 12;
/// Length of the header in bytes for a legacy guest without mergeable buffers: no `num_buffers`.
pub const LEGACY_LENGTH: u32 = 10;

/// The header of a frame that needs nothing: no checksum, no segmentation.
pub fn plain(buffers: u16) -> [u8; LENGTH as usize] {
    let mut header = [0; LENGTH as usize];
    header[10..].copy_from_slice(&buffers.to_le_bytes());
    header
}

/// Copies `header` over `pieces`, which may cut it anywhere.
pub fn scatter(header: &[u8], pieces: &[Segment]) {
    let mut rest = header;
    for piece in pieces {
        let n = piece.copy_from(rest);
        rest = &rest[n..];
    }
}

/// stub
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeaderRules {}
/// stub
pub fn parse(_h: &[u8; 12], _len: u32, _r: &HeaderRules) -> Result<pmd::Offload, crate::counters::DropReason> { Ok(pmd::Offload::NONE) }
/// stub
pub fn write(_o: &pmd::Offload, b: u16) -> [u8; 12] { plain(b) }
