# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# The PF goes down and comes up under a running VF: the driver notices, starts again as soon as the PF answers, and
# loses nothing afterwards. Then its MAC address changes with another reset.
# expect: ping reset_noticed remedy_named ping_after_reset mac_change_noticed ping_after_change stopped counters_go_on
# timeout: 120
. tests/lab/responder.sh

scene 2
start_responder "$VF0" > /dev/null
check ping pings 100
ip link set "$PF" down
check reset_noticed within 10 said ResetNeeded
check remedy_named within 10 said "ip link set $PF up"
ip link set "$PF" up
within 20 answers > /dev/null
check ping_after_reset pings 300
ip link set "$PF" vf 0 mac 52:54:00:00:00:77
ip link set "$PF" down
sleep 1
ip link set "$PF" up
check mac_change_noticed within 20 said 'MacChanged\(52:54:00:00:00:77\)'
ip neigh flush dev vf1
within 20 answers > /dev/null
check ping_after_change pings 100
check stopped stop_responder
# Counters that the reset has cleared go on from where they were.
check counters_go_on said 'rx_frames: [0-9]{3,4},'
