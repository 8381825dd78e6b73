//! Serves two models of a NIC over vfio-user, joined by a wire, to a QEMU: `serve_model NAME SOCKET SOCKET [OPTION]...`
//!
//! Options are the model's own words. Lines of the standard input are commands to a model, such as `0 link down`. It ends
//! when QEMU has left both sockets: with 0 when the drivers did nothing that they must not.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use models::ena::{self, Ena};
use models::iavf::{self, Iavf};
use models::igbvf::{self, Igbvf};
use models::ixgbevf::{self, Ixgbevf};
use models::nfp::{self, Nfp};
use models::served::{Totals, serve_pair};
use models::virtio::{self, VirtioNet};

/// Brings to the standard error what the protocol's crate has to complain of.
struct Complaints;

impl log::Log for Complaints {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("vfio-user: {}", record.args());
        }
    }

    fn flush(&self) {}
}

/// Serves the models of this name; `None` where there are none, or not with these options. A line a model:
/// `"NAME" => Some(serve_pair(sockets, name::pair(options)?, Name::command))`.
fn serve(name: &str, sockets: [&Path; 2], options: &[&str]) -> Option<io::Result<[Totals; 2]>> {
    match name {
        "igbvf" => Some(serve_pair(sockets, igbvf::pair(options)?, Igbvf::command)),
        "ixgbevf" => Some(serve_pair(sockets, ixgbevf::pair(options)?, Ixgbevf::command)),
        "ena" => Some(serve_pair(sockets, ena::pair(options)?, Ena::command)),
        "nfp" => Some(serve_pair(sockets, nfp::pair(options)?, Nfp::command)),
        "iavf" => Some(serve_pair(sockets, iavf::pair(options)?, Iavf::command)),
        "virtio" => Some(serve_pair(sockets, virtio::pair(options)?, VirtioNet::command)),
        _ => None,
    }
}

fn main() -> ExitCode {
    if log::set_logger(&Complaints).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [name, first, second, options @ ..] = words.as_slice() else {
        eprintln!("usage: serve_model NAME SOCKET SOCKET [OPTION]...");
        return ExitCode::from(2);
    };
    match serve(name, [Path::new(first), Path::new(second)], options) {
        None => {
            eprintln!("there is no model {name} with the options {options:?}");
            ExitCode::from(2)
        }
        Some(Err(error)) => {
            eprintln!("cannot serve {name}: {error}");
            ExitCode::from(2)
        }
        Some(Ok(totals)) => {
            totals.iter().enumerate().for_each(|(number, totals)| println!("{number}: {totals}"));
            let faults = totals.iter().map(|totals| totals.faults).sum::<u64>();
            if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    }
}
