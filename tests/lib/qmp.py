#!/usr/bin/env python3
"""Talks to QEMU's monitor (QMP).

    qmp.py SOCKET COMMAND [JSON-ARGUMENTS]   runs one command and prints what it returns
    qmp.py SOCKET move URI SECONDS           migrates to URI and waits until that is done: prints how long it took
"""
import json
import socket
import sys
import time


class Monitor:
    def __init__(self, path):
        deadline = time.monotonic() + 20
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(path)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self.socket.settimeout(30)
        self.lines = self.socket.makefile()
        self.lines.readline()
        self.run("qmp_capabilities")

    def run(self, command, arguments=None):
        text = json.dumps({"execute": command} | ({"arguments": arguments} if arguments else {}))
        self.socket.sendall(text.encode())
        for line in self.lines:
            answer = json.loads(line)
            if "error" in answer:
                sys.exit(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        sys.exit(f"{command}: QEMU hung up")


def migrate(monitor, uri, seconds):
    start = time.monotonic()
    monitor.run("migrate", {"uri": uri})
    while True:
        info = monitor.run("query-migrate")
        if info.get("status") in ("completed", "failed", "cancelled"):
            break
        if time.monotonic() - start > seconds:
            sys.exit(f"migration not over after {seconds} s: {json.dumps(info)}")
        time.sleep(0.02)
    if info["status"] != "completed":
        sys.exit(f"migration {info['status']}: {info.get('error-desc', '')}")
    print(f"# migrated in {info['total-time']} ms, stopped for {info['downtime']} ms, {info['ram']['dirty-sync-count']} passes")


monitor = Monitor(sys.argv[1])
if sys.argv[2] == "move":
    migrate(monitor, sys.argv[3], float(sys.argv[4]))
else:
    print(json.dumps(monitor.run(sys.argv[2], json.loads(sys.argv[3]) if len(sys.argv) > 3 else None)))
