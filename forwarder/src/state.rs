//! What outlives the daemon: a folder `state` beside the control socket, with a small file for each VM: `relay-N`, and
//! `relay-N-far` at the other end of a cable.
//!
//! It holds how far the guest's packed rings are, which those do not show by themselves. A daemon that was killed and
//! started again finds there where to go on. The folder belongs to the daemon's user alone.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use relay::guest::positions::Positions;

/// The folder; without it (the default), rings of a daemon that died are taken up where their front end says.
#[derive(Debug, Default)]
pub struct State {
    folder: Option<PathBuf>,
}

impl State {
    /// Opens the folder beside `control_socket`, or makes it.
    pub fn beside(control_socket: &Path) -> Self {
        let folder = control_socket.parent().unwrap_or(Path::new("/")).join("state");
        let folder = match prepare(&folder) {
            Ok(()) => Some(folder),
            Err(error) => {
                tracing::warn!(
                    "cannot use {}: {error}; after a crash, VMs with packed rings need their NIC reset",
                    folder.display()
                );
                None
            }
        };
        Self { folder }
    }

    /// The file of relay `id`.
    pub fn positions(&self, id: u32) -> Option<Positions> {
        self.open(&format!("relay-{id}"))
    }

    /// The file of the VM at the other end of the cable of relay `id`.
    pub fn far_positions(&self, id: u32) -> Option<Positions> {
        self.open(&format!("relay-{id}-far"))
    }

    fn open(&self, name: &str) -> Option<Positions> {
        let path = self.folder.as_ref()?.join(name);
        Positions::open(&path)
            .inspect_err(|error| tracing::warn!("cannot use {}: {error}", path.display()))
            .ok()
    }
}

fn prepare(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(folder)?;
    let ours =
        found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0;
    if ours {
        Ok(())
    } else {
        Err(io::Error::other("it is not a folder that only the daemon's user can change"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_that_others_can_change_is_not_used() {
        let outer = tempfile::tempdir().unwrap();
        let socket = outer.path().join("control.sock");
        assert!(State::beside(&socket).positions(3).is_some());
        assert!(outer.path().join("state/relay-3").is_file());
        assert!(State::beside(&socket).far_positions(3).is_some());
        assert!(outer.path().join("state/relay-3-far").is_file());
        let state = State::beside(&socket);
        let held = state.positions(3);
        assert!(held.is_some() && state.positions(3).is_none(), "one daemon has it");
        fs::set_permissions(outer.path().join("state"), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(State::beside(&socket).positions(4).is_none());
        assert!(State::beside(Path::new("/proc/none/control.sock")).positions(0).is_none());
    }
}
