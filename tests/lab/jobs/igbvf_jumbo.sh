# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# Frames longer than a buffer arrive as several descriptors and leave as several. Three VFs: two served in turn by one
# process, each in an IO address space of its own.
# nightly
# expect: started ping_9000 ping_1 ping_2005 ping_2006 ping_2007 ping_2008 ping_4053 ping_4054 ping_4055 ping_4056 stopped
# timeout: 90
. tests/lab/responder.sh

scene 3
bind_vfio "$VF2"
ip link set vf1 mtu 9000
check started start_responder "$VF0" "$VF2"
check ping_9000 pings 200 -s 8972 -M "do"
# Around the ends of the first and the second buffer. The smallest holds no time, so ping would wait a second each.
check ping_1 pings 10 -s 1 -i 0.01
for size in 2005 2006 2007 2008 4053 4054 4055 4056; do check "ping_$size" pings 10 -s "$size"; done
check stopped stop_responder
