//! A machine: its files below one root, and its kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use pmd::pci::Sysfs;

use crate::error::HostError;
use crate::kernel::{Kernel, Linux};

/// How long a driver may take to let go of a device.
const PATIENCE: Duration = Duration::from_secs(10);

/// The machine that this process runs on, or one that was recorded.
#[derive(Clone, Debug)]
pub struct Machine {
    root: PathBuf,
    kernel: Rc<dyn Kernel>,
    patience: Duration,
}

impl Default for Machine {
    fn default() -> Self {
        Self::new("/", Rc::new(Linux))
    }
}

impl Machine {
    /// The machine whose files are below `root`.
    pub fn new(root: impl Into<PathBuf>, kernel: Rc<dyn Kernel>) -> Self {
        Self { root: root.into(), kernel, patience: PATIENCE }
    }

    /// Waits this long for a driver to let go.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    pub(crate) fn kernel(&self) -> &dyn Kernel {
        &*self.kernel
    }

    /// The file that is `path` on the machine; `path` begins with `/`.
    pub(crate) fn file(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    pub(crate) fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.file("/sys"))
    }

    /// The text of a file without blanks at its ends; `None` where it cannot be read.
    pub(crate) fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let bytes = fs::read(self.file(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    pub(crate) fn number(&self, path: impl AsRef<Path>) -> Option<u32> {
        self.text(path)?.parse().ok()
    }

    pub(crate) fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.file(path).exists()
    }

    /// Names in a folder, in order; none where there is no such folder.
    pub(crate) fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.file(path)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Last part of what a link points to.
    pub(crate) fn target(&self, path: impl AsRef<Path>) -> Option<String> {
        fs::read_link(self.file(path)).ok()?.file_name()?.to_str().map(str::to_owned)
    }

    /// Writes a file as [`Kernel::write`] does.
    pub(crate) fn write(&self, path: impl AsRef<Path>, text: &str) -> Result<(), HostError> {
        let file = self.file(path);
        self.kernel.write(&file, text).map_err(|cause| HostError::writing(&file, &cause))
    }

    /// Makes a plain file and the folders above it.
    pub(crate) fn create(&self, path: impl AsRef<Path>, text: &str) -> Result<(), HostError> {
        let file = self.file(&path);
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).map_err(|cause| HostError::writing(folder, &cause))?;
        }
        self.write(path, text)
    }

    /// Only root may change the machine.
    pub(crate) fn need_root(&self) -> Result<(), HostError> {
        match self.kernel.is_root() {
            true => Ok(()),
            false => HostError::refused("only root may change this machine's devices; run it with sudo"),
        }
    }

    /// Whether a kernel module is loaded, or built in.
    pub(crate) fn has_module(&self, name: &str) -> bool {
        self.exists(format!("/sys/module/{}", name.replace('-', "_")))
    }

    /// The machine's own name.
    pub fn hostname(&self) -> String {
        self.text("/proc/sys/kernel/hostname").unwrap_or_default()
    }
}
