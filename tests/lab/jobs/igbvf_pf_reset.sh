# The PF goes down and comes up under a running VF: the driver notices, starts again as soon as the PF answers, and
# loses nothing afterwards. Then its MAC address changes with another reset.
. "${LAB_LIB:-tests/lab}/vfs.sh"
. tests/lab/jobs/igbvf_common.sh
setup_pair
start_responder "$VF0"
check ping -A -c 100 -w 20 -q 10.0.0.9
ip link set "$PF" down; sleep 2
expect ResetNeeded
expect "ip link set $PF up"
ip link set "$PF" up; sleep 6
check ping -A -c 300 -w 30 -q 10.0.0.9
ip link set "$PF" vf 0 mac 52:54:00:00:00:77
ip link set "$PF" down; sleep 1; ip link set "$PF" up; sleep 6
expect 'MacChanged(52:54:00:00:00:77)'
ip neigh flush dev "$N1"
check ping -A -c 100 -w 20 -q 10.0.0.9
stop_responder
# Counters that the reset has cleared go on from where they were.
check grep -Eq 'rx_frames: [0-9]{3,4},' "$LOG"
finish
