# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Linux's ena drives our model of an ENA with low latency queues that remembers meta descriptors, behind an IOMMU, so that
# the model reaches only what is mapped.
# expect: mac carrier ping tcp tcp_verified rings vlan jumbo link reload content dmesg
# timeout: 300
# nightly
# lab: MODEL=ena nitro all-offloads
# lab: IOMMU=intel
# lab: MEM=1024
# lab: APPEND=iommu=nopt iommu.strict=1
. tests/lib/kernel_driver.sh
JUMBO=9000
accept ena
