//! When to connect to a front end that owns its socket, and how often to try.
//!
//! ```text
//!   the socket's name appears ──▶ at once, then every millisecond for a second (bind comes before listen)
//!   nothing seen              ──▶ every half second
//!   a session ended           ──▶ after a millisecond; later and later, up to 100 ms, while sessions come to nothing
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::socket::{self, SocketError, SocketOwner};
use super::watch::DirectoryWatch;

/// Between two attempts while nothing is seen of the socket.
const SLOW: Duration = Duration::from_millis(500);
/// Between two attempts after its name has appeared.
const FAST: Duration = Duration::from_millis(1);
/// How long those go on.
const FAST_TIME: Duration = Duration::from_secs(1);
/// The shortest and the longest pause after a session.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// Connects to one socket again and again. The times are the caller's, who waits.
#[derive(Debug)]
pub(super) struct Connector {
    path: PathBuf,
    owner: SocketOwner,
    bell: Arc<OwnedFd>,
    next: Instant,
    fast_until: Instant,
    /// Not before then, whatever the bell says: a front end that ends every session must not keep us busy.
    pause_until: Instant,
    /// The pause after the last session, if that came to nothing; else zero.
    pause: Duration,
    /// What was complained of last, so that it is said once.
    complaint: Option<String>,
}

impl Connector {
    pub(super) fn new(path: &Path, owner: SocketOwner, watch: &DirectoryWatch) -> io::Result<Self> {
        let bell = watch.bell(path.file_name().unwrap_or_default())?;
        let now = Instant::now();
        let (path, pause, complaint) = (path.to_owned(), Duration::ZERO, None);
        Ok(Self { path, owner, bell, next: now, fast_until: now, pause_until: now, pause, complaint })
    }

    /// What to poll for reading; then call [`Connector::look`].
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The bell was rung.
    pub(super) fn look(&mut self, now: Instant) {
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
        (self.next, self.fast_until) = (now, now + FAST_TIME);
    }

    /// How long until the next attempt is due.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.next.max(self.pause_until).saturating_duration_since(now)
    }

    /// Whether the last session came to nothing: what is said of the next is no news.
    pub(super) fn repeats(&self) -> bool {
        !self.pause.is_zero()
    }

    /// The session turns out to be a good one; returns whether that is news.
    pub(super) fn forgive(&mut self) -> bool {
        !std::mem::take(&mut self.pause).is_zero()
    }

    /// Connects if an attempt is due.
    pub(super) fn attempt(&mut self, now: Instant) -> Option<UnixStream> {
        if !self.wait(now).is_zero() {
            return None;
        }
        self.next = now + if now < self.fast_until { FAST } else { SLOW };
        let complaint = match self.connect() {
            Ok(stream) => {
                self.complaint = None;
                return Some(stream);
            }
            Err(SocketError::System { cause, .. }) if is_absence(&cause) => None,
            Err(error) => Some(error.to_string()),
        };
        if complaint.is_some() && complaint != self.complaint {
            tracing::warn!("{}: {}", self.path.display(), complaint.as_deref().unwrap_or_default());
        }
        self.complaint = complaint;
        None
    }

    /// A session has ended; `good` if it was of use to the guest.
    pub(super) fn ended(&mut self, good: bool, now: Instant) {
        let (shortest, longest) = PAUSES;
        self.pause = if good { Duration::ZERO } else { (2 * self.pause).clamp(shortest, longest) };
        self.pause_until = now + self.pause.max(shortest);
        self.next = now;
    }

    fn connect(&self) -> Result<UnixStream, SocketError> {
        // Each time: it may have been made, or replaced, since. Who can put a socket there can pose as a VM.
        socket::check_directory(self.path.parent().unwrap_or(Path::new("/")), self.owner)?;
        let failed = |cause| SocketError::System { action: "connect to", path: self.path.clone(), cause };
        socket::connect(&self.path).map_err(failed)
    }
}

/// Whether nobody is there yet, or nobody has time.
fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound, WouldBlock};
    matches!(error.kind(), NotFound | ConnectionRefused | WouldBlock)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    struct Scene {
        _watch: DirectoryWatch,
        directory: tempfile::TempDir,
        connector: Connector,
    }

    fn scene() -> Scene {
        let directory = tempfile::tempdir().unwrap();
        let watch = DirectoryWatch::start(directory.path()).unwrap();
        let connector = Connector::new(&directory.path().join("a"), SocketOwner::default(), &watch).unwrap();
        Scene { _watch: watch, directory, connector }
    }

    #[test]
    fn attempts_are_slow_until_the_name_appears_and_then_fast_for_a_while() {
        let Scene { mut connector, _watch, directory } = scene();
        let now = Instant::now();
        assert!(connector.attempt(now).is_none());
        assert_eq!(connector.wait(now), SLOW);
        connector.look(now);
        assert!(connector.wait(now).is_zero());
        assert!(connector.attempt(now).is_none());
        assert_eq!(connector.wait(now), FAST);
        assert!(connector.attempt(now).is_none(), "not due");
        assert!(connector.attempt(now + FAST_TIME).is_none());
        assert_eq!(connector.wait(now + FAST_TIME), SLOW);
        drop(directory);
        assert!(connector.attempt(now + 2 * FAST_TIME).is_none());
        assert_eq!(connector.complaint, None, "a directory that is not there");
    }

    #[test]
    fn sessions_that_come_to_nothing_are_begun_less_and_less_often() {
        let mut connector = scene().connector;
        let now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            connector.ended(false, now);
            connector.look(now);
            pauses.push(connector.wait(now).as_millis());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 100, 100, 100]);
        assert!(connector.repeats());
        assert!(connector.forgive() && !connector.forgive() && !connector.repeats());
        connector.ended(true, now);
        assert_eq!(connector.wait(now), PAUSES.0);
        assert!(!connector.repeats());
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_not_trusted() {
        let Scene { mut connector, _watch, directory } = scene();
        let _listener = UnixListener::bind(directory.path().join("a")).unwrap();
        let now = Instant::now();
        let mode =
            |mode| std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o777);
        assert!(connector.attempt(now).is_none());
        assert!(connector.complaint.as_ref().is_some_and(|complaint| complaint.contains("chmod o-w")));
        mode(0o755);
        assert!(connector.attempt(now + SLOW).is_some());
        assert_eq!(connector.complaint, None);
    }

    #[test]
    fn a_front_end_whose_queue_is_full_does_not_keep_us_waiting() {
        let Scene { connector, _watch, directory } = scene();
        let listener = UnixListener::bind(directory.path().join("a")).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let mut queued = Vec::new();
        let error = loop {
            match connector.connect() {
                Ok(stream) => queued.push(stream),
                Err(SocketError::System { cause, .. }) => break cause,
                Err(other) => panic!("{other}"),
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
