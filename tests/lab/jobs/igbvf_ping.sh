# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# The igbvf driver on VF0 answers the kernel's igbvf on VF1: ARP, echo requests of several sizes, IPv6 with its
# neighbour discovery. The PF refuses promiscuous mode, as Linux's always does.
# expect: started ping ping_1400 ping6 promiscuous_refused remedy_named stopped no_errors
# timeout: 90
. tests/lab/responder.sh

scene 2
check started start_responder "$VF0"
check ping pings 1000
check ping_1400 pings 300 -s 1400
PEER=fd00::9
check ping6 pings 100
check promiscuous_refused said 'the PF refuses promiscuous mode'
check remedy_named said 'ip link set .* vf 0 mac'
check stopped stop_responder
check no_errors said 'rx_errors: 0'
