#!/usr/bin/env python3
"""Clients of the control socket that behave badly: control_abuse.py SOCKET garbage|half_requests|many_connections.

Status 0 when each of them got an answer or was hung up on within a minute or so; 1 when the daemon was silent or gone.
"""
import random
import socket
import sys


def connect(path):
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(45)
    client.connect(path)
    return client


def send(client, data):
    try:
        client.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has hung up: its right


def drain(client):
    """All that the daemon says until it hangs up."""
    answer = b""
    try:
        while data := client.recv(65536):
            answer += data
    except ConnectionResetError:
        pass
    return answer


def garbage(path):
    source = random.Random(1)
    for size in (1, 100, 5000, 200000):
        for prefix in (b"", b"GET ", b"GET /v1/relays HTTP/1.1\r\n", b"PUT /v1/relays/1/device HTTP/1.1\r\nContent-Length: 9"):
            client = connect(path)
            send(client, prefix + source.randbytes(size))
            client.shutdown(socket.SHUT_WR)
            drain(client)
    # Header lines without end; a path without end; a body of negative length.
    for text in (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100000, b"GET /" + b"a" * 1000000,
                 b"PUT /v1/relays/1/device HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"):
        client = connect(path)
        send(client, text)
        client.shutdown(socket.SHUT_WR)
        drain(client)


def half_requests(path):
    """Requests that stop in the middle, all at once, and the patience that the daemon has for them."""
    request = b"PUT /v1/relays/1/device HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n{\"device\""
    clients = []
    for cut in (1, 10, 40, len(request) - 5, len(request)):
        client = connect(path)
        send(client, request[:cut])
        clients.append(client)
    for client in clients:
        drain(client)


def many_connections(path):
    clients = []
    for _ in range(300):
        try:
            clients.append(connect(path))
        except (ConnectionRefusedError, BlockingIOError):
            break  # the daemon's queue is full: its right
    for client in clients:
        client.close()


try:
    {function.__name__: function for function in (garbage, half_requests, many_connections)}[sys.argv[2]](sys.argv[1])
except (TimeoutError, ConnectionRefusedError, FileNotFoundError) as error:
    sys.exit(f"{sys.argv[2]}: {type(error).__name__} {error}")
