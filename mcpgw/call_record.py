"""One call in the eyes of others: its events, its line in the audit log and in the log, its error counted.

Every way in (WebSocket, REST, MCP) tells the same of a call, by the same words. The numbers of calls and the
trace are the gateway's own.

    record = records.begin(actor, call_id="call-1", server="memory", tool="memory_search", arguments={})
    record.started()
    record.answered(is_error=False, result=[])     # or record.failed("timeout"); what comes later is nothing
"""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mcpgw.access.guest_names import room_of
from mcpgw.audit import Actor, Audit
from mcpgw.bus import Bus
from mcpgw.errors import Cancelled, GatewayError, InternalError
from mcpgw.log_values import MAXIMUM_VALUE, bounded
from mcpgw.logs import log_often
from mcpgw.metrics import Metrics

_LONGEST_SHOWN = 2048
_OTHER_MEMBERS = 100
"""About the bytes of an event's data beside the texts of the call."""
_PROGRESS_PAUSE = 0.2
"""Seconds between two events of a call's progress; its caller gets each one."""
_LOGGER = logging.getLogger("mcpgw.calls")
OK: Final = "ok"
TOOL_ERROR: Final = "tool_error"
NOT_SHOWN: Final = object()
"""In the place of a result that no event is to hold."""


def outcome_of(error: BaseException) -> str:
    """The code by which a call that ended with `error` is known."""
    if isinstance(error, GatewayError):
        return error.code
    return InternalError.code if isinstance(error, Exception) else Cancelled.code


@dataclass(frozen=True, slots=True)
class CallRecords:
    """Where calls are recorded."""

    bus: Bus
    audit: Audit
    metrics: Metrics

    def begin(
        self,
        actor: Actor,
        *,
        call_id: str,
        server: str,
        tool: str,
        arguments: Mapping[str, Any],
        logger: logging.Logger = _LOGGER,
    ) -> "CallRecord":
        """The record of a call that begins now."""
        return CallRecord(self, actor, call_id, server, tool, arguments, logger)


class CallRecord:
    """Tells that a call was sent, how far it is, and once how it ended.

    `actor` is who calls; another one of the same user where the call goes on for another connection.
    """

    __slots__ = (
        "_began",
        "_call_id",
        "_has_ended",
        "_logger",
        "_records",
        "_server",
        "_size",
        "_told_at",
        "_tool",
        "actor",
        "arguments",
    )

    def __init__(  # noqa: PLR0917 - made by `CallRecords.begin` alone
        self,
        records: CallRecords,
        actor: Actor,
        call_id: str,
        server: str,
        tool: str,
        arguments: Mapping[str, Any],
        logger: logging.Logger,
    ) -> None:
        self._records = records
        self.actor = actor
        self._call_id = call_id
        self._server = server
        self._tool = tool
        self._size = 0
        self.arguments = arguments
        self._logger = logger
        self._began = time.monotonic()
        self._told_at = 0.0
        self._has_ended = False

    @property
    def duration_ms(self) -> int:
        """How long it takes so far, in milliseconds."""
        return round((time.monotonic() - self._began) * 1000)

    def started(self) -> None:
        """It is sent to its server."""
        data = self._data()
        self._publish("call.started", data, "arguments", self.arguments)

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """How far it is; not every time, where it comes often."""
        now = time.monotonic()
        if now - self._told_at < _PROGRESS_PAUSE:
            return
        self._told_at = now
        numbers = self._data() | {"progress": _whole(progress)}
        if total is not None:
            numbers["total"] = _whole(total)
        # The words of a progress may hold parts of the result.
        words = {} if message is None else {"message": message}
        bus, owner = self._records.bus, self.actor.user
        bus.publish("call.progress", numbers | words, owner=owner, masked=numbers)
        room = room_of(owner)
        if room is not None:
            bus.publish("call.progress", numbers, channel=f"room:{room}")

    def answered(self, *, is_error: bool, result: Any = NOT_SHOWN) -> None:
        """Its tool has answered; `is_error` where the tool itself says that it failed."""
        if self._ends():
            data = self._data()
            data["durationMs"] = self.duration_ms
            data["success"] = not is_error
            self._publish("call.finished", data, "result", result)
            self._write(TOOL_ERROR if is_error else OK)

    def failed(self, code: str) -> None:
        """It ended with the error of that code, ``cancelled`` among them; see `outcome_of`."""
        if self._ends():
            data = self._data() | {"durationMs": self.duration_ms}
            if code == Cancelled.code:
                self._publish("call.cancelled", data)
            else:
                self._publish("call.failed", data | {"code": code})
            self._records.metrics.error_sent(code)
            self._write(code)

    def _ends(self) -> bool:
        has_ended, self._has_ended = self._has_ended, True
        return not has_ended

    def _data(self) -> dict[str, Any]:
        return {
            "callId": self._call_id,
            "user": self.actor.user or "",
            "serverId": self._server,
            "toolName": self._tool,
        }

    def _publish(self, type_name: str, data: dict[str, Any], shown: str = "", value: Any = NOT_SHOWN) -> None:
        """Make an event of `data`, for the caller with the `value` of the member `shown` where it is short.

        It must be cheap: two are made of each call, and mostly nobody reads them.
        """
        bus, owner = self._records.bus, self.actor.user
        if not self._size:
            # The texts of a call came in a frame, or from the gateway's own tables: they are JSON.
            texts = f"{self._call_id}{self._server}{self._tool}{owner or ''}"
            self._size = _OTHER_MEMBERS + text_size(texts)
        room = room_of(owner)
        if room is not None:  # without what only the caller may see
            bus.publish(type_name, data, channel=f"room:{room}", size=self._size)
        if not shown:
            bus.publish(type_name, data, owner=owner, size=self._size)
            return
        size = None if value is NOT_SHOWN else short_size(value)
        if size is None:
            bus.publish(type_name, data, owner=owner, masked=data, size=self._size)
        else:
            bus.publish(
                type_name, data | {shown: value}, owner=owner, masked=data, size=2 * self._size + size
            )

    def _write(self, outcome: str) -> None:
        seconds = time.monotonic() - self._began
        # Cut here already: beginnings of lines are kept by what stands in them, and an address can be long.
        server, tool = bounded(self._server, MAXIMUM_VALUE), bounded(self._tool, MAXIMUM_VALUE)
        self._records.audit.call(
            self.actor,
            server=server,
            tool=tool,
            call_id=self._call_id,
            outcome=outcome,
            seconds=seconds,
            arguments=self.arguments,
        )
        fields = (
            ("client", self.actor.client),
            ("user", self.actor.user),
            ("server", server),
            ("tool", tool),
            ("outcome", outcome),
        )
        log_often(self._logger, logging.INFO, "call", fields, ms=round(seconds * 1000, 1))


def is_short(value: Any) -> bool:
    """Whether a value may stand in an event: the log of events must not hold what is large."""
    return short_size(value) is not None


def short_size(value: Any) -> int | None:
    """About how many bytes the JSON of a value has; None where it is long, or no JSON, and in no event."""
    if type(value) is str and value.isascii():
        return size if (size := len(value) + 8) <= _LONGEST_SHOWN else None
    left, waiting = _LONGEST_SHOWN, [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            if part.isascii():
                left -= len(part) + 8
            else:
                left -= text_size(part) + 8
                if left >= 0 and not is_text(part):
                    return None
            if left < 0:
                return None
            continue
        left -= 16
        if left < 0:
            return None
        if isinstance(part, dict | list):
            if 8 * len(part) > left:  # what each of its members costs at least
                return None
            waiting += part
            if isinstance(part, dict):
                waiting += part.values()
        elif part is not None and not isinstance(part, int) and not _is_finite(part):
            return None
    return _LONGEST_SHOWN - left


def text_size(text: str) -> int:
    """About how many bytes a text has."""
    return len(text) if text.isascii() else 3 * len(text)


def is_text(text: str) -> bool:
    """Whether a text may stand in JSON: half of a surrogate pair may not (RFC 8259 section 8.2)."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return True


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _whole(number: float) -> float:
    return int(number) if isinstance(number, float) and number.is_integer() else number
