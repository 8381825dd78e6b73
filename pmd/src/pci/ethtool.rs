//! What a network driver says about itself and its firmware.

use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// `ETHTOOL_GDRVINFO` of `linux/ethtool.h`. Its netlink successor has no message for firmware versions.
const GET_DRIVER_INFO: u32 = 0x3;
/// Bytes of `struct ethtool_drvinfo`: command, five texts, 12 reserved bytes and five numbers.
const DRIVER_INFO: usize = 4 + 5 * TEXT + 12 + 5 * 4;
/// Bytes of each of its texts (`ETHTOOL_FWVERS_LEN` and the like).
const TEXT: usize = 32;

/// A driver and the firmware that it found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriverInfo {
    /// The kernel driver.
    pub driver: String,
    /// Version of the firmware; empty where the driver does not say.
    pub firmware: String,
}

/// Asks the driver of a network interface of this network namespace.
pub fn driver_info(interface: &str) -> io::Result<DriverInfo> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    if interface.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    let mut info = [0u8; DRIVER_INFO];
    info[..4].copy_from_slice(&GET_DRIVER_INFO.to_ne_bytes());
    // SAFETY: `ifreq` is plain data for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *slot = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_data = info.as_mut_ptr().cast();
    // SAFETY: the descriptor is open; `request` names the interface and points to a buffer of the size that this command
    // fills in, and both live through the call.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    let text = |number: usize| {
        let bytes = &info[4 + number * TEXT..4 + (number + 1) * TEXT];
        let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(bytes).trim().to_owned()
    };
    Ok(DriverInfo { driver: text(0), firmware: text(2) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_told() {
        for name in ["no-such-link", "a-name-that-is-too-long"] {
            assert_eq!(driver_info(name).unwrap_err().raw_os_error(), Some(libc::ENODEV), "{name}");
        }
    }
}
