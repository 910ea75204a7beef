"""The one place that touches what is not public in the MCP SDK.

`Client` makes the dispatcher of its session itself, on a pair of streams, and takes none from outside, though
its session does (`ClientSession(dispatcher=...)`). What it asks for one is its attribute ``_connect``. It is
replaced here, so that all else stays the SDK's: the choice of the era, the handshake, caches, callbacks. A
test fails when an upgrade changes that attribute; connections then go the SDK's own way, with its streams.
"""

import inspect
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Final

from mcp.client import Client
from mcp.shared.dispatcher import Dispatcher

_NAME: Final = "_connect"
_PARAMETERS: Final = ["exit_stack", "_mode", "_raise_exceptions"]

uses_direct_pipes = True
"""Whether servers are spoken to past the SDK's streams; switched off by tests that compare the two."""


def takes_dispatcher(client: Client) -> bool:
    """Whether `client` can be given a dispatcher."""
    connect = getattr(client, _NAME, None)
    return (
        uses_direct_pipes
        and inspect.iscoroutinefunction(connect)
        and list(inspect.signature(connect).parameters) == _PARAMETERS
    )


def give_dispatcher(client: Client, dispatcher: AbstractAsyncContextManager[Dispatcher[Any]]) -> None:
    """Have the session of `client` run on the dispatcher that `dispatcher` gives when it is entered."""

    async def connect(exit_stack: AsyncExitStack, _mode: Any, _raise_exceptions: bool) -> Dispatcher[Any]:
        return await exit_stack.enter_async_context(dispatcher)

    setattr(client, _NAME, connect)
