//! Waiting for something, for a limited time.

use std::time::{Duration, Instant};

/// Calls `done` until it says yes; `false` when it has not after `limit`.
pub fn within(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::yield_now();
    }
}

/// As [`within`], for ten seconds: a deadline that only a fault exceeds, not a slow machine.
///
/// # Panics
/// When the deadline is exceeded; `what` says what did not happen.
pub fn eventually(what: &str, done: impl FnMut() -> bool) {
    assert!(within(Duration::from_secs(10), done), "did not happen within 10 s: {what}");
}
