"""Files of others, changed so that nothing is ever lost: whole or not at all, and with the old one kept."""

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from mcpgw.cli.output import UsageFault

_LARGEST: Final = 64 * 1024 * 1024
_BYTE_ORDER_MARK: Final = "\ufeff"
_NEW_FILE_MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file as it was when it was read: `path` has no symbolic links, `text` no byte order mark.

    `owner` is its user and its group by number; `stamp` tells one state of it from another; both are None for
    a file that was not there.
    """

    path: Path
    text: str
    mark: str = ""
    mode: int = _NEW_FILE_MODE
    owner: tuple[int, int] | None = None
    stamp: tuple[int, int, int] | None = None


def read_file(path: Path) -> FoundFile:
    """The file as it is; an empty one where there is none.

    Raises:
        UsageFault: it cannot be read, or is no text.
    """
    path = path.expanduser()
    try:
        # A link to a file elsewhere (a folder of dotfiles) stays one.
        path = path.resolve()
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_LARGEST + 1)
    except FileNotFoundError:
        return FoundFile(path, "")
    except (OSError, RuntimeError) as error:
        raise UsageFault(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > _LARGEST:
        raise UsageFault(f"{path}: is larger than {_LARGEST} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageFault(f"{path}: is not UTF-8") from None
    mark = _BYTE_ORDER_MARK if text.startswith(_BYTE_ORDER_MARK) else ""
    owner = (status.st_uid, status.st_gid)
    return FoundFile(path, text.removeprefix(mark), mark, status.st_mode & 0o777, owner, _stamp(status))


def replace_file(found: FoundFile, text: str, *, is_secret: bool = False) -> Path | None:
    """Put `text` in the place of the file, and answer where its old content is kept; None for a new file.

    Both have the owner and the mode of the file, as far as this process may give them; where it `is_secret`,
    nobody but the owner may read them.

    Raises:
        UsageFault: it has changed since it was read, or cannot be written; then it is as it was.
    """
    path = found.path
    unfinished: list[Path] = []
    mode = found.mode & _NEW_FILE_MODE if is_secret else found.mode
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        draft = Path(name)
        unfinished.append(draft)
        with os.fdopen(handle, "wb") as file:
            _make_like(found, file.fileno(), mode)
            file.write((found.mark + text).encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        backup = None if found.stamp is None else _kept(found, mode)
        unfinished += [] if backup is None else [backup]
        if _present_stamp(path) != found.stamp:
            raise UsageFault(f"{path}: was changed by another program just now; try again")
        draft.replace(path)
        unfinished.clear()
    except OSError as error:
        raise UsageFault(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        for left in unfinished:
            with suppress(OSError):
                left.unlink()
    return backup


def _make_like(found: FoundFile, handle: int, mode: int) -> None:
    """Give a new file the owner and the mode of the one that it stands for."""
    if found.owner is not None:
        user, group = found.owner
        try:
            os.fchown(handle, user, group)
        except PermissionError:  # to give a file away is for root; the group is worth a try
            with suppress(PermissionError):
                os.fchown(handle, -1, group)
    os.fchmod(handle, mode)  # last: a change of the owner may take bits away


def _kept(found: FoundFile, mode: int) -> Path:
    """A copy of the file beside it, under a name that is free."""
    moment = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    number = 0
    while True:
        more = f"-{number}" if number else ""
        backup = found.path.with_name(f"{found.path.name}.{moment}{more}.backup")
        try:
            handle = os.open(backup, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & _NEW_FILE_MODE)
        except FileExistsError:
            number += 1
            continue
        with os.fdopen(handle, "wb") as file:
            _make_like(found, file.fileno(), mode)
            file.write((found.mark + found.text).encode("utf-8"))
        return backup


def _present_stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        return _stamp(path.stat())
    except FileNotFoundError:
        return None


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_size
