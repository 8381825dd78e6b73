# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# The device keeps frames of the guest and never says that they are sent, and the VM is killed: the daemon must take the
# guest's memory back in a bounded time (100 ms is the law of the data path), without the device's consent, and serve the
# other relays meanwhile. Bus mastering switched off behind the daemon's back makes the device do just that: it can
# neither fetch descriptors nor write completions. Afterwards the VF works again.
# nightly
# expect: frames_were_held memory_given_back_in_time control_answers neighbour_goes_on traffic_again daemon_unharmed
# timeout: 120
. tests/lab/relay.sh

# Two VMs are connected, so the end of one shows in the number of mappings.
mappings() { grep -Ec 'memfd:nohuge' "/proc/$daemon/maps"; }
fewer_mappings() { [ "$(mappings)" -lt "$1" ]; }

scene 2
forwarder daemon --add-pci-vf "$VF0=1" --add-device loopback=2 || { not_ok traffic_again "the daemon did not start"; exit 1; }
daemon=${pids[daemon]}
vm neighbour "$(socket 2)" bounce
receives neighbour 30 > /dev/null

vm vm "$(socket 1)" flood
within 30 counters_move > /dev/null
setpci -s "$VF0" COMMAND=0:4
# The flood fills the VF's ring, and then nothing moves any more.
check frames_were_held within 20 counters_rest

mapped_before=$(mappings)
stop vm KILL > /dev/null
within $SLOW fewer_mappings "$mapped_before" > /dev/null
# 100 ms, and the time that emulation takes to notice the end of the VM and to reset the queue.
if [ "$TOOK" -le $((100 * SLOW)) ]; then
    ok memory_given_back_in_time "$TOOK ms"
else
    not_ok memory_given_back_in_time "not after $TOOK ms"
fi
check control_answers within 5 pc list
check neighbour_goes_on receives neighbour 30

setpci -s "$VF0" COMMAND=4:4
vm again "$(socket 1)" icmpecho
check traffic_again traffic 40
check daemon_unharmed unharmed daemon "$daemon"
