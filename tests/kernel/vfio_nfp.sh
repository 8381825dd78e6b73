# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Our nfp drives the model of Netronome's VF through VFIO and an IOMMU; Linux's nfp is at the other end of its wire.
# expect: started carrier ping ping_1400 ping6 link stopped content
# timeout: 300
# nightly
# lab: MODEL=nfp nfd3
# lab: MEM=1024
. tests/lib/own_driver.sh
meet nfp
