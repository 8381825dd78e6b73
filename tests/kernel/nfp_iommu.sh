# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Linux's nfp drives our model of a Netronome VF behind an IOMMU, so that the model reaches only what is mapped. Its firmware
# of NFD3 writes its read pointers to memory.
# expect: mac carrier ping tcp tcp_verified rings vlan jumbo link reload content dmesg
# timeout: 300
# nightly
# lab: MODEL=nfp nfd3 write-back
# lab: IOMMU=intel
# lab: MEM=1024
# lab: APPEND=iommu=nopt iommu.strict=1
. tests/lib/kernel_driver.sh
PCI_DRIVER=nfp_netvf
JUMBO=9000
accept nfp
