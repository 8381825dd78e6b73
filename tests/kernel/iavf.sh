# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Linux's iavf drives our model of Intel's 800 series VF.
# expect: mac carrier ping tcp tcp_verified rings vlan jumbo link reload content dmesg
# timeout: 300
# lab: MODEL=iavf 800
# lab: IOMMU=none
# lab: MEM=1024
. tests/lib/kernel_driver.sh
JUMBO=9000
accept iavf
