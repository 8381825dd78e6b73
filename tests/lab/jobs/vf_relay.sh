# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# The main job: VF0 - relay 1 - DPDK's virtio_user as the VM; the kernel's driver on VF1 pings through all of it. Linux had VF0
# as an interface before, and QEMU's model does not forget by which vector it interrupted then. The VF leaves and comes back
# under traffic; the VM is killed and started again, eight times; the daemon ends in good order.
# expect: ping ping_1400 counted removed added_again
# expect: killed.1 killed.2 killed.3 killed.4 killed.5 killed.6 killed.7 killed.8
# expect: memory_given_back daemon_unharmed daemon_stops vf_left_quiet
# timeout: 240
. tests/lab/relay.sh

scene 2
kernel_vf "$VF0" vf0
ip link set vf0 down
bind_vfio "$VF0"
forwarder daemon --add-pci-vf "$VF0=1" || { not_ok ping "the daemon did not start"; exit 1; }
daemon=${pids[daemon]}
vm vm "$(socket 1)" icmpecho
traffic > /dev/null
note "the first answer came after $TOOK ms"

check ping pings 1000
check ping_1400 pings 1000 -s 1400
check counted counters_say_at_least 2000

# The VF goes and comes back while pings run.
spawn pings ping -i 0.02 "$PEER"
pc remove --virtio-id 1 --pci-addr "$VF0" > /dev/null
check removed within 5 silent
pc add --virtio-id 1 --pci-addr "$VF0" > /dev/null
if traffic $((2 * SLOW)) > /dev/null; then
    ok added_again "traffic after $TOOK ms"
else
    not_ok added_again "no traffic within $((2 * SLOW)) s"
fi

# Without a word, under traffic. The time includes the start of the VM, which is most of it.
for i in 1 2 3 4 5 6 7 8; do
    stop vm KILL
    [ "$i" != 1 ] || check memory_given_back within 5 guest_memory_unmapped daemon
    vm vm "$(socket 1)" icmpecho
    if traffic 40 > /dev/null; then ok "killed.$i" "traffic after $TOOK ms"; else not_ok "killed.$i" "no traffic"; fi
done
stop pings INT

check daemon_unharmed unharmed daemon "$daemon"
check daemon_stops ends_well daemon TERM 10
# The VF is at rest: it does no DMA (bus mastering is off), and the next one can have it.
check vf_left_quiet vf_is_quiet "$VF0"
