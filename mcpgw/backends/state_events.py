"""The events that a change of a server's state makes."""

from collections.abc import Iterator, Mapping
from typing import Any

from mcpgw.backends.backend import Backend
from mcpgw.backends.status import BackendState


class StateEvents:
    """Remembers what was told of one server, and says what is to be told next."""

    def __init__(self) -> None:
        self._told: tuple[BackendState, float | None] | None = None
        self._was_ready = False

    def of(
        self, state: BackendState, backend: Backend | None, tools: int, *, is_held: bool
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The events, name and data, of a server that is in `state` now, as its instance `backend` is.

        `is_held` says that an operator has stopped it.
        """
        next_try = backend.next_try_at if backend is not None and state is BackendState.RETRYING else None
        before, self._told = self._told, (state, next_try)
        if before == self._told:
            return
        reason = (backend.reason if backend is not None else None) or ""
        match state:
            case BackendState.READY if before is not None and before[0] is BackendState.DEGRADED:
                yield "status_update", {"state": state.value}
            case BackendState.READY if backend is not None:
                name = "restarted" if self._was_ready else "started"
                self._was_ready = True
                yield name, {"tools": tools, "protocolVersion": backend.status.protocol_version}
            case BackendState.DEGRADED:
                yield "status_update", {"state": state.value, "reason": reason}
            case BackendState.RETRYING if backend is not None:
                data: dict[str, Any] = {"reason": reason, "failures": backend.failures}
                if next_try is not None:
                    data["nextTryAt"] = round(next_try * 1000)
                yield "retrying", data
            case BackendState.FAILED:
                yield "error", {"reason": reason}
                yield "status_update", {"state": state.value, "reason": reason}
            case BackendState.IDLE:
                self._was_ready = False
                yield ("stopped", {}) if is_held else ("status_update", {"state": state.value})
            case BackendState.DISABLED | BackendState.STOPPED:
                self._was_ready = False
                yield state.value, {}
            case BackendState.STARTING:
                yield state.value, {}
