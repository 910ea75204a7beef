"""The note that a running gateway leaves in its data folder, so that commands on the same machine find it.

    {"url": "https://127.0.0.1:3000", "pid": 4711, "certificate": "/…/gateway.pem", "others": [{"url": …}]}

`certificate` is the file of the gateway's own, empty without TLS: commands on this machine believe that one
alone, and need not call the gateway by the name in it. Several gateways may share a folder: the newest stands
first, and is found.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

_NAME = "gateway.json"
_LOCK_TRIES = 20
_LOCK_PAUSE = 0.01
_LOCK = ".gateway.lock"


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """Where a gateway listens, its process id, and the file of its certificate (empty without TLS)."""

    url: str
    pid: int
    certificate: str = ""

    @classmethod
    def here(cls, url: str, certificate: str = "") -> "RunningGateway":
        """This process."""
        return cls(url, os.getpid(), certificate)


def remember_running(data_dir: Path, running: RunningGateway) -> None:
    """Leave the note; the folder is made where it is missing.

    Raises:
        OSError: the folder cannot be written to.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(data_dir):
        _write(data_dir, [running, *_others(data_dir, running)])


def forget_running(data_dir: Path, running: RunningGateway) -> None:
    """Take the note away; those of other gateways that still run stay."""
    with suppress(FileNotFoundError), _locked(data_dir):
        if others := _others(data_dir, running):
            _write(data_dir, others)
        else:
            (data_dir / _NAME).unlink()


def find_running(data_dir: Path) -> RunningGateway | None:
    """The gateway that runs on this data folder now, the newest of several; None where none does."""
    return next(filter(_is_alive, _read(data_dir)), None)


def _others(data_dir: Path, running: RunningGateway) -> list[RunningGateway]:
    return [other for other in _read(data_dir) if other != running and _is_alive(other)]


def _is_alive(running: RunningGateway) -> bool:
    try:
        os.kill(running.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's process: alive
    return True


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Two gateways that start or end at once must not lose each other's notes.

    Whoever holds the lock for longer is no gateway, and is not waited for: the note is a courtesy.
    """
    with (data_dir / _LOCK).open("w", encoding="utf-8") as lock:
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_LOCK_PAUSE)
            else:
                break
        yield


def _write(data_dir: Path, notes: list[RunningGateway]) -> None:
    first, *others = map(asdict, notes)
    draft = data_dir / f".{_NAME}.{os.getpid()}"
    draft.write_text(json.dumps(first | {"others": others}) + "\n", encoding="utf-8")
    draft.replace(data_dir / _NAME)


def _read(data_dir: Path) -> list[RunningGateway]:
    try:
        note = json.loads((data_dir / _NAME).read_text(encoding="utf-8"))
        found = [
            RunningGateway(str(entry["url"]), int(entry["pid"]), str(entry.get("certificate", "")))
            for entry in (note, *note.get("others", ()))
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    # A process id that is none would name a group of processes, or all.
    return [running for running in found if running.pid > 0]
