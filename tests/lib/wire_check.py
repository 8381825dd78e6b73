#!/usr/bin/env python3
"""Judges the frames that an interface receives: wire_check.py INTERFACE LONGEST, until SIGTERM or SIGINT.

Every checksum (IPv4 header, TCP, UDP, ICMP, ICMPv6) must be right in the bytes, and no frame longer than LONGEST. Then
it prints what it saw and the status is 0; else also the first faults, and the status is 1. What the interface receives is
what was on the wire only if the sender's end of it has no offloads: then nothing is left to do for a frame.
"""
import collections
import signal
import socket
import struct
import sys

SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_STATISTICS = 263, 6
IP4, IP6, VLAN, RARP = b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x80\x35"
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}


def is_right(data):
    """Whether a range with its checksum in it sums up to nothing."""
    return int.from_bytes(data + b"\0" * (len(data) % 2), "big") % 0xFFFF == 0


def fault(frame, seen):
    """What is wrong with a frame, or None."""
    kind, at = frame[12:14], 14
    if kind == VLAN:
        kind, at = frame[16:18], 18
    if kind == IP4:
        size, fragment = struct.unpack_from("!H2xH", frame, at + 2)
        head = (frame[at] & 15) * 4
        if at + size > len(frame):
            return "ip4 longer than its frame"
        if not is_right(frame[at : at + head]):
            return "ip4 header"
        seen["ip4"] += 1
        if fragment & 0x3FFF:
            seen["fragments"] += 1
            return None
        protocol, addresses, payload = frame[at + 9], frame[at + 12 : at + 20], frame[at + head : at + size]
    elif kind == IP6:
        size, protocol = struct.unpack_from("!HB", frame, at + 4)
        if at + 40 + size > len(frame):
            return "ip6 longer than its frame"
        addresses, payload = frame[at + 8 : at + 40], frame[at + 40 : at + 40 + size]
        seen["ip6"] += 1
    else:
        seen["rarp"] += kind == RARP
        return None
    name = PROTOCOLS.get(protocol)
    if name is None:
        return None
    seen[name] += 1
    if name == "icmp":
        return None if is_right(payload) else name
    if name == "udp":
        if payload[6:8] == b"\0\0":
            return None if kind == IP4 else "udp over ip6 without checksum"
        if struct.unpack_from("!H", payload, 4)[0] != len(payload):
            return "udp length"
    return None if is_right(addresses + struct.pack("!IHBB", len(payload), 0, 0, protocol) + payload) else name


def main():
    interface, longest = sys.argv[1], int(sys.argv[2])
    seen, faults = collections.Counter(), []

    ending = []

    def finish():
        dropped = struct.unpack("II", packets.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        print("# " + ", ".join(f"{count} {what}" for what, count in seen.items()) + f", {dropped} not looked at")
        for text in faults[:5]:
            print(text)
        sys.exit(bool(faults))

    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    packets.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
    packets.bind((interface, 3))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.append(True))
    packets.settimeout(0.2)
    print("# ready", flush=True)
    while True:
        try:
            frame, (_, _, kind, _, _) = packets.recvfrom(1 << 17)
        except TimeoutError:
            if ending:
                finish()
            continue
        if kind == socket.PACKET_OUTGOING:
            continue
        seen["frames"] += 1
        seen["bytes"] += len(frame)
        if len(frame) > seen["longest"]:
            seen["longest"] = len(frame)
        why = f"{len(frame)} bytes" if len(frame) > longest else fault(frame, seen)
        if why:
            faults.append(f"frame {seen['frames']}, {len(frame)} bytes: {why} ({frame[:64].hex()})")


if __name__ == "__main__":
    main()
