#!/usr/bin/env python3
"""A TCP stream in frames far longer than an MTU, and what becomes of it on a wire.

    tso_frames.py generate FRAMES FILE           writes frames of up to 64 KiB, to be cut, without TCP checksums
    tso_frames.py check FRAMES LONGEST INTERFACE  receives until SIGTERM, or until the stream is complete

On the wire every byte of the stream must be there once, in order, in frames no longer than LONGEST, whose checksums are
right and whose flags are those of a stream: status 0, and 1 with what is wrong.
"""
import random
import signal
import socket
import struct
import sys

from pcap_frames import checksum
from wire_check import SO_RCVBUFFORCE, fault

PORT = 5600
HEADERS = 14 + 20 + 20
PUSH, FIN, ACK = 8, 1, 16


def payloads(count):
    """What the frames carry: some as long as there are, some that need no cutting, the others of any length."""
    dice = random.Random(count)
    sizes = [65535 - 40, 1, 1460, 1461, 2 * 1400] + [dice.randint(1, 65535 - 40) for _ in range(count - 5)]
    return [dice.randbytes(size) for size in sizes]


def generate(count, path):
    at = 0
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535 + 14, 1))
        for number, data in enumerate(payloads(count)):
            ip = struct.pack("!BBHHHBBH", 0x45, 0, 40 + len(data), number, 0x4000, 64, 6, 0) + b"\x0a\1\0\2\x0a\1\0\1"
            ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
            tcp = struct.pack("!HHIIBBHHH", PORT, PORT, at, 1, 0x50, ACK | PUSH, 0xFFFF, 0, 0)
            frame = b"\x52\x54\0\0\0\x99" + b"\x52\x54\0\0\1\1" + b"\x08\0" + ip + tcp + data
            file.write(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)
            at += len(data)


def check(count, longest, interface):
    stream = b"".join(payloads(count))
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x800))
    packets.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
    packets.bind((interface, 0x800))
    packets.settimeout(10)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"{at} bytes of {len(stream)} came, in {frames} frames"))
    at = frames = pushed = 0
    print("# ready", flush=True)
    while at < len(stream):
        frame, (_, _, kind, _, _) = packets.recvfrom(1 << 17)
        if kind == socket.PACKET_OUTGOING or frame[34:36] != struct.pack("!H", PORT):
            continue
        why = f"{len(frame)} bytes" if len(frame) > longest else fault(frame, {"ip4": 0, "tcp": 0})
        if why:
            sys.exit(f"frame {frames}, {len(frame)} bytes: {why} ({frame[:64].hex()})")
        size = int.from_bytes(frame[16:18]) - 40
        number = int.from_bytes(frame[38:42])
        if number != at or frame[HEADERS : HEADERS + size] != stream[at : at + size]:
            sys.exit(f"frame {frames} has {size} bytes from {number}; those from {at} were to come")
        pushed += bool(frame[47] & PUSH)
        at += size
        frames += 1
    if pushed != count:
        sys.exit(f"{pushed} frames are the last of one, of {count}")
    print(f"# {count} long frames, {frames} on the wire, {at} bytes")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["generate", count, path]:
            generate(int(count), path)
        case ["check", count, longest, interface]:
            check(int(count), int(longest), interface)
        case _:
            sys.exit(__doc__)
