"""Requests that are open at a backend, each held to the credential that began it."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from mcpgw.access.revocation import Judge, denial
from mcpgw.access.tokens import Principal
from mcpgw.errors import PermissionDenied

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Open:
    principal: Principal
    server: str
    tool: str
    task: "asyncio.Task[Any]"
    error: PermissionDenied | None = None


class OpenRequests:
    """Stops what its caller may not do any more."""

    def __init__(self) -> None:
        self._open: set[_Open] = set()
        self._judge: Judge | None = None

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    async def run(self, work: Coroutine[Any, Any, T], principal: Principal, server: str, tool: str = "") -> T:
        """Await `work`, a request of `principal` to a server, or a call of its tool.

        Raises:
            PermissionDenied: it was stopped, and its backend told; or it may not even begin any more.
        """
        # Between the look at the credentials and this servers may have been asked where something is.
        error = None if self._judge is None else denial(principal, self._judge, server, tool)
        if error is not None:
            work.close()
            raise error
        task = asyncio.current_task()
        assert task is not None, "awaited in a task"  # noqa: S101
        mine = _Open(principal, server, tool, task)
        self._open.add(mine)
        try:
            return await work
        except asyncio.CancelledError:
            if mine.error is None:
                raise
            task.uncancel()
            raise mine.error from None
        finally:
            self._open.discard(mine)

    def review(self, judge: Judge) -> None:
        """Stop what may not go on, and hold to `judge` what begins from now on."""
        self._judge = judge
        for one in self._open:
            if one.error is None:
                one.error = denial(one.principal, judge, one.server, one.tool)
                if one.error is not None:
                    one.task.cancel()
