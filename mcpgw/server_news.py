"""What happens to servers, told as events; and that the servers of a worker which has ended are stopped."""

from collections.abc import Mapping
from typing import Any, Final

from mcpgw.bus import Bus
from mcpgw.gateway import Gateway
from mcpgw.metrics import Metrics
from mcpgw.wire.events import EVENT_TYPES
from mcpgw.workers.peers import Peers

_ENDED: Final = ("server.stopped", "server.disabled")


class ServerNews:
    """Publishes what happens to the servers; of several workers each names itself."""

    def __init__(self, bus: Bus, metrics: Metrics, gateway: Gateway, peers: Peers) -> None:
        self._bus = bus
        self._metrics = metrics
        self._gateway = gateway
        self._peers = peers
        self._ready: set[str] = set()
        self._worker = {} if peers.is_alone else {"worker": peers.number}
        # Of workers that have ended, how far the log was then: what is newer is of those started again.
        self._gone: dict[int, int] = {}
        peers.on_gone(self._worker_gone)
        peers.on_speaker(lambda _: self._tell_gone(*self._gone))

    def tell(self, server_id: str, name: str, data: Mapping[str, Any], user: str | None) -> None:
        """Publish one event of a server, and the gateway's health where that has changed.

        What concerns one user alone (an instance of their own) is for them and for admins.
        """
        if f"server.{name}" in EVENT_TYPES:
            self._bus.publish(f"server.{name}", {"serverId": server_id, **data, **self._worker}, owner=user)
        before = len(self._ready)
        if name in ("started", "restarted"):
            self._ready.add(server_id)
            self._metrics.backend_up(server_id, True)
        elif name in ("retrying", "stopped", "disabled") or data.get("state") in ("idle", "failed"):
            self._ready.discard(server_id)
            self._metrics.backend_up(server_id, False)
        if name == "restarted":
            self._metrics.backend_restarted(server_id)
        if len(self._ready) != before:
            self._tell_health(len(self._ready), len(self._gateway.server_ids), self._worker)

    def _worker_gone(self, number: int) -> None:
        self._gone[number] = self._bus.position.offset
        if self._peers.is_speaker:
            self._tell_gone(number)

    def _tell_gone(self, *workers: int) -> None:
        """Say that what ran in these workers is stopped, as far as the newest events tell otherwise."""
        for event in (*self._bus.latest("servers"), *self._bus.latest("gateway")):
            worker = event.data.get("worker")
            if worker not in workers or event.position.offset > self._gone[worker]:
                continue
            if event.type.name == "gateway.health_update":
                if event.data["ready"]:
                    self._tell_health(0, event.data["servers"], {"worker": worker})
            elif event.type.name not in _ENDED:
                data = {"serverId": event.data["serverId"], "worker": worker}
                self._bus.publish("server.stopped", data, owner=event.owner)

    def _tell_health(self, ready: int, servers: int, worker: Mapping[str, int]) -> None:
        health = {"state": "health", "ready": ready, "servers": servers, **worker}
        self._bus.publish("gateway.health_update", health)
