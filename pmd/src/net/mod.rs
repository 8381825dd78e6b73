//! What is in a frame: where its headers are ([`packet`]), its checksums ([`checksum`]), and both as NICs want to be told
//! of them ([`layers`]). All of it is about bytes from strangers: whatever they hold, nothing here panics.

pub mod checksum;
pub mod layers;
pub mod packet;
