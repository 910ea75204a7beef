"""Gateways that begin as copies of a process which has imported everything already.

Importing takes a gateway about a second of processor time, more than most tests need for all else. One
process of each test run imports once (`serve_copies`), and forks a copy for each gateway that is asked for
over a Unix socket. From there on a copy is what ``python -m mcpgw`` is: its own arguments, environment,
folder and output. Tests of the start itself begin a real process.
"""

import atexit
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

_LONGEST_REQUEST = 256 * 1024
_LENGTH = struct.Struct("!I")


class ForkedProcess:
    """A copy that runs ``mcpgw``, with what of `subprocess.Popen` a test of a gateway needs.

    `stdin` is empty; stdout and stderr go to `output`.
    """

    def __init__(
        self, arguments: Sequence[str], *, folder: Path, environment: Mapping[str, str], output: BinaryIO
    ) -> None:
        self.returncode: int | None = None
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(_mould())
        request = json.dumps([list(arguments), str(folder), dict(environment)]).encode()
        socket.send_fds(self._line, [_LENGTH.pack(len(request))], [output.fileno()])
        self._line.sendall(request)
        self.pid = self._read_number()

    def poll(self) -> int | None:
        """Its exit code, negative where a signal ended it; None while it runs."""
        if self.returncode is None and select.select([self._line], [], [], 0)[0]:
            self.returncode = self._read_number()
            self._line.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not ended within `timeout` seconds.
        """
        if self.returncode is None:
            select.select([self._line], [], [], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(["mcpgw"], timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, where it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _read_number(self) -> int:
        answer = self._line.recv(4, socket.MSG_WAITALL)
        if len(answer) < 4:
            raise AssertionError("the process that makes copies has ended")
        return int(struct.unpack("!i", answer)[0])


_lock = threading.Lock()
_address: list[str] = []


def _mould() -> str:
    """Where copies are asked for; the first time it is started."""
    with _lock:
        if not _address:
            folder = tempfile.TemporaryDirectory(prefix="mcpgw-tests-", ignore_cleanup_errors=True)
            address = f"{folder.name}/copies"
            # It ends when nobody holds the other end of its stdin: also where this process is killed.
            mould = subprocess.Popen(
                [sys.executable, "-P", __file__, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert mould.stdin is not None
            assert mould.stdout is not None
            assert mould.stdout.readline() == b"ready\n", "the process that makes copies did not start"
            mould.stdout.close()

            def end(stdin: BinaryIO = mould.stdin) -> None:  # type: ignore[assignment]
                stdin.close()
                mould.wait(10)
                folder.cleanup()

            atexit.register(end)
            _address.append(address)
        return _address[0]


def serve_copies(address: str) -> None:
    """Fork a copy for each who asks at `address`, until stdin is closed."""
    # The last two come when they are needed: with the first server, with the first request to /mcp.
    modules = ("mcpgw.app", "mcpgw.cli", "mcpgw.cli.serve", "mcpgw.backends.server", "mcpgw.aggregate.door")
    for name in modules:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(16)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for the copies
    os.write(1, b"ready\n")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    while 0 not in select.select([listener.fileno(), 0], [], [])[0]:
        line, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _attend(line)
        line.close()


def _attend(line: socket.socket) -> NoReturn:
    """Make one copy, and tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, _, _ = socket.recv_fds(line, _LENGTH.size, 1)
    (length,) = _LENGTH.unpack(head)
    assert length <= _LONGEST_REQUEST
    arguments, folder, environment = json.loads(line.recv(length, socket.MSG_WAITALL))
    copy = os.fork()
    if copy == 0:
        line.close()
        _become(arguments, folder, environment, files[0])
    line.sendall(struct.pack("!i", copy))
    _, status = os.waitpid(copy, 0)
    try:
        line.sendall(struct.pack("!i", os.waitstatus_to_exitcode(status)))
    finally:
        os._exit(0)


def _become(arguments: list[str], folder: str, environment: dict[str, str], output: int) -> NoReturn:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, number in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, number)
    os.closerange(3, 64)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [importlib.import_module("mcpgw.__main__").__file__ or "", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        importlib.import_module("mcpgw.cli").main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve_copies(sys.argv[1])
