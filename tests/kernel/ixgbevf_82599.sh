# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Linux's ixgbevf drives our model of the 82599's VF, whose PF speaks 1.1 and has jumbo frames.
# expect: mac carrier ping tcp tcp_verified rings vlan jumbo link reload content dmesg
# timeout: 300
# nightly
# lab: MODEL=ixgbevf 82599 api=1.1 pf-jumbo
# lab: IOMMU=none
# lab: MEM=1024
. tests/lib/kernel_driver.sh
JUMBO=9000
accept ixgbevf
