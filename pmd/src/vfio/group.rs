//! An IOMMU group's file: it joins a container, and then gives its functions out.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use vfio_bindings::bindings::vfio::{VFIO_GROUP_FLAGS_VIABLE, vfio_group_status};

use super::device_file::DeviceFile;
use super::failure::{Failure, Step};
use super::token::VfToken;
use super::uapi;
use crate::pci::Address;

/// The place of a group in its container: empty until a function of it is opened, then taken for as long as this lives.
#[derive(Debug, Default)]
pub(super) struct Place(Mutex<Option<File>>);

impl Place {
    /// Opens the function at `address` of the group at `node`. The first one has the group join `container`, and that get an
    /// IOMMU of kind `iommu`. The VF token is shown if the kernel asks for one.
    pub(super) fn open(
        &self,
        container: &impl AsFd,
        iommu: u32,
        node: &Path,
        address: Address,
        token: Option<&VfToken>,
    ) -> Result<DeviceFile, Failure> {
        let mut group = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let group = match &mut *group {
            Some(group) => group,
            none => {
                let group =
                    OpenOptions::new().read(true).write(true).open(node).map_err(Step::Open.failed())?;
                check_viable(&group)?;
                let mut raw = container.as_fd().as_raw_fd();
                // SAFETY: this request reads a descriptor.
                unsafe { uapi::call(&group, uapi::VFIO_GROUP_SET_CONTAINER, &raw mut raw) }
                    .map_err(Step::Join.failed())?;
                // Where this fails the group is closed again, and so leaves.
                uapi::call_with(container, uapi::VFIO_SET_IOMMU, iommu.into())
                    .map_err(Step::Iommu.failed())?;
                none.insert(group)
            }
        };
        let file = with_token(token, |token| take(group, address, token).map_err(Step::Take.failed()))?;
        DeviceFile::new(file).map_err(Step::Describe.failed())
    }
}

fn check_viable(group: &File) -> Result<(), Failure> {
    let mut status = vfio_group_status { argsz: uapi::size::<vfio_group_status>(), flags: 0 };
    // SAFETY: the argument is of the type of this request, and says its size.
    unsafe { uapi::call(group, uapi::VFIO_GROUP_GET_STATUS, &raw mut status) }
        .map_err(Step::Viable.failed())?;
    if status.flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
        return Err(Step::Viable.failed()(io::ErrorKind::PermissionDenied.into()));
    }
    Ok(())
}

/// Functions are asked for by their name, with what else is to be said behind it (linux/vfio.h,
/// `VFIO_DEVICE_FEATURE_PCI_VF_TOKEN`).
fn name(address: Address, token: Option<&VfToken>) -> String {
    token.map_or_else(|| address.to_string(), |token| format!("{address} vf_token={token}"))
}

fn take(group: &File, address: Address, token: Option<&VfToken>) -> io::Result<OwnedFd> {
    let name = CString::new(name(address, token))?;
    // SAFETY: this request reads a string that ends with 0.
    let fd = unsafe { uapi::call(group, uapi::VFIO_GROUP_GET_DEVICE_FD, name.as_ptr().cast_mut()) }?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens without the VF token, and with it where the kernel asks for it: it refuses one that is not needed.
pub(super) fn with_token<T>(
    token: Option<&VfToken>,
    open: impl Fn(Option<&VfToken>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let is_asked_for =
        |failure: &Failure| failure.step == Step::Take && failure.cause.raw_os_error() == Some(libc::EACCES);
    match (open(None), token) {
        (Err(failure), Some(token)) if is_asked_for(&failure) => open(Some(token)),
        (opened, _) => opened,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn the_token_goes_behind_the_name() {
        let (address, token) = ("0000:01:10.0".parse().unwrap(), "14d63f20-8445-11ea-8900-1f9ce7d5650d");
        assert_eq!(name(address, None), "0000:01:10.0");
        assert_eq!(name(address, Some(&token.parse().unwrap())), format!("0000:01:10.0 vf_token={token}"));
    }

    #[test]
    fn a_token_is_shown_when_it_is_asked_for_and_never_else() {
        let token: VfToken = "14d63f20-8445-11ea-8900-1f9ce7d5650d".parse().unwrap();
        let asked = |token: Option<&VfToken>, answers: [Result<(), Failure>; 2]| {
            let shown = RefCell::new(Vec::new());
            let answers = RefCell::new(answers.into_iter());
            let opened = with_token(token, |token| {
                shown.borrow_mut().push(token.is_some());
                answers.borrow_mut().next().unwrap()
            });
            (opened.is_ok(), shown.into_inner())
        };
        let error = |step: Step, errno| Err(step.failed()(io::Error::from_raw_os_error(errno)));
        assert_eq!(asked(Some(&token), [Ok(()), Ok(())]), (true, vec![false]));
        assert_eq!(asked(Some(&token), [error(Step::Take, libc::EACCES), Ok(())]), (true, vec![false, true]));
        assert_eq!(asked(Some(&token), [error(Step::Take, libc::EBUSY), Ok(())]), (false, vec![false]));
        assert_eq!(asked(Some(&token), [error(Step::Open, libc::EACCES), Ok(())]), (false, vec![false]));
        assert_eq!(asked(None, [error(Step::Take, libc::EACCES), Ok(())]), (false, vec![false]));
    }
}
