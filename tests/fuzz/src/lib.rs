//! What the fuzz targets do with their input. Each module has a `run` that takes it and panics when something is wrong.
//!
//! With `FUZZ_PLANTED` in the environment, each target has a fault in its own code that only unusual input brings out: so
//! it can be shown that the fuzzer would find one (`cargo xtask nightly` does).

pub mod control_json;
pub mod input;
pub mod net_header;
pub mod packed_ring;
mod rings;
pub mod seeds;
pub mod split_ring;
pub mod vhost_user;

use std::sync::LazyLock;

/// Whether the target is to have its planted fault.
fn planted() -> bool {
    static PLANTED: LazyLock<bool> = LazyLock::new(|| std::env::var_os("FUZZ_PLANTED").is_some());
    *PLANTED
}
