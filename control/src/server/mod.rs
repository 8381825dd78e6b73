//! The server: HTTP on a Unix socket, and for Prometheus on TCP if that is wished.
//!
//! ```text
//!   Unix socket ──▶ peer (who is it?) ──▶ connections (limits, time) ──▶ routes ──▶ Daemon
//!   TCP, /metrics only ───────────────────────▲
//! ```
//!
//! All of it runs on the one thread that calls [`Server::run`]; only the daemon's own calls, which may wait for
//! hardware, run on helper threads.

mod connections;
mod extract;
mod peer;
mod reply;
mod routes;
mod sampling;
mod socket;

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::oneshot;

use crate::Daemon;
use connections::Acceptor;
use peer::Policy;
pub use routes::openapi;
use socket::ControlSocket;

/// Connections for metrics over TCP.
const NETWORK_PLACES: usize = 32;

/// How the server listens.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Path of the Unix socket.
    pub socket: PathBuf,
    /// Owner of the socket file; `None`: the daemon's user.
    pub owner: Option<u32>,
    /// Group that may use the socket beside root and the daemon's user; `None`: nobody else may.
    pub group: Option<u32>,
    /// Address of the TCP listener that serves `/metrics` and nothing else.
    pub metrics_listen: Option<SocketAddr>,
    /// What clients may take.
    pub limits: Limits,
}

impl ServerConfig {
    /// Listens on `socket` and nowhere else, for root and the daemon's user.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            owner: None,
            group: None,
            metrics_listen: None,
            limits: Limits::default(),
        }
    }
}

/// What clients may take of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections; those beyond are answered with 503 and closed.
    pub connections: usize,
    /// Bytes of a request's body.
    pub body: usize,
    /// Time for a request to arrive. It also ends idle connections.
    pub request: Duration,
    /// Time for connections to finish when the server stops.
    pub stop: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            body: 64 * 1024,
            request: Duration::from_secs(5),
            stop: Duration::from_secs(3),
        }
    }
}

/// Why the server cannot listen.
#[derive(Debug, Error)]
pub enum BindError {
    /// The kernel's limit for socket addresses.
    #[error(
        "the path of the control socket is too long: '{path}' has {length} bytes, the kernel takes at most {}; \
         choose a shorter --control-socket",
        socket::LONGEST_PATH
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        length: usize,
    },
    /// Another process has it.
    #[error(
        "another daemon serves the control socket '{0}'; stop it first, or choose another --control-socket"
    )]
    InUse(PathBuf),
    /// Something else is in the way.
    #[error(
        "'{0}' is in the way of the control socket and is no socket; move it away, or choose another --control-socket"
    )]
    NotASocket(PathBuf),
    /// Others could replace the socket.
    #[error(
        "the directory '{path}' of the control socket {reason}; choose another with --control-socket PATH, or give this \
         one to root with mode 0755"
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A system call failed.
    #[error(
        "cannot {action} '{path}': {cause}; start it as root, or choose another place with --control-socket PATH"
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// The TCP listener.
    #[error("cannot listen on {address} for metrics: {cause}; choose another --metrics-listen")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// Why not.
        cause: io::Error,
    },
}

/// A server that listens but does not serve yet.
#[derive(Debug)]
pub struct Server {
    socket: ControlSocket,
    metrics: Option<TcpListener>,
    policy: Policy,
    limits: Limits,
}

impl Server {
    /// Takes the socket (and the TCP port). From here on clients can connect; they wait until [`Server::run`].
    pub fn bind(config: &ServerConfig) -> Result<Self, BindError> {
        let socket = ControlSocket::bind(&config.socket, config.owner, config.group)?;
        let metrics = config.metrics_listen.map(|address| {
            let listen = || {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            };
            listen().map_err(|cause| BindError::Metrics { address, cause })
        });
        let policy = Policy::new(config.owner, config.group);
        Ok(Self { socket, metrics: metrics.transpose()?, policy, limits: config.limits })
    }

    /// Where `/metrics` is served on TCP (the port, if it was left to the system).
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves on this thread until `shutdown` is ready, then lets requests that are under way finish, and removes the
    /// socket.
    pub fn run(self, daemon: Arc<dyn Daemon>, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("control")
            .max_blocking_threads(16)
            .build()?;
        let Self { socket, metrics, policy, limits } = self;
        let result = runtime.block_on(async {
            let acceptor = Acceptor::new(limits);
            // The network has places of its own, so that it cannot take those of the control socket.
            let network = Acceptor::new(Limits { connections: limits.connections.min(NETWORK_PLACES), ..limits });
            let unix = acceptor.unix(socket.listener()?, policy, routes::control(daemon.clone(), &limits));
            let tcp = match metrics {
                Some(listener) => {
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    Some(network.tcp(listener, routes::metrics(daemon)))
                }
                None => None,
            };
            tokio::select! {
                () = unix => (),
                () = async { match tcp { Some(tcp) => tcp.await, None => std::future::pending().await } } => (),
                () = shutdown => (),
            }
            tokio::join!(acceptor.finish(), network.finish());
            Ok(())
        });
        // A call into slow hardware is not waited for: its answer has nobody to go to.
        runtime.shutdown_background();
        result
    }

    /// Serves on a thread of its own until the handle is stopped or dropped.
    pub fn spawn(self, daemon: Arc<dyn Daemon>) -> io::Result<RunningServer> {
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name("control".to_owned()).spawn(move || {
            self.run(daemon, async {
                // An error means that the handle is gone, which is the same wish.
                let _ = stopped.await;
            })
        })?;
        Ok(RunningServer { stop: Some(stop), thread: Some(thread) })
    }
}

/// A server on its thread. Dropping it stops the server, too.
#[derive(Debug)]
pub struct RunningServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl RunningServer {
    /// Stops the server and waits for it.
    pub fn stop(mut self) -> io::Result<()> {
        self.join()
    }

    fn join(&mut self) -> io::Result<()> {
        drop(self.stop.take());
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(io::Error::other("the control thread panicked")),
            None => Ok(()),
        }
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            tracing::error!("control server: {error}");
        }
    }
}
