//! The endpoint of a relay: its socket, and the thread that serves one front end at a time on it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::connection::{Connection, ConnectionError};
use super::features::GuestOptions;
use super::session::Session;
use crate::relay::Relay;

/// How often a connected guest's memory is looked after, and a half message's age.
const TICK: Duration = Duration::from_secs(1);

/// So long nobody is let in after a VM that made a worker wait. Ending that takes up to 60 ms, so that a VM that comes
/// again and again takes some hundredths of its neighbours' time and no more.
const PENANCE: Duration = Duration::from_secs(2);

/// A listening vhost-user socket. Dropping it disconnects its guest and removes the socket.
#[derive(Debug)]
pub struct Endpoint {
    relay: u32,
    path: PathBuf,
    /// Device and inode of the socket file.
    identity: Option<(u64, u64)>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

impl Endpoint {
    /// Serves `relay` on `listener`, which listens on `path` without blocking (see [`super::socket::listen`]).
    pub fn start(
        relay: Arc<Relay>,
        listener: UnixListener,
        path: &Path,
        options: GuestOptions,
    ) -> io::Result<Endpoint> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let server = Server {
            relay,
            listener,
            path: path.to_owned(),
            options,
            stop: Arc::clone(&stop),
            guest: None,
            closed_until: None,
        };
        let id = server.relay.id();
        let name = format!("vhost-{id}");
        let thread =
            std::thread::Builder::new().name(name).stack_size(256 * 1024).spawn(move || server.run())?;
        Ok(Endpoint {
            relay: id,
            path: path.to_owned(),
            identity: identity(path),
            stop,
            thread: Some(thread),
        })
    }

    /// Virtio-id of the relay.
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
        if identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

struct Server {
    relay: Arc<Relay>,
    listener: UnixListener,
    path: PathBuf,
    options: GuestOptions,
    stop: Arc<OwnedFd>,
    /// The session first: it ends, with its rings, before the front end sees that the connection is closed.
    guest: Option<(Session, Connection)>,
    /// Until when nobody is let in.
    closed_until: Option<Instant>,
}

impl Server {
    fn run(mut self) {
        let tick = Timespec::try_from(TICK).ok();
        loop {
            self.closed_until = self.closed_until.filter(|until| Instant::now() < *until);
            let closed = self.closed_until.is_some();
            let welcome = if !closed { PollFlags::IN } else { PollFlags::empty() };
            let (stopped, waiting) = {
                let mut fds = vec![
                    PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN),
                    PollFd::from_borrowed_fd(self.listener.as_fd(), welcome),
                ];
                if let Some((session, connection)) = &self.guest {
                    fds.push(PollFd::from_borrowed_fd(connection.fd(), PollFlags::IN));
                    fds.push(PollFd::from_borrowed_fd(session.bell(), PollFlags::IN));
                }
                let timeout = tick.as_ref().filter(|_| self.guest.is_some() || closed);
                match poll(&mut fds, timeout) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => {
                        tracing::error!(
                            "relay {}: cannot wait for {}: {error}",
                            self.relay.id(),
                            self.path.display()
                        );
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
                self.accept();
            }
        }
    }

    fn accept(&mut self) {
        let (id, path) = (self.relay.id(), self.path.display());
        let connection = match self.listener.accept().and_then(|(stream, _)| Connection::new(stream)) {
            Ok(connection) => connection,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                tracing::warn!("relay {id}: cannot accept on {path}: {error}");
                // Out of descriptors, say: the connection stays in the queue, and asking again at once would spin.
                std::thread::sleep(Duration::from_millis(100));
                return;
            }
        };
        let peer = connection.peer();
        let who = |peer: Option<i32>| peer.map_or("a process".to_owned(), |pid| format!("process {pid}"));
        match &self.guest {
            Some((_, present)) => tracing::warn!(
                "relay {id}: refused a second VM on {path} ({}): {} is connected",
                who(peer),
                who(present.peer())
            ),
            None => {
                tracing::info!("relay {id}: VM connected on {path} ({})", who(peer));
                match Session::new(Arc::clone(&self.relay), &self.options, peer) {
                    Ok(session) => self.guest = Some((session, connection)),
                    Err(error) => tracing::warn!("relay {id}: cannot serve {path}: {error}"),
                }
            }
        }
    }

    /// Handles what the guest has sent, and ends the connection when there is a reason to.
    fn serve(&mut self) {
        let Some((session, connection)) = &mut self.guest else { return };
        session.look_after();
        let (id, path) = (self.relay.id(), self.path.display());
        match serve(connection, session) {
            Ok(()) => match session.offence() {
                Some(offence) => tracing::warn!("relay {id}: disconnected {path}: {offence}"),
                None => return,
            },
            Err(End::Left) => tracing::info!("relay {id}: VM disconnected from {path}"),
            Err(End::Fault(reason)) => tracing::warn!("relay {id}: disconnected {path}: {reason}"),
        }
        if let Some((session, _connection)) = self.guest.take()
            && session.end()
        {
            self.closed_until = Some(Instant::now() + PENANCE);
        }
    }
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

fn serve(connection: &mut Connection, session: &mut Session) -> Result<(), End> {
    for _ in 0..MESSAGES_AT_ONCE {
        let Some(message) = connection.receive()? else { return Ok(()) };
        let request = message.header.request;
        let reply =
            session.handle(message).map_err(|refusal| End::Fault(format!("{request:?}: {refusal}")))?;
        if let Some(reply) = reply {
            connection.send(&reply)?;
        }
    }
    Ok(())
}
