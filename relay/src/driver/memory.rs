//! Memory of a built-in guest: a memfd, mapped here and shared with the device side.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// One region of guest memory. Guest addresses run from [`GuestRam::gpa`]; user addresses are those of our mapping.
#[derive(Debug)]
pub struct GuestRam {
    file: File,
    start: NonNull<u8>,
    size: u64,
    gpa: u64,
    used: u64,
}

// SAFETY: the mapping belongs to this value alone and is freed when it is dropped.
unsafe impl Send for GuestRam {}

impl GuestRam {
    /// `size` bytes of zeros at guest address `gpa`.
    pub fn new(gpa: u64, size: u64) -> io::Result<Self> {
        let fd: OwnedFd = memfd_create("guest-ram", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, size)?;
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no other memory.
        let start = unsafe { mmap(std::ptr::null_mut(), size as usize, prot, flags, fd.as_fd(), 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { file: File::from(fd), start, size, gpa, used: 0 })
    }

    /// The memory file, to share.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Guest address of the first byte.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// User address of the first byte.
    pub fn user(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// User address of a guest address.
    pub fn user_of(&self, gpa: u64) -> u64 {
        self.user() + (gpa - self.gpa)
    }

    /// Sets `len` bytes aside, aligned to `align` (a power of two); returns their guest address.
    pub fn allocate(&mut self, len: u64, align: u64) -> io::Result<u64> {
        let at = self.used.next_multiple_of(align);
        let end = at.checked_add(len).filter(|end| *end <= self.size).ok_or(io::ErrorKind::OutOfMemory)?;
        self.used = end;
        Ok(self.gpa + at)
    }

    /// Our address of `len` bytes at `gpa`.
    ///
    /// # Panics
    /// When they are not all inside: an error in the caller, who owns the layout.
    pub fn at(&self, gpa: u64, len: u64) -> NonNull<u8> {
        let offset = gpa.wrapping_sub(self.gpa);
        assert!(
            offset <= self.size && len <= self.size - offset,
            "{len} bytes at {gpa:#x} are outside guest memory"
        );
        // SAFETY: just checked to be inside the mapping.
        unsafe { self.start.add(offset as usize) }
    }

    /// Writes bytes at a guest address.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        let to = self.at(gpa, bytes.len() as u64);
        // SAFETY: `at` checked the range; the device side shares it through another mapping, never by reference.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
    }

    /// Reads bytes at a guest address.
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) {
        let from = self.at(gpa, bytes.len() as u64);
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, `size` long, and nobody else has its address.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.size as usize) };
    }
}
