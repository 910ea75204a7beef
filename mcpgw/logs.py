"""The log: one line an event, written by a thread so that the event loop never waits for a disk.

    log_event(logger, logging.INFO, "connected", client="4f2a", user="alice")

    2026-11-21T20:54:50.123Z INFO  mcpgw.websocket connected client=4f2a user=alice
    {"time": "2026-11-21T20:54:50.123Z", "level": "INFO", "logger": "mcpgw.websocket", …}

    any thread → root logger → Intake (bounded queue) → Writer (thread) → LogFile, _Terminal

Promises: a value cannot forge a line (what is not printable is escaped) and cannot fill the disk (it is
bounded, and the file is rotated); a full queue or a full disk loses lines, counts them and says how many, and
never holds up or raises in the caller; what looks like a secret is masked in every line.

Only loggers below ``mcpgw`` follow the chosen level. All others are heard from WARNING up, and the texts of
exceptions that the MCP SDK logs are dropped: they repeat the arguments of tools.
"""

import atexit
import json
import logging
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, Self

from mcpgw.errors import ConfigError, suggest
from mcpgw.log_values import Scalar, bounded, field_name, field_value, text_value, without_surrogates
from mcpgw.log_writer import (
    MAXIMUM_EVENT,
    OWN_LOGGER,
    RECORD_FIELDS,
    Complaint,
    Intake,
    Line,
    Writer,
    open_log_file,
    timestamp,
    write_to_terminal,
)
from mcpgw.redaction import redact

LEVELS: Final[Mapping[str, int]] = MappingProxyType(
    {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
)
FORMATS: Final = ("text", "json")


def log_event(
    logger: logging.Logger,
    level: int,
    event: str,
    /,
    *,
    exception: BaseException | None = None,
    **fields: object,
) -> None:
    """Log `event` with `fields`; with `exception`, its text and traceback stand in fields of their own.

    Values are taken as they are now and bounded; those of fields whose names end in token, ticket, secret,
    password, api key, authorization or cookie are masked. Never blocks and never raises for a value.
    """
    if logger.isEnabledFor(level):
        values = _values(fields)
        if exception is None:
            # Past the making of a record, which looks for the place in the program where it was logged.
            logger.handle(Line(logger.name, level, bounded(event, MAXIMUM_EVENT), values))
        else:
            logger.log(level, event, exc_info=exception, extra={RECORD_FIELDS: values}, stacklevel=2)


def _values(fields: Mapping[str, object]) -> dict[str, Scalar]:
    return {field_name(name): field_value(name, value) for name, value in fields.items()}


def log_often(
    logger: logging.Logger, level: int, event: str, fields: tuple[tuple[str, object], ...], **last: float
) -> None:
    """As `log_event`, of what is said of each call: `fields` are mostly the same, and only numbers are not.

    What comes before the numbers is kept as text, so that the line is made of two pieces.
    """
    if not logger.isEnabledFor(level):
        return
    intake = _alone_on(logger, level)
    if intake is None:
        values = _values({**dict(fields), **last})
        logger.handle(Line(logger.name, level, bounded(event, MAXIMUM_EVENT), values))
        return
    starts, numbers = intake.starts, last.items()
    assert starts is not None, "asked above"  # noqa: S101
    if starts.is_json:
        ends = "".join(f', "{name}": {value!r}' for name, value in numbers) + "}"
        text = f'{{"time": "{timestamp(time.time())}", {starts.of(logger.name, level, event, fields)}{ends}'
    else:
        ends = "".join(f" {name}={value!r}" for name, value in numbers)
        text = f"{timestamp(time.time())} {starts.of(logger.name, level, event, fields)}{ends}"
    intake.take_text(text)


def _alone_on(logger: logging.Logger, level: int) -> "_LogIntake | None":
    """The open log's intake, where nothing else hears lines of this level or has a say."""
    intake: _LogIntake | None = None
    above: logging.Logger | None = logger
    while above is not None:
        for handler in above.handlers:
            if handler.level > level:
                continue
            if not isinstance(handler, _LogIntake) or handler.starts is None:
                return None
            intake = handler
        if above.filters or not above.propagate:
            return None
        above = above.parent
    return intake


class _Starts:
    """Beginnings of lines behind the time, kept as text."""

    def __init__(self, *, is_json: bool) -> None:
        self.is_json = is_json
        self.of = lru_cache(maxsize=4096)(self._of)

    def _of(self, logger: str, level: int, event: str, fields: tuple[tuple[str, object], ...]) -> str:
        values = _values(dict(fields))
        line = Line(logger, level, bounded(event, MAXIMUM_EVENT), values)
        if self.is_json:
            return _JsonFormatter().format(line).partition(", ")[2][:-1]
        return _TextFormatter(with_traceback=False).format(line).partition(" ")[2]


class _LogIntake(Intake):
    """The intake of the log, which knows beginnings of lines where there is a file for them."""

    starts: _Starts | None = None


class LogHandle:
    """The log while it is open; made by `configure_logging`, a context manager."""

    def __init__(self, intake: Intake, writer: Writer, level: int) -> None:
        self._intake: Intake | None = intake
        self._writer = writer
        root, own = logging.getLogger(), logging.getLogger(OWN_LOGGER)
        self._levels = [(root, root.level), (own, own.level)]
        writer.start()
        root.setLevel(logging.WARNING)
        own.setLevel(level)
        root.addHandler(intake)
        atexit.register(self.close)

    @property
    def lost(self) -> int:
        """How many lines were not written since the start: the queue or the disk was full."""
        return self._writer.lost

    def close(self) -> None:
        """Write what waits, end the thread and close the file; a second time it does nothing.

        Takes at most some seconds, also where the disk does not answer.
        """
        intake, self._intake = self._intake, None
        if intake is None:
            return
        atexit.unregister(self.close)
        logging.getLogger().removeHandler(intake)
        for logger, level in self._levels:
            logger.setLevel(level)
        intake.close()
        self._writer.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def configure_logging(
    *,
    file: Path | None,
    format: Literal["text", "json"],  # noqa: A002 - the word of the setting
    level: str,
    max_size: int,
    backups: int,
    queue_size: int = 4096,
) -> LogHandle:
    """Send every logger of the process to `file`, and warnings and errors as text to stderr too.

    `level` is one of `LEVELS`. The file is rotated before it grows over `max_size` bytes (0: never), and
    `backups` old ones are kept. At most `queue_size` lines wait for the disk. With `file` None only stderr
    is written. Raises `ConfigError` where the file cannot be written.
    """
    for word, value, known in (("format", format, FORMATS), ("level", level, LEVELS)):
        if value not in known:
            raise ConfigError([f"log {word} {value!r} is not known{suggest(value, known)}"])
    complaint = Complaint()
    handlers: list[logging.Handler] = [_Terminal(_TextFormatter(with_traceback=file is None))]
    log_file = None
    if file is not None:
        formatter = _JsonFormatter() if format == "json" else _TextFormatter(with_traceback=True)
        log_file = open_log_file(file, formatter, max_size, backups, complaint, flag="--log-file")
        handlers.append(log_file)
    intake = _LogIntake(queue_size, complaint)
    intake.starts = None if log_file is None else _Starts(is_json=format == "json")
    intake.setLevel(LEVELS[level])
    return LogHandle(intake, Writer(intake, handlers, log_file, complaint), LEVELS[level])


def change_log_level(level: str) -> None:
    """Have the open log write from another of `LEVELS` on; without an open log nothing happens."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Intake):
            handler.setLevel(LEVELS[level])
            logging.getLogger(OWN_LOGGER).setLevel(LEVELS[level])


class _Terminal(logging.Handler):
    """Warnings and errors for the person at the terminal."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        write_to_terminal(self.format(record))


class _TextFormatter(logging.Formatter):
    def __init__(self, *, with_traceback: bool) -> None:
        super().__init__()
        self._with_traceback = with_traceback

    def format(self, record: logging.LogRecord) -> str:
        assert isinstance(record, Line)  # noqa: S101 - nothing else reaches the writer
        fields = [
            f"{name}={text_value(value)}"
            for name, value in record.fields.items()
            if name != "traceback" or self._with_traceback
        ]
        start = f"{record.timestamp} {record.levelname:<5} {record.name} {text_value(record.event)}"
        return redact(" ".join([start, *fields]))


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        assert isinstance(record, Line)  # noqa: S101 - nothing else reaches the writer
        # ASCII only: U+2028 and its kin end a line for some readers.
        return redact(
            json.dumps(
                {
                    "time": record.timestamp,
                    "level": record.levelname,
                    "logger": record.name,
                    "event": without_surrogates(record.event),
                    **{name: without_surrogates(value) for name, value in record.fields.items()},
                }
            )
        )
