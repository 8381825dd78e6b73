//! Hostile guests. Each test is one thing that a guest or its front end may do to us; the CVE that it was elsewhere stands
//! beside it. Each looks at the reason that was counted or at the refusal, and at a neighbour on the same worker, whose
//! frames all come back meanwhile.

#![allow(clippy::unwrap_used)]

mod memory;
mod messages;
mod rings;
