#!/usr/bin/env python3
"""Datagrams of growing sizes, each known by its number.

    udp_numbered.py send HOST PORT COUNT     sends them, one a millisecond
    udp_numbered.py receive PORT COUNT       takes them, in order and none missing; says `ready` first
"""
import random
import socket
import sys
import time

SO_RCVBUFFORCE = 33


def datagrams(count):
    """Of 1 to 1432 bytes, odd and even: one frame of 1500 bytes holds each with IPv6, too."""
    for number in range(count):
        dice = random.Random(number)
        yield dice.randbytes(1 + number * 1431 // max(count - 1, 1))


direction, *where, count = sys.argv[1:]
if direction == "send":
    family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as peer:
        peer.connect((where[0], int(where[1])))
        for datagram in datagrams(int(count)):
            peer.send(datagram)
            time.sleep(0.001)
else:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as peer:
        peer.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        peer.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        peer.bind(("", int(where[0])))
        peer.settimeout(120)
        print("ready", flush=True)
        for number, datagram in enumerate(datagrams(int(count))):
            try:
                if peer.recv(1 << 16) != datagram:
                    sys.exit(f"not datagram {number}")
            except TimeoutError:
                sys.exit(f"no datagram {number}")
