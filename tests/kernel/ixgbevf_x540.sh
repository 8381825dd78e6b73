# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Linux's ixgbevf drives our model of the X540's VF, whose PF is as old as they come and gives it one queue.
# expect: mac carrier ping tcp tcp_verified rings vlan jumbo link reload content dmesg
# timeout: 300
# nightly
# lab: MODEL=ixgbevf x540 api=1.0 queues=1
# lab: IOMMU=none
# lab: MEM=1024
. tests/lib/kernel_driver.sh
JUMBO=9000
accept ixgbevf
