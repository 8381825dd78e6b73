//! The routes and their description.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{Method, Uri, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::time::{Instant, sleep};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Limits;
use super::extract::{Command, RelayId, StatisticsQuery};
use super::reply::Json;
use super::sampling::fill_rates;
use crate::Daemon;
use crate::api::{
    AddDevice, DeviceRequest, Operation, Problem, ProblemCode, ProblemDocument, Relay, RelayStatistics,
    RemoveDevice, Version, Worker, shown,
};

/// What handlers share.
#[derive(Clone)]
pub(super) struct App {
    daemon: Arc<dyn Daemon>,
    /// Time for a body to arrive.
    pub(super) request_time: Duration,
    /// Bytes of a body.
    pub(super) longest_body: usize,
}

impl App {
    /// Calls the daemon on a helper thread.
    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Daemon) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let daemon = self.daemon.clone();
        match tokio::task::spawn_blocking(move || call(&*daemon)).await {
            Ok(result) => result,
            Err(error) => {
                Err(Problem::new(ProblemCode::Internal, format!("the daemon's call broke off: {error}"))
                    .with_remedy("this is a bug; the daemon's log says more"))
            }
        }
    }
}

#[derive(OpenApi)]
#[openapi(info(
    title = "virtio-forwarder",
    description = "Control of the daemon, over its Unix socket. Errors are RFC 9457 problem details."
))]
struct Description;

/// The routes and, by construction, the description of just these.
fn described() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(relays))
        .routes(routes!(relay))
        .routes(routes!(add_device, remove_device))
        .routes(routes!(add_device_post))
        .routes(routes!(statistics))
        .routes(routes!(workers))
        .routes(routes!(version))
        .routes(routes!(metrics_text))
        .routes(routes!(openapi_json))
}

static OPENAPI: LazyLock<utoipa::openapi::OpenApi> = LazyLock::new(|| {
    let mut description = described().split_for_parts().1;
    // The crate writes the registered formats uint32 and uint64 with a hyphen.
    let text = description.to_json().unwrap_or_default().replace("\"u-int", "\"uint");
    if let Ok(corrected) = serde_json::from_str(&text) {
        description = corrected;
    }
    description
});

/// The description of the API that the server gives as `/openapi.json`.
pub fn openapi() -> &'static utoipa::openapi::OpenApi {
    &OPENAPI
}

/// Everything, for the control socket.
pub(super) fn control(daemon: Arc<dyn Daemon>, limits: &Limits) -> Router {
    described()
        .split_for_parts()
        .0
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(limits.body))
        .with_state(App { daemon, request_time: limits.request, longest_body: limits.body })
}

/// `/metrics` alone, for the network.
pub(super) fn metrics(daemon: Arc<dyn Daemon>) -> Router {
    Router::new().route("/metrics", get(metrics_text)).fallback(not_found).with_state(App {
        daemon,
        request_time: Duration::ZERO,
        longest_body: 0,
    })
}

/// For peers that may not ask anything.
pub(super) fn refusal(reason: String) -> Router {
    let problem = Problem::new(ProblemCode::PermissionDenied, reason);
    always(problem.with_remedy("become root, or join the group that owns the control socket"))
}

/// For peers that came while the house is full. Nothing of what they ask is done, so that they may simply ask again.
pub(super) fn full() -> Router {
    let problem = Problem::new(ProblemCode::Unavailable, "the daemon has too many control connections");
    always(problem.with_remedy("try again in a second"))
}

/// One answer to whatever is asked, and the end of the connection.
fn always(problem: Problem) -> Router {
    Router::new().fallback(async move || ([(header::CONNECTION, "close")], problem.clone()))
}

async fn not_found(uri: Uri) -> Problem {
    Problem::new(ProblemCode::NotFound, format!("there is nothing at {}", shown(uri.path())))
        .with_remedy("GET /openapi.json lists all paths")
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} does not know the method {}", shown(uri.path()), shown(method.as_str()));
    Problem::new(ProblemCode::MethodNotAllowed, detail)
        .with_remedy("the Allow header says which methods it knows")
}

/// All relays
#[utoipa::path(get, path = "/v1/relays", responses((status = 200, description = "All relays, in order of their ids", body = Vec<Relay>)))]
async fn relays(State(app): State<App>) -> Result<Json<Vec<Relay>>, Problem> {
    app.call(|daemon| daemon.relays()).await.map(Json)
}

/// One relay
#[utoipa::path(
    get,
    path = "/v1/relays/{id}",
    params(("id" = u32, Path, description = "virtio-id")),
    responses(
        (status = 200, description = "The relay", body = Relay),
        (status = 404, description = "There is no such relay", body = ProblemDocument),
    ),
)]
async fn relay(State(app): State<App>, RelayId(id): RelayId) -> Result<Json<Relay>, Problem> {
    app.call(move |daemon| daemon.relay(id)).await.map(Json)
}

/// Give a relay its device
///
/// The device may also be given as query parameters of the same names.
#[utoipa::path(
    put,
    path = "/v1/relays/{id}/device",
    params(("id" = u32, Path, description = "virtio-id")),
    request_body = DeviceRequest,
    responses(
        (status = 200, description = "The relay, with its device", body = Relay),
        (status = "4XX", description = "Refused, and nothing has changed", body = ProblemDocument),
        (status = "5XX", description = "The device or the daemon failed", body = ProblemDocument),
    ),
)]
async fn add_device(
    State(app): State<App>,
    RelayId(id): RelayId,
    Command(request): Command<AddDevice>,
) -> Result<Json<Relay>, Problem> {
    let device = request.device.to_string();
    let result = app
        .call(move |daemon| {
            daemon.add_device(id, &request).map_err(|problem| problem.in_operation(Operation::Add))?;
            daemon.relay(id)
        })
        .await;
    log(&format!("add {device} to relay {id}"), &result);
    result.map(Json)
}

/// Give a relay its device (as PUT)
#[utoipa::path(
    post,
    path = "/v1/relays/{id}/device",
    params(("id" = u32, Path, description = "virtio-id")),
    request_body = DeviceRequest,
    responses(
        (status = 200, description = "The relay, with its device", body = Relay),
        (status = "4XX", description = "Refused, and nothing has changed", body = ProblemDocument),
        (status = "5XX", description = "The device or the daemon failed", body = ProblemDocument),
    ),
)]
async fn add_device_post(
    state: State<App>,
    id: RelayId,
    command: Command<AddDevice>,
) -> Result<Json<Relay>, Problem> {
    add_device(state, id, command).await
}

/// Take a relay's device away
///
/// Without a body and parameters: whichever device it has. With a device: only if it has that one.
#[utoipa::path(
    delete,
    path = "/v1/relays/{id}/device",
    params(
        ("id" = u32, Path, description = "virtio-id"),
        ("device" = Option<String>, Query, description = "only if it is this device"),
        ("pci_addr" = Option<String>, Query, description = "only if it is this VF"),
        ("conditional" = Option<bool>, Query, description = "succeed if the relay has no device"),
    ),
    request_body = Option<DeviceRequest>,
    responses(
        (status = 200, description = "The relay, without a device", body = Relay),
        (status = "4XX", description = "Refused, and nothing has changed", body = ProblemDocument),
        (status = "5XX", description = "The device or the daemon failed", body = ProblemDocument),
    ),
)]
async fn remove_device(
    State(app): State<App>,
    RelayId(id): RelayId,
    Command(request): Command<RemoveDevice>,
) -> Result<Json<Relay>, Problem> {
    let device = request.device.as_ref().map_or_else(|| "the device".to_owned(), ToString::to_string);
    let result = app
        .call(move |daemon| {
            daemon.remove_device(id, &request).map_err(|problem| problem.in_operation(Operation::Remove))?;
            daemon.relay(id)
        })
        .await;
    log(&format!("remove {device} from relay {id}"), &result);
    result.map(Json)
}

fn log(request: &str, result: &Result<Relay, Problem>) {
    match result {
        Ok(_) => tracing::info!("control: {request}: OK"),
        Err(problem) => tracing::warn!("control: {request}: {problem}"),
    }
}

/// Counters and rates
#[utoipa::path(
    get,
    path = "/v1/statistics",
    params(
        ("relay" = Option<Vec<u32>>, Query, description = "only these relays; repeated or with commas"),
        ("include_inactive" = Option<bool>, Query, description = "relays too that carry nothing (default: true)"),
        ("delay_ms" = Option<u64>, Query,
            description = "measure rates over this time, at most 10000 (default 0: no rates)"),
    ),
    responses(
        (status = 200, description = "Statistics, in order of the relays' ids", body = Vec<RelayStatistics>),
        (status = 400, description = "The request is not understood", body = ProblemDocument),
        (status = 404, description = "One of the relays does not exist", body = ProblemDocument),
    ),
)]
async fn statistics(
    State(app): State<App>,
    query: StatisticsQuery,
) -> Result<Json<Vec<RelayStatistics>>, Problem> {
    let StatisticsQuery { relays, include_inactive, delay } = query;
    let named = relays.clone();
    app.call(move |daemon| named.iter().try_for_each(|id| daemon.relay(*id).map(drop))).await?;
    let sample = || {
        let relays = relays.clone();
        app.call(move |daemon| Ok((Instant::now(), daemon.statistics(&relays, include_inactive)?)))
    };
    let (start, first) = sample().await?;
    if delay.is_zero() {
        return Ok(Json(first));
    }
    sleep(delay).await;
    let (end, mut second) = sample().await?;
    fill_rates(&mut second, &first, end - start);
    Ok(Json(second))
}

/// What the workers do with their CPUs
#[utoipa::path(
    get,
    path = "/v1/workers",
    responses((status = 200, description = "Workers, in order of their CPUs", body = Vec<Worker>)),
)]
async fn workers(State(app): State<App>) -> Result<Json<Vec<Worker>>, Problem> {
    app.call(|daemon| daemon.workers()).await.map(Json)
}

/// Who answers
#[utoipa::path(get, path = "/v1/version", responses((status = 200, description = "Name and version", body = Version)))]
async fn version(State(app): State<App>) -> Result<Json<Version>, Problem> {
    app.call(|daemon| daemon.version()).await.map(Json)
}

/// Everything for Prometheus
#[utoipa::path(
    get,
    path = "/metrics",
    responses((status = 200, description = "OpenMetrics text", body = String,
        content_type = "application/openmetrics-text")),
)]
async fn metrics_text(State(app): State<App>) -> Result<impl IntoResponse, Problem> {
    let text = app.call(|daemon| daemon.metrics_text()).await?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}

/// This description
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, description = "OpenAPI", body = Object)))]
async fn openapi_json() -> Json<&'static utoipa::openapi::OpenApi> {
    Json(openapi())
}
