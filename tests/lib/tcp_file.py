#!/usr/bin/env python3
"""One end of a TCP transfer of a file.

    tcp_file.py send PORT FILE         serves the file to one peer
    tcp_file.py receive PORT FILE      takes it from one peer
    tcp_file.py fetch HOST:PORT FILE   takes it from a peer that serves it

FILE may be - for standard input or output. Where the other end is busybox nc in a guest, nc on this side would not do:
it ends the connection when its input ends.
"""
import socket
import sys
import time


def connect(host, port):
    """The peer may be about to listen."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=5)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def accept(port):
    listener = socket.create_server(("", int(port)), family=socket.AF_INET6, dualstack_ipv6=True)
    listener.settimeout(120)
    return listener.accept()[0]


direction, address, path = sys.argv[1:]
peer = connect(*address.rsplit(":", 1)) if direction == "fetch" else accept(address)
peer.settimeout(30)
if direction == "send":
    with open(0 if path == "-" else path, "rb") as source:
        while data := source.read(1 << 20):
            peer.sendall(data)
else:
    with open(1 if path == "-" else path, "wb") as target:
        while data := peer.recv(1 << 20):
            target.write(data)
peer.close()
