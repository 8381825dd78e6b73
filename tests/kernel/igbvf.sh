# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Linux's igbvf drives our model of Intel's 82576 VF.
# expect: mac carrier ping tcp tcp_verified rings vlan jumbo link reload content dmesg
# timeout: 300
# lab: MODEL=igbvf lenient
# lab: IOMMU=none
# lab: MEM=1024
. tests/lib/kernel_driver.sh
JUMBO=9000
accept igbvf
