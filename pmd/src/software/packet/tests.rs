//! What needs no privilege. With interfaces: `tests/interop/software_devices.sh`.

use super::*;

#[test]
fn an_interface_that_cannot_be_used_is_refused_with_the_reason() {
    let refused = |name| Packet::open(name).unwrap_err();
    let error = refused("no-such-link");
    assert!(matches!(error, DeviceError::NotFound(_)) && error.to_string().contains("no-such-link"));
    assert!(matches!(refused("lo"), DeviceError::Unsupported(_)));
}

#[test]
fn the_cause_says_what_to_do() {
    for (errno, remedy) in
        [(libc::EPERM, "CAP_NET_RAW"), (libc::EAFNOSUPPORT, "modprobe"), (libc::ENOPROTOOPT, "4.20")]
    {
        let text = no_socket("eth0", &io::Error::from_raw_os_error(errno)).to_string();
        assert!(text.contains("eth0") && text.contains(remedy), "{text}");
    }
}
