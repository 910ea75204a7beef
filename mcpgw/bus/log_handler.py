"""The gateway's own log as events, for admins who look: ``system.log``."""

import asyncio
import logging
from typing import Any

from mcpgw.bus.bus import Bus
from mcpgw.bus.readers_elsewhere import ReadersElsewhere
from mcpgw.bus.shared import SharedBus
from mcpgw.log_values import bounded, text_value
from mcpgw.log_writer import RECORD_FIELDS
from mcpgw.redaction import redact
from mcpgw.workers.peers import Peers

_LEVELS = {
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "critical",
}
_CHANNEL = "system"
_LONGEST_LINE = 2000
"""Characters of a line of the log in an event."""


class BusLogHandler(logging.Handler):
    """Publishes warnings and errors of the gateway's loggers while anybody listens to ``system``.

    Nothing below: a line for each call would push an operator's words out of the log of events. Of several
    workers each publishes its own, whichever has the reader.
    """

    def __init__(self, bus: Bus, peers: Peers | None = None) -> None:
        super().__init__(logging.WARNING)
        self._bus = bus
        self._worker: dict[str, int] = {}
        self._elsewhere: ReadersElsewhere | None = None
        if isinstance(bus, SharedBus) and peers is not None:
            self._worker = {"worker": peers.number}
            self._elsewhere = ReadersElsewhere(bus, peers, _CHANNEL)
        self._loop = asyncio.get_running_loop()
        self._publishing = False

    def emit(self, record: logging.LogRecord) -> None:
        """Publish one line, from whatever thread it comes."""
        if record.name.startswith("mcpgw.bus"):
            return  # what the bus has to say of a reader would go to that reader
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):
            return  # a message that does not fit its arguments: the log itself complains of it
        fields = getattr(record, RECORD_FIELDS, {})
        parts = [message, *(f"{name}={text_value(value)}" for name, value in fields.items())]
        data: dict[str, Any] = {
            "level": _LEVELS.get(record.levelno, "warning"),
            "logger": record.name,
            "message": redact(bounded(" ".join(parts), _LONGEST_LINE)),
            **self._worker,
        }
        self._loop.call_soon_threadsafe(self._publish, data)

    def _publish(self, data: dict[str, Any]) -> None:
        # What a reader's own code logs while it is told must not be told again, without end.
        if not self._publishing and (self._elsewhere or self._bus.listeners().get(_CHANNEL)):
            self._publishing = True
            try:
                self._bus.publish("system.log", data)
            finally:
                self._publishing = False
