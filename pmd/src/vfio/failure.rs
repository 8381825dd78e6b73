//! What opening a function can fail at, and what helps.

use std::io;
use std::path::Path;

use super::access::Way;
use crate::device::DeviceError;
use crate::pci::Address;

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Opening the file of the function or its group.
    Open,
    /// Opening `/dev/iommu`.
    OpenIommu,
    /// Asking whether the group is whole.
    Viable,
    /// Putting the group into a container.
    Join,
    /// Giving the container its IOMMU.
    Iommu,
    /// Getting the function: from its group, or by binding its file to iommufd.
    Take,
    /// Putting the function into an IO address space.
    Attach,
    /// Asking what the function has.
    Describe,
}

/// A step that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) step: Step,
    pub(super) cause: io::Error,
}

impl Step {
    /// For `map_err`.
    pub(super) fn failed(self) -> impl Fn(io::Error) -> Failure {
        move |cause| Failure { step: self, cause }
    }
}

/// What an operator is told. `token`: whether one was shown.
pub(super) fn explain(
    address: Address,
    group: u32,
    way: &Way,
    failure: &Failure,
    token: bool,
) -> DeviceError {
    let Failure { step, cause } = failure;
    let node = if *step == Step::OpenIommu { Path::new("/dev/iommu") } else { way.node() };
    let node = node.display();
    let no_iommu = matches!(way, Way::NoIommu { .. });
    match (step, cause.raw_os_error().unwrap_or_default()) {
        (Step::Take, libc::EACCES) if token => DeviceError::NotReady(format!(
            "{address}: the kernel refuses the VF token: its PF is held by VFIO, and whoever holds it has set another one; \
             take that for --vfio-vf-token (VIRTIOFWD_VFIO_VF_TOKEN)"
        )),
        (Step::Take, libc::EACCES) => DeviceError::NotReady(format!(
            "{address}: its PF is held by VFIO, so the kernel asks for the VF token that the PF's user has set; give it: \
             --vfio-vf-token UUID (VIRTIOFWD_VFIO_VF_TOKEN)"
        )),
        (Step::Take, libc::EAGAIN) => DeviceError::Busy(format!(
            "{address} is just being reset or unplugged by somebody else; try again"
        )),
        // What the kernel answers to whoever binds a device file that another process has bound.
        (Step::Take, libc::EINVAL) if matches!(way, Way::DeviceFile { .. }) => DeviceError::Busy(format!(
            "{address} (IOMMU group {group}) is in use by another process; find it: fuser -v {node}"
        )),
        (_, libc::EBUSY) => DeviceError::Busy(format!(
            "{address} (IOMMU group {group}) is in use by another process; find it: fuser -v {node} /dev/vfio/{group}"
        )),
        (Step::Open, libc::EPERM) if no_iommu => DeviceError::NotReady(format!(
            "{address} has no IOMMU, and such a function is only for processes with the capability CAP_SYS_RAWIO; run the \
             daemon as root, with that capability"
        )),
        (Step::Open, libc::ENOENT) if no_iommu => DeviceError::NotReady(format!(
            "there is no {node}: no-IOMMU mode was switched on after {address} was given to vfio-pci; give it anew: echo \
             {address} > /sys/bus/pci/drivers/vfio-pci/unbind; echo {address} > /sys/bus/pci/drivers_probe"
        )),
        (Step::Open | Step::OpenIommu, libc::EACCES | libc::EPERM) => DeviceError::NotReady(format!(
            "no permission for {node}, by which {address} (IOMMU group {group}) is opened; run the daemon as root, or give \
             the file to its user: chown USER {node}"
        )),
        (Step::Open | Step::OpenIommu, libc::ENOENT) => DeviceError::NotReady(format!(
            "there is no {node}, by which {address} (IOMMU group {group}) is opened; let the daemon see /dev/vfio \
             (container, chroot), and look for the cause in dmesg"
        )),
        (Step::Viable, _) => DeviceError::NotReady(format!(
            "IOMMU group {group} of {address} has a member that another driver holds; list them: \
             ls -l /sys/kernel/iommu_groups/{group}/devices/*/driver"
        )),
        (Step::Join, libc::EINVAL) => DeviceError::Busy(format!(
            "IOMMU group {group} of {address} is already in another VFIO container; find its user: fuser -v {node}"
        )),
        (Step::Iommu | Step::Take | Step::Attach, libc::EPERM) => DeviceError::NotReady(format!(
            "the kernel refuses the IOMMU to {address}: this machine does not remap interrupts; switch that on in the \
             firmware, or accept the risk: modprobe {} allow_unsafe_interrupts=1",
            if matches!(way, Way::DeviceFile { .. }) { "iommufd" } else { "vfio_iommu_type1" }
        )),
        _ => DeviceError::Failed(format!(
            "cannot open {address} through VFIO ({}): {cause}; see dmesg",
            step.name()
        )),
    }
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Open => "opening its file",
            Self::OpenIommu => "opening /dev/iommu",
            Self::Viable => "asking about its group",
            Self::Join => "putting its group into a container",
            Self::Iommu => "choosing the IOMMU",
            Self::Take => "taking the function",
            Self::Attach => "joining an IO address space",
            Self::Describe => "asking what it has",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(way: &Way, step: Step, errno: i32, token: bool) -> DeviceError {
        let cause = io::Error::from_raw_os_error(errno);
        explain("0000:01:10.0".parse().unwrap(), 7, way, &Failure { step, cause }, token)
    }

    fn group() -> Way {
        Way::Group { node: "/dev/vfio/7".into() }
    }

    #[test]
    fn failures_to_open_say_what_to_do() {
        let way = group();
        let busy = |error| matches!(error, DeviceError::Busy(text) if text.contains("fuser -v /dev/vfio/7"));
        assert!(busy(told(&way, Step::Open, libc::EBUSY, false)));
        assert!(busy(told(&way, Step::Join, libc::EINVAL, false)));
        let not_ready = |error, words: &str| match error {
            DeviceError::NotReady(text) => {
                assert!(text.contains(words) && text.contains("0000:01:10.0"), "{text}")
            }
            other => panic!("{other:?}"),
        };
        not_ready(told(&way, Step::Open, libc::EACCES, false), "chown USER /dev/vfio/7");
        not_ready(told(&way, Step::Viable, libc::EPERM, false), "iommu_groups/7");
        not_ready(told(&way, Step::Iommu, libc::EPERM, false), "vfio_iommu_type1 allow_unsafe_interrupts");
        let file = Way::DeviceFile { node: "/dev/vfio/devices/vfio3".into(), iommu: "/dev/iommu".into() };
        assert!(matches!(told(&file, Step::Take, libc::EINVAL, false), DeviceError::Busy(_)));
        not_ready(told(&file, Step::OpenIommu, libc::EACCES, false), "chown USER /dev/iommu");
        not_ready(told(&file, Step::Attach, libc::EPERM, false), "iommufd allow_unsafe_interrupts");
        let none = Way::NoIommu { node: "/dev/vfio/noiommu-7".into() };
        not_ready(told(&none, Step::Open, libc::EPERM, false), "CAP_SYS_RAWIO");
        not_ready(told(&none, Step::Open, libc::ENOENT, false), "drivers_probe");
        let DeviceError::Failed(text) = told(&way, Step::Take, libc::EIO, false) else { panic!() };
        assert!(text.contains("dmesg"), "{text}");
    }

    #[test]
    fn a_missing_token_and_a_wrong_one_are_told_apart() {
        let text = |token| told(&group(), Step::Take, libc::EACCES, token).to_string();
        assert!(text(false).contains("give it: --vfio-vf-token"), "{}", text(false));
        assert!(text(true).contains("refuses the VF token"), "{}", text(true));
    }
}
