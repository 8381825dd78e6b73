//! The endpoint of a guest: its socket, and the thread that serves one front end at a time on it.
//!
//! The socket is ours, and front ends connect to it (server mode), or it is the front end's, and we connect as soon and
//! as often as it is there (client mode). Sessions are the same.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::connection::{Connection, ConnectionError};
use super::connector::Connector;
use super::features::GuestOptions;
use super::positions::Positions;
use super::session::Session;
use super::socket::SocketOwner;
use super::watch::DirectoryWatch;
use crate::relay::{GuestPort, GuestState};

/// How often a connected guest's memory is looked after, and a half message's age.
const TICK: Duration = Duration::from_secs(1);

/// A session that lasted this long was a real one, even if no driver came up in the guest.
const LASTING: Duration = Duration::from_secs(1);

/// So long nobody is let in after a VM that made a worker wait. Ending that takes up to 60 ms, so that a VM that comes
/// again and again takes some hundredths of its neighbours' time and no more.
const LOCKOUT: Duration = Duration::from_secs(2);

/// A vhost-user socket that is served. Dropping it disconnects its guest and removes the socket if it is ours.
#[derive(Debug)]
pub struct Endpoint {
    relay: u32,
    path: PathBuf,
    /// Device and inode of the socket file, if it is ours.
    identity: Option<(u64, u64)>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

impl Endpoint {
    /// Serves `port` on `listener`, which listens on `path` without blocking (see [`super::socket::listen`]). Where its
    /// rings stand is kept in `positions`.
    pub fn start(
        port: impl Into<GuestPort>,
        listener: UnixListener,
        path: &Path,
        options: GuestOptions,
        positions: Option<Positions>,
    ) -> io::Result<Endpoint> {
        Self::spawn(port.into(), Source::Listening(listener), path, identity(path), options, positions)
    }

    /// Serves `port` on the socket that a front end has at `path`, whenever it is there. `watch` is that of the socket's
    /// directory; only while that is such as [`super::socket::check_directory`] accepts for `owner` is it connected to.
    pub fn connecting(
        port: impl Into<GuestPort>,
        path: &Path,
        owner: SocketOwner,
        watch: &DirectoryWatch,
        options: GuestOptions,
        positions: Option<Positions>,
    ) -> io::Result<Endpoint> {
        let connector = Connector::new(path, owner, watch)?;
        Self::spawn(port.into(), Source::Connecting(connector), path, None, options, positions)
    }

    fn spawn(
        port: GuestPort,
        source: Source,
        path: &Path,
        identity: Option<(u64, u64)>,
        options: GuestOptions,
        positions: Option<Positions>,
    ) -> io::Result<Endpoint> {
        let positions = positions.map(|positions| Arc::new(Mutex::new(positions)));
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let id = port.id();
        let name = format!("vhost-{id}{}", if port.is_far() { "-far" } else { "" });
        let path = path.to_owned();
        let server = Server {
            port,
            source,
            path: path.clone(),
            options,
            positions,
            stop: Arc::clone(&stop),
            guest: None,
            closed_until: None,
        };
        let thread =
            std::thread::Builder::new().name(name).stack_size(256 * 1024).spawn(move || server.run())?;
        Ok(Endpoint { relay: id, path, identity, stop, thread: Some(thread) })
    }

    /// Virtio-id of the relay that the guest is at.
    pub fn relay(&self) -> u32 {
        self.relay
    }

    /// Asks the endpoint to end, without waiting for it.
    pub fn stop(&self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Another daemon may have put its own socket there meanwhile.
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Where connections come from.
#[derive(Debug)]
enum Source {
    Listening(UnixListener),
    Connecting(Connector),
}

impl Source {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Listening(listener) => listener.as_fd(),
            Self::Connecting(connector) => connector.bell(),
        }
    }
}

struct Server {
    port: GuestPort,
    source: Source,
    path: PathBuf,
    options: GuestOptions,
    positions: Option<Arc<Mutex<Positions>>>,
    stop: Arc<OwnedFd>,
    guest: Option<Guest>,
    /// Until when nobody is let in.
    closed_until: Option<Instant>,
}

struct Guest {
    /// First: it ends, with its rings, before the front end sees that the connection is closed.
    session: Session,
    connection: Connection,
    /// Since when it is connected.
    since: Instant,
    /// Whether it has sent anything.
    spoke: bool,
    /// Whether its rings ran.
    ran: bool,
}

impl Server {
    fn run(mut self) {
        loop {
            self.closed_until = self.closed_until.filter(|until| Instant::now() < *until);
            let accepting = if self.closed_until.is_none() { PollFlags::IN } else { PollFlags::empty() };
            let (stopped, waiting) = {
                let mut fds = vec![
                    PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN),
                    PollFd::from_borrowed_fd(self.source.fd(), accepting),
                ];
                if let Some(guest) = &self.guest {
                    fds.push(PollFd::from_borrowed_fd(guest.connection.fd(), PollFlags::IN));
                    fds.push(PollFd::from_borrowed_fd(guest.session.bell(), PollFlags::IN));
                }
                let timeout = self.timeout().and_then(|time| Timespec::try_from(time).ok());
                match poll(&mut fds, timeout.as_ref()) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => {
                        tracing::error!("{}: cannot wait for {}: {error}", self.port, self.path.display());
                        return;
                    }
                }
                let ready = |n: usize| fds.get(n).is_some_and(|fd| !fd.revents().is_empty());
                (ready(0), ready(1))
            };
            if stopped {
                return;
            }
            self.serve();
            if waiting {
                match &mut self.source {
                    Source::Listening(_) => self.accept(),
                    Source::Connecting(connector) => connector.look(Instant::now()),
                }
            }
            self.connect();
        }
    }

    /// How long nothing need be done.
    fn timeout(&self) -> Option<Duration> {
        match (&self.guest, &self.source) {
            (Some(_), _) => Some(TICK),
            (None, _) if self.closed_until.is_some() => Some(TICK),
            (None, Source::Connecting(connector)) => Some(connector.wait(Instant::now())),
            (None, Source::Listening(_)) => None,
        }
    }

    fn accept(&mut self) {
        let Source::Listening(listener) = &self.source else { return };
        match listener.accept() {
            Ok((stream, _)) => self.begin(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!("{}: cannot accept on {}: {error}", self.port, self.path.display());
                // Out of descriptors, say: the connection stays in the queue, and asking again at once would spin.
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    fn connect(&mut self) {
        if self.guest.is_none()
            && self.closed_until.is_none()
            && let Source::Connecting(connector) = &mut self.source
            && let Some(stream) = connector.attempt(Instant::now())
        {
            self.begin(stream);
        }
    }

    fn begin(&mut self, stream: UnixStream) {
        let (port, path) = (&self.port, self.path.display());
        let connection = match Connection::new(stream) {
            Ok(connection) => connection,
            Err(error) => return tracing::warn!("{port}: cannot use a connection on {path}: {error}"),
        };
        let peer = connection.peer();
        let who = |peer: Option<i32>| peer.map_or("a process".to_owned(), |pid| format!("process {pid}"));
        if let Some(present) = &self.guest {
            return tracing::warn!(
                "{port}: refused a second VM on {path} ({}): {} is connected",
                who(peer),
                who(present.connection.peer())
            );
        }
        self.tell(Tone::News, format_args!("VM connected on {path} ({})", who(peer)));
        let positions = self.positions.clone();
        match Session::new(self.port.clone(), &self.options, positions, peer) {
            Ok(session) => {
                let since = Instant::now();
                self.guest = Some(Guest { session, connection, since, spoke: false, ran: false });
            }
            Err(error) => tracing::warn!("{port}: cannot serve {path}: {error}"),
        }
    }

    /// Handles what the guest has sent, and ends the connection when there is a reason to.
    fn serve(&mut self) {
        let Some(guest) = &mut self.guest else { return };
        let path = self.path.display();
        guest.session.look_after();
        let served = guest.serve();
        let end =
            served.err().or_else(|| guest.session.offence().map(|offence| End::Fault(offence.to_owned())));
        let begins = !guest.ran && self.port.guest_state() == GuestState::Ready;
        guest.ran |= begins;
        // One that was never spoken on may have waited in a front end's queue all the time.
        let good = guest.ran || guest.spoke && guest.since.elapsed() >= LASTING;
        if begins
            && let Source::Connecting(connector) = &mut self.source
            && connector.forgive()
        {
            self.tell(Tone::News, format_args!("VM runs on {path}"));
        }
        let Some(end) = end else { return };
        match end {
            End::Left => self.tell(Tone::News, format_args!("VM disconnected from {path}")),
            End::Fault(reason) => self.tell(Tone::Warning, format_args!("disconnected {path}: {reason}")),
        }
        if let Some(Guest { session, connection: _connection, .. }) = self.guest.take()
            && session.end()
        {
            self.closed_until = Some(Instant::now() + LOCKOUT);
        }
        if let Source::Connecting(connector) = &mut self.source {
            connector.ended(good, Instant::now());
        }
    }

    /// Logs; but not again and again what a front end makes happen by ending each session that we begin.
    fn tell(&self, tone: Tone, what: std::fmt::Arguments<'_>) {
        let port = &self.port;
        let repeats = matches!(&self.source, Source::Connecting(connector) if connector.repeats());
        match tone {
            _ if repeats => tracing::debug!("{port}: {what}"),
            Tone::News => tracing::info!("{port}: {what}"),
            Tone::Warning => tracing::warn!("{port}: {what}"),
        }
    }
}

#[derive(Clone, Copy)]
enum Tone {
    News,
    Warning,
}

/// Messages handled before the rest of the thread's work is looked at again.
const MESSAGES_AT_ONCE: usize = 64;

/// Why a connection is over.
enum End {
    /// The front end closed it.
    Left,
    /// The front end did what it must not do.
    Fault(String),
}

impl From<ConnectionError> for End {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::Closed => End::Left,
            other => End::Fault(other.to_string()),
        }
    }
}

impl Guest {
    fn serve(&mut self) -> Result<(), End> {
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(message) = self.connection.receive()? else { return Ok(()) };
            self.spoke = true;
            let request = message.header.request;
            let reply = self
                .session
                .handle(message)
                .map_err(|refusal| End::Fault(format!("{request:?}: {refusal}")))?;
            if let Some(reply) = reply {
                self.connection.send(&reply.bytes, reply.descriptor.as_ref().map(AsFd::as_fd))?;
                self.session.has_answered();
            }
        }
        Ok(())
    }
}
