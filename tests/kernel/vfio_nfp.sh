# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Our nfp drives the model of a Netronome VF with firmware of NFD3 through VFIO and an IOMMU; Linux's nfp is at the other end
# of its wire.
# expect: started carrier ping ping_1400 ping6 link begins_anew stopped content
# timeout: 300
# nightly
# lab: MODEL=nfp nfd3
# lab: MEM=1024
. tests/lib/own_driver.sh
PCI_DRIVER=nfp_netvf
meet nfp reload
