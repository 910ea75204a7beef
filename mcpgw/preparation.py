"""What clients need and an idle gateway does not: some 20 MiB of libraries, loaded when the first one comes.

PyJWT with `cryptography`, the compiled schemas of frames, and `jsonschema` for the words of a refusal. They
are imported in a thread, since they take some tenths of a second: the first request waits for them, and the
event loop does not. Where nobody waits (a server that is built by hand) each is loaded on its first use.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from importlib import import_module
from typing import Final

from mcpgw.logs import log_event
from mcpgw.wire import frames

_LOGGER = logging.getLogger("mcpgw.http")
_MODULES: Final = ("jwt", "mcpgw.wire.slow_check")


def _load() -> None:
    for name in _MODULES:
        import_module(name)
    frames.prepare()


class Preparation:
    """Happens once; whoever comes meanwhile waits for the same. `load` does it, in a thread.

    Where it fails (the process has no file descriptor left, the installation is broken) that is logged. Who
    has waited is served all the same, as far as that goes, and the next who comes has it tried again.
    """

    def __init__(self, load: Callable[[], None] = _load) -> None:
        self._load = load
        self._loading: asyncio.Task[None] | None = None
        self._is_done = False

    def under_way(self) -> Coroutine[None, None, None] | None:
        """What to wait for before a client is served; None, nearly always, where all is there."""
        if self._is_done:
            return None
        if self._loading is None:
            self._loading = asyncio.create_task(asyncio.to_thread(self._load), name="preparation")
            self._loading.add_done_callback(self._ended)
        return _end_of(self._loading)

    def _ended(self, loading: asyncio.Task[None]) -> None:
        self._loading = None
        if loading.cancelled():
            return
        fault = loading.exception()
        self._is_done = fault is None
        if fault is not None:
            log_event(
                _LOGGER, logging.ERROR, "libraries not loaded", reason=f"{type(fault).__name__}: {fault}"
            )


async def _end_of(loading: asyncio.Task[None]) -> None:
    # Not the task itself: one who leaves must not cancel it for the others.
    await asyncio.wait({loading})
