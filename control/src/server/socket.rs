//! The control socket as a file: taking it, guarding it, removing it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::process::geteuid;

use super::BindError;

/// Bytes of a socket path: `sun_path` less the zero at its end.
pub(super) const LONGEST_PATH: usize = 107;

/// The listening socket. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Held as long as we live, so that two daemons starting at once cannot both find the socket abandoned.
    _lock: File,
}

impl ControlSocket {
    pub(super) fn bind(path: &Path, owner: Option<u32>, group: Option<u32>) -> Result<Self, BindError> {
        let length = path.as_os_str().as_bytes().len();
        if length > LONGEST_PATH {
            return Err(BindError::PathTooLong { path: path.to_owned(), length });
        }
        let io = |action| move |cause| BindError::Io { action, path: path.to_owned(), cause };

        let directory = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        make_directory(directory)?;
        check_directory(directory)?;
        let lock = lock(path)?;
        remove_stale(path)?;
        // Between these calls the umask may let others in as far as the peer check, which refuses them.
        let listener = UnixListener::bind(path).map_err(io("listen on the control socket"))?;
        let socket = Self { listener, path: path.to_owned(), _lock: lock };
        socket.listener.set_nonblocking(true).map_err(io("set up the control socket"))?;
        if owner.is_some() || group.is_some() {
            chown(path, owner, group).map_err(io("change the owner of the control socket"))?;
        }
        let mode = Permissions::from_mode(0o660);
        fs::set_permissions(path, mode).map_err(io("set the mode of the control socket"))?;
        Ok(socket)
    }

    /// The listener for the runtime that is entered.
    pub(super) fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Nobody else can have put another in its place: we hold the lock. The lock file stays, because a file that
        // comes and goes locks nothing.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove the control socket '{}': {error}", self.path.display());
        }
    }
}

/// Makes the directory and those above it that are missing. Their mode does not depend on the umask.
fn make_directory(directory: &Path) -> Result<(), BindError> {
    let missing: Vec<&Path> = directory
        .ancestors()
        .take_while(|above| !above.as_os_str().is_empty() && fs::symlink_metadata(above).is_err())
        .collect();
    for path in missing.into_iter().rev() {
        let io = |action| move |cause| BindError::Io { action, path: path.to_owned(), cause };
        match fs::create_dir(path) {
            Ok(()) => fs::set_permissions(path, Permissions::from_mode(0o755))
                .map_err(io("set the mode of the directory of the control socket,"))?,
            // Somebody was faster, and chose the mode.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io("create the directory of the control socket,")(error)),
        }
    }
    Ok(())
}

/// Whoever can rename files in the directory can put a socket of his own in the place of ours.
fn check_directory(directory: &Path) -> Result<(), BindError> {
    let metadata = fs::metadata(directory).map_err(|cause| BindError::Io {
        action: "look at the directory of the control socket,",
        path: directory.to_owned(),
        cause,
    })?;
    let (mode, owner) = (metadata.mode(), metadata.uid());
    let refuse = |reason| Err(BindError::Directory { path: directory.to_owned(), reason });
    if !metadata.is_dir() {
        return refuse("is no directory".to_owned());
    }
    if owner != 0 && owner != geteuid().as_raw() {
        return refuse(format!("belongs to user {owner}, who is neither root nor the daemon's user"));
    }
    if mode & 0o1002 == 0o002 {
        return refuse(format!("can be written to by everybody (mode {:04o})", mode & 0o7777));
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, BindError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // Neither a link to another file nor a pipe that nobody reads.
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(&name)
        .map_err(|cause| BindError::Io { action: "open the lock file", path: name.into(), cause })?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| BindError::InUse(path.to_owned()))?;
    Ok(file)
}

/// A daemon that was killed leaves its socket behind; only a connection attempt tells it from a live one.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => {
            return Err(BindError::Io { action: "look at the control socket", path: path.to_owned(), cause });
        }
    };
    if !kind.is_socket() {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|cause| BindError::Io {
                action: "remove the abandoned control socket",
                path: path.to_owned(),
                cause,
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(BindError::InUse(path.to_owned())),
        Err(cause) => Err(BindError::Io {
            action: "find out whether somebody serves the control socket",
            path: path.to_owned(),
            cause,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_directory_is_made_and_the_file_guarded_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/control.sock");
        let socket = ControlSocket::bind(&path, None, None).unwrap();
        assert_eq!(mode(&path), 0o660);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn an_abandoned_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let foreign = UnixListener::bind(&path).unwrap();
        assert!(matches!(ControlSocket::bind(&path, None, None), Err(BindError::InUse(_))));
        drop(foreign);
        let ours = ControlSocket::bind(&path, None, None).unwrap();
        assert!(matches!(ControlSocket::bind(&path, None, None), Err(BindError::InUse(_))));
        drop(ours);
    }

    #[test]
    fn long_paths_and_other_files_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x".repeat(120));
        let error = ControlSocket::bind(&path, None, None).unwrap_err().to_string();
        assert!(error.contains("too long") && error.contains("107"), "{error}");

        let path = directory.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(ControlSocket::bind(&path, None, None), Err(BindError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
    #[test]
    fn directories_are_made_with_one_mode_whatever_the_umask() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/control.sock");
        let _socket = ControlSocket::bind(&path, None, None).unwrap();
        assert_eq!((mode(&directory.path().join("a")), mode(&directory.path().join("a/b"))), (0o755, 0o755));
    }

    #[test]
    fn directories_in_which_others_can_rename_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let open_to = |mode| fs::set_permissions(directory.path(), Permissions::from_mode(mode)).unwrap();
        open_to(0o777);
        let error = ControlSocket::bind(&path, None, None).unwrap_err().to_string();
        assert!(error.contains("everybody (mode 0777)") && error.contains("--control-socket"), "{error}");
        open_to(0o1777);
        drop(ControlSocket::bind(&path, None, None).unwrap());
        open_to(0o755);
        // Only root can give the directory away.
        if chown(directory.path(), Some(65534), None).is_ok() && geteuid().is_root() {
            let error = ControlSocket::bind(&path, None, None).unwrap_err().to_string();
            assert!(error.contains("belongs to user 65534"), "{error}");
        }
    }

    #[test]
    fn a_link_in_the_place_of_the_lock_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let target = directory.path().join("target");
        std::os::unix::fs::symlink(&target, directory.path().join("control.sock.lock")).unwrap();
        let error = ControlSocket::bind(&path, None, None).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("control.sock.lock") && text.contains("; start it as root, or"), "{text}");
        // The cause is in the text, and so not told again by those who print the whole chain.
        assert!(std::error::Error::source(&error).is_none());
        assert!(!target.exists());
    }
}
