//! From the name of a device to the device.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use control::api::{DeviceSpec, Problem, ProblemCode};
use pmd::{Device, DeviceError, VfOptions};

use crate::guests::Guests;

/// What stands at the outside end of a relay.
#[derive(Debug)]
pub enum Opened {
    /// A device with queues.
    Device(Box<dyn Device>),
    /// The guest's frames come back to it.
    Loopback,
    /// Another guest, which will connect to this socket.
    Guest(UnixListener, PathBuf),
}

/// Opens a device; may take seconds where hardware is slow to answer.
pub fn open(spec: &DeviceSpec, options: &VfOptions, guests: &Guests) -> Result<Opened, DeviceError> {
    match spec {
        DeviceSpec::Vf(address) => {
            // One spelling of the same address for the other.
            let parsed = address.to_string().parse::<pmd::Address>();
            let address = parsed.map_err(|error| DeviceError::Unsupported(error.to_string()))?;
            pmd::open_vf(address, options).map(Opened::Device)
        }
        DeviceSpec::Loopback => Ok(Opened::Loopback),
        DeviceSpec::VhostUser(path) => {
            guests.listen_far(path).map(|listener| Opened::Guest(listener, path.clone()))
        }
        DeviceSpec::Null => Ok(Opened::Device(Box::new(pmd::software::null::Null::new()))),
        DeviceSpec::Tap(name) => Ok(Opened::Device(Box::new(pmd::software::tap::Tap::open(name)?))),
        DeviceSpec::Packet(name) => Ok(Opened::Device(Box::new(pmd::software::packet::Packet::open(name)?))),
        DeviceSpec::Pcap(path) => Ok(Opened::Device(Box::new(pmd::software::pcap::Pcap::open(path)?))),
    }
}

/// The problem that a client is told.
pub fn problem(error: &DeviceError) -> Problem {
    let code = match error {
        DeviceError::NotFound(_) => ProblemCode::DeviceNotFound,
        DeviceError::NotReady(_) => ProblemCode::DeviceNotReady,
        DeviceError::Busy(_) => ProblemCode::DeviceInUse,
        DeviceError::Unsupported(_) => ProblemCode::DeviceUnsupported,
        DeviceError::Failed(_) => ProblemCode::DeviceFailed,
    };
    Problem::new(code, error.to_string())
}
