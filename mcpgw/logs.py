"""The log: one line an event, written by a thread so that the event loop never waits for a disk.

    log_event(logger, logging.INFO, "connected", client="4f2a", user="alice")

    2026-11-21T20:54:50.123Z INFO  mcpgw.websocket connected client=4f2a user=alice
    {"time": "2026-11-21T20:54:50.123Z", "level": "INFO", "logger": "mcpgw.websocket", …}

    any thread → root logger → _Intake (bounded queue) → _Writer (thread) → _LogFile, _Terminal

Promises: a value cannot forge a line (what is not printable is escaped) and cannot fill the disk (it is
bounded, and the file is rotated); a full queue or a full disk loses lines, counts them and says how many, and
never holds up or raises in the caller; what looks like a secret is masked in every line.

Only loggers below ``mcpgw`` follow the chosen level. All others are heard from WARNING up, and the texts of
exceptions that the MCP SDK logs are dropped: they repeat the arguments of tools.
"""

import atexit
import copy
import json
import logging
import math
import os
import re
import select
import stat
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from queue import SimpleQueue
from reprlib import Repr
from types import MappingProxyType
from typing import Any, Final, Literal, Self

from mcpgw.errors import ConfigError, suggest
from mcpgw.redaction import REDACTED, is_secret_name, redact, redact_inputs

LEVELS: Final[Mapping[str, int]] = MappingProxyType(
    {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
)
FORMATS: Final = ("text", "json")

MAXIMUM_VALUE: Final = 500
"""Longest value of a field, in characters."""

MAXIMUM_EVENT: Final = 2_000
"""Longest name of an event, or message of another library, in characters."""

MAXIMUM_TRACEBACK: Final = 8 * 1024
"""Longest traceback, in characters; of a longer one the end is kept."""

COMPLAINT_INTERVAL: Final = 60.0
"""Seconds between two lines on stderr about a log that cannot be written."""

Scalar = str | int | float | bool | None

_OWN = "mcpgw"
_SDK_LOGGERS = ("mcp", "client")  # mcp.client.session logs as plain "client"
_FIELDS = "mcpgw_fields"
_RESERVED = {"time", "level", "logger", "event", "exception", "traceback"}
_CLOSE_TIMEOUT = 5.0
_REPORT_INTERVAL = 1.0
_DEEPEST_FRAMES = 40
_TERMINAL_BYTES = 4_000  # below PIPE_BUF: a pipe that is ready takes it without waiting (POSIX write)
_LARGEST_INTEGER = 2**63

_BARE = re.compile(r"[^\s\"'=\\]+")
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")

_containers = Repr()
_containers.maxstring = _containers.maxother = 100


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
        values = {_field_name(name): _field_value(name, value) for name, value in fields.items()}
        logger.log(level, event, exc_info=exception, extra={_FIELDS: values}, stacklevel=2)


class LogHandle:
    """The log while it is open; made by `configure_logging`, a context manager."""

    def __init__(self, intake: "_Intake", writer: "_Writer", level: int) -> None:
        self._intake: _Intake | None = intake
        self._writer = writer
        root, own = logging.getLogger(), logging.getLogger(_OWN)
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
    complaint = _Complaint()
    handlers: list[logging.Handler] = [_Terminal(_TextFormatter(with_traceback=file is None))]
    log_file = None
    if file is not None:
        formatter = _JsonFormatter() if format == "json" else _TextFormatter(with_traceback=True)
        log_file = _open_log_file(file, formatter, max_size, backups, complaint)
        handlers.append(log_file)
    intake = _Intake(queue_size, complaint)
    intake.setLevel(LEVELS[level])
    return LogHandle(intake, _Writer(intake, handlers, log_file, complaint), LEVELS[level])


class _Line(logging.LogRecord):
    """An event on its way to the writer: only plain values, nothing that the program still changes."""

    def __init__(
        self,
        logger: str,
        level: int,
        event: str,
        fields: dict[str, Scalar],
        fault: traceback.TracebackException | None = None,
    ) -> None:
        super().__init__(logger, level, "", 0, event, None, None)
        self.event = event
        self.fields = fields
        self.fault = fault

    @property
    def timestamp(self) -> str:
        """When it happened, RFC 3339 in UTC with milliseconds."""
        moment = datetime.fromtimestamp(self.created, UTC)
        return f"{moment.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


class _Complaint:
    """What is wrong with the log itself: one line on stderr, and the next not before a minute is over."""

    def __init__(self) -> None:
        self._next = -math.inf

    def tell(self, text: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + COMPLAINT_INTERVAL
            _write_to_terminal(redact(_escape(f"mcpgw: {text}")))


class _Intake(QueueHandler):
    """Takes records on the caller's thread and puts them into the bounded queue, or counts them as lost."""

    # Not queue.Queue: its lock is not reentrant, and asyncio logs from __del__, which may run inside put().
    queue: "SimpleQueue[logging.LogRecord | None]"

    def __init__(self, limit: int, complaint: _Complaint) -> None:
        super().__init__(SimpleQueue())
        self.lost = 0  # only ever changed under the lock of the handler
        self._limit = limit
        self._complaint = complaint
        self.addFilter(_is_heard)

    def enqueue(self, record: logging.LogRecord) -> None:
        if self.queue.qsize() >= self._limit:
            self.lost += 1
        else:
            self.queue.put(record)

    def prepare(self, record: logging.LogRecord) -> _Line:
        fields: dict[str, Scalar] = dict(getattr(record, _FIELDS, {}))
        from_sdk = record.name.partition(".")[0] in _SDK_LOGGERS
        fault = None
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, trace = record.exc_info
            if from_sdk:
                fields["exception"] = kind.__name__
            elif error is not None:
                # Frames must not outlive the caller; their source lines are read later, by the writer.
                fault = traceback.TracebackException(
                    kind, error, trace, limit=-_DEEPEST_FRAMES, lookup_lines=False, compact=True
                )
        if from_sdk:
            record = _without_exceptions(record)
        line = _Line(record.name, record.levelno, _bounded(record.getMessage(), MAXIMUM_EVENT), fields, fault)
        line.created = record.created
        return line

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name of logging.Handler
        """A message that does not fit its arguments: the standard library would print both, secrets too."""
        self.lost += 1
        fault = sys.exc_info()[1]
        self._complaint.tell(f"a line of logger {record.name} cannot be logged ({type(fault).__name__})")


class _Writer(QueueListener):
    """The thread that formats and writes, and that says how many lines were lost."""

    def __init__(
        self,
        intake: _Intake,
        handlers: list[logging.Handler],
        log_file: "_LogFile | None",
        complaint: _Complaint,
    ) -> None:
        super().__init__(intake.queue, *handlers, respect_handler_level=True)
        self._intake = intake
        self._log_file = log_file
        self._complaint = complaint
        self._reported = 0
        self._next_report = -math.inf

    @property
    def lost(self) -> int:
        return self._intake.lost + (self._log_file.lost if self._log_file else 0)

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Turn the exception into text: here, since it reads source files."""
        if isinstance(record, _Line) and record.fault is not None:
            text = "".join(record.fault.format_exception_only()).strip()
            record.fields["exception"] = _bounded(text, MAXIMUM_VALUE)
            whole = redact_inputs("".join(record.fault.format())).rstrip()
            if len(whole) > MAXIMUM_TRACEBACK:
                whole = f"…{whole[1 - MAXIMUM_TRACEBACK :]}"
            record.fields["traceback"] = whole
            record.fault = None
        return record

    def handle(self, record: logging.LogRecord) -> None:
        try:
            super().handle(record)
            self._report(at_once=self._intake.queue.empty())
        except Exception as fault:  # noqa: BLE001 - without this thread nobody would ever hear of it
            self._complaint.tell(f"a line of logger {record.name} is lost ({type(fault).__name__})")

    def stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self.enqueue_sentinel()
        thread.join(_CLOSE_TIMEOUT)
        if thread.is_alive():
            self._complaint.tell("the log does not take its last lines; they are left behind")
            return
        self._report(at_once=True)
        for handler in self.handlers:
            handler.close()

    def _report(self, *, at_once: bool) -> None:
        lost = self.lost
        if lost == self._reported or (self._log_file is not None and self._log_file.is_failing):
            return
        now = time.monotonic()
        if at_once or now >= self._next_report:
            self._next_report = now + _REPORT_INTERVAL
            count, self._reported = lost - self._reported, lost
            super().handle(_Line("mcpgw.logs", logging.WARNING, "lines_lost", {"count": count}))


class _LogFile(RotatingFileHandler):
    """The rotated file. A line that cannot be written whole is not written at all."""

    def __init__(self, path: Path, max_size: int, backups: int, complaint: _Complaint) -> None:
        super().__init__(path, maxBytes=max_size, backupCount=backups, encoding="utf-8")
        self.lost = 0
        self.is_failing = False
        self._complaint = complaint

    def createLock(self) -> None:  # noqa: N802 - the name of logging.Handler
        # Only the writer's thread comes here. A lock that it held while the disk hangs would hold up the end
        # of the process, when the standard library takes the locks of all handlers.
        self.lock = None

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return os.fdopen(os.open(self.baseFilename, flags, 0o640), "a", encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        data = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        try:
            self._append(data)
        except OSError as fault:
            self.lost += 1
            self.is_failing = True
            self._complaint.tell(
                f"log file {self.baseFilename}: {fault.strerror}; lines are lost ({self.lost} so far)"
            )
        else:
            self.is_failing = False

    def _append(self, data: bytes) -> None:
        # Past the buffer of the stream: it would keep a line that did not fit and write it torn, later.
        if self.stream is None:  # a rotation failed half way
            self.stream = self._open()
        status = os.fstat(self.stream.fileno())
        if not status.st_nlink:  # somebody removed the file
            self.stream.close()
            self.stream = self._open()
            status = os.fstat(self.stream.fileno())
        is_regular = stat.S_ISREG(status.st_mode)
        if is_regular and 0 < self.maxBytes < status.st_size + len(data) and status.st_size:
            if self.backupCount:
                self.doRollover()
            else:
                os.ftruncate(self.stream.fileno(), 0)
        descriptor, written = self.stream.fileno(), 0
        try:
            while written < len(data):
                written += os.write(descriptor, data[written:])
        except OSError:
            if is_regular and written:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise


class _Terminal(logging.Handler):
    """Warnings and errors for the person at the terminal."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        _write_to_terminal(self.format(record))


class _TextFormatter(logging.Formatter):
    def __init__(self, *, with_traceback: bool) -> None:
        super().__init__()
        self._with_traceback = with_traceback

    def format(self, record: logging.LogRecord) -> str:
        assert isinstance(record, _Line)  # noqa: S101 - nothing else reaches the writer
        fields = [
            f"{name}={_text_value(value)}"
            for name, value in record.fields.items()
            if name != "traceback" or self._with_traceback
        ]
        start = f"{record.timestamp} {record.levelname:<5} {record.name} {_text_value(record.event)}"
        return redact(" ".join([start, *fields]))


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        assert isinstance(record, _Line)  # noqa: S101 - nothing else reaches the writer
        # ASCII only: U+2028 and its kin end a line for some readers.
        return redact(
            json.dumps(
                {
                    "time": record.timestamp,
                    "level": record.levelname,
                    "logger": record.name,
                    "event": _without_surrogates(record.event),
                    **{name: _without_surrogates(value) for name, value in record.fields.items()},
                }
            )
        )


def _open_log_file(
    path: Path, formatter: logging.Formatter, max_size: int, backups: int, complaint: _Complaint
) -> _LogFile:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log_file = _LogFile(path, max_size, backups, complaint)
    except OSError as fault:
        raise ConfigError(
            [f"log file {path}: {fault.strerror or fault}; name another one with --log-file FILE"]
        ) from fault
    log_file.setFormatter(formatter)
    return log_file


def _is_heard(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] == _OWN


def _write_to_terminal(line: str) -> None:
    """Write to stderr unless that would wait: a parent that does not read must not stop the log file."""
    stream = sys.stderr
    if stream is None:  # started without one
        return
    text = line.encode("utf-8", "backslashreplace")[:_TERMINAL_BYTES].decode("utf-8", "ignore")
    with suppress(OSError, ValueError):  # closed or gone, and there is no other place to tell
        with suppress(OSError):  # no descriptor: replaced by an object in memory, which takes everything
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLOUT)
            if not poll.poll(0):
                return
        stream.write(f"{text}\n")
        stream.flush()


def _without_exceptions(record: logging.LogRecord) -> logging.LogRecord:
    """A copy of `record` that names exceptions by type only."""

    def named(value: Any) -> Any:
        return type(value).__name__ if isinstance(value, BaseException) else value

    record = copy.copy(record)
    record.msg = named(record.msg)
    if isinstance(record.args, Mapping):
        record.args = {key: named(value) for key, value in record.args.items()}
    elif record.args:
        record.args = tuple(named(value) for value in record.args)
    return record


def _field_name(name: str) -> str:
    if not _FIELD_NAME.fullmatch(name):
        return re.sub(r"[^A-Za-z0-9_.-]", "_", f"_{name[:60]}")
    return f"{name}_" if name in _RESERVED else name


def _field_value(name: str, value: object) -> Scalar:
    if value is not None and is_secret_name(name):
        return REDACTED
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < _LARGEST_INTEGER:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    try:
        if isinstance(value, bytes | bytearray | memoryview):
            text = repr(bytes(value[:MAXIMUM_VALUE]))
        elif isinstance(value, list | tuple | set | frozenset | dict):
            text = _containers.repr(value)
        else:
            text = str(value)
    except Exception as fault:  # noqa: BLE001 - the line must not break the caller; it tells the fault
        text = f"<{type(value).__name__}: {type(fault).__name__}>"
    return _bounded(text, MAXIMUM_VALUE)


def _bounded(text: str, limit: int) -> str:
    text = redact_inputs(text[: 4 * limit])  # cut first: the search must not read megabytes
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _text_value(value: Scalar) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    if _BARE.fullmatch(value) and value.isprintable():
        return value
    return '"{}"'.format(_escape(value).replace('"', r"\""))


def _escape(text: str) -> str:
    """`text` on one line: whatever is not printable, and the backslash itself, as escapes."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        sign if sign.isprintable() and sign != "\\" else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )


def _without_surrogates(value: Scalar) -> Scalar:
    # Halves of a pair are allowed by Python and refused by other readers of JSON (RFC 8259 section 8.2).
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
