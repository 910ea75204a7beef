"""Notes between workers that may be large: these go in pieces, of which few are on their way at once.

What waits for a worker that does not read is bounded (`link.MOST_WAITING`), and one that is so far behind is
ended. A server's answer may be nearly as large as that, and many of them may come at once.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from mcpgw.workers.peers import OnNote, Peers

PIECE: Final = 256 * 1024
"""Characters of one piece, and bytes of what is sent as a whole."""
_ON_THEIR_WAY: Final = 4
"""Pieces that one worker is sent before it has taken the first of them."""

_ENCODE = msgspec.json.Encoder().encode
_DECODE = msgspec.json.Decoder().decode


@dataclass(slots=True)
class _Lane:
    """What waits for one worker: kinds and JSON texts, the first of which is sent up to `position`."""

    waiting: deque[tuple[str, str]] = field(default_factory=deque)
    position: int = 0
    message: int = 0
    on_their_way: int = 0


class Freight:
    """Tells other workers notes of `topic`, each of a kind, in the order in which they are told here."""

    def __init__(self, peers: Peers, topic: str) -> None:
        self._peers = peers
        self._topic = topic
        self._taken_topic = f"{topic} taken"
        self._listeners: dict[str, OnNote] = {}
        self._lanes: dict[int, _Lane] = {}
        # The pieces of one message of each worker, and its number.
        self._pieces: dict[int, tuple[int, list[str]]] = {}
        peers.listen(topic, self._take)
        peers.listen(self._taken_topic, self._taken)
        peers.on_gone(self._forget)

    def listen(self, kind: str, listener: OnNote) -> None:
        """Have `listener` given what others tell of this kind."""
        self._listeners[kind] = listener

    def tell(self, to: int, kind: str, data: Any) -> None:
        """Tell one worker something; nothing happens where it is not there.

        Raises:
            ValueError: a text in `data` is no Unicode text.
            RecursionError: it is nested too deeply.
            TypeError: it is no JSON.
        """
        body = _ENCODE(data)
        if to not in self._peers.present:
            return
        lane = self._lanes.get(to)
        if len(body) <= PIECE and (lane is None or not lane.waiting):
            self._peers.tell(self._topic, (kind, msgspec.Raw(body)), to=to)
            return
        if lane is None:
            lane = self._lanes[to] = _Lane()
        lane.waiting.append((kind, body.decode()))
        self._send(to, lane)

    def _send(self, to: int, lane: _Lane) -> None:
        while lane.waiting and lane.on_their_way < _ON_THEIR_WAY:
            kind, text = lane.waiting[0]
            if len(text) <= PIECE:
                self._peers.tell(self._topic, (kind, msgspec.Raw(text.encode())), to=to)
                lane.waiting.popleft()
                continue
            piece = text[lane.position : lane.position + PIECE]
            is_last = lane.position + PIECE >= len(text)
            note = ("", lane.message, lane.position // PIECE, piece, kind if is_last else "")
            self._peers.tell(self._topic, note, to=to)
            lane.on_their_way += 1
            lane.position += PIECE
            if is_last:
                lane.waiting.popleft()
                lane.position = 0
                lane.message += 1

    def _taken(self, sender: int, _: Any) -> None:
        lane = self._lanes.get(sender)
        if lane is not None:
            lane.on_their_way -= 1
            self._send(sender, lane)
            if not lane.waiting and not lane.on_their_way:
                del self._lanes[sender]

    def _take(self, sender: int, note: list[Any]) -> None:
        kind = note[0]
        if kind:
            self._listeners[kind](sender, note[1])
            return
        _, message, index, piece, kind = note
        self._peers.tell(self._taken_topic, to=sender)
        if not index:
            self._pieces[sender] = message, []
        known, pieces = self._pieces.get(sender, (-1, []))
        # The end of what was meant for the worker that was here before begins nowhere.
        if known != message or index != len(pieces):
            return
        pieces.append(piece)
        if kind:
            del self._pieces[sender]
            self._listeners[kind](sender, _DECODE("".join(pieces)))

    def _forget(self, worker: int) -> None:
        self._lanes.pop(worker, None)
        self._pieces.pop(worker, None)
