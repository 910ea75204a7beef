"""What clients need and an idle gateway does not: some 20 MiB of libraries, loaded when the first one comes.

PyJWT with `cryptography`, the compiled schemas of frames, and `jsonschema` for the words of a refusal. They
are imported in a thread, since they take some tenths of a second: the first request waits for them, and the
event loop does not. Where nobody waits (a server that is built by hand) each is loaded on its first use.
"""

import asyncio
from collections.abc import Awaitable
from importlib import import_module
from typing import Final

from mcpgw.wire import frames

_MODULES: Final = ("jwt", "mcpgw.wire.slow_check")


class Preparation:
    """Happens once; whoever comes meanwhile waits for the same."""

    def __init__(self) -> None:
        self._loading: asyncio.Task[None] | None = None

    def under_way(self) -> Awaitable[None] | None:
        """What to wait for before a client is served; None, nearly always, where all is there."""
        if self._loading is None:
            self._loading = asyncio.create_task(asyncio.to_thread(_load), name="preparation")
        if self._loading.done() and not self._loading.cancelled():
            self._loading.result()
            return None
        return asyncio.shield(self._loading)


def _load() -> None:
    for name in _MODULES:
        import_module(name)
    frames.prepare()
