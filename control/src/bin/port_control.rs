#![forbid(unsafe_code)]
//! `port_control`: adds devices to relays, removes them, and shows what the relays do.

use std::process::ExitCode;

fn main() -> ExitCode {
    control::cli::main(std::env::args_os())
}
