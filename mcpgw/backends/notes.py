"""What a backend says beside the protocol, its stderr and its faults: in the log, as events, kept a while."""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from mcpgw.logs import log_event
from mcpgw.rate_limit import RateLimit
from mcpgw.redaction import redact

_LOGGER = logging.getLogger("mcpgw.backend")
_LAST_WORDS = 200
_KEPT_LINES = 50
_LONGEST_LINE = 500
"""Characters of a line of stderr in an event."""

AnnounceCallback = Callable[[str, Mapping[str, Any]], None]
"""Takes what a backend did (``log``, ``tools_changed`` …) and the data of its event."""


class BackendNotes:
    """The notes on one backend. `lines_per_second` bounds what of it gets into the log.

    `last_lines` are the last of its stderr, without secrets.
    """

    def __init__(self, server_id: str, lines_per_second: int, announce: AnnounceCallback) -> None:
        self._server_id = server_id
        self._announce = announce
        self._share = RateLimit(lines_per_second)
        self._last_words = ""
        self.last_lines: deque[str] = deque(maxlen=_KEPT_LINES)

    @property
    def last_words(self) -> str:
        """The last line of its stderr since it was started, without secrets."""
        return redact(self._last_words)

    def begin(self) -> None:
        """It is started anew: its last words are not its predecessor's."""
        self._last_words = ""

    def stderr(self, line: str) -> None:
        """It wrote a line to its stderr."""
        if words := line.strip():
            self._last_words = words if len(words) <= _LAST_WORDS else f"{words[:_LAST_WORDS]}…"
            self.last_lines.append(redact(words)[:_LONGEST_LINE])
        if self._log(logging.INFO, "stderr", line=line):
            self._announce("log", {"level": "info", "line": redact(line)[:_LONGEST_LINE]})

    def fault(self, fault: str) -> None:
        """It did what is not as the protocol has it."""
        if self._log(logging.WARNING, "protocol fault", fault=fault):
            self._announce("error", {"reason": fault})

    def _log(self, level: int, event: str, **fields: Any) -> bool:
        """Log what the backend did; false where that is beyond its share of the log."""
        admitted = self._share.admit()
        if admitted:
            log_event(_LOGGER, level, event, server=self._server_id, **fields)
            if dropped := self._share.take_refused():
                log_event(_LOGGER, logging.WARNING, "lines dropped", server=self._server_id, lines=dropped)
        return admitted
