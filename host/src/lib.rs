#![forbid(unsafe_code)]
//! The host's side: from a bare machine to VFs that the daemon can take.
//!
//! Everything is read and changed through a [`Machine`]: files below one root, and whatever else the kernel is asked
//! through one trait, [`Kernel`]. So the same code works on the machine that it runs on and on a recorded tree.
//!
//! ```text
//!   doctor ─┐                                  ┌─▶ files: sysfs, proc, etc, run
//!   vfs ────┤                                  │
//!   bind ───┼─▶ inventory, usage ─▶ Machine ───┤
//!   rebind ─┤                                  └─▶ Kernel: writes, modules, netlink, ethtool
//!   noiommu ┘
//! ```
//!
//! A command looks first, at all that it was asked for, and changes something only when nothing speaks against it.

pub mod bind;
pub mod daemon;
pub mod devlink;
pub mod doctor;
mod error;
pub mod inventory;
pub mod kernel;
mod machine;
mod netlink;
pub mod noiommu;
pub mod persist;
pub mod rebind;
#[cfg(test)]
mod recorded;
pub mod tree;
pub mod usage;
pub mod vfs;

pub use daemon::{Daemon, Plan};
pub use error::HostError;
pub use kernel::{Kernel, Linux};
pub use machine::Machine;
pub use pmd::Address;
