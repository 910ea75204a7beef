"""The process of a stdio backend: started at once, and connected to the event loop when somebody is to speak.

The loop's own `subprocess_exec` starts and connects in one, so that nothing could be started before there is
something to speak with it, and uvloop's leaves copies of a pipe's ends in the child: it could close its stdin
or stdout, and nobody would see that. `subprocess` closes in the child what is not its own (PEP 446).

It imports the standard library alone: it is needed before the MCP SDK is there.
"""

import asyncio
import os
import secrets
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Final, Protocol

from mcpgw.backends import processes

_KILL_SECONDS: Final = 1.0
_INHERITED: Final = ("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER")


def inherited_environment() -> dict[str, str]:
    """The variables of the gateway's environment that every backend has: those that the MCP SDK hands on."""
    found = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {name: value for name, value in found.items() if not value.startswith("()")}  # a shell's function


@dataclass(frozen=True)
class Program:
    """What is run: a command with its arguments; variables beside `inherited_environment`; the folder."""

    argv: tuple[str, ...] = field(repr=False)
    env: Mapping[str, str] = field(repr=False)
    cwd: str | Path | None = None


class ChildProtocol(Protocol):
    """Who is told what a child does; see `asyncio.SubprocessProtocol`."""

    def pipe_data_received(self, fd: int, data: bytes, /) -> None:
        """It has written `data` to its stdout (1) or stderr (2)."""

    def pipe_connection_lost(self, fd: int, exc: Exception | None, /) -> None:
        """It has closed its stdin (0), stdout (1) or stderr (2)."""

    def process_exited(self) -> None:
        """It has ended; `Child.returncode` says how."""


class Child:
    """A process in a group of its own (its number is `pid`), with a `mark` in its environment.

    Raises:
        OSError: the program cannot be started.
    """

    def __init__(self, program: Program) -> None:
        self.mark = secrets.token_hex(16)
        self._process = subprocess.Popen(  # noqa: S603 - what the configuration names
            program.argv,
            env=inherited_environment() | dict(program.env) | {processes.MARK: self.mark},
            cwd=program.cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.stdin: asyncio.WriteTransport | None = None
        self.stdout: asyncio.ReadTransport | None = None
        self._stderr: asyncio.ReadTransport | None = None
        self._protocol: ChildProtocol | None = None
        self._held: list[Callable[[], None]] | None = []
        self._is_closed = False

    @property
    def returncode(self) -> int | None:
        """Its exit code, or the negative number of the signal that ended it; None before that was seen."""
        return self._process.returncode

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    async def connect(self, protocol: ChildProtocol) -> None:
        """Have `protocol` told what it does; nothing before whoever awaits this has gone on.

        Where that fails, or is cancelled, the child is killed.
        """
        self._protocol = protocol
        connecting = asyncio.create_task(self._connect(), name=f"pipes of {self.pid}")
        try:
            await asyncio.shield(connecting)
        except (OSError, asyncio.CancelledError):
            # A pipe that is half connected nobody could close; it is a matter of a turn or two of the loop.
            await asyncio.wait({connecting})
            self.close()
            raise
        finally:
            asyncio.get_running_loop().call_soon(self._release)

    def close(self) -> None:
        """Close its pipes, and kill it where it still runs.

        Raises:
            PermissionError: it has changed its user, and cannot be killed.
        """
        self._is_closed = True
        for pipe in (self.stdin, self.stdout, self._stderr):
            if pipe is not None:
                pipe.close()
        self._close_files()
        if self._process.returncode is None:
            self._process.kill()

    def end(self) -> None:
        """Kill one that was not connected, its group and what has left that, and wait for its end."""
        self._close_files()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # stuck in the kernel: the gateway waits for no such
            self._process.wait(_KILL_SECONDS)
        processes.kill_family((), [self.mark])

    def tell_data(self, number: int, data: bytes) -> None:
        """Tell the protocol what came by a pipe, in the order of events; in the turn in which it was read."""
        if self._held is None and self._protocol is not None:
            self._protocol.pipe_data_received(number, data)
        else:
            self.tell(lambda protocol: protocol.pipe_data_received(number, data))

    def tell(self, what: Callable[[ChildProtocol], None]) -> None:
        """Tell the protocol something, in the order of events."""
        assert self._protocol is not None, "nothing happens before `connect`"  # noqa: S101
        if self._held is None:
            what(self._protocol)
        else:
            self._held.append(partial(what, self._protocol))

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        self._watch(loop)
        self.stdin, _ = await loop.connect_write_pipe(lambda: _Pipe(self, 0), self._taken("stdin"))
        self._stderr, _ = await loop.connect_read_pipe(lambda: _Pipe(self, 2), self._taken("stderr"))
        self.stdout, _ = await loop.connect_read_pipe(lambda: _Pipe(self, 1), self._taken("stdout"))

    def _release(self) -> None:
        held, self._held = self._held or [], None
        for happen in held:
            happen()

    def _taken(self, name: str) -> IO[bytes]:
        """A pipe that is its transport's from now on."""
        pipe: IO[bytes] = getattr(self._process, name)
        setattr(self._process, name, None)
        return pipe

    def _close_files(self) -> None:
        for file in (self._process.stdin, self._process.stdout, self._process.stderr):
            if file is not None:
                file.close()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            handle = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not Linux, an old kernel, or no file descriptor left
            threading.Thread(target=self._wait, args=(loop,), name=f"end of {self.pid}", daemon=True).start()
            return

        def ended() -> None:
            loop.remove_reader(handle)
            os.close(handle)
            self._process.wait()
            self.tell(_say_exited)

        loop.add_reader(handle, ended)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._process.wait()
        with suppress(RuntimeError):  # the loop is closed: nobody is there to be told
            loop.call_soon_threadsafe(self.tell, _say_exited)


def _say_exited(protocol: ChildProtocol) -> None:
    protocol.process_exited()


class _Pipe(asyncio.Protocol):
    """One pipe of a child."""

    def __init__(self, child: Child, number: int) -> None:
        self._child = child
        self._number = number

    def data_received(self, data: bytes) -> None:
        self._child.tell_data(self._number, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._child.tell(lambda protocol: protocol.pipe_connection_lost(self._number, exc))
