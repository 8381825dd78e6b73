#!/usr/bin/env python3
"""Maps a BAR of a PCI function through VFIO, and holds it until standard input ends.

    map_bar.py ADDRESS BAR

Prints `mapped` when it has. The numbers are those of linux/vfio.h."""

import ctypes
import fcntl
import mmap
import os
import struct
import sys

TYPE = ord(";") << 8
SET_IOMMU, GROUP_SET_CONTAINER, GROUP_GET_DEVICE_FD, REGION_INFO = (TYPE | 100 + n for n in (2, 4, 6, 8))
TYPE1 = 1

address, bar = sys.argv[1], int(sys.argv[2])
number = os.path.basename(os.readlink(f"/sys/bus/pci/devices/{address}/iommu_group"))
container = os.open("/dev/vfio/vfio", os.O_RDWR)
group = os.open(f"/dev/vfio/{number}", os.O_RDWR)
fcntl.ioctl(group, GROUP_SET_CONTAINER, struct.pack("i", container))
fcntl.ioctl(container, SET_IOMMU, TYPE1)
device = fcntl.ioctl(group, GROUP_GET_DEVICE_FD, ctypes.create_string_buffer(address.encode()))
# argsz, flags, index, cap_offset, size, offset
raw = bytearray(struct.pack("IIIIQQ", 32, 0, bar, 0, 0, 0))
fcntl.ioctl(device, REGION_INFO, raw, True)
size, offset = struct.unpack("IIIIQQ", raw)[4:]
area = mmap.mmap(device, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)
# The page tables, too.
area[0]
print(f"mapped {size} bytes", flush=True)
sys.stdin.read()
