//! When an event index asks for a notification.

/// Whether passing from index `old` to index `new` passes the index that the other side waits for (virtio 1.3, 2.7.10).
#[inline]
pub fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
