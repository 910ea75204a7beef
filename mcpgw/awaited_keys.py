"""An ``auth`` frame whose token another issuer has signed with a key that has to be fetched first."""

import asyncio
from collections.abc import Awaitable, Callable


class AwaitedKeys:
    """Waits for `fetched`, then calls `act`, and `take` with each frame that has come meanwhile.

    What a client sends behind an ``auth`` frame is answered as the one whom that proves.
    """

    __slots__ = ("_behind", "_task")

    def __init__(
        self, fetched: Awaitable[None], act: Callable[[], None], take: Callable[[object], None]
    ) -> None:
        self._behind: list[object] = []
        self._task = asyncio.create_task(self._run(fetched, act, take), name="auth frame")

    def hold(self, value: object) -> None:
        """Keep a frame until it is known who sends it."""
        self._behind.append(value)

    async def until_over(self) -> None:
        """Wait until nothing is held any more."""
        await asyncio.wait({self._task})

    async def _run(
        self, fetched: Awaitable[None], act: Callable[[], None], take: Callable[[object], None]
    ) -> None:
        await fetched
        act()
        for value in self._behind:
            take(value)
