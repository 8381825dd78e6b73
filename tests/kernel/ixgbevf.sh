# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Linux's ixgbevf drives our model of Intel's X550 VF.
# expect: mac carrier ping tcp tcp_verified rings vlan jumbo link reload content dmesg
# timeout: 300
# lab: MODEL=ixgbevf x550
# lab: IOMMU=none
# lab: MEM=1024
. tests/lib/kernel_driver.sh
JUMBO=9000
accept ixgbevf
