"""What is asked of the gateway as a whole, whichever of its processes is asked: numbers, states, lines.

Each answers for itself, and whoever is asked adds up what the others answer in time.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from mcpgw.bus import Bus
from mcpgw.gateway import Gateway
from mcpgw.hub import Hub
from mcpgw.memory_use import resident_bytes
from mcpgw.merged_metrics import MergedMetrics, to_families
from mcpgw.metrics import Metrics
from mcpgw.session_store import SessionStore
from mcpgw.workers.peers import Peers

_STATISTICS: Final = "statistics"
_STATES: Final = "states of servers"
_LINES: Final = "lines of a server"
_METRICS: Final = "metrics"
_SECONDS: Final = 2.0

_COMPARED: Final = ("state", "tools", "reason")
"""What makes the state of a server another one."""


class WholeGateway:
    """Answers for all processes of the gateway: this one and `peers`."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        hub: Hub,
        bus: Bus,
        sessions: SessionStore,
        metrics: Metrics,
        peers: Peers,
    ) -> None:
        self._gateway = gateway
        self._hub = hub
        self._bus = bus
        self._sessions = sessions
        self._metrics = metrics
        self._peers = peers
        self._merged = MergedMetrics()
        self.started = time.monotonic()
        peers.answer(_STATISTICS, lambda *_: self._statistics())
        peers.answer(_STATES, lambda _, detail: self._states(detail=bool(detail)))
        peers.answer(_LINES, lambda _, name: list(gateway.last_lines(str(name))))
        peers.answer(_METRICS, lambda *_: self._families())
        peers.on_gone(self._merged.worker_gone)

    async def statistics(self) -> dict[str, Any]:
        """What goes on, as JSON; ages in milliseconds, memory in bytes.

        Of several processes the sums, the median age as the median of theirs, and each under ``workers``.
        """
        own = self._statistics()
        if self._peers.is_alone:
            return own
        by_worker = {self._peers.number: own, **await self._peers.ask_all(_STATISTICS, seconds=_SECONDS)}
        workers = [{"worker": number, **one} for number, one in sorted(by_worker.items())]
        return {**_summed([by_worker[number] for number in sorted(by_worker)]), "workers": workers}

    async def states(self, *, detail: bool = False) -> dict[str, list[dict[str, Any]]]:
        """The states of each server in each process where they are not the same, by the server's id.

        With `detail` the reasons have what is for operators alone.
        """
        if self._peers.is_alone:
            return {}
        answers = await self._peers.ask_all(_STATES, detail, seconds=_SECONDS)
        answers[self._peers.number] = self._states(detail=detail)
        found: dict[str, list[dict[str, Any]]] = {}
        for number, states in sorted(answers.items()):
            for server_id, state in states.items():
                found.setdefault(server_id, []).append({"worker": number, **state})
        return {server_id: states for server_id, states in found.items() if _differ(states)}

    async def last_lines(self, server_id: str) -> list[str]:
        """The last lines that a server wrote to its stderr; of several processes each names its own."""
        own = list(self._gateway.last_lines(server_id))
        if self._peers.is_alone:
            return own
        answers = await self._peers.ask_all(_LINES, server_id, seconds=_SECONDS)
        answers[self._peers.number] = own
        return [f"worker {number}: {line}" for number, lines in sorted(answers.items()) for line in lines]

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """All numbers, and the content type of how they are written; see `Metrics.render`."""
        # In a thread: the files of the process are looked at, and of those there is one for each connection.
        if self._peers.is_alone:
            return await asyncio.to_thread(self._metrics.render, accept)
        own, told = await asyncio.gather(
            asyncio.to_thread(self._metrics.families), self._peers.ask_all(_METRICS, seconds=_SECONDS)
        )
        self._merged.learn(told)
        return self._merged.render(to_families(own), self._peers.number, accept)

    # --- this process --------------------------------------------------------------------------------------

    def _statistics(self) -> dict[str, Any]:
        hub = self._hub.statistics()
        return {
            "uptimeMs": round((time.monotonic() - self.started) * 1000),
            "connections": {
                "all": hub.connections,
                "byKind": dict(hub.by_kind),
                "byUser": dict(hub.by_user),
                "unidentified": hub.unidentified,
                "waiting": hub.waiting,
                "closing": hub.closing,
                "newestAgeMs": round(hub.newest_age * 1000),
                "medianAgeMs": round(hub.median_age * 1000),
                "oldestAgeMs": round(hub.oldest_age * 1000),
                "accepted": hub.accepted,
                "refused": hub.refused,
            },
            "frames": {"in": hub.frames_in, "out": hub.frames_out},
            "events": {
                "epoch": self._bus.position.epoch,
                "published": self._bus.position.offset,
                "subscriptions": dict(self._bus.listeners()),
            },
            "sessions": len(self._sessions),
            "calls": self._gateway.counts.to_json(),
            "errors": self._metrics.errors(),
            "memory": {"residentBytes": resident_bytes()},
        }

    def _states(self, *, detail: bool) -> dict[str, dict[str, Any]]:
        return {status.id: status.to_state(detail=detail) for status in self._gateway.statuses()}

    async def _families(self) -> list[Any]:
        return to_families(await asyncio.to_thread(self._metrics.families))


def _differ(states: list[dict[str, Any]]) -> bool:
    return len({tuple(state.get(name) for name in _COMPARED) for state in states}) > 1


def _summed(statistics: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several processes what they have together, in the same shape."""
    first = statistics[0]
    sums: dict[str, Any] = {name: _added(one[name] for one in statistics) for name in first}
    connections = [one["connections"] for one in statistics]
    some = [one for one in connections if one["all"]] or connections[:1]
    medians = sorted(one["medianAgeMs"] for one in some for _ in range(max(1, one["all"])))
    sums["connections"] |= {
        "newestAgeMs": min(one["newestAgeMs"] for one in some),
        "medianAgeMs": medians[len(medians) // 2],
        "oldestAgeMs": max(one["oldestAgeMs"] for one in some),
    }
    sums["uptimeMs"] = max(one["uptimeMs"] for one in statistics)
    # The log is the same in all.
    sums["events"] |= {name: first["events"][name] for name in ("epoch", "published")}
    return sums


def _added(values: Iterable[Any]) -> Any:
    """Numbers added up, in mappings too; of anything else the first."""
    known = list(values)
    if all(isinstance(value, Mapping) for value in known):
        names = Counter(name for value in known for name in value)
        return {name: _added(value[name] for value in known if name in value) for name in names}
    if all(isinstance(value, int) for value in known):
        return sum(known)
    return known[0]
