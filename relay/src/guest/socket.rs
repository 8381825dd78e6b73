//! The vhost-user sockets: where they may be, who owns them, and what is in the way.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use thiserror::Error;

/// Longest path of a Unix socket in bytes (`sun_path` less the closing zero, unix(7)).
pub const MAX_PATH: usize = 107;
/// Mode of a socket: owner and group connect.
const SOCKET_MODE: u32 = 0o660;
/// Mode of a directory made here.
const DIRECTORY_MODE: u32 = 0o755;

/// Who owns sockets and, where it is made here, their directory. `None` leaves the daemon's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOwner {
    /// User id.
    pub user: Option<u32>,
    /// Group id.
    pub group: Option<u32>,
}

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Too long for a Unix socket.
    #[error(
        "socket path {path} has {length} bytes, {MAX_PATH} are possible: choose a shorter one (--vhost-path)"
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The directory is not one that only trusted users can change.
    #[error("socket directory {path}: {reason}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Another process serves the socket.
    #[error("socket {0} is served by another process: stop that one, or choose another path")]
    InUse(PathBuf),
    /// There is something that is not a socket.
    #[error("{0} exists and is not a socket: move it away")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot {action} {path}: {cause}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
}

fn system<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> SocketError + 'a {
    move |cause| SocketError::System { action, path: path.to_owned(), cause }
}

/// Makes the directory if there is none, and checks it (see [`check_directory`]).
pub fn prepare_directory(path: &Path, owner: SocketOwner) -> Result<(), SocketError> {
    let path: &Path = &path.components().collect::<PathBuf>();
    match fs::create_dir(path) {
        Ok(()) => {
            fs::set_permissions(path, fs::Permissions::from_mode(DIRECTORY_MODE))
                .map_err(system("chmod", path))?;
            std::os::unix::fs::chown(path, owner.user, owner.group).map_err(system("chown", path))?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(system("create", path)(error)),
    }
    check_directory(path, owner)
}

/// Checks that nobody else can put sockets into the directory: a real directory, owned by root, the daemon's user or the
/// configured owner, writable for no group but the configured one, and not for the world.
pub fn check_directory(path: &Path, owner: SocketOwner) -> Result<(), SocketError> {
    // Without a slash or dot at its end, which would have a symbolic link followed.
    let path: &Path = &path.components().collect::<PathBuf>();
    let found = fs::symlink_metadata(path).map_err(system("examine", path))?;
    let refuse = |reason: String| Err(SocketError::Directory { path: path.to_owned(), reason });
    if found.is_symlink() {
        return refuse("is a symbolic link: name the directory itself".to_owned());
    }
    if !found.is_dir() {
        return refuse("is not a directory".to_owned());
    }
    let ours = rustix::process::geteuid().as_raw();
    if found.uid() != 0 && found.uid() != ours && Some(found.uid()) != owner.user {
        return refuse(format!(
            "belongs to user {}, who is neither root, nor the daemon's user, nor the socket owner: chown root {}, or \
             set --vhost-username",
            found.uid(),
            path.display()
        ));
    }
    if found.mode() & 0o002 != 0 {
        return refuse(if found.mode() & libc::S_ISVTX == 0 {
            format!("everybody can write to it: chmod o-w {}", path.display())
        } else {
            "everybody can write to it: choose a directory inside it".to_owned()
        });
    }
    if found.mode() & 0o020 != 0 && Some(found.gid()) != owner.group {
        return refuse(format!(
            "group {} can write to it and is not the socket group: chmod g-w {}, or set --vhost-groupname",
            found.gid(),
            path.display()
        ));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let above = fs::metadata(parent).map_err(system("examine", parent))?;
    if above.mode() & 0o002 != 0 && above.mode() & libc::S_ISVTX == 0 {
        return refuse(format!(
            "everybody can write to {} and so put another directory in its place: chmod o-w {0}",
            parent.display()
        ));
    }
    Ok(())
}

/// Listens on `path`. A socket that nobody serves any more is replaced.
pub fn listen(path: &Path, owner: SocketOwner) -> Result<UnixListener, SocketError> {
    let length = path.as_os_str().len();
    if length > MAX_PATH {
        return Err(SocketError::TooLong { path: path.to_owned(), length });
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => match UnixStream::connect(path) {
            // Only then is nobody there; any other failure (its queue is full, say) comes from a living server.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(system("replace", path))?;
            }
            _ => return Err(SocketError::InUse(path.to_owned())),
        },
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(system("listen on", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(system("chmod", path))?;
    std::os::unix::fs::lchown(path, owner.user, owner.group).map_err(system("chown", path))?;
    listener.set_nonblocking(true).map_err(system("listen on", path))?;
    Ok(listener)
}

/// Connects to the socket that a front end has at `path`. Never waits: a server whose queue is full is `WouldBlock`.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn refused(path: &Path) -> String {
        prepare_directory(path, SocketOwner::default()).unwrap_err().to_string()
    }

    #[test]
    fn a_directory_that_others_can_change_is_refused() {
        let outer = directory();
        let path = outer.path().join("sockets");
        prepare_directory(&path, SocketOwner::default()).unwrap();
        prepare_directory(&path, SocketOwner::default()).unwrap();
        mode(&path, 0o777);
        assert!(refused(&path).contains("chmod o-w"));
        mode(&path, 0o1777);
        assert!(refused(&path).contains("inside it"));
        mode(&path, 0o775);
        assert!(refused(&path).contains("chmod g-w"));
        let group = fs::metadata(&path).unwrap().gid();
        prepare_directory(&path, SocketOwner { user: None, group: Some(group) }).unwrap();
        let link = outer.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for end in ["", "/", "/."] {
            let link = PathBuf::from(format!("{}{end}", link.display()));
            assert!(refused(&link).contains("symbolic link"), "{}", link.display());
        }
        let file = outer.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(refused(&file).contains("not a directory"));
        mode(&path, 0o755);
        mode(outer.path(), 0o777);
        assert!(refused(&path).contains("in its place"));
        mode(outer.path(), 0o1777);
        prepare_directory(&path, SocketOwner::default()).unwrap();
    }

    #[test]
    fn a_dead_socket_is_replaced_a_live_one_and_a_file_are_not() {
        let outer = directory();
        let path = outer.path().join("a.sock");
        let listener = listen(&path, SocketOwner::default()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, SOCKET_MODE);
        assert!(matches!(listen(&path, SocketOwner::default()), Err(SocketError::InUse(_))));
        drop(listener);
        listen(&path, SocketOwner::default()).unwrap();
        let file = outer.path().join("b.sock");
        fs::write(&file, "").unwrap();
        assert!(matches!(listen(&file, SocketOwner::default()), Err(SocketError::NotASocket(_))));
    }

    #[test]
    fn a_path_that_is_too_long_is_named_with_its_length() {
        let path = directory().path().join("x".repeat(120));
        let error = listen(&path, SocketOwner::default()).unwrap_err().to_string();
        assert!(error.contains("107") && error.contains("--vhost-path"), "{error}");
    }
}
