//! Numbered frames, and a check that they come back whole and in order.

use relay::driver::nic::GuestNic;

use crate::wait::within;

/// Sizes in bytes that take turns; all fit any ring with buffers of at least 1526 bytes.
pub const SIZES: [usize; 6] = [60, 61, 508, 1514, 64, 1020];

/// The frame of a number, of the size that is its turn.
pub fn frame(number: u32) -> Vec<u8> {
    let size = SIZES[number as usize % SIZES.len()];
    let mut bytes: Vec<u8> =
        (0..size).map(|at| (at as u32).wrapping_mul(7).wrapping_add(number) as u8).collect();
    bytes[..12].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1]);
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    bytes[14..18].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// Sends frames `from..to` through something that returns them, and expects every one, whole and in order.
///
/// # Panics
/// When one is missing for ten seconds, changed or out of order.
pub fn exchange(nic: &mut GuestNic, from: u32, to: u32) {
    let (mut sent, mut received) = (from, from);
    let complete = within(std::time::Duration::from_secs(10), || {
        nic.take_sent();
        while sent < to && sent - received < 100 && nic.send(&frame(sent)) {
            sent += 1;
        }
        nic.flush();
        nic.receive(64, |bytes| {
            assert_eq!(bytes, frame(received), "frame {received}");
            received += 1;
        });
        received == to
    });
    assert!(complete, "of frames {from}..{to}, {sent} were sent and {received} came back");
    assert!(within(std::time::Duration::from_secs(10), || nic.take_sent() == 0 && sent == to));
}
