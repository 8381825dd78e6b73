//! What the kernel says of a network interface, asked through a socket of the network namespace that it is in.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::device::Link;
use crate::mac::MacAddress;

/// Bytes of an Ethernet header without tags.
const HEADER: u32 = 14;
/// Bytes of a VLAN tag, which the kernel does not count as part of the MTU.
const TAG: u32 = 4;

/// An interface as it is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// Whether it is up and has a carrier.
    pub(super) link: Link,
    /// Largest payload of a frame in bytes.
    pub(super) mtu: u32,
    /// Its address.
    pub(super) mac: MacAddress,
    /// Whether its frames are Ethernet frames.
    pub(super) ethernet: bool,
}

impl State {
    /// Longest frame that it carries, in bytes without FCS: an untagged one may only be [`TAG`] shorter, which the
    /// kernel sees to.
    pub(super) fn max_frame(&self) -> u32 {
        self.mtu.saturating_add(HEADER + TAG)
    }
}

/// An interface, known by its index: it may be renamed, and a new one of the same name is another.
#[derive(Debug)]
pub(super) struct Interface {
    socket: OwnedFd,
    index: i32,
}

impl Interface {
    /// Finds an interface of the network namespace of this thread.
    pub(super) fn find(name: &str) -> io::Result<Self> {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let request = ask(socket.as_fd(), libc::SIOCGIFINDEX, &mut request(name))?;
        // SAFETY: SIOCGIFINDEX has filled in the index.
        let index = unsafe { request.ifr_ifru.ifru_ifindex };
        Ok(Self { socket, index })
    }

    /// The kernel's number for it.
    pub(super) fn index(&self) -> i32 {
        self.index
    }

    /// How it is now; `ENODEV` when it was deleted or has gone to another network namespace. `EAGAIN` when it was renamed
    /// while it was looked at.
    pub(super) fn state(&self) -> io::Result<State> {
        let mut named = request("");
        named.ifr_ifru.ifru_ifindex = self.index;
        let mut named = ask(self.socket.as_fd(), libc::SIOCGIFNAME, &mut named)?;
        let get = |kind, named: &mut libc::ifreq| {
            let again = |cause: io::Error| match cause.raw_os_error() {
                Some(libc::ENODEV) => io::Error::from_raw_os_error(libc::EAGAIN),
                _ => cause,
            };
            ask(self.socket.as_fd(), kind, named).map_err(again)
        };
        // SAFETY: SIOCGIFFLAGS has filled in the flags.
        let flags = unsafe { get(libc::SIOCGIFFLAGS, &mut named)?.ifr_ifru.ifru_flags };
        // SAFETY: SIOCGIFMTU has filled in the MTU.
        let mtu = unsafe { get(libc::SIOCGIFMTU, &mut named)?.ifr_ifru.ifru_mtu };
        // SAFETY: SIOCGIFHWADDR has filled in the address and its family.
        let address = unsafe { get(libc::SIOCGIFHWADDR, &mut named)?.ifr_ifru.ifru_hwaddr };
        let [a, b, c, d, e, f, ..] = address.sa_data.map(|byte| byte as u8);
        let both = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        Ok(State {
            link: if flags & both == both { Link::Up { speed: None } } else { Link::Down },
            mtu: u32::try_from(mtu).unwrap_or(0),
            mac: MacAddress([a, b, c, d, e, f]),
            ethernet: address.sa_family == libc::ARPHRD_ETHER,
        })
    }
}

/// A request about the interface `name`, of which the kernel looks at the first 15 bytes.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: `ifreq` is plain data for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    request
}

/// Asks one of the questions of netdevice(7).
fn ask(socket: BorrowedFd, kind: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<libc::ifreq> {
    // SAFETY: the descriptor is open and `request` lives through the call; these requests read and write one `ifreq`.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), kind as _, &raw mut *request) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(*request) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_of_the_kernel_is_no_ethernet() {
        let state = Interface::find("lo").unwrap().state().unwrap();
        assert!(!state.ethernet && state.mac == MacAddress([0; 6]));
        assert_eq!(state.max_frame(), state.mtu + 18);
    }

    #[test]
    fn an_interface_that_is_not_there_is_told() {
        let error = Interface::find("no-such-link").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
