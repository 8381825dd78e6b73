//! Replies: JSON that people can read, and problems.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::api::{Problem, ProblemCode, shortened};

/// Bytes of a reason; it may repeat what came with the request.
const LONGEST_REASON: usize = 300;

/// A JSON reply, indented and with a newline at its end, because people read it in terminals.
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        json(StatusCode::OK, "application/json", &self.0)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        json(status, "application/problem+json", &self)
    }
}

fn json(status: StatusCode, kind: &'static str, value: &impl Serialize) -> Response {
    match serde_json::to_vec_pretty(value) {
        Ok(mut body) => {
            body.push(b'\n');
            (status, [(header::CONTENT_TYPE, HeaderValue::from_static(kind))], body).into_response()
        }
        // Our types have neither maps with odd keys nor writers that fail.
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The request is not understood, for the reason `detail`.
pub(super) fn invalid(detail: impl AsRef<str>) -> Problem {
    Problem::new(ProblemCode::InvalidRequest, shortened(detail.as_ref(), LONGEST_REASON))
        .with_remedy("GET /openapi.json describes all requests")
}
