# shellcheck shell=bash source-path=SCRIPTDIR
# Front ends that misbehave on one relay's socket, while another relay's VM exchanges frames: the daemon answers or hangs
# up, forgets nothing (file descriptors), serves a proper VM on that socket afterwards, and the other VM notices nothing.
# expect: garbage half_messages stalled_message lying_sizes wrong_version surplus_fds bad_memory bad_rings
# expect: hostile_rings truncated_memory deaf many_connections
# expect: neighbour_untouched no_fd_leaked no_memory_leaked proper_vm_served daemon_unharmed
# timeout: 120
. "$(dirname "$0")/../lib/check.sh"
. "$(dirname "$0")/../lib/testpmd.sh"
. "$(dirname "$0")/../lib/forwarder.sh"
abuse=$(dirname "$0")/../lib/vhost_abuse.py

fds() { find "/proc/$daemon/fd" -mindepth 1 | wc -l; }
as_few_fds() { [ "$(fds)" -le "$fds_before" ]; }
no_abused_memory() { ! grep -q 'memfd:abuse' "/proc/$daemon/maps"; }

forwarder daemon --add-device loopback=0 --add-device loopback=1 || { not_ok daemon_unharmed "it did not start"; exit 1; }
daemon=${pids[daemon]}

vm neighbour "$(socket 0)" bounce
receives neighbour 10 > /dev/null
fds_before=$(fds)
untouched=yes
while read -r misbehaviour; do
    check "$misbehaviour" timeout 60 "$abuse" "$(socket 1)" "$misbehaviour"
    receives neighbour > /dev/null && pc list > /dev/null || untouched="not after $misbehaviour"
done < <("$abuse" list)
check neighbour_untouched [ "$untouched" = yes ]
check no_fd_leaked within 5 as_few_fds
check no_memory_leaked within 5 no_abused_memory
stop neighbour INT > /dev/null

vm proper "$(socket 1)" bounce
check proper_vm_served receives proper 10
stop proper INT > /dev/null
check daemon_unharmed unharmed daemon "$daemon"
