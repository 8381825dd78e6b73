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

/// Time that a client beyond the limit has to send what is answered with 503.
const LOBBY_TIME: Duration = Duration::from_millis(500);

/// Accepts connections and keeps count of them.
///
/// Connections beyond the limit go to the lobby, as many again, where they hear that the house is full; the rest
/// wait before the door, where the kernel keeps them, until the lobby has room.
pub(super) struct Acceptor {
    places: Arc<Semaphore>,
    lobby: Arc<Semaphore>,
    limits: Limits,
    stop: watch::Sender<bool>,
}

impl Acceptor {
    pub(super) fn new(limits: Limits) -> Self {
        let places = || Arc::new(Semaphore::new(limits.connections));
        Self { places: places(), lobby: places(), limits, stop: watch::Sender::new(false) }
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
            let (service, time, place) = match self.places.clone().try_acquire_owned() {
                Ok(place) => (router(&stream), self.limits.request, place),
                Err(_) => match self.lobby.clone().acquire_owned().await {
                    Ok(place) => (routes::full(), LOBBY_TIME, place),
                    // Nobody closes it.
                    Err(_) => continue,
                },
            };
            tokio::spawn(serve(stream, service, time, self.stop.subscribe(), place));
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
trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

async fn serve<S: Stream>(
    stream: S,
    router: Router,
    request_time: Duration,
    mut stop: watch::Receiver<bool>,
    place: OwnedSemaphorePermit,
) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(request_time)
        .max_header_size(HEADER_BYTES)
        // `printf … | nc -U -N` closes its sending side at once and still wants the reply.
        .half_close(true)
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
