#!/usr/bin/env python3
"""Numbered frames in pcap files: what went in, and whether it came out.

    pcap_frames.py generate FRAMES LONGEST FILE...   writes frames of 60 to LONGEST bytes, spread over the files (queues)
    pcap_frames.py compare IN,IN... OUT...           holds what came out against what went in

Each frame carries its number; the frames of a flow (UDP, an address and a source port of its own) are all in one file.
Every frame must come out once, byte by byte as it went in, those of a flow in order and from one queue. What is wrong is
counted and said; the status is 1 then.
"""
import random
import struct
import sys

FLOWS = 64  # 16 for each of 4 queues: enough that a hash uses all of them
AT_NUMBER = 14 + 20 + 8  # behind Ethernet, IPv4 and UDP: flow (16 bits), number (32 bits)


def checksum(data):
    """The Internet checksum: a sum of 16-bit words with end-around carry is the remainder of a division by 0xffff."""
    rest = int.from_bytes(data + b"\0" * (len(data) % 2), "big") % 0xFFFF
    return 0xFFFF - rest


def frame(number, flow, size, noise):
    source = struct.pack("!4B", 10, 1, flow % 8, flow)
    target = struct.pack("!4B", 10, 2, 0, 1)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, size - 14, number & 0xFFFF, 0x4000, 64, 17, 0) + source + target
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    length = size - 34
    at = number * 7 % (len(noise) - size)
    payload = struct.pack("!HI", flow, number) + noise[at : at + length - 14]
    pseudo = source + target + struct.pack("!BBH", 0, 17, length)
    udp = struct.pack("!HHHH", 1024 + 13 * flow, 4789 + flow, length, 0)
    udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp + payload) or 0xFFFF)
    return b"\x52\x54\0\0\0\x99" + b"\x52\x54\0\0\x01" + bytes([flow]) + b"\x08\0" + ip + udp + payload


def generate(count, longest, paths):
    dice = random.Random(count)
    noise = dice.randbytes(1 << 17)
    files = [open(path, "wb", 1 << 20) for path in paths]
    for file in files:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
    for number in range(count):
        flow = dice.randrange(FLOWS)
        # Many shortest and longest: there the edges are.
        size = dice.choice((60, longest, *(dice.randint(60, longest) for _ in range(4))))
        data = frame(number, flow, size, noise)
        files[flow % len(files)].write(struct.pack("<IIII", 0, number, size, size) + data)
    for file in files:
        file.close()


def frames(path):
    """The frames of a file; an unfinished last one is none."""
    with open(path, "rb") as file:
        data = file.read()
    at = 24
    while at + 16 <= len(data):
        size = int.from_bytes(data[at + 8 : at + 12], "little")
        at += 16
        if at + size > len(data):
            return
        yield data[at : at + size]
        at += size


def compare(before, after):
    sent = {}
    for path in before:
        for data in frames(path):
            sent[data[AT_NUMBER : AT_NUMBER + 6]] = data
    wrong = dict.fromkeys(("altered", "repeated", "out of order", "in two queues"), 0)
    queues = set()
    seen = set()
    last = {}  # flow: the number of its last frame, and the queue it came from
    for queue, path in enumerate(after):
        for data in frames(path):
            key = data[AT_NUMBER : AT_NUMBER + 6]
            if sent.get(key) != data:
                wrong["altered"] += 1
                continue
            if key in seen:
                wrong["repeated"] += 1
                continue
            seen.add(key)
            queues.add(queue)
            flow = key[:2]
            number, came_from = last.get(flow, (b"", queue))
            if key[2:] < number:
                wrong["out of order"] += 1
            if came_from != queue:
                wrong["in two queues"] += 1
            last[flow] = key[2:], queue
    lost = len(sent) - len(seen)
    if lost or any(wrong.values()):
        print(f"of {len(sent)} frames {lost} lost, " + ", ".join(f"{count} {what}" for what, count in wrong.items()))
        return 1
    print(f"# {len(sent)} frames, {len(queues)} of {len(after)} queues")
    return 0


def main():
    match sys.argv[1:]:
        case ["generate", count, longest, *paths] if paths:
            return generate(int(count), int(longest), paths)
        case ["compare", before, *after] if after:
            return compare(before.split(","), after)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
