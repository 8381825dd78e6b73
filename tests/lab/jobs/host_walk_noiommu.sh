# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# The walk on a machine without an IOMMU: nothing is taken until no-IOMMU mode is on, and that is loud.
# nightly
# expect: doctor_fails created set no_group_refused enabled_loudly bound traffic doctor_warns unbound unbound_works disabled
# lab: IOMMU=none
# lab: VFIO=rebuilt
# timeout: 240
. tests/lab/walk.sh

bare_host
check doctor_fails tells 'FAILURE +IOMMU.*noiommu enable' advice
make_and_set
# Modules with that mode are the lab's own; modprobe would find Debian's.
load_vfio
refused no_group_refused 'no IOMMU group.*noiommu enable' host bind "$VF0"
check enabled_loudly tells 'WARNING.*' host noiommu enable
check bound tells "$VF0 taken from igbvf, now with vfio-pci" host bind "$VF0"
hugepages 64
kernel_vf "$VF1" vf1 10.0.0.2/24 fd00::2/64
forward
check doctor_warns exits 1 host doctor
stop vm INT
stop daemon
give_back
check disabled tells 'no-IOMMU mode is off' host noiommu disable
