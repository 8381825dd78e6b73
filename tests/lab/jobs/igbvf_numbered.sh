# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# 100 000 numbered frames each way between the igbvf driver on VF0 and the kernel's igbvf on VF1, of all lengths from 60 to 1514
# bytes: each arrives once, in order, as it was sent. Then jumbo frames, and with two queue pairs, by both of which frames go out
# (the PF spreads no flows over a VF's receive queues, so all come in by the first).
# expect: numbered jumbo two_pairs vf_left_quiet
# timeout: 240
. tests/lab/responder.sh

scene 2
ip link set vf1 mtu 9000
check numbered numbered --frames "${COUNT:-100000}"
check jumbo numbered --frames "$((${COUNT:-100000} / 10))" --longest 9014
check two_pairs numbered --frames "$((${COUNT:-100000} / 10))" --queue-pairs 2
check vf_left_quiet [ $((0x$(setpci -s "$VF0" COMMAND) & 4)) = 0 ]
