# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Linux's ena drives our model of AWS's ENA of the newest generation: descriptors in the device's memory, no meta
# descriptor remembered, bounded bursts.
# expect: mac carrier ping tcp tcp_verified rings vlan jumbo link reload content dmesg
# timeout: 300
# lab: MODEL=ena newest
# lab: IOMMU=none
# lab: MEM=1024
. tests/lib/kernel_driver.sh
JUMBO=9000
accept ena
