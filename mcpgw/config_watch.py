"""Watching the files of the configuration, whatever way they are replaced.

Editors write a new file and rename it over the old one, or empty the old one and fill it; Kubernetes swaps a
symbolic link beside the file (``..data``). So not the files are watched but the folders that lead to them,
links followed, and what counts is what the files hold, once it is still. Where the system cannot tell of
changes (a network file system, too many watches), the files are looked at now and then.
"""

import asyncio
import hashlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Final

from mcpgw.logs import log_event

_LOGGER = logging.getLogger("mcpgw.config")
_STEP_MS: Final = 50
_STILL_SECONDS: Final = 0.15
"""How long files must be the same before they are taken for written."""
_ABSENT_SECONDS: Final = 1.0
"""How long a file that is empty or not there may be between its old and its new content."""
_LONGEST_SECONDS: Final = 5.0
"""Longest wait for files that do not come to rest."""
_MOST_LINKS: Final = 40
_MOST_BYTES: Final = 4 * 1024 * 1024 + 1

Seen = tuple[tuple[str, bytes], ...]
"""What stands in the files: the path of each with the hash of its content, which is empty without any."""


async def look_at(files: Iterable[Path]) -> Seen:
    """What stands in `files` now."""
    return await asyncio.to_thread(_look, tuple(files))


async def watch_files(
    files: Callable[[], Iterable[Path]],
    on_change: Callable[[], Awaitable[None]],
    *,
    seen: Seen,
    interval: float,
) -> None:
    """Call `on_change` after each change of what is in `files`, until cancelled.

    `seen` is what stood in them when they were read (`look_at`). `files` is asked anew after each change.
    They are looked at every `interval` seconds in any case. What `on_change` raises is logged, and the watch
    goes on.
    """
    while True:
        await _stirred(tuple(files()), seen, interval)
        present = await _settled(files)
        if present == seen:
            continue
        seen = present
        try:
            await on_change()
        except Exception as error:  # noqa: BLE001 - a fault must not end the watch; it stands in the log
            log_event(_LOGGER, logging.ERROR, "reload failed", exception=error)
        seen = _renewed(seen, await asyncio.to_thread(_look, tuple(files())))


async def _stirred(files: tuple[Path, ...], seen: Seen, interval: float) -> None:
    """Wait until the files are other than `seen`."""
    while True:
        folders = await asyncio.to_thread(_folders, files)
        # What has changed before the watch began would be missed.
        if await asyncio.to_thread(_look, files) != seen:
            return
        if not folders:
            await asyncio.sleep(interval)
            continue
        try:
            async with _told_of_changes(folders.values(), interval) as changed:
                while True:
                    await changed()
                    if await asyncio.to_thread(_look, files) != seen:
                        return
                    if await asyncio.to_thread(_folders, files) != folders:
                        break
        except (ImportError, OSError, RuntimeError) as error:
            log_event(_LOGGER, logging.WARNING, "files are not watched", reason=str(error))
            await asyncio.sleep(interval)


@asynccontextmanager
async def _told_of_changes(
    folders: Iterable[Path], interval: float
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """What waits for the next change in one of `folders`, at most `interval` seconds.

    Raises (also when waited for):
        ImportError, OSError, RuntimeError: nothing can tell of changes.
    """
    # In a thread of its own, which it blocks nearly always. `awatch` does that as well, with a part of anyio
    # that takes a MiB, and that nothing else needs in a gateway without servers.
    thread, stop = ThreadPoolExecutor(1, thread_name_prefix="files"), threading.Event()
    in_thread = partial(asyncio.get_running_loop().run_in_executor, thread)
    try:
        watchfiles = await in_thread(import_module, "watchfiles")
        watching = watchfiles.watch(
            *folders,
            watch_filter=None,
            step=_STEP_MS,
            debounce=_STEP_MS * 4,
            stop_event=stop,
            rust_timeout=round(interval * 1000),
            yield_on_timeout=True,
            raise_interrupt=False,
            recursive=False,
            ignore_permission_denied=True,
        )

        async def changed() -> None:
            if await in_thread(next, watching, None) is None:
                raise RuntimeError("the watch has ended")

        try:
            yield changed
        finally:
            stop.set()  # it is looked at every `_STEP_MS`
            thread.submit(watching.close)
    finally:
        thread.shutdown(wait=False)


async def _settled(files: Callable[[], Iterable[Path]]) -> Seen:
    """What the files hold, once they do not change any more."""
    loop = asyncio.get_running_loop()
    began = still_since = loop.time()
    present = await asyncio.to_thread(_look, tuple(files()))
    while True:
        patience = _STILL_SECONDS if all(content for _, content in present) else _ABSENT_SECONDS
        now = loop.time()
        if now - still_since >= patience or now - began >= _LONGEST_SECONDS:
            return present
        await asyncio.sleep(_STILL_SECONDS / 3)
        latest = await asyncio.to_thread(_look, tuple(files()))
        if latest != present:
            present, still_since = latest, loop.time()


def _renewed(before: Seen, after: Seen) -> Seen:
    """`after` where other files are to be watched; else `before`, lest a change meanwhile be missed."""
    return before if [path for path, _ in before] == [path for path, _ in after] else after


def _look(files: tuple[Path, ...]) -> Seen:
    seen = [(str(file), _content(file)) for file in files]
    return tuple(seen)


def _content(file: Path) -> bytes:
    try:
        if not file.is_file():  # a pipe can be read once alone
            return b""
        with file.open("rb") as stream:
            content = stream.read(_MOST_BYTES)
    except (OSError, ValueError):
        return b""
    return hashlib.sha256(content).digest() if content and content.strip() else b""


def _folders(files: tuple[Path, ...]) -> dict[tuple[int, int], Path]:
    """The folders in which something changes when one of `files` does, by device and inode."""
    found: dict[tuple[int, int], Path] = {}
    for file in files:
        for path in _steps(file.absolute()):
            folder = path.parent.resolve()
            try:
                status = folder.stat()
            except OSError:
                continue
            found.setdefault((status.st_dev, status.st_ino), folder)
    return found


def _steps(file: Path) -> list[Path]:
    """The paths that lead to a file: itself, and what each symbolic link among their parts points to."""
    steps: list[Path] = []
    pending = [file]
    while pending and len(steps) < _MOST_LINKS:
        path = pending.pop()
        steps.append(path)
        for part in (path, *path.parents):
            if part.is_symlink():
                steps.append(part)
                target = part.parent / part.readlink()
                pending.append(target / path.relative_to(part))
                break
    return steps
