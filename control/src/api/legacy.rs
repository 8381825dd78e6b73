//! The numeric error codes of the C daemon, for clients that look at them.

use std::borrow::Cow;

use super::problem::ProblemCode;

/// Number and source function of an error, as the C daemon gave them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyError {
    /// `error_code`.
    pub code: i32,
    /// `error_code_source`: a C function name and `()`.
    pub source: Cow<'static, str>,
}

/// The calls that have numeric errors; the same cause has another number in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Adding a device.
    Add,
    /// Removing a device.
    Remove,
}

impl Operation {
    /// What the C daemon said for `code`; `None` where it had no number (requests that are wrong in themselves).
    pub fn legacy(self, code: ProblemCode) -> Option<LegacyError> {
        let (source, number) = match self {
            Self::Add => ("virtio_forwarder_add_vf2()", add(code)?),
            Self::Remove => ("virtio_forwarder_remove_vf2()", remove(code)?),
        };
        Some(LegacyError { code: number, source: Cow::Borrowed(source) })
    }
}

fn add(code: ProblemCode) -> Option<i32> {
    match code {
        ProblemCode::RelayNotFound => Some(1),
        ProblemCode::DeviceNotFound | ProblemCode::DeviceNotReady | ProblemCode::DeviceUnsupported => Some(2),
        ProblemCode::DeviceInUse | ProblemCode::DeviceFailed | ProblemCode::DeviceBusy => Some(4),
        ProblemCode::RelayOccupied => Some(8),
        ProblemCode::OutOfMemory => Some(-1),
        _ => None,
    }
}

fn remove(code: ProblemCode) -> Option<i32> {
    match code {
        ProblemCode::RelayNotFound => Some(1),
        ProblemCode::DeviceFailed => Some(2),
        ProblemCode::DeviceMismatch => Some(3),
        ProblemCode::NoDevice => Some(4),
        ProblemCode::ReleaseTimeout | ProblemCode::DeviceBusy => Some(5),
        _ => None,
    }
}
