//! stub
pub type PackedRing = super::split::SplitRing;
