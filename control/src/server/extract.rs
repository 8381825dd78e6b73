//! What handlers take from a request. Every refusal is a problem.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::reply::invalid;
use super::routes::App;
use super::sampling::LONGEST_DELAY;
use crate::api::{Problem, ProblemCode, shown};

/// The relay in the path.
pub(super) struct RelayId(pub(super) u32);

impl<S: Send + Sync> FromRequestParts<S> for RelayId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| invalid(rejection.body_text()))?;
        text.parse()
            .map(Self)
            .map_err(|_| invalid(format!("'{}' is no relay id: a number is expected", shown(&text))))
    }
}

/// A request about a device: as JSON in the body, or as query parameters, whichever is handier. `curl -d` labels its
/// body as a form whatever it is, so the label is not looked at.
pub(super) struct Command<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<App> for Command<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &App) -> Result<Self, Problem> {
        let uri = request.uri().clone();
        let body = body(request, state).await?;
        let queried = uri.query().is_some_and(|query| !query.is_empty());
        match (body.is_empty(), queried) {
            (false, true) => Err(invalid("give the device in the body or as query parameters, not in both")),
            (false, false) if body.trim_ascii_start().first() != Some(&b'{') => {
                Err(invalid(r#"the body must be a JSON object, as in {"device": "null"}"#))
            }
            (false, false) => serde_json::from_slice(&body).map(Self).map_err(|e| invalid(e.to_string())),
            (true, _) => Query::try_from_uri(&uri)
                .map(|Query(command)| Self(command))
                .map_err(|rejection| invalid(rejection.body_text())),
        }
    }
}

async fn body(request: Request, state: &App) -> Result<Bytes, Problem> {
    let (limit, longest) = (state.request_time, state.longest_body);
    let body = tokio::time::timeout(limit, Bytes::from_request(request, state)).await.map_err(|_| {
        Problem::new(
            ProblemCode::RequestTimeout,
            format!("the request did not arrive within {} s", limit.as_secs_f32()),
        )
    })?;
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            ProblemCode::PayloadTooLarge,
            format!("the body is longer than the {longest} bytes that are taken"),
        ),
        _ => invalid(rejection.body_text()),
    })
}

/// What statistics are asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StatisticsQuery {
    /// These relays; all if empty.
    pub(super) relays: Vec<u32>,
    /// Those too that carry nothing.
    pub(super) include_inactive: bool,
    /// Time over which rates are measured; zero: none.
    pub(super) delay: Duration,
}

impl<S: Send + Sync> FromRequestParts<S> for StatisticsQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|rejection| invalid(rejection.body_text()))?;
        Self::from_pairs(&pairs)
    }
}

impl StatisticsQuery {
    fn from_pairs(pairs: &[(String, String)]) -> Result<Self, Problem> {
        let mut query = Self { relays: Vec::new(), include_inactive: true, delay: Duration::ZERO };
        for (key, value) in pairs {
            let wrong = |expected: &str| {
                invalid(format!("'{}={}': {expected} is expected", shown(key), shown(value)))
            };
            match key.as_str() {
                "relay" => {
                    for id in value.split(',') {
                        query.relays.push(id.parse().map_err(|_| wrong("a relay id"))?);
                    }
                }
                "include_inactive" => {
                    query.include_inactive = value.parse().map_err(|_| wrong("true or false"))?;
                }
                "delay_ms" => {
                    let milliseconds = value.parse().map_err(|_| wrong("a number of milliseconds"))?;
                    query.delay = Duration::from_millis(milliseconds).min(LONGEST_DELAY);
                }
                _ => {
                    return Err(invalid(format!(
                        "unknown parameter '{}', expected one of relay, include_inactive, delay_ms",
                        shown(key)
                    )));
                }
            }
        }
        Ok(query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<StatisticsQuery, Problem> {
        let uri = format!("http://localhost/v1/statistics?{query}").parse().unwrap();
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&uri).unwrap();
        StatisticsQuery::from_pairs(&pairs)
    }

    #[test]
    fn statistics_are_asked_for_by_relay_and_time() {
        let query = parse("relay=1&relay=2,3&include_inactive=false&delay_ms=200").unwrap();
        assert_eq!(query.relays, [1, 2, 3]);
        assert!(!query.include_inactive);
        assert_eq!(query.delay, Duration::from_millis(200));
        assert_eq!(parse("delay_ms=99999999999").unwrap().delay, LONGEST_DELAY);
    }

    #[test]
    fn mistakes_in_queries_are_named() {
        for (query, names) in
            [("relay=x", "'relay=x'"), ("delay_ms=-1", "milliseconds"), ("dealy=1", "'dealy'")]
        {
            let problem = parse(query).unwrap_err();
            assert!(problem.detail.contains(names), "{}", problem.detail);
        }
    }
}
