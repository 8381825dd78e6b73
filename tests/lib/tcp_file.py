#!/usr/bin/env python3
"""One end of a TCP transfer of a file, for one peer: tcp_file.py send|receive PORT FILE.

The other end is busybox nc in a guest. nc on this side would not do: it ends the connection when its input ends.
"""
import socket
import sys

direction, port, path = sys.argv[1:]
listener = socket.create_server(("", int(port)))
listener.settimeout(120)
peer, _ = listener.accept()
peer.settimeout(30)
if direction == "send":
    with open(path, "rb") as source:
        peer.sendfile(source)
else:
    with open(path, "wb") as target:
        while data := peer.recv(1 << 20):
            target.write(data)
peer.close()
