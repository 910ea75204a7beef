"""Stands in for a server or command of these tests: a process forked elsewhere has its three files.

``forked_server.py ADDRESS SCRIPT [ARGUMENT…]``: see `tests.support.forked`. It imports next to nothing, ends
as the copy ends, and takes the copy with it.
"""

import json
import os
import signal
import socket
import sys

line = socket.socket(socket.AF_UNIX)
line.connect(sys.argv[1])
request = json.dumps([sys.argv[3:], os.getcwd(), dict(os.environ), sys.argv[2]]).encode()  # noqa: PTH109
socket.send_fds(line, [len(request).to_bytes(4, "big")], [0, 1, 2])
line.sendall(request)
copy = int.from_bytes(line.recv(4, socket.MSG_WAITALL), "big", signed=True)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: os.kill(copy, number))
for file in (0, 1):
    os.close(file)
code = int.from_bytes(line.recv(4, socket.MSG_WAITALL), "big", signed=True)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
