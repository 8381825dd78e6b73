# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# VF0 - relay 1 - a Linux VM in QEMU, nested in the lab: emulation in emulation, so it takes minutes, and only one vCPU is
# left when the daemon's worker spins on the other.
# nightly
# expect: vm_is_up ping ping_1400 guest_pings_out daemon_unharmed daemon_stops
# timeout: 1500
. tests/lab/relay.sh

scene 2
forwarder daemon --add-pci-vf "$VF0=1" || { not_ok vm_is_up "the daemon did not start"; exit 1; }
daemon=${pids[daemon]}
export VM_TIMEOUT=1300
spawn vm tests/vm/tiny-vm "$(socket 1)" 52:54:00:00:00:10 "$PEER/24" \
    'ping -c 50 -i 0.5 -W 20 10.0.0.2 | sed "s/^/guest: /"; sleep 3000'
check vm_is_up traffic 900
note "up after $((TOOK / 1000)) s"
# Not as fast as possible: an answer takes as long as the nested guest needs to be woken.
check ping pings 50 -i 0.5 -W 20
check ping_1400 pings 20 -i 0.5 -W 20 -s 1400
check guest_pings_out within 300 says vm 'guest: 50 packets transmitted, 50 packets received'
stop vm > /dev/null
check daemon_unharmed unharmed daemon "$daemon"
check daemon_stops ends_well daemon TERM 30
