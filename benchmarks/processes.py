"""What processes of a server cost: processor time and resident memory. Linux; elsewhere both are zero."""

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used, user and system together; zero where it is not there."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0


def resident(pid: int) -> int:
    """Resident memory of a process in KiB."""
    try:
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE // 1024
    except OSError:
        return 0


def command_line(pid: int) -> list[str]:
    """The command of a process and its arguments; empty where it is gone."""
    try:
        return (_PROC / str(pid) / "cmdline").read_text().rstrip("\0").split("\0")
    except OSError:
        return []


def tree(pid: int, without: Collection[int] = ()) -> list[int]:
    """A process and all that come from it, but none of `without` and what comes from those."""
    parents: dict[int, list[int]] = {}
    for entry in _PROC.glob("[0-9]*"):
        if fields := _stat(int(entry.name)):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, ahead = [], [pid]
    while ahead:
        each = ahead.pop()
        if each not in without:
            found.append(each)
            ahead.extend(parents.get(each, ()))
    return found


def settled_memory(pid: int, *, tolerance: float = 0.002, within: float = 15.0) -> int:
    """Resident memory of a process in KiB, once it has stayed the same for a second."""
    return _settled(lambda: resident(pid), tolerance, within)


def settled_tree_memory(pids: Collection[int], *, tolerance: float = 0.002, within: float = 15.0) -> int:
    """The same of several processes together; what they share is counted in each."""
    return _settled(lambda: sum(map(resident, pids)), tolerance, within)


def _settled(measure: Callable[[], int], tolerance: float, within: float) -> int:
    last: list[int] = []
    end = time.monotonic() + within
    while time.monotonic() < end:
        last = [*last[-4:], measure()]
        if len(last) == 5 and max(last) - min(last) <= tolerance * max(last):
            break
        time.sleep(0.25)
    return last[-1]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name: state, parent and so on; empty where it is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
