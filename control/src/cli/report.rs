//! Telling the outcome: to people, to programs, and as the C tools did.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use super::verb::{Failure, Outcome};
use super::{legacy_text, table};
use crate::api::{PciAddress, Problem, ProblemDocument, Relay};
use crate::client::ClientError;

/// How to tell it.
#[derive(Clone, Copy)]
pub(super) enum Style {
    /// Tables and sentences; causes on stderr.
    Native,
    /// JSON on stdout; causes on stderr, too.
    Json,
    /// The C daemon's port control.
    Compatible,
    /// The C daemon's statistics, one `key=value` a line.
    Flat { suppress_zero: bool },
    /// The C daemon's statistics in the text format of Protocol Buffers.
    Protobuf,
}

/// What is to be printed where.
#[derive(Default)]
struct Printed {
    stdout: String,
    stderr: String,
}

impl Style {
    /// Prints the outcome, and gives the exit code that belongs to it.
    pub(super) fn report(self, result: Result<Outcome, Failure>) -> ExitCode {
        let (printed, code) = match result {
            Ok(outcome) => (Printed { stdout: self.success(&outcome), stderr: String::new() }, 0),
            Err(failure) => (self.failure(&failure), 1),
        };
        // A reader that has seen enough (`| head`) is no error; a full disk is.
        let written = io::stdout().write_all(printed.stdout.as_bytes()).and_then(|()| io::stdout().flush());
        // If even stderr is gone, there is nobody to tell.
        let _ = io::stderr().write_all(printed.stderr.as_bytes());
        match written {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::from(1),
            _ => ExitCode::from(code),
        }
    }

    fn success(self, outcome: &Outcome) -> String {
        match (self, outcome) {
            (Self::Json, outcome) => json_success(outcome),
            (_, Outcome::Changed(_)) => "status: OK\n".to_owned(),
            (Self::Compatible, Outcome::Device(device)) => {
                format!("{}\n", capital_address(device.as_deref().unwrap_or_default()))
            }
            (_, Outcome::Device(device)) => format!("{}\n", device.as_deref().unwrap_or_default()),
            (_, Outcome::Relays(relays)) => table::relays(relays),
            (Self::Flat { suppress_zero }, Outcome::Statistics { relays, .. }) => {
                legacy_text::flat(relays, suppress_zero)
            }
            (Self::Protobuf, Outcome::Statistics { relays, .. }) => legacy_text::protobuf(relays),
            (_, Outcome::Statistics { relays, named }) => table::statistics(relays, named),
        }
    }

    fn failure(self, failure: &Failure) -> Printed {
        let problem = match failure {
            Failure::Client(ClientError::Problem(problem)) => Some(&**problem),
            _ => None,
        };
        match self {
            Self::Native => {
                Printed { stdout: "status: ERROR\n".to_owned(), stderr: sentence(failure, problem) }
            }
            Self::Json => {
                Printed { stdout: json_failure(failure, problem), stderr: sentence(failure, problem) }
            }
            // Scripts read stdout, and get there what they always got, byte for byte. The cause goes to people.
            Self::Compatible | Self::Flat { .. } | Self::Protobuf => {
                let legacy = problem.and_then(|problem| problem.legacy.as_ref());
                let mut stdout = "status: ERROR\n".to_owned();
                if let Some(legacy) = legacy {
                    stdout.push_str(&format!(
                        "error_code: {}\nerror_code_source: \"{}\"\n",
                        legacy.code, legacy.source
                    ));
                }
                stdout.push('\n');
                Printed { stdout, stderr: sentence(failure, problem) }
            }
        }
    }
}

/// The C daemon wrote PCI addresses with capital letters; names of software devices are what they are.
fn capital_address(device: &str) -> String {
    if device.parse::<PciAddress>().is_ok() { device.to_uppercase() } else { device.to_owned() }
}

fn sentence(failure: &Failure, problem: Option<&Problem>) -> String {
    let Some(problem) = problem else { return format!("error: {failure}\n") };
    let code = code_name(problem);
    let number = problem.legacy.as_ref().map(|legacy| format!(" {}", legacy.code)).unwrap_or_default();
    let remedy = problem.remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default();
    format!("error{number} ({code}): {problem}{remedy}\n")
}

fn code_name(problem: &Problem) -> String {
    let name = serde_json::to_value(problem.code).ok();
    name.as_ref().and_then(|name| name.as_str()).unwrap_or("unknown").to_owned()
}

/// JSON of what a verb did.
#[derive(Serialize)]
#[serde(tag = "status")]
enum JsonStatus<'a> {
    #[serde(rename = "OK")]
    Changed { relay: &'a Relay },
    #[serde(rename = "OK")]
    Device { device: Option<&'a str> },
    #[serde(rename = "ERROR")]
    Problem { problem: ProblemDocument },
    #[serde(rename = "ERROR")]
    Failure { detail: String },
}

fn json_success(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Changed(relay) => json(&JsonStatus::Changed { relay }),
        Outcome::Device(device) => json(&JsonStatus::Device { device: device.as_deref() }),
        Outcome::Relays(relays) => json(relays),
        Outcome::Statistics { relays, .. } => json(relays),
    }
}

fn json_failure(failure: &Failure, problem: Option<&Problem>) -> String {
    json(&match problem {
        Some(problem) => JsonStatus::Problem { problem: problem.clone().into() },
        None => JsonStatus::Failure { detail: failure.to_string() },
    })
}

pub(super) fn json(value: &impl Serialize) -> String {
    // Our types always serialise.
    serde_json::to_string_pretty(value).map(|text| text + "\n").unwrap_or_default()
}
