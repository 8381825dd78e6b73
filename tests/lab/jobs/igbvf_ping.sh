# The igbvf driver on VF0 answers the kernel's igbvf on VF1: ARP, echo requests of several sizes, IPv6 with its
# neighbour discovery. The PF refuses promiscuous mode, as Linux's always does. Needs target/debug/examples/vf_responder.
. "${LAB_LIB:-tests/lab}/vfs.sh"
. tests/lab/jobs/igbvf_common.sh
setup_pair
start_responder "$VF0"
check ping -A -c 1000 -w 30 -q 10.0.0.9
check ping -A -c 300 -w 30 -q -s 1400 10.0.0.9
check ping -A -c 100 -w 30 -q -6 fd00::9
expect 'the PF refuses promiscuous mode'
expect 'trust on'
stop_responder
expect 'rx_errors: 0'
finish
