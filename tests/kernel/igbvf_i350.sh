# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Linux's igbvf drives our model of an I350's VF, on a port with the other one: it swaps the tags that are taken off frames.
# expect: mac carrier ping tcp tcp_verified rings vlan jumbo link reload content dmesg
# timeout: 300
# nightly
# lab: MODEL=igbvf lenient i350
# lab: IOMMU=none
# lab: MEM=1024
. tests/lib/kernel_driver.sh
JUMBO=9000
accept igbvf
