# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# The walk behind a virtio-iommu, which remaps no interrupts: VFIO has to be told that this is accepted, as the doctor says.
# expect: doctor_names_interrupts created set bound traffic doctor_warns_of_interrupts unbound unbound_works
# lab: IOMMU=virtio
# nightly
# timeout: 240
. tests/lab/walk.sh

bare_host
make_and_set
check bound tells "$VF0 taken from igbvf, now with vfio-pci" host bind "$VF0"
check doctor_names_interrupts tells 'FAILURE +interrupt remapping.*allow_unsafe_interrupts' advice
modprobe vfio_iommu_type1
echo Y > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
kernel_vf "$VF1" vf1 10.0.0.2/24 fd00::2/64
forward
check doctor_warns_of_interrupts exits 1 host doctor
stop vm INT
stop daemon
give_back
