"""Whether a channel is read anywhere in the gateway, where that is several processes."""

from mcpgw.bus.shared import SharedBus
from mcpgw.workers.peers import Peers


class ReadersElsewhere:
    """The workers that have readers of `channel`; each tells of its first and its last."""

    def __init__(self, bus: SharedBus, peers: Peers, channel: str) -> None:
        self._bus = bus
        self._peers = peers
        self._channel = channel
        self._topic = f"readers of {channel}"
        self._has_own = False
        self._workers: set[int] = set()
        peers.listen(self._topic, self._hear)
        peers.on_came(lambda worker: self._tell(worker) if self._has_own else None)
        peers.on_gone(self._workers.discard)
        bus.watch_listeners(channel, self._look)

    def __bool__(self) -> bool:
        return bool(self._workers)

    def _look(self) -> None:
        has_own = self._channel in self._bus.listeners()
        if has_own != self._has_own:
            self._has_own = has_own
            self._tell(0)

    def _tell(self, to: int) -> None:
        self._peers.tell(self._topic, self._has_own, to=to)

    def _hear(self, worker: int, has_readers: bool) -> None:
        (self._workers.add if has_readers else self._workers.discard)(worker)
