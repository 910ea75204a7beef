"""Numbers that all workers have together, such as open connections: each knows those of the others."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from mcpgw.workers.peers import Peers

TELL_SECONDS: Final = 0.05
"""How long a number that has changed may wait until the others are told."""


class Totals:
    """What the other workers count, so that a limit can be one of all; with one process there is nothing.

    `count` answers this worker's own numbers. Others are told after `changed`, at most twenty times a second:
    a limit of all may be passed by as many as come in that time.
    """

    def __init__(self, peers: Peers, topic: str, count: Callable[[], Sequence[int]]) -> None:
        self._peers = peers
        self._topic = topic
        self._count = count
        self._of_others: dict[int, Sequence[int]] = {}
        self._elsewhere: tuple[int, ...] = (0,) * len(count())
        self._is_telling = False
        if not peers.is_alone:
            peers.listen(topic, self._hear)
            peers.on_came(lambda number: peers.tell(topic, list(count()), to=number))
            peers.on_gone(self._forget)

    def elsewhere(self) -> tuple[int, ...]:
        """The sums of what the others have."""
        return self._elsewhere

    def changed(self) -> None:
        """This worker's numbers are others now, or may be."""
        if not self._is_telling and not self._peers.is_alone:
            self._is_telling = True
            asyncio.get_running_loop().call_later(TELL_SECONDS, self._tell)

    def _tell(self) -> None:
        self._is_telling = False
        self._peers.tell(self._topic, list(self._count()))

    def _hear(self, number: int, counts: Sequence[int]) -> None:
        self._of_others[number] = counts
        self._add_up()

    def _forget(self, number: int) -> None:
        self._of_others.pop(number, None)
        self._add_up()

    def _add_up(self) -> None:
        sums = [0] * len(self._elsewhere)
        for counts in self._of_others.values():
            sums = [one + other for one, other in zip(sums, counts, strict=True)]
        self._elsewhere = tuple(sums)
