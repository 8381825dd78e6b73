//! stub
/// stub
pub fn flow_hash(b: &[u8]) -> u32 { b.len() as u32 }
/// stub
pub fn queue_of(h: u32, n: usize) -> usize { h as usize % n }
