# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Linux's iavf drives our model of Intel's 700 series VF, whose PF grants less, behind an IOMMU, so that the model reaches
# only what is mapped.
# expect: mac carrier ping tcp tcp_verified rings vlan jumbo link reload content dmesg
# timeout: 300
# nightly
# lab: MODEL=iavf 700 queues=2
# lab: IOMMU=intel
# lab: MEM=1024
# lab: APPEND=iommu=nopt iommu.strict=1
. tests/lib/kernel_driver.sh
JUMBO=9000
accept iavf
