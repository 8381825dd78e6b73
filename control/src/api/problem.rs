//! What went wrong: RFC 9457 problem details with stable codes.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

use super::legacy::{LegacyError, Operation};

macro_rules! problem_codes {
    ($($(#[$doc:meta])* $variant:ident = $status:literal $title:literal,)*) => {
        /// The stable name of a cause. Programs may depend on it; texts may change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum ProblemCode {
            $($(#[$doc])* $variant,)*
            /// A code of a newer daemon.
            #[serde(other)]
            Unknown,
        }

        impl ProblemCode {
            /// HTTP status.
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* Self::Unknown => 500 }
            }

            /// The cause in a few words, the same each time.
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* Self::Unknown => "Unknown problem" }
            }
        }
    };
}

problem_codes! {
    /// No relay has this id.
    RelayNotFound = 404 "No such relay",
    /// The relay has a device already.
    RelayOccupied = 409 "The relay has a device",
    /// There is no such device on this machine.
    DeviceNotFound = 404 "No such device",
    /// The device is there but not usable as it is: wrong driver, group not viable, no permission.
    DeviceNotReady = 409 "The device is not ready for use",
    /// No driver here knows the device.
    DeviceUnsupported = 422 "The device is not supported",
    /// Another relay or another program has the device.
    DeviceInUse = 409 "The device is in use",
    /// The device did not answer, or answered wrongly.
    DeviceFailed = 500 "The device failed",
    /// Memory for the device could not be had.
    OutOfMemory = 500 "Out of memory",
    /// The relay has another device than the one named.
    DeviceMismatch = 409 "The relay has another device",
    /// The relay has no device.
    NoDevice = 409 "The relay has no device",
    /// The device was not released in time.
    ReleaseTimeout = 504 "The device was not released in time",
    /// The device is just being added or removed.
    DeviceBusy = 409 "The device is being added or removed",
    /// The request is not understood.
    InvalidRequest = 400 "The request is not understood",
    /// No such path.
    NotFound = 404 "No such resource",
    /// The path does not know this method.
    MethodNotAllowed = 405 "Method not allowed",
    /// The request took too long to arrive.
    RequestTimeout = 408 "The request took too long to arrive",
    /// The body is too long.
    PayloadTooLarge = 413 "The request is too long",
    /// The peer is neither root nor the daemon's user nor of the control group.
    PermissionDenied = 403 "Permission denied",
    /// Too many connections, or the daemon is stopping.
    Unavailable = 503 "Not available now",
    /// A bug in the daemon.
    Internal = 500 "Internal error",
}

/// Why a request failed: a stable code, the cause as a sentence, and what to do.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
#[error("{detail}")]
#[serde(from = "ProblemDocument", into = "ProblemDocument")]
pub struct Problem {
    /// The stable name of the cause.
    pub code: ProblemCode,
    /// The cause: names the thing and what is wrong with it.
    pub detail: String,
    /// What to do about it, if that is known.
    pub remedy: Option<String>,
    /// The C daemon's number for it. The server fills it in for adding and removing.
    pub legacy: Option<LegacyError>,
}

impl Problem {
    /// A problem without a remedy, but where its code says all that there is to do.
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        let remedy = (code == ProblemCode::DeviceBusy).then(|| "try again in a second".to_owned());
        Self { code, detail: detail.into(), remedy, legacy: None }
    }

    /// Says what to do.
    pub fn with_remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }

    /// Relay `id` is not one of the `relays` that there are.
    pub fn no_relay(id: u32, relays: u32) -> Self {
        let detail =
            format!("there is no relay {id}; relays are numbered from 0 to {}", relays.saturating_sub(1));
        Self::new(ProblemCode::RelayNotFound, detail)
            .with_remedy("choose an id in this range, or start the daemon with more --relays")
    }

    /// Adds the C daemon's number for this cause in this operation.
    pub(crate) fn in_operation(self, operation: Operation) -> Self {
        let legacy = operation.legacy(self.code);
        Self { legacy, ..self }
    }
}

/// A [`Problem`] on the wire (`application/problem+json`).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProblemDocument {
    /// Always `about:blank`: `code` says what it is.
    #[serde(rename = "type", default = "about_blank")]
    pub kind: Cow<'static, str>,
    /// The cause in a few words.
    #[serde(default)]
    pub title: Cow<'static, str>,
    /// HTTP status.
    #[serde(default)]
    pub status: u16,
    /// The cause as a sentence.
    pub detail: String,
    /// The stable name of the cause.
    pub code: ProblemCode,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Number of the error in the C daemon, where it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<i32>,
    /// Function of the C daemon that `error_code` came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code_source: Option<Cow<'static, str>>,
}

fn about_blank() -> Cow<'static, str> {
    Cow::Borrowed("about:blank")
}

impl From<Problem> for ProblemDocument {
    fn from(problem: Problem) -> Self {
        let (error_code, error_code_source) = problem.legacy.map(|l| (l.code, l.source)).unzip();
        Self {
            kind: about_blank(),
            title: Cow::Borrowed(problem.code.title()),
            status: problem.code.status(),
            detail: problem.detail,
            code: problem.code,
            remedy: problem.remedy,
            error_code,
            error_code_source,
        }
    }
}

impl From<ProblemDocument> for Problem {
    fn from(document: ProblemDocument) -> Self {
        let legacy = document
            .error_code
            .map(|code| LegacyError { code, source: document.error_code_source.unwrap_or_default() });
        Self { code: document.code, detail: document.detail, remedy: document.remedy, legacy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_survives_the_wire() {
        let problem = Problem::new(ProblemCode::RelayOccupied, "relay 1 has 0000:02:08.0")
            .with_remedy("remove it first")
            .in_operation(Operation::Add);
        let text = serde_json::to_string(&problem).unwrap();
        assert!(text.contains(r#""status":409"#) && text.contains(r#""code":"relay_occupied""#), "{text}");
        assert!(
            text.contains(r#""error_code":8,"error_code_source":"virtio_forwarder_add_vf2()""#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Problem>(&text).unwrap(), problem);
    }

    #[test]
    fn a_busy_device_is_to_be_tried_again() {
        for (operation, number) in [(Operation::Add, 4), (Operation::Remove, 5)] {
            let problem = Problem::new(ProblemCode::DeviceBusy, "x").in_operation(operation);
            assert_eq!((problem.code.status(), problem.legacy.unwrap().code), (409, number));
            assert_eq!(problem.remedy.as_deref(), Some("try again in a second"));
        }
    }

    #[test]
    fn codes_of_a_newer_daemon_are_read() {
        let problem: Problem = serde_json::from_str(r#"{"detail":"x","code":"brand_new"}"#).unwrap();
        assert_eq!(problem.code, ProblemCode::Unknown);
    }
}
