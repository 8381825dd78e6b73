//! Looking out for sockets that front ends make: one inotify instance and one thread for a directory, however many
//! relays wait there (the system grants a user 128 instances).

use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

/// How often a directory that does not exist, or has been replaced, is looked for.
const LOOK: Duration = Duration::from_millis(500);

/// Rings a bell whenever a name appears in a directory, or what has the name gets other permissions.
///
/// The directory need not exist yet and may be replaced: that is noticed within half a second, and rings all bells.
#[derive(Debug)]
pub struct DirectoryWatch {
    directory: PathBuf,
    bells: Arc<Bells>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Bells(Mutex<Vec<(OsString, Weak<OwnedFd>)>>);

impl Bells {
    /// Rings the bells of `name`, or all.
    fn ring(&self, name: Option<&OsStr>) {
        let mut bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bells.retain(|(of, bell)| {
            let Some(bell) = bell.upgrade() else { return false };
            if name.is_none_or(|name| name == of) {
                let _ = rustix::io::write(&*bell, &1u64.to_ne_bytes());
            }
            true
        });
    }
}

impl DirectoryWatch {
    /// Watches `directory`.
    pub fn start(directory: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let stop = Arc::new(bell()?);
        let bells = Arc::new(Bells::default());
        let watcher = Watcher {
            directory: directory.to_owned(),
            inotify,
            watched: None,
            bells: Arc::clone(&bells),
            stop: Arc::clone(&stop),
        };
        let builder = std::thread::Builder::new().name("vhost-watch".to_owned()).stack_size(256 * 1024);
        let thread = Some(builder.spawn(move || watcher.run())?);
        Ok(Self { directory: directory.to_owned(), bells, stop, thread })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A bell for `name`: an eventfd that becomes readable. It is forgotten when the caller drops it.
    pub fn bell(&self, name: &OsStr) -> io::Result<Arc<OwnedFd>> {
        let bell = Arc::new(bell()?);
        let mut bells = self.bells.0.lock().unwrap_or_else(PoisonError::into_inner);
        bells.push((name.to_owned(), Arc::downgrade(&bell)));
        Ok(bell)
    }
}

impl Drop for DirectoryWatch {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn bell() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

struct Watcher {
    directory: PathBuf,
    inotify: OwnedFd,
    watched: Option<i32>,
    bells: Arc<Bells>,
    stop: Arc<OwnedFd>,
}

impl Watcher {
    fn run(mut self) {
        let timeout = Timespec::try_from(LOOK).ok();
        loop {
            self.find_directory();
            let mut fds = [PollFd::new(&self.stop, PollFlags::IN), PollFd::new(&self.inotify, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!("cannot watch {} any more: {error}", self.directory.display());
                    return;
                }
            }
            if !fds[0].revents().is_empty() {
                return;
            }
            self.read_events();
        }
    }

    /// Watches what is at the path now; the same directory gives the same watch.
    fn find_directory(&mut self) {
        let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ATTRIB | WatchFlags::ONLYDIR;
        let found = inotify::add_watch(&self.inotify, &self.directory, flags).ok();
        if found != self.watched {
            if let Some(old) = self.watched {
                // It has gone by itself if its directory was removed.
                let _ = inotify::remove_watch(&self.inotify, old);
            }
            self.watched = found;
            // What came before the watch was not seen.
            self.bells.ring(None);
        }
    }

    fn read_events(&mut self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(self.inotify.as_fd(), &mut buffer);
        while let Ok(event) = events.next() {
            match event.file_name() {
                Some(name) => self.bells.ring(Some(OsStr::from_bytes(name.to_bytes()))),
                // Something happened to the directory, or there were more events than the kernel keeps.
                None => {
                    if event.events().contains(ReadFlags::IGNORED) && Some(event.wd()) == self.watched {
                        self.watched = None;
                    }
                    self.bells.ring(None);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Waits for the bell, which is quiet then; panics after 2 s.
    fn heard(bell: &OwnedFd) -> Duration {
        let start = Instant::now();
        let mut fds = [PollFd::new(bell, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&Timespec { tv_sec: 2, tv_nsec: 0 })), Ok(1), "no bell");
        quiet(bell);
        start.elapsed()
    }

    /// Whether the bell had not been rung.
    fn quiet(bell: &OwnedFd) -> bool {
        rustix::io::read(bell, &mut [0; 8]).is_err()
    }

    #[test]
    fn a_name_that_appears_rings_its_bell_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let watch = DirectoryWatch::start(directory.path()).unwrap();
        let [a, b] = ["a", "b"].map(|name| watch.bell(OsStr::new(name)).unwrap());
        // The watch may have begun before or after the bells were there; from here on it is quiet.
        std::thread::sleep(Duration::from_millis(100));
        quiet(&a);
        quiet(&b);
        let path = directory.path().join("a");
        std::fs::write(&path, "").unwrap();
        println!("heard after {:?}", heard(&a));
        std::fs::rename(&path, directory.path().join("b")).unwrap();
        heard(&b);
        assert!(quiet(&a));
        std::fs::rename(directory.path().join("b"), &path).unwrap();
        heard(&a);
        assert!(quiet(&b));
    }

    #[test]
    fn a_directory_that_comes_late_or_is_replaced_is_found() {
        let outer = tempfile::tempdir().unwrap();
        let directory = outer.path().join("sockets");
        let watch = DirectoryWatch::start(&directory).unwrap();
        let bell = watch.bell(OsStr::new("a")).unwrap();
        for _ in 0..2 {
            std::fs::create_dir(&directory).unwrap();
            heard(&bell);
            std::thread::sleep(Duration::from_millis(100));
            quiet(&bell);
            std::fs::write(directory.join("a"), "").unwrap();
            heard(&bell);
            std::fs::remove_dir_all(&directory).unwrap();
            heard(&bell);
        }
        std::fs::create_dir(&directory).unwrap();
        heard(&bell);
        std::fs::rename(&directory, outer.path().join("old")).unwrap();
        std::fs::create_dir(&directory).unwrap();
        heard(&bell);
    }
}
