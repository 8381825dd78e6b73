//! The command line. Whatever the name and the spelling, it comes down to one [`Verb`](verb::Verb) and one
//! [`Style`](report::Style) of telling the outcome.
//!
//! ```text
//!   port_control add …                     native ──┐
//!   virtioforwarder_port_control.py add …  compatible ├─▶ Verb ──▶ Client ──▶ Outcome ──▶ report (Style)
//!   virtioforwarder_stats.py …             compatible ┘
//!   port_control doctor …                  native ──▶ HostVerb, on this machine
//! ```

mod compatible;
mod configured;
mod host;
mod legacy_text;
mod native;
mod python_float;
mod report;
mod table;
mod verb;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::client::Client;
use host::HostVerb;
use report::Style;
use verb::Verb;

/// What the words on the command line mean.
enum Invocation {
    /// Something is asked of the daemon.
    Daemon { socket: PathBuf, verb: Verb, style: Style },
    /// Something is asked of this machine; the daemon's socket, and whether to print JSON.
    Host { socket: PathBuf, verb: HostVerb, json: bool },
    /// A script for a shell.
    Completions(Vec<u8>),
}

/// What follows from words that ask for nothing to be done.
enum Refusal {
    /// `--help`, `--version`, wrong usage: clap knows what to print and where. Exits 0 or 2.
    Usage(clap::Error),
    /// Understood but not possible: the reason. Exits 1.
    Reason(String, Style),
}

impl From<clap::Error> for Refusal {
    fn from(error: clap::Error) -> Self {
        Self::Usage(error)
    }
}

/// Runs the tool whose name and arguments are `args`.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let name = args.first().map(Path::new).and_then(Path::file_name).and_then(OsStr::to_str);
    let invocation = match name {
        Some("virtioforwarder_port_control.py") => compatible::port_control(&args),
        Some("virtioforwarder_stats.py") => compatible::statistics(&args),
        Some(
            name @ ("virtioforwarder_core_pinner.py"
            | "virtioforwarder_monitor_load.py"
            | "virtioforwarder_config.py"),
        ) => Err(Refusal::Reason(format!("{name} is not available in this version"), Style::Compatible)),
        _ => native::parse(&args),
    };
    match invocation {
        Ok(Invocation::Daemon { socket, verb, style }) => style.report(verb.run(&Client::new(socket))),
        Ok(Invocation::Host { socket, verb, json }) => host::run(verb, &socket, json),
        Ok(Invocation::Completions(script)) => match io::stdout().write_all(&script) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
            _ => ExitCode::SUCCESS,
        },
        Err(Refusal::Usage(error)) => {
            // Nothing can be done if the terminal is gone.
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { 2 } else { 0 })
        }
        Err(Refusal::Reason(reason, style)) => style.report(Err(verb::Failure::Impossible(reason))),
    }
}
