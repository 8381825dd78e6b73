//! How the threads that read and write files wait for the worker, which never wakes anybody.

use std::time::Duration;

/// First wait.
const SHORTEST: Duration = Duration::from_millis(1);
/// Longest wait: well below the time that a frame waits for its device.
const LONGEST: Duration = Duration::from_millis(16);

/// Waits that grow until there is something to do.
#[derive(Debug)]
pub(super) struct Pace(Duration);

impl Pace {
    pub(super) fn new() -> Self {
        Self(SHORTEST)
    }

    /// There was something to do.
    pub(super) fn reset(&mut self) {
        self.0 = SHORTEST;
    }

    /// There was nothing.
    pub(super) fn wait(&mut self) {
        std::thread::sleep(self.0);
        self.0 = (self.0 * 2).min(LONGEST);
    }
}
