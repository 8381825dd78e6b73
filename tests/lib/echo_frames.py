#!/usr/bin/env python3
"""Numbered frames to somebody who sends them back: echo_frames.py INTERFACE FRAMES.

Untagged frames, frames with a VLAN tag (802.1Q, priority only, 802.1ad) and with two, of all lengths up to what an MTU of
1500 allows. So many are under way at once as the shortest ring holds. Each must come back once, in order, byte by byte:
status 0, and 1 with what is wrong. Tags that the kernel takes out of what it receives are put back before comparing.
"""
import random
import socket
import struct
import sys

SOL_PACKET, PACKET_AUXDATA, PACKET_OUTGOING = 263, 8, 4
VLAN_VALID, TPID_VALID = 0x10, 0x40
KIND = b"\x88\xb5"  # for local experiments (IEEE 802)
WINDOW = 128
ADDRESSES = b"\x52\x54\0\0\0\x99" + b"\x52\x54\0\0\1\1"
TAGS = [b"", b"\x81\0\xa0\x64", b"\x81\0\xe0\0", b"\x88\xa8\0\x65", b"\x88\xa8\0\x65\x81\0\x0f\xfe"]


def frame(number, dice):
    tags = TAGS[number % len(TAGS)]
    # The kernel counts a tag of 802.1Q as no part of the MTU, and no other.
    longest = 1518 if tags[:2] == b"\x81\0" else 1514
    size = (60, longest, dice.randint(60, longest))[number % 3]
    start = ADDRESSES + tags + KIND + number.to_bytes(4)
    return start + dice.randbytes(size - len(start))


def receive(packets):
    """A frame that was received, as it was on the wire, or None."""
    data, auxiliary, _, (_, _, kind, _, _) = packets.recvmsg(1 << 16, 256)
    if kind == PACKET_OUTGOING:
        return None
    for level, what, value in auxiliary:
        if (level, what) == (SOL_PACKET, PACKET_AUXDATA):
            status, *_, tci, tpid = struct.unpack("IIIHHHH", value)
            if status & VLAN_VALID:
                tpid = tpid if status & TPID_VALID else 0x8100
                data = data[:12] + struct.pack("!HH", tpid, tci) + data[12:]
    return data if KIND in data[12:22] else None


def main():
    interface, count = sys.argv[1], int(sys.argv[2])
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    packets.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    packets.bind((interface, 3))
    packets.settimeout(5)
    dice = random.Random(count)
    for first in range(0, count, WINDOW):
        sent = [frame(number, dice) for number in range(first, min(first + WINDOW, count))]
        for data in sent:
            packets.send(data)
        for number, data in enumerate(sent, first):
            try:
                while (back := receive(packets)) is None:
                    pass
            except TimeoutError:
                sys.exit(f"frame {number} did not come back")
            if back != data:
                sys.exit(f"frame {number} of {len(data)} bytes, {data[:32].hex()}, came back as {len(back)}: {back[:32].hex()}")
    print(f"# {count} frames, {len(TAGS)} kinds of tags")


if __name__ == "__main__":
    main()
