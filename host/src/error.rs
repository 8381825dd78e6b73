//! Why something was not done.

use std::io;
use std::path::Path;

use thiserror::Error;

/// A sentence that names the thing, the cause and the remedy.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum HostError {
    /// It was looked at and refused; nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// The kernel did not do it; the sentence says what has become of it.
    #[error("{0}")]
    Failed(String),
}

impl HostError {
    pub(crate) fn refused<T>(sentence: impl Into<String>) -> Result<T, Self> {
        Err(Self::Refused(sentence.into()))
    }

    /// A file that could not be written.
    pub(crate) fn writing(file: &Path, cause: &io::Error) -> Self {
        let remedy = match cause.kind() {
            io::ErrorKind::ReadOnlyFilesystem if !file.components().any(|part| part.as_os_str() == "sys") => {
                "; the file system is mounted read-only: run this on the host, or mount -o remount,rw the file system"
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                "; sysfs is mounted read-only, as in most containers: run this on the host, or mount -o remount,rw /sys"
            }
            io::ErrorKind::PermissionDenied => {
                "; become root (sudo); in a container give it the host's /sys and CAP_SYS_ADMIN; under Secure Boot the \
                 kernel may be locked down: cat /sys/kernel/security/lockdown"
            }
            _ => "; dmesg may say why",
        };
        Self::Failed(format!("cannot write to {}: {cause}{remedy}", file.display()))
    }
}
