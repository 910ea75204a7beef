"""Gateways and servers that begin as copies of a process which has imported everything already.

Importing takes a gateway about a second of processor time, a server that uses the SDK half of one, and a
command a quarter: more than most tests need for all else. One process of each test run imports once
(`serve_copies`), and forks a copy for each that is asked for over a Unix socket. From there on a copy is what
``python -m mcpgw``, or the script, is: its own arguments, environment, folder and files. Tests of the start
begin real processes.
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

_LONGEST_REQUEST = 256 * 1024
_LENGTH = struct.Struct("!I")
_STAND_IN = Path(__file__).parent.parent / "servers" / "forked_server.py"
_GATEWAY = "mcpgw"
_MEMORY = "mcpgw.backends.memory"


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
        request = json.dumps([list(arguments), str(folder), dict(environment), _GATEWAY]).encode()
        with Path(os.devnull).open("rb") as nothing:
            files = [nothing.fileno(), output.fileno(), output.fileno()]
            socket.send_fds(self._line, [_LENGTH.pack(len(request))], files)
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


def server_command(script: Path, *arguments: str) -> list[str]:
    """The command of a server of these tests, as a copy; its end and exit code are the script's."""
    return _stand_in(_mould(), str(script), *arguments)


def server_table(name: str, script: Path, *arguments: object, more: str = "") -> str:
    """Such a server in a configuration, under a name; `more` are further lines of its table."""
    command, *rest = server_command(script, *map(str, arguments))
    return f"[servers.{name}]\ncommand = {json.dumps(command)}\nargs = {json.dumps(rest)}\n{more}\n"


def memory_command(*arguments: str) -> list[str]:
    """``python -m mcpgw.backends.memory``, as a copy."""
    return _stand_in(_mould(), _MEMORY, *arguments)


def gateway_command(*arguments: str) -> list[str]:
    """``python -m mcpgw``, as a copy."""
    return _stand_in(_mould(), _GATEWAY, *arguments)


def _stand_in(address: str, *words: str) -> list[str]:
    return [sys.executable, "-I", "-S", str(_STAND_IN), address, *words]


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
    # These come when they are needed: with a command, with the first server, with the first request to /mcp.
    late = ("mcpgw.cli.serve", "mcpgw.backends.server", "mcpgw.aggregate.door", "mcp.server.stdio", _MEMORY)
    for name in ("mcpgw.app", "mcpgw.cli", *late):
        importlib.import_module(name)
    roster: Any = importlib.import_module("mcpgw.roster")
    roster.MEMORY_PROGRAM = tuple(_stand_in(address, _MEMORY))  # the copies of gateways start copies
    gc.collect()
    gc.freeze()  # collecting in a copy would touch, and so copy, the memory that all share
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
    """Make one copy, and tell how it ended; end it where nobody is there to be told."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, _, _ = socket.recv_fds(line, _LENGTH.size, 3)
    (length,) = _LENGTH.unpack(head)
    assert length <= _LONGEST_REQUEST
    arguments, folder, environment, script = json.loads(line.recv(length, socket.MSG_WAITALL))
    copy = os.fork()
    if copy == 0:
        line.close()
        _become(script, arguments, folder, environment, files)
    for file in files:
        os.close(file)
    line.sendall(struct.pack("!i", copy))
    if line.fileno() in select.select([os.pidfd_open(copy), line.fileno()], [], [])[0]:
        os.kill(copy, signal.SIGKILL)
    _, status = os.waitpid(copy, 0)
    with contextlib.suppress(OSError):
        line.sendall(struct.pack("!i", os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _become(
    script: str, arguments: list[str], folder: str, environment: dict[str, str], files: list[int]
) -> NoReturn:
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, 64)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=stream.isatty() or bool(environment.get("PYTHONUNBUFFERED")))
    code = 1
    try:
        if script == _GATEWAY:
            sys.argv = [importlib.import_module("mcpgw.__main__").__file__ or "", *arguments]
            importlib.import_module("mcpgw.cli").main()
        elif script == _MEMORY:
            module = importlib.import_module(_MEMORY)
            sys.argv = [module.__file__ or "", *arguments]
            sys.exit(module.main())
        else:
            sys.argv = [script, *arguments]
            sys.path.insert(0, str(Path(script).parent))
            runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001 - as Python itself does at the end of a program
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve_copies(sys.argv[1])
