#![forbid(unsafe_code)]
//! `virtio-forwarder`: the daemon, and its demonstration.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use forwarder::config::{Command, CommandLine, Config, Locations, LogLevel, Machine, Options};
use tracing_subscriber::EnvFilter;

/// `EX_CONFIG` of `sysexits.h`: to start again does not help.
const CONFIGURATION: u8 = 78;

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    let result = match &command_line.command {
        Some(Command::Demo { seconds }) => demo(Duration::from_secs(*seconds)),
        Some(Command::Config { options }) => prepared(options, |config| {
            print((serde_json::to_string_pretty(&config.summary())? + "\n").as_bytes())
        }),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut CommandLine::command(), "virtio-forwarder", &mut script);
            print(&script)
        }
        Some(Command::Bind { options }) => prepared(options, |config| {
            let failures = forwarder::service::bind(config);
            Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }),
        None => prepared(&command_line.options, |config| {
            forwarder::service::run(config)?;
            Ok(ExitCode::SUCCESS)
        }),
    };
    result.unwrap_or_else(|error| {
        eprintln!("virtio-forwarder: {error:#}");
        ExitCode::FAILURE
    })
}

/// A reader that has seen enough (`| head`) is no error; a full disk is.
fn print(text: &[u8]) -> anyhow::Result<ExitCode> {
    match std::io::stdout().write_all(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn demo(time: Duration) -> anyhow::Result<ExitCode> {
    let machine = Machine::this();
    // The last CPU: the guest gets the others.
    let cpu = machine.allowed.iter().next_back().copied().unwrap_or_default();
    let summary = forwarder::demo::run(time, cpu)?;
    Ok(if summary.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads the configuration, opens the log, and goes on.
fn prepared(
    options: &Options,
    go_on: impl FnOnce(&Config) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let loaded = Config::load(options, &Locations::default(), &Machine::this());
    let (config, notices) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            // There is no log yet.
            for notice in &error.notices {
                eprintln!("virtio-forwarder: {notice}");
            }
            eprintln!("virtio-forwarder: {error}");
            return Ok(ExitCode::from(CONFIGURATION));
        }
    };
    open_log(config.log_level);
    for notice in notices {
        notice.log();
    }
    go_on(&config)
}

/// The log goes to standard error, where systemd takes it up; it adds the time itself. `RUST_LOG` goes before the level.
fn open_log(level: LogLevel) {
    let filter = EnvFilter::builder().with_default_directive(level.filter().into()).from_env_lossy();
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(level.number() >= 7);
    if journal { log.without_time().init() } else { log.init() }
}
