//! The client: one call, one request, one connection.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use crate::api::{AddDevice, Problem, ProblemCode, Relay, RelayStatistics, RemoveDevice, Version, Worker};

/// Time for a reply beside what the request itself asks to wait. Slow hardware takes a second or two.
const REPLY_TIME: Duration = Duration::from_secs(15);

/// Time to try again while the daemon has too many connections.
const RETRY_TIME: Duration = Duration::from_secs(6);

/// Talks to the daemon on one control socket. Calls block.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why a call failed; the text names the socket, the cause and the remedy.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No daemon.
    #[error(
        "no daemon answers on the control socket '{}' ({source}); start it with 'systemctl start virtio-forwarder', \
         or name its socket with --control-socket",
        socket.display()
    )]
    NotRunning {
        /// The control socket.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket belongs to others.
    #[error(
        "no permission to use the control socket '{}'; become root (sudo), or join the group that owns the socket \
         ('ls -l {}' shows it)",
        socket.display(), socket.display()
    )]
    NoPermission {
        /// The control socket.
        socket: PathBuf,
    },
    /// The connection could not be made, or broke.
    #[error(
        "talking to the daemon on the control socket '{}' failed: {cause}; 'systemctl status virtio-forwarder' says \
         how the daemon is",
        socket.display()
    )]
    Broken {
        /// The control socket.
        socket: PathBuf,
        /// What broke.
        cause: String,
    },
    /// The reply is not one of this API.
    #[error(
        "what answers on the control socket '{}' does not speak this API: {cause}; are daemon and tool of the same \
         version?",
        socket.display()
    )]
    Foreign {
        /// The control socket.
        socket: PathBuf,
        /// What is wrong with the reply.
        cause: String,
    },
    /// The connection was closed without an answer.
    #[error(
        "what listens on the control socket '{}' closed the connection without an answer; if it is the daemon \
         ('systemctl status virtio-forwarder'), try again, and if not, name the daemon's socket with --control-socket",
        socket.display()
    )]
    Closed {
        /// The control socket.
        socket: PathBuf,
    },
    /// The daemon refused.
    #[error("{0}")]
    Problem(Box<Problem>),
}

impl ClientError {
    /// Whether the daemon had no time, and has done nothing.
    fn is_momentary(&self) -> bool {
        matches!(self, Self::Problem(problem) if problem.code == ProblemCode::Unavailable)
    }
}

impl Client {
    /// A client of the daemon on `socket`; nothing is sent yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// All relays.
    pub fn relays(&self) -> Result<Vec<Relay>, ClientError> {
        self.get("/v1/relays", Duration::ZERO)
    }

    /// One relay.
    pub fn relay(&self, id: u32) -> Result<Relay, ClientError> {
        self.get(&format!("/v1/relays/{id}"), Duration::ZERO)
    }

    /// Gives relay `id` a device.
    pub fn add_device(&self, id: u32, request: &AddDevice) -> Result<Relay, ClientError> {
        self.send(Method::PUT, &format!("/v1/relays/{id}/device"), request)
    }

    /// Takes the device of relay `id` away.
    pub fn remove_device(&self, id: u32, request: &RemoveDevice) -> Result<Relay, ClientError> {
        self.send(Method::DELETE, &format!("/v1/relays/{id}/device"), request)
    }

    /// Statistics of `relays` (all, if empty), with rates measured over `delay` if that is not zero.
    pub fn statistics(
        &self,
        relays: &[u32],
        include_inactive: bool,
        delay: Duration,
    ) -> Result<Vec<RelayStatistics>, ClientError> {
        let milliseconds = delay.as_millis();
        let mut path = format!("/v1/statistics?include_inactive={include_inactive}&delay_ms={milliseconds}");
        for id in relays {
            path.push_str(&format!("&relay={id}"));
        }
        self.get(&path, delay)
    }

    /// All workers, in order of their CPUs.
    pub fn workers(&self) -> Result<Vec<Worker>, ClientError> {
        self.get("/v1/workers", Duration::ZERO)
    }

    /// Who answers.
    pub fn version(&self) -> Result<Version, ClientError> {
        self.get("/v1/version", Duration::ZERO)
    }

    /// What Prometheus gets.
    pub fn metrics_text(&self) -> Result<String, ClientError> {
        let body = self.call(Method::GET, "/metrics", Bytes::new(), REPLY_TIME)?;
        String::from_utf8(body.into()).map_err(|error| self.foreign(&error))
    }

    fn get<T: DeserializeOwned>(&self, path: &str, delay: Duration) -> Result<T, ClientError> {
        let body = self.call(Method::GET, path, Bytes::new(), REPLY_TIME + delay)?;
        serde_json::from_slice(&body).map_err(|error| self.foreign(&error))
    }

    fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        request: &impl Serialize,
    ) -> Result<T, ClientError> {
        let request = serde_json::to_vec(request).map_err(|error| self.foreign(&error))?;
        let body = self.call(method, path, request.into(), REPLY_TIME)?;
        serde_json::from_slice(&body).map_err(|error| self.foreign(&error))
    }

    fn call(&self, method: Method, path: &str, body: Bytes, limit: Duration) -> Result<Bytes, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| self.broken(&error))?;
        let start = Instant::now();
        loop {
            let exchange = self.exchange(method.clone(), path, body.clone());
            let result = runtime.block_on(async {
                match timeout(limit, exchange).await {
                    Ok(result) => result,
                    Err(_) => Err(self.broken(&format!("no answer within {} s", limit.as_secs()))),
                }
            });
            match result {
                // Nothing has been done yet, so that it is safe to ask again.
                Err(error) if error.is_momentary() && start.elapsed() < RETRY_TIME => {
                    // On this thread there is no runtime but in `block_on`.
                    runtime.block_on(async { sleep(Duration::from_millis(200)).await });
                }
                result => return result,
            }
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let stream = connect(&self.socket).await.map_err(|source| self.connection_error(source))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(&error))?;
        let response = sender.send_request(request).await.map_err(|error| self.no_response(&error))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| self.broken(&error))?.to_bytes();
        connection.abort();
        if status == StatusCode::OK { Ok(body) } else { Err(self.refused(status, &body)) }
    }

    fn connection_error(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { socket, source }
            }
            io::ErrorKind::PermissionDenied => ClientError::NoPermission { socket },
            _ => self.broken(&source),
        }
    }

    fn no_response(&self, error: &hyper::Error) -> ClientError {
        if error.is_parse() {
            self.foreign(&"its reply is not HTTP")
        } else if is_closed(error) {
            ClientError::Closed { socket: self.socket.clone() }
        } else {
            self.broken(error)
        }
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> ClientError {
        match serde_json::from_slice(body) {
            Ok(problem) => ClientError::Problem(Box::new(problem)),
            Err(_) => self.foreign(&format!("it replied {status}")),
        }
    }

    fn broken(&self, cause: &impl ToString) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), cause: cause.to_string() }
    }

    fn foreign(&self, cause: &impl ToString) -> ClientError {
        ClientError::Foreign { socket: self.socket.clone(), cause: cause.to_string() }
    }
}

/// A Unix socket whose backlog is full says so at once, and has room again soon.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(Duration::from_millis(20)).await,
            result => return result,
        }
    }
}

/// Whether the other side closed the connection before it had answered.
fn is_closed(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    let closed = cause.map(io::Error::kind);
    error.is_canceled()
        || error.is_incomplete_message()
        || matches!(closed, Some(io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset))
}
