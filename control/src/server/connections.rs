//! Connections: how many, how long, and what happens to them at the end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::peer::Policy;
use super::{Limits, routes};

/// A connection is asked to end after this time, however busy it is, so that a client that stops reading in the middle
/// of a reply does not keep its place for ever.
const LIFETIME: Duration = Duration::from_secs(120);

/// Enough for any request line and headers of ours; hyper's smallest is 8 KiB.
const HEADER_BYTES: usize = 16 * 1024;

/// What a client beyond the limit reads: nothing of its own has been looked at, so it may simply try again.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\n\
    Connection: close\r\nContent-Length: 162\r\n\r\n\
    {\"type\":\"about:blank\",\"title\":\"Not available now\",\"status\":503,\"code\":\"unavailable\",\
    \"detail\":\"the control socket has too many connections\",\"remedy\":\"try again\"}\r\n";

/// Accepts connections and keeps count of them.
pub(super) struct Acceptor {
    places: Arc<Semaphore>,
    limits: Limits,
    stop: watch::Sender<bool>,
}

impl Acceptor {
    pub(super) fn new(limits: Limits) -> Self {
        Self { places: Arc::new(Semaphore::new(limits.connections)), limits, stop: watch::Sender::new(false) }
    }

    /// Serves the Unix socket, until dropped.
    pub(super) fn unix(
        &self,
        listener: UnixListener,
        policy: Policy,
        router: Router,
    ) -> impl Future<Output = ()> {
        self.accept(
            async move || listener.accept().await.map(|(stream, _)| stream),
            move |stream| match policy.check(stream) {
                Ok(()) => router.clone(),
                Err(reason) => {
                    tracing::warn!("control socket: refused: {reason}");
                    routes::refusal(reason)
                }
            },
        )
    }

    /// Serves a TCP socket, until dropped.
    pub(super) fn tcp(&self, listener: TcpListener, router: Router) -> impl Future<Output = ()> {
        self.accept(
            async move || listener.accept().await.map(|(stream, _)| stream),
            move |_: &_| router.clone(),
        )
    }

    async fn accept<S: Stream>(
        &self,
        accept: impl AsyncFn() -> std::io::Result<S>,
        router: impl Fn(&S) -> Router,
    ) {
        loop {
            let stream = match accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    // Mostly: no file descriptors left. Others may close some soon.
                    tracing::warn!("control server: cannot accept a connection: {error}");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            match self.places.clone().try_acquire_owned() {
                Ok(place) => {
                    let service = router(&stream);
                    tokio::spawn(serve(stream, service, self.limits, self.stop.subscribe(), place));
                }
                Err(_) => stream.write_once(FULL),
            }
        }
    }

    /// Asks all connections to end after the request that they are in, and waits for that, though not for long.
    pub(super) async fn finish(&self) {
        self.stop.send_replace(true);
        let all = u32::try_from(self.limits.connections).unwrap_or(u32::MAX);
        if timeout(self.limits.stop, self.places.acquire_many(all)).await.is_err() {
            tracing::warn!("control server: stopped while requests were under way");
        }
    }
}

/// A connected socket.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Writes what fits at once.
    fn write_once(&self, bytes: &[u8]);
}

impl Stream for tokio::net::UnixStream {
    fn write_once(&self, bytes: &[u8]) {
        // A client that hears nothing still sees its connection closed.
        let _ = self.try_write(bytes);
    }
}

impl Stream for tokio::net::TcpStream {
    fn write_once(&self, bytes: &[u8]) {
        let _ = self.try_write(bytes);
    }
}

async fn serve<S: Stream>(
    stream: S,
    router: Router,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
    place: OwnedSemaphorePermit,
) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.request)
        .max_header_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        _ = stop.wait_for(|stop| *stop) => None,
        () = sleep(LIFETIME) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            timeout(LIFETIME, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!("control server: connection ended: {error}");
    }
    drop(place);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Problem, ProblemCode};

    #[test]
    fn the_answer_to_one_client_too_many_is_well_formed() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{}", body.len());
        assert_eq!(serde_json::from_str::<Problem>(body).unwrap().code, ProblemCode::Unavailable);
    }
}
