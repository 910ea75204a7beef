"""The process that outlives a killed gateway and ends its backend servers.

A backend is told to stop by closing its stdin, but one that does not listen would live on when the gateway
itself is killed (`kill -9`) and can end nobody any more. The gateway therefore starts a program once (the
file of `mcpgw.backends.processes`), tells it each process group that it starts, with the mark in its
environment (``add PGID MARK``), and each that has ended (``remove PGID``), and holds its stdin open. When
that stdin ends, the gateway is gone: groups that are still alive after a moment of grace are killed, whole,
and so is what has left them. POSIX only.

Since nothing may run that it does not know, the reaper's pipe is also where processes are started: at once,
or ahead, while there is nothing yet that could speak with them.
"""

import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import IO

from mcpgw.backends import processes
from mcpgw.backends.child import Child, Program

GRACE_SECONDS = 2.0


class ProcessReaper:
    """The gateway's end of the pipe to the reaper; started with the first process group, once.

    `grace` is the time, in seconds, that a group has to end by itself when the gateway is gone.
    """

    def __init__(self, *, grace: float = GRACE_SECONDS) -> None:
        self._grace = grace
        self._process: subprocess.Popen[bytes] | None = None
        self._groups: dict[int, str] = {}
        self._ahead: list[tuple[Program, Child]] = []

    @property
    def pid(self) -> int | None:
        """The process id of the reaper, where it was started."""
        return None if self._process is None else self._process.pid

    def start_ahead(self, programs: Iterable[Program]) -> None:
        """Start what `start` will be asked for soon. What cannot be started now is left to `start` to say."""
        for program in programs:
            with suppress(OSError):
                self._ahead.append((program, self._start(program)))

    def start(self, program: Program) -> Child:
        """A process of `program`: one that was started ahead, where there is one, or a new one.

        Raises:
            OSError: it cannot be started, or the reaper cannot.
        """
        for position, (ahead, child) in enumerate(self._ahead):
            if ahead == program:
                del self._ahead[position]
                return child
        return self._start(program)

    def discard_ahead(self) -> None:
        """End what was started ahead, and nobody has asked for."""
        ahead, self._ahead = self._ahead, []
        for _, child in ahead:
            child.end()
            self.remove(child.pid)

    def add(self, group: int, mark: str = "") -> None:
        """Have the process group `group`, and what bears its `mark`, ended when this process dies.

        Raises:
            OSError: the reaper cannot be started.
        """
        self._groups[group] = mark
        try:
            self._tell(f"add {group} {mark}\n")
        except OSError:
            self._groups.pop(group, None)
            raise

    def remove(self, group: int) -> None:
        """Forget a process group that has ended."""
        self._groups.pop(group, None)
        with suppress(OSError):  # where it was killed and cannot be replaced now, the next `add` says so
            self._tell(f"remove {group}\n")

    def close(self) -> None:
        """End the reaper itself; it first ends what was never removed."""
        self.discard_ahead()
        process, self._process = self._process, None
        self._groups.clear()
        if process is not None:
            _pipe_of(process).close()
            try:
                process.wait(self._grace + 2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, program: Program) -> Child:
        child = Child(program)
        try:
            self.add(child.pid, child.mark)
        except OSError:
            child.end()
            raise
        return child

    def _tell(self, line: str) -> None:
        if self._process is not None:
            with suppress(BrokenPipeError):
                _pipe_of(self._process).write(line.encode())
                return
            self._discard_dead(self._process)
        # The first order, or somebody killed it: a new one is told of every group there is.
        if self._groups:
            self._process = self._started()
            pipe = _pipe_of(self._process)
            pipe.write("".join(f"add {group} {mark}\n" for group, mark in self._groups.items()).encode())

    def _discard_dead(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = None
        _pipe_of(process).close()
        process.kill()
        process.wait()

    def _started(self) -> "subprocess.Popen[bytes]":
        # By its file and isolated (-I): nothing in the current folder or the environment can stand in for
        # a module of the standard library.
        return subprocess.Popen(  # noqa: S603 - a file of its own, run by this interpreter
            [sys.executable, "-I", "-S", processes.__file__, str(self._grace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            bufsize=0,
            start_new_session=True,
        )


def _pipe_of(process: "subprocess.Popen[bytes]") -> IO[bytes]:
    assert process.stdin is not None  # noqa: S101 - for the type checker: it was started with a pipe
    return process.stdin
