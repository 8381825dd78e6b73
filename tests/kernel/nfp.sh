# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Linux's nfp drives our model of a Netronome VF with firmware of NFD3.
# expect: mac carrier ping tcp tcp_verified rings vlan jumbo link reload content dmesg
# timeout: 300
# lab: MODEL=nfp nfd3
# lab: IOMMU=none
# lab: MEM=1024
. tests/lib/kernel_driver.sh
PCI_DRIVER=nfp_netvf
JUMBO=9000
accept nfp
