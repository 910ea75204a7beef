"""The gateway's own log as events, for admins who look: ``system.log``."""

import asyncio
import logging

from mcpgw.bus.bus import Bus
from mcpgw.log_values import bounded, text_value
from mcpgw.log_writer import RECORD_FIELDS
from mcpgw.redaction import redact

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

    Nothing below: a line for each call would push an operator's words out of the log of events.
    """

    def __init__(self, bus: Bus) -> None:
        super().__init__(logging.WARNING)
        self._bus = bus
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
        data = {
            "level": _LEVELS.get(record.levelno, "warning"),
            "logger": record.name,
            "message": redact(bounded(" ".join(parts), _LONGEST_LINE)),
        }
        self._loop.call_soon_threadsafe(self._publish, data)

    def _publish(self, data: dict[str, str]) -> None:
        # What a reader's own code logs while it is told must not be told again, without end.
        if not self._publishing and self._bus.listeners().get(_CHANNEL):
            self._publishing = True
            try:
                self._bus.publish("system.log", data)
            finally:
                self._publishing = False
