# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Linux's ena drives our model of the first ENA, whose registers are read directly and which has no memory for descriptors.
# expect: mac carrier ping tcp tcp_verified rings vlan jumbo link reload content dmesg
# timeout: 300
# nightly
# lab: MODEL=ena first all-offloads
# lab: IOMMU=none
# lab: MEM=1024
. tests/lib/kernel_driver.sh
JUMBO=9000
accept ena
