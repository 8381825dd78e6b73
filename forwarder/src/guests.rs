//! How VMs are served: who owns their sockets, what they are offered, and where it is kept how far their rings are.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use pmd::DeviceError;
use relay::guest::endpoint::Endpoint;
use relay::guest::features::GuestOptions;
use relay::guest::socket::{SocketError, SocketOwner, check_directory, listen};
use relay::relay::Reservation;

use crate::config::Config;
use crate::state::State;

/// What holds for VMs of all relays, and what of one relay for the VMs at either end of it.
#[derive(Debug, Default)]
pub struct Guests {
    owner: SocketOwner,
    /// By relay.
    options: Vec<GuestOptions>,
    state: State,
}

impl Guests {
    /// As configured.
    pub fn new(config: &Config) -> Self {
        let options = |id| GuestOptions {
            mergeable: config.guest.mergeable_buffers,
            segmentation: config.guest.segmentation,
            udp_segmentation: false,
            mtu: config.mtu(id),
        };
        Self {
            owner: SocketOwner { user: config.sockets.owner, group: config.sockets.group },
            options: (0..config.relays).map(options).collect(),
            state: State::beside(&config.control.socket),
        }
    }

    /// Who owns the sockets.
    pub fn owner(&self) -> SocketOwner {
        self.owner
    }

    /// What the VMs of relay `id` are offered.
    pub fn options(&self, id: u32) -> GuestOptions {
        self.options.get(id as usize).copied().unwrap_or_default()
    }

    /// Where it is kept how far the rings of its VMs are.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Listens for the VM at the other end of a cable.
    pub fn listen_far(&self, path: &Path) -> Result<UnixListener, DeviceError> {
        let directory = match path.parent() {
            Some(directory) if path.is_absolute() && path.file_name().is_some() => directory,
            _ => {
                let path = path.display();
                return Err(DeviceError::NotReady(format!(
                    "vhost-user:{path}: give the whole path of the socket, from the root: vhost-user:/DIRECTORY/NAME"
                )));
            }
        };
        let refused = |error: SocketError| match error {
            SocketError::InUse(_) => DeviceError::Busy(error.to_string()),
            SocketError::System { ref cause, .. } if cause.kind() == io::ErrorKind::NotFound => {
                DeviceError::NotReady(format!("{error}: make its directory first"))
            }
            error => DeviceError::NotReady(error.to_string()),
        };
        check_directory(directory, self.owner).map_err(refused)?;
        listen(path, self.owner).map_err(refused)
    }

    /// Puts a cable into relay `id` that leads to the VM which connects to `listener`, at `path`. It is offered what the
    /// relay's own VM is.
    pub fn serve_far(
        &self,
        id: u32,
        reservation: Reservation,
        listener: UnixListener,
        path: &Path,
    ) -> io::Result<()> {
        let (options, positions) = (self.options(id), self.state.far_positions(id));
        reservation.attach_guest(|port| Endpoint::start(port, listener, path, options, positions))
    }
}

/// Whether two paths name one socket, by whatever way they lead to its directory.
pub fn same_socket(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| -> Option<(PathBuf, PathBuf)> {
        Some((path.parent()?.canonicalize().ok()?, path.file_name()?.into()))
    };
    one == other || place(one).is_some_and(|one| Some(one) == place(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_the_same_by_every_way_to_it() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(folder.path(), folder.path().join("link")).unwrap();
        let path = |end: &str| folder.path().join(end);
        assert!(same_socket(&path("a"), &path("link/./a")));
        assert!(!same_socket(&path("a"), &path("b")));
        assert!(!same_socket(&path("none/a"), &path("other/a")));
    }

    #[test]
    fn a_cable_needs_a_whole_path_in_a_directory_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let guests = Guests::default();
        let refused = |path: &Path| guests.listen_far(path).unwrap_err().to_string();
        assert!(refused(Path::new("a.sock")).contains("whole path"));
        assert!(refused(Path::new("/")).contains("whole path"));
        assert!(refused(&folder.path().join("none/a.sock")).contains("make its directory"));
        let path = folder.path().join("a.sock");
        let _listener = guests.listen_far(&path).unwrap();
        assert!(matches!(guests.listen_far(&path), Err(DeviceError::Busy(_))));
    }
}
