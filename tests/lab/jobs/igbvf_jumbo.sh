# Frames longer than a buffer arrive as several descriptors and leave as several. Three VFs: two served in turn by one
# process, each in an IO address space of its own, the first on huge pages and the second, for want of more, on others.
. "${LAB_LIB:-tests/lab}/vfs.sh"
. tests/lab/jobs/igbvf_common.sh
setup_pair 3
bind_vfio "$VF2"
ip link set "$N1" mtu 9000
ip link show "$N1"
hugepages 4
start_responder "$VF0" "$VF2"
expect "device=$VF0 .*huge=true"
expect "device=$VF2 .*huge=false"
check ping -A -c 200 -w 30 -q -s 8972 -M do 10.0.0.9
for size in 1 2005 2006 2007 2008 4053 4054 4055 4056; do check ping -A -c 10 -w 10 -q -s $size 10.0.0.9; done
stop_responder
finish
