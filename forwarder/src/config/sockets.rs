//! Names of the vhost-user sockets.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Bytes of a socket path that the kernel takes.
const LONGEST_PATH: usize = 107;

/// The name of a vhost-user socket, with a place for the relay's number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPattern {
    before: String,
    after: String,
}

impl SocketPattern {
    /// Reads `virtio-forwarder%u.sock`: exactly one `%u`, no `/`.
    pub fn new(text: &str) -> Result<Self, String> {
        let Some((before, after)) = text.split_once("%u") else {
            return Err(format!("'{text}' lacks %u, which stands for the relay's number"));
        };
        if after.contains("%u") {
            return Err(format!("'{text}' has %u more than once"));
        }
        if text.contains('/') {
            return Err(format!("'{text}' has a '/'; the directory is set with --vhost-path"));
        }
        // The names of relays 1 and 10 must not run into each other.
        if after.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(format!("'{text}' has a digit after %u"));
        }
        if text.contains('\0') {
            return Err("a zero byte cannot be in a file name".to_owned());
        }
        Ok(Self { before: before.to_owned(), after: after.to_owned() })
    }

    /// The name for relay `id`.
    pub fn name(&self, id: u32) -> String {
        format!("{}{id}{}", self.before, self.after)
    }

    /// The path for relay `id` in `directory`.
    pub fn path(&self, directory: &Path, id: u32) -> PathBuf {
        directory.join(self.name(id))
    }

    /// Checks that the kernel takes the paths of all relays.
    pub(super) fn check_length(&self, directory: &Path, relays: u32) -> Result<(), String> {
        let longest = self.path(directory, relays.saturating_sub(1));
        let length = longest.as_os_str().as_bytes().len();
        if length <= LONGEST_PATH {
            return Ok(());
        }
        Err(format!(
            "the socket path '{}' has {length} bytes, and the kernel takes {LONGEST_PATH}; choose a shorter --vhost-path \
             or --vhost-socket",
            longest.display()
        ))
    }
}

impl Default for SocketPattern {
    /// `virtio-forwarder%u.sock`.
    fn default() -> Self {
        Self { before: "virtio-forwarder".to_owned(), after: ".sock".to_owned() }
    }
}

impl fmt::Display for SocketPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%u{}", self.before, self.after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_takes_its_place() {
        let pattern = SocketPattern::new("virtio-forwarder%u.sock").unwrap();
        assert_eq!(pattern.path(Path::new("/tmp/x"), 12), Path::new("/tmp/x/virtio-forwarder12.sock"));
        assert_eq!(pattern.to_string(), "virtio-forwarder%u.sock");
        for bad in ["", "vm.sock", "%u%u", "a/%u", "vm%u0", "%d"] {
            assert!(SocketPattern::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_that_the_kernel_refuses_are_found_early() {
        let pattern = SocketPattern::new("%u").unwrap();
        let directory = format!("/{}", "d".repeat(104));
        assert_eq!(pattern.check_length(Path::new(&directory), 10), Ok(()));
        assert!(pattern.check_length(Path::new(&directory), 11).unwrap_err().contains("108 bytes"));
    }
}
