#!/usr/bin/env python3
"""A vhost-user front end that behaves badly: vhost_abuse.py SOCKET NAME, or `list` for the names.

Each misbehaviour is one connection (some: several). It ends with status 0 when the back end answered or hung up
within the time that a person would wait, and with 1 when the back end was silent, could not be reached, or was gone.
Whether it was harmed besides is for the caller to see.
"""
import array
import mmap
import os
import random
import socket
import struct
import sys
import time

GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE, SET_LOG_BASE, SET_LOG_FD = range(1, 8)
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL = range(8, 14)
SET_VRING_ERR, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = range(14, 19)
VERSION = 1
VIRTIO_F_VERSION_1 = 1 << 32


class FrontEnd:
    """A connection, and the messages that all misbehaviours are made of."""

    def __init__(self, path):
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(5)
        self.socket.connect(path)

    def raw(self, data, fds=()):
        """Sends bytes, with file descriptors beside the first of them. A back end that hung up is no error."""
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            sent = self.socket.sendmsg([data], rights)
            if sent < len(data):
                self.socket.sendall(data[sent:])
        except (BrokenPipeError, ConnectionResetError):
            pass

    def send(self, request, payload=b"", fds=(), flags=VERSION, size=None):
        self.raw(struct.pack("<III", request, flags, len(payload) if size is None else size) + payload, fds)

    def send_u64(self, request, value):
        self.send(request, struct.pack("<Q", value))

    def reply(self):
        """The payload of a reply; None when the back end hung up. Silence raises TimeoutError."""
        try:
            header = self.exactly(12)
            return None if header is None else self.exactly(struct.unpack("<III", header)[2])
        except ConnectionResetError:
            return None

    def exactly(self, count):
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                return None
            data += more
        return data

    def settle(self):
        """Asks for the features and waits: the back end has now digested all that was sent, or it hung up."""
        self.send(GET_FEATURES)
        self.reply()

    def hung_up(self):
        """Waits until the back end hangs up; data that it sends first are thrown away."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass

    def memory(self, size=1 << 20):
        """A table of one region, backed by a fresh memfd; returns the descriptor and its mapping."""
        fd = os.memfd_create("abuse")
        os.ftruncate(fd, size)
        self.mem_table([(0, size, 0x10000, 0)], [fd])
        return fd, mmap.mmap(fd, size)

    def mem_table(self, regions, fds, count=None):
        table = struct.pack("<II", len(regions) if count is None else count, 0)
        self.send(SET_MEM_TABLE, table + b"".join(struct.pack("<QQQQ", *region) for region in regions), fds)

    def start(self):
        self.send(SET_OWNER)
        self.send_u64(SET_FEATURES, VIRTIO_F_VERSION_1)

    def ring(self, index, num=256, desc=0x10000, used=0x14000, avail=0x12000):
        """One ring with kick and call; returns the kick eventfd."""
        self.send(SET_VRING_NUM, struct.pack("<II", index, num))
        self.send(SET_VRING_ADDR, struct.pack("<IIQQQQ", index, 0, desc, used, avail, 0))
        self.send(SET_VRING_BASE, struct.pack("<II", index, 0))
        call, kick = os.eventfd(0), os.eventfd(0)
        self.send(SET_VRING_CALL, struct.pack("<Q", index), [call])
        self.send(SET_VRING_KICK, struct.pack("<Q", index), [kick])
        return kick


def garbage(path):
    """Random bytes, with the version right in some, so that they get past the first check."""
    source = random.Random(1)
    for _ in range(40):
        front_end = FrontEnd(path)
        front_end.raw(source.randbytes(4096))
        front_end.socket.shutdown(socket.SHUT_WR)
        front_end.hung_up()
    for _ in range(200):
        front_end = FrontEnd(path)
        for _ in range(8):
            payload = source.randbytes(source.choice([0, 4, 8, 12, 40, 264]))
            front_end.send(source.randrange(0, 48), payload, flags=VERSION | source.choice([0, 8]))
        front_end.socket.shutdown(socket.SHUT_WR)
        front_end.hung_up()


def half_messages(path):
    """Every kind of message, cut off in the header and in the payload."""
    for request in range(0, 45):
        for cut in (1, 11, 12, 15):
            front_end = FrontEnd(path)
            front_end.raw((struct.pack("<III", request, VERSION, 40) + bytes(40))[:cut])
            front_end.socket.shutdown(socket.SHUT_WR)
            front_end.hung_up()


def stalled_message(path):
    """Half a message, and then nothing for a while; the rest arrives late."""
    front_end = FrontEnd(path)
    message = struct.pack("<III", GET_FEATURES, VERSION, 0)
    front_end.raw(message[:7])
    time.sleep(1.5)
    front_end.raw(message[7:])
    front_end.reply()


def lying_sizes(path):
    """Payloads announced longer and shorter than the message has."""
    for size in (0xFFFFFFFF, 0x80000000, 4097, 1 << 20):
        front_end = FrontEnd(path)
        front_end.send(SET_FEATURES, bytes(8), size=size)
        front_end.socket.shutdown(socket.SHUT_WR)
        front_end.hung_up()
    for request in (SET_FEATURES, SET_MEM_TABLE, SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_KICK):
        for length in (0, 1, 3, 7):
            front_end = FrontEnd(path)
            front_end.send(request, bytes(length))
            front_end.settle()


def wrong_version(path):
    for flags in (0, 2, 3, 0xFFFFFFFC):
        front_end = FrontEnd(path)
        front_end.send(GET_FEATURES, flags=flags)
        front_end.socket.shutdown(socket.SHUT_WR)
        front_end.hung_up()


def surplus_fds(path):
    """File descriptors beside every kind of message, more than any wants, some beside the second half of a message."""
    null = os.open("/dev/null", os.O_RDWR)
    for request in range(0, 45):
        for count in (1, 8, 9, 64, 253):
            front_end = FrontEnd(path)
            front_end.send(request, bytes(8), [null] * count)
            front_end.socket.shutdown(socket.SHUT_WR)
            front_end.hung_up()
    for _ in range(20):
        front_end = FrontEnd(path)
        front_end.raw(struct.pack("<III", SET_VRING_KICK, VERSION, 8), [null])
        front_end.raw(bytes(8), [null] * 8)
        front_end.settle()


def bad_memory(path):
    """Memory tables that lie about their files, or do not make sense."""
    size = 1 << 20
    for case in range(9):
        front_end = FrontEnd(path)
        front_end.start()
        memory = os.memfd_create("abuse")
        os.ftruncate(memory, size)
        null, (pipe, _) = os.open("/dev/null", os.O_RDWR), os.pipe()
        good = (0, size, 0x10000, 0)
        match case:
            case 0: front_end.mem_table([(0, 0, 0x10000, 0)], [memory])
            case 1: front_end.mem_table([(0, 1 << 40, 0x10000, 0)], [memory])
            case 2: front_end.mem_table([(0, size, 0x10000, 1 << 50)], [memory])
            case 3: front_end.mem_table([(0xFFFFFFFFFFFFF000, size, 0x10000, 0)], [memory])
            case 4: front_end.mem_table([good], [null])
            case 5: front_end.mem_table([good], [pipe])
            case 6: front_end.mem_table([good], [])
            case 7: front_end.mem_table([good, good], [memory, memory])
            case 8: front_end.mem_table([good], [memory], count=200)
        front_end.settle()
        front_end.socket.close()
        for fd in (memory, null, pipe):
            os.close(fd)


def bad_rings(path):
    """Ring numbers, sizes and addresses out of range; kicks for rings that have no memory."""
    for index, num, desc in ((0, 0, 0x10000), (0, 3, 0x10000), (0, 65535, 0x10000), (0, 256, 0xDEAD0000),
                             (0, 256, 0x10000 + (1 << 20) - 8), (0, 256, 0xFFFFFFFFFFFFFFF0), (0, 256, 0x10001),
                             (255, 256, 0x10000), (1000, 256, 0x10000), (0xFFFFFFFF, 256, 0x10000)):
        front_end = FrontEnd(path)
        front_end.start()
        front_end.memory()
        kick = front_end.ring(index, num, desc)
        os.eventfd_write(kick, 1)
        front_end.settle()
        front_end.socket.close()
    front_end = FrontEnd(path)
    kick = os.eventfd(0)
    front_end.send(SET_VRING_KICK, struct.pack("<Q", 0), [kick])
    front_end.send(GET_VRING_BASE, struct.pack("<II", 0, 0))
    front_end.send(GET_VRING_BASE, struct.pack("<II", 0, 0))
    front_end.settle()


def hostile_rings(path):
    """Rings that are set up properly and hold nonsense: loops, wild addresses, an index that jumps."""
    source = random.Random(2)
    for case in range(30):
        front_end = FrontEnd(path)
        front_end.start()
        _, memory = front_end.memory()
        memory[: 1 << 16] = source.randbytes(1 << 16)
        if case % 3 == 0:  # descriptors that point at each other for ever
            for i in range(256):
                memory[i * 16 : i * 16 + 16] = struct.pack("<QIHH", 0x20, 64, 1, (i + 1) % 256)
        memory[0x2000:0x2004] = struct.pack("<HH", 0, source.choice([1, 256, 257, 40000]))
        kicks = [front_end.ring(index) for index in (0, 1)]
        for kick in kicks:
            os.eventfd_write(kick, 1)
        front_end.settle()
        time.sleep(0.02)
        front_end.socket.close()


def truncated_memory(path):
    """Memory that is taken away below the back end after it has mapped it: SIGBUS for whoever touches it."""
    front_end = FrontEnd(path)
    front_end.start()
    fd, memory = front_end.memory()
    kicks = [front_end.ring(index) for index in (0, 1)]
    front_end.settle()
    memory.close()
    os.ftruncate(fd, 0)
    for kick in kicks:
        os.eventfd_write(kick, 1)
    time.sleep(0.5)
    front_end.settle()


def deaf(path):
    """Asks and asks and never reads an answer, then leaves."""
    front_end = FrontEnd(path)
    front_end.socket.settimeout(1)
    try:
        for _ in range(100000):
            front_end.send(GET_FEATURES)
    except TimeoutError:
        pass  # the back end has stopped reading, as it should


def many_connections(path):
    """Comes and goes, without a word."""
    for _ in range(300):
        FrontEnd(path).socket.close()


MISBEHAVIOURS = [garbage, half_messages, stalled_message, lying_sizes, wrong_version, surplus_fds, bad_memory, bad_rings,
                 hostile_rings, truncated_memory, deaf, many_connections]


def main():
    if sys.argv[1:] == ["list"]:
        print("\n".join(function.__name__ for function in MISBEHAVIOURS))
        return
    _, path, name = sys.argv
    function = {function.__name__: function for function in MISBEHAVIOURS}[name]
    try:
        function(path)
        FrontEnd(path).settle()  # it still serves
    except (TimeoutError, ConnectionError, FileNotFoundError) as error:
        sys.exit(f"{name}: {type(error).__name__} {error}")


main()
