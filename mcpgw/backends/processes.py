"""The processes that belong to a backend, also those that have left its process group; and the end of them.

A program may start others in sessions of their own (a browser, a daemon): signals to its process group do not
reach them. They are found in ``/proc``: as its descendants, and, where their parent is gone, by a mark in the
environment that they have inherited. Where there is no ``/proc`` none is found.

This file is also the program of the reaper (see `mcpgw.backends.reaper`), and so imports the standard library
alone.
"""

import os
import signal
import sys
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MARK = "MCPGW_BACKEND"
"""The variable of the environment that holds the mark of a backend."""
_POLL_SECONDS = 0.05
_KILL_SECONDS = 1.0
_PROC = Path("/proc")
_STATE, _PARENT, _STARTED = 0, 1, 19
"""Members of ``/proc/PID/stat`` after the name (proc_pid_stat(5): 3, 4 and 22)."""


class Process(NamedTuple):
    """A process; its start (clock ticks since the machine's) tells it from a later one with its number."""

    pid: int
    started: int


def descendants(leaders: Collection[int]) -> set[Process]:
    """The processes that `leaders` have started, and those that these have; not the leaders themselves."""
    parents = dict(_running())
    found: set[Process] = set()
    known = set(leaders)
    while more := {one for one, parent in parents.items() if parent in known} - found:
        found |= more
        known = {one.pid for one in more}
    return found


def marked(marks: Collection[str]) -> set[Process]:
    """The processes that have one of `marks` in the environment that they began with."""
    wanted = {f"{MARK}={mark}".encode() for mark in marks}
    found: set[Process] = set()
    for process, _ in _running() if wanted else ():
        with suppress(OSError):  # it has ended, or is another user's
            environment = (_PROC / str(process.pid) / "environ").read_bytes()
            if wanted & set(environment.split(b"\0")):
                found.add(process)
    return found


def kill(processes: Iterable[Process]) -> None:
    """Kill those of `processes` that still run."""
    for process in processes:
        with suppress(OSError):
            # The handle stays with the process, also where another gets its number meanwhile.
            handle = os.pidfd_open(process.pid)
            try:
                if _stat(process.pid) is not None and _started(process.pid) == process.started:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)


def kill_family(known: Iterable[Process], marks: Collection[str]) -> int:
    """Kill `known` and all with one of `marks`, until none is left; tells how many there were.

    Takes a second at most; blocks meanwhile.
    """
    deadline = time.monotonic() + _KILL_SECONDS
    known, killed = set(known), set[Process]()
    while True:
        left = marked(marks)
        left |= {process for process in known if _started(process.pid) == process.started}
        killed |= left
        if not left or time.monotonic() > deadline:
            return len(killed)
        kill(left)
        time.sleep(_POLL_SECONDS / 5)


def _running() -> Iterable[tuple[Process, int]]:
    """Every process that runs, with its parent; one that waits to be reaped does not."""
    try:
        names = os.listdir(_PROC)  # noqa: PTH208 - it is read often, and Path.iterdir is slower
    except OSError:
        return
    for name in names:
        if name.isdecimal() and (stat := _stat(int(name))) is not None:
            yield Process(int(name), int(stat[_STARTED])), int(stat[_PARENT])


def _stat(pid: int) -> list[str] | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if stat[_STATE] in ("Z", "X") else stat


def _started(pid: int) -> int | None:
    stat = _stat(pid)
    return None if stat is None else int(stat[_STARTED])


# --- the reaper's program ----------------------------------------------------------------------------------


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def main() -> None:
    """Read orders until the gateway is gone, then end what is left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    groups: dict[int, str] = {}
    for line in sys.stdin:
        verb, group, *mark = line.split()
        if verb == "add":
            groups[int(group)] = mark[0] if mark else ""
        else:
            groups.pop(int(group), None)
    # Now, for the descendants of a leader that has ended cannot be told by their parents any more.
    family = descendants(groups)
    deadline = time.monotonic() + float(sys.argv[1])
    while any(map(_is_alive, groups)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    if groups:
        kill_family(family, [mark for mark in groups.values() if mark])


if __name__ == "__main__":
    main()
