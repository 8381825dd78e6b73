#!/usr/bin/env python3
"""The far side of numbered frames (pcap_frames.py), on an interface of the kernel.

    wire_pcap.py receive INTERFACE FILE   writes the numbered frames that arrive to a pcap file, until SIGTERM
    wire_pcap.py send INTERFACE FILE      sends the frames of a pcap file, each once
    wire_pcap.py pick FILE NEW            copies the numbered frames of a pcap file: who has IP addresses on a wire says more there
"""
import signal
import socket
import struct
import sys

import pcap_frames

SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32
HEAD = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)


def write(file, frame):
    file.write(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)


def is_numbered(frame):
    """IPv4 without options, UDP, to a port from 9000 on."""
    return frame[12:15] == b"\x08\0\x45" and frame[23] == 17 and struct.unpack_from("!H", frame, 36)[0] >= 9000


def receive(interface, path):
    ending = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    packets.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
    packets.bind((interface, 3))
    packets.settimeout(0.2)
    print("# ready", flush=True)
    count = 0
    with open(path, "wb", 1 << 20) as file:
        file.write(HEAD)
        while True:
            try:
                frame, (_, _, kind, _, _) = packets.recvfrom(1 << 17)
            except TimeoutError:
                if ending:
                    break
                continue
            if kind != socket.PACKET_OUTGOING and is_numbered(frame):
                write(file, frame)
                count += 1
    print(f"# {count} frames")


def pick(path, new):
    with open(new, "wb", 1 << 20) as file:
        file.write(HEAD)
        for frame in filter(is_numbered, pcap_frames.frames(path)):
            write(file, frame)


def send(interface, path):
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    packets.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 20)
    packets.bind((interface, 0))
    for frame in pcap_frames.frames(path):
        packets.send(frame)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["receive", interface, path]:
            receive(interface, path)
        case ["send", interface, path]:
            send(interface, path)
        case ["pick", path, new]:
            pick(path, new)
        case _:
            sys.exit(__doc__)
