//! Models of NICs: what the device does when a driver talks to it.
//!
//! ```text
//!   our driver ── InProcess ──┐                          ┌── mappings, faults, interrupts   (Bus)
//!                             ├──▶ Model: registers, ────┤
//!   Linux's ───── vfio-user ──┘    rings, PF behind it   └── frames that leave and arrive   (Wire)
//! ```
//!
//! One model has two ends: in process it meets our driver, and served to a virtual machine it meets the driver of that
//! machine's kernel, which so vouches for the model. A model is stricter than silicon: whatever its specification forbids is
//! a [`Fault`], and every test ends with none.

pub mod answer;
pub mod bus;
pub mod config;
pub mod drivers;
pub mod ena;
pub mod exam;
pub mod fault;
pub mod guest;
pub mod iavf;
pub mod igbvf;
pub mod in_process;
pub mod ixgbevf;
pub mod kindred;
pub mod model;
pub mod nfp;
pub mod packets;
pub mod rate;
pub mod rss;
pub mod served;
pub mod stall;
pub mod virtio;
pub mod wire;
pub mod work;

pub use bus::Bus;
pub use config::Config;
pub use exam::Exam;
pub use fault::Fault;
pub use in_process::InProcess;
pub use model::{Model, Size};
pub use stall::Stall;
pub use wire::Wire;
