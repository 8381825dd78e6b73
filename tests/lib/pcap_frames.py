#!/usr/bin/env python3
"""Numbered frames in pcap files: what went in, and whether it came out.

    pcap_frames.py generate FRAMES LONGEST FILE...   writes frames of 60 to LONGEST bytes, spread over the files (queues)
    pcap_frames.py compare LIMIT IN,IN... OUT...     holds what came out against what went in

The frames go to the address in the environment variable TO, or to 52:54:00:00:00:99.
Each frame carries its number; the frames of a flow (UDP, an address and a source port of its own) are all in one file.
Every frame must come out once, byte by byte as it went in, those of a flow in order and from one queue; LIMIT frames may be
lost or come twice (more than once only where that is above 0). What is wrong is counted and said; the status is 1 then.
"""
import os
import random
import struct
import sys

FLOWS = 64  # 16 for each of 4 queues: enough that a hash uses all of them
TO = bytes.fromhex(os.environ.get("TO", "52:54:00:00:00:99").replace(":", ""))
AT_NUMBER = 14 + 20 + 8  # behind Ethernet, IPv4 and UDP: flow (16 bits), number (32 bits)


def checksum(data):
    """The Internet checksum: a sum of 16-bit words with end-around carry is the remainder of a division by 0xffff."""
    rest = int.from_bytes(data + b"\0" * (len(data) % 2), "big") % 0xFFFF
    return 0xFFFF - rest


def header(flow, size):
    """Ethernet, IPv4 with its checksum, UDP without one: the same for all frames of that flow and size."""
    source = struct.pack("!4B", 10, 1, flow % 8, flow)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, size - 14, 0, 0x4000, 64, 17, 0) + source + b"\x0a\2\0\1"
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    udp = struct.pack("!HHHH", 1024 + 13 * flow, 9000 + flow, size - 34, 0)
    return TO + b"\x52\x54\0\0\1" + bytes([flow]) + b"\x08\0" + ip + udp


def generate(count, longest, paths):
    dice = random.Random(count)
    noise = dice.randbytes(1 << 17)
    # Many shortest and longest: there the edges are.
    sizes = [60, longest] * 250 + [dice.randint(60, longest) for _ in range(1000)]
    flows = [dice.randrange(FLOWS) for _ in range(4999)]
    files = [open(path, "wb", 1 << 20) for path in paths]
    for file in files:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
    headers = {}
    for number in range(count):
        flow, size = flows[number % 4999], sizes[number * 7 % 1500]
        if (flow, size) not in headers:
            headers[flow, size] = struct.pack("<IIII", 0, 0, size, size) + header(flow, size), files[flow % len(files)]
        start, file = headers[flow, size]
        at = number % 65536
        file.write(b"%b%b%b%b" % (start, flow.to_bytes(2), number.to_bytes(4), noise[at : at + size - 48]))
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


def compare(limit, before, after):
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
    many = lost + wrong["repeated"] > limit
    what = f"of {len(sent)} frames {lost} lost, " + ", ".join(f"{count} {what}" for what, count in wrong.items())
    del wrong["repeated"]
    if many or any(wrong.values()):
        print(what)
        return 1
    print(f"# {what}; {len(queues)} of {len(after)} queues")
    return 0


def main():
    match sys.argv[1:]:
        case ["generate", count, longest, *paths] if paths:
            return generate(int(count), int(longest), paths)
        case ["compare", limit, before, *after] if after:
            return compare(int(limit), before.split(","), after)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
