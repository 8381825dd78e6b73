//! The names of drop reasons on both sides of the control socket.

use control::api::drops;
use relay::counters::DropReason;

#[test]
fn the_c_daemons_drop_counters_find_the_relays() {
    for (reason, name) in [
        (DropReason::GuestQueueFull, drops::GUEST_QUEUE_FULL),
        (DropReason::VmNotConnected, drops::VM_NOT_CONNECTED),
        (DropReason::VfQueueFull, drops::VF_QUEUE_FULL),
        (DropReason::VfNotConnected, drops::VF_NOT_CONNECTED),
    ] {
        assert_eq!(reason.name(), name);
        assert!(DropReason::ALL.contains(&reason));
    }
}
