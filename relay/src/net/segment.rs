//! stub
use pmd::{Burst, Capabilities, Offload, Segment, Token};
use crate::counters::DropReason;
/// stub
#[derive(Debug, Default)]
pub struct Headers;
impl Headers {
    /// stub
    pub fn clear(&mut self) {}
}
/// stub
#[derive(Debug)]
pub struct Work;
impl Work {
    /// stub
    pub fn begin(_s: &[Segment], _l: u32, _o: &Offload, _c: Capabilities) -> Result<Self, DropReason> { Err(DropReason::Aborted) }
    /// stub
    pub fn emit(&mut self, _b: &mut Burst, _h: &mut Headers, _t: Token) -> bool { true }
}
