"""How a line gets from any thread to a file: through a bounded queue, written by a thread.

Promises: what is not written is counted and said, never waited for; a full queue or a full disk never holds
up or raises in the caller; a line that cannot be written whole is not written at all.
"""

import copy
import fcntl
import logging
import math
import os
import select
import stat
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from functools import lru_cache
from io import TextIOWrapper
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from mcpgw.errors import ConfigError
from mcpgw.log_values import MAXIMUM_VALUE, Scalar, bounded, escape
from mcpgw.redaction import redact, redact_inputs

MAXIMUM_EVENT: Final = 2_000
"""Longest name of an event, or message of another library, in characters."""

MAXIMUM_TRACEBACK: Final = 8 * 1024
"""Longest traceback, in characters; of a longer one the end is kept."""

COMPLAINT_INTERVAL: Final = 60.0
"""Seconds between two lines on stderr about a log that cannot be written."""

OWN_LOGGER: Final = "mcpgw"
"""The logger above all of the gateway's own."""

RECORD_FIELDS: Final = "mcpgw_fields"
"""The attribute of a log record that holds its fields."""

_SDK_LOGGERS = ("mcp", "client")  # mcp.client.session logs as plain "client"
_CLOSE_TIMEOUT = 5.0
_REPORT_INTERVAL = 1.0
_DEEPEST_FRAMES = 40
_PAUSE = 0.05
_MANY_LINES = 512
_TOGETHER_BYTES = 256 * 1024
_TERMINAL_BYTES = 4_000  # below PIPE_BUF: a pipe that is ready takes it without waiting (POSIX write)


_NOT_ASKED: Final = vars(logging.LogRecord("", logging.INFO, "", 0, "", None, None)) | dict.fromkeys(
    ("process", "processName", "taskName", "thread", "threadName")
)


class Line(logging.LogRecord):
    """An event on its way to the writer: only plain values, nothing that the program still changes.

    Two are made for each call, so it asks neither where it was logged nor in which thread, task or process.
    """

    def __init__(
        self,
        logger: str,
        level: int,
        event: str,
        fields: dict[str, Scalar],
        fault: traceback.TracebackException | None = None,
    ) -> None:
        vars(self).update(_NOT_ASKED)
        self.name = logger
        self.levelno = level
        self.levelname = logging.getLevelName(level)
        self.msg = self.event = event
        self.created = now = time.time()
        self.msecs = now % 1 * 1000
        self.fields = fields
        self.fault = fault
        setattr(self, RECORD_FIELDS, fields)

    @property
    def timestamp(self) -> str:
        """When it happened, RFC 3339 in UTC with milliseconds."""
        return timestamp(self.created)


_last_stamp: tuple[int, str] = (-1, "")


def timestamp(seconds: float) -> str:
    """A time of the wall clock, RFC 3339 in UTC with milliseconds."""
    global _last_stamp  # noqa: PLW0603 - lines come in pairs, and many in one millisecond
    moment = int(seconds * 1000)
    known, text = _last_stamp
    if moment != known:
        second, milliseconds = divmod(moment, 1000)
        text = f"{_second(second)}.{milliseconds:03}Z"
        _last_stamp = moment, text
    return text


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat(timespec="seconds")


class Complaint:
    """What is wrong with the log itself: one line on stderr, and the next not before a minute is over."""

    def __init__(self) -> None:
        self._next = -math.inf

    def tell(self, text: str) -> None:
        """Say it on stderr, unless something was said less than a minute ago."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + COMPLAINT_INTERVAL
            write_to_terminal(redact(escape(f"mcpgw: {text}")))


class Intake(QueueHandler):
    """Takes records on the caller's thread and puts them into the bounded queue, or counts them as lost."""

    # Not queue.Queue: its lock is not reentrant, and asyncio logs from __del__, which may run inside put().
    queue: "SimpleQueue[logging.LogRecord | str | None]"

    def __init__(self, limit: int, complaint: Complaint) -> None:
        super().__init__(SimpleQueue())
        self.lost = 0  # only ever changed under the lock of the handler
        self.many = threading.Event()
        """Set where so many lines wait that the writer is not to pause any longer."""
        self._limit = limit
        self._many = min(_MANY_LINES, limit // 2)
        self._complaint = complaint
        self.addFilter(_is_heard)

    def enqueue(self, record: logging.LogRecord | str) -> None:
        """Put it into the queue where there is room."""
        waiting = self.queue.qsize()
        if waiting >= self._limit:
            self.lost += 1
            return
        self.queue.put(record)
        if waiting == self._many:
            self.many.set()

    def take_text(self, text: str) -> None:
        """Take a line for the file that is text already, without its end; only on the event loop's thread."""
        waiting = self.queue.qsize()
        if waiting < self._limit:
            self.queue.put(text)
            if waiting == self._many:
                self.many.set()
        else:
            with self.lock or nullcontext():
                self.lost += 1

    def prepare(self, record: logging.LogRecord) -> Line:
        """Take over everything now that the program may still change; a `Line` is ready as it is."""
        if isinstance(record, Line):
            return record
        fields: dict[str, Scalar] = dict(getattr(record, RECORD_FIELDS, {}))
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
        line = Line(record.name, record.levelno, bounded(record.getMessage(), MAXIMUM_EVENT), fields, fault)
        line.created = record.created
        return line

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name of logging.Handler
        """A message that does not fit its arguments: the standard library would print both, secrets too."""
        self.lost += 1
        fault = sys.exc_info()[1]
        self._complaint.tell(f"a line of logger {record.name} cannot be logged ({type(fault).__name__})")


class Writer(QueueListener):
    """The thread that formats and writes, and that says how many lines were lost."""

    def __init__(
        self,
        intake: Intake,
        handlers: list[logging.Handler],
        log_file: "LogFile | None",
        complaint: Complaint,
    ) -> None:
        super().__init__(intake.queue, *handlers, respect_handler_level=True)
        self._intake = intake
        self._log_file = log_file
        self._complaint = complaint
        self._reported = 0
        self._next_report = -math.inf
        self._taken: tuple[Any] | None = None

    @property
    def lost(self) -> int:
        """How many lines the queue or the disk did not take."""
        return self._intake.lost + (self._log_file.lost if self._log_file else 0)

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Turn the exception into text: here, since it reads source files."""
        if isinstance(record, Line) and record.fault is not None:
            text = "".join(record.fault.format_exception_only()).strip()
            record.fields["exception"] = bounded(text, MAXIMUM_VALUE)
            whole = redact_inputs("".join(record.fault.format())).rstrip()
            if len(whole) > MAXIMUM_TRACEBACK:
                whole = f"…{whole[1 - MAXIMUM_TRACEBACK :]}"
            record.fields["traceback"] = whole
            record.fault = None
        return record

    def dequeue(self, block: bool) -> Any:
        """The next line. After all that waited a pause, so that what comes is written together.

        A thread that wakes for each line takes the interpreter's lock from the event loop each time.
        """
        if self._taken is not None:
            (record,), self._taken = self._taken, None
            return record
        if self._intake.queue.empty():
            self._intake.many.clear()
            self._intake.many.wait(_PAUSE)
        record = super().dequeue(block)
        if record is None and self._log_file is not None:  # the end, which `stop` waits for in this thread
            self._log_file.write_waiting()
        return record

    def handle(self, record: logging.LogRecord | str) -> None:
        """Write one line; whatever goes wrong, the thread lives on."""
        try:
            if isinstance(record, str):
                self._handle_texts(record)
            else:
                super().handle(record)
            is_last = self._intake.queue.empty()
            if is_last and self._log_file is not None:
                self._log_file.write_waiting()
            self._report(at_once=is_last)
        except Exception as fault:  # noqa: BLE001 - without this thread nobody would ever hear of it
            name = "calls" if isinstance(record, str) else record.name
            self._complaint.tell(f"a line of logger {name} is lost ({type(fault).__name__})")

    def _handle_texts(self, text: str) -> None:
        """Take this line and all behind it that are text already."""
        texts, queue = [text], self._intake.queue
        size = len(text)
        while size < _TOGETHER_BYTES and not queue.empty():
            record = queue.get_nowait()  # only this thread takes from it
            if not isinstance(record, str):
                self._taken = (record,)
                break
            texts.append(record)
            size += len(record)
        if self._log_file is not None:
            self._log_file.add("\n".join(texts))

    def stop(self) -> None:
        """Write what waits and end the thread, within some seconds."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self.enqueue_sentinel()
        self._intake.many.set()
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
            super().handle(Line("mcpgw.logs", logging.WARNING, "lines_lost", {"count": count}))
            if self._log_file is not None:
                self._log_file.write_waiting()


class _NoLock:
    """Stands where a lock is asked for and none is wanted: from Python 3.13 on None will not do."""

    def acquire(self) -> bool:
        """Nothing is waited for."""
        return True

    def release(self) -> None:
        """Nothing was taken."""

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        return None


class LogFile(RotatingFileHandler):
    """The rotated file. A line that cannot be written whole is not written at all.

    Lines wait for `write_waiting`, which whoever emits them calls after the last. Several processes may write
    the same file.
    """

    def __init__(self, path: Path, max_size: int, backups: int, complaint: Complaint) -> None:
        super().__init__(path, maxBytes=max_size, backupCount=backups, encoding="utf-8")
        self.lost = 0
        self.is_failing = False
        self._complaint = complaint
        self._waiting: list[bytes] = []
        self._waiting_size = 0

    def createLock(self) -> None:  # noqa: N802 - the name of logging.Handler
        # Only the writer's thread comes here. A lock that it held while the disk hangs would hold up the end
        # of the process, when the standard library takes the locks of all handlers.
        self.lock = _NoLock()  # type: ignore[assignment]

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return os.fdopen(os.open(self.baseFilename, flags, 0o640), "a", encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        """Append it whole, or count it as lost; with the next ones, where they come at once."""
        self.add(self.format(record))

    def add(self, text: str) -> None:
        """Append one or more lines that are text already, as `emit` does."""
        data = f"{text}\n".encode("utf-8", "backslashreplace")
        self._waiting.append(data)
        self._waiting_size += len(data)
        if self._waiting_size >= _TOGETHER_BYTES:
            self.write_waiting()

    def write_waiting(self) -> None:
        """Write what waits, in one piece where that goes into the file as it is."""
        lines, self._waiting = self._waiting, []
        size, self._waiting_size = self._waiting_size, 0
        if lines and self._has_room_for(size):
            with suppress(OSError):  # what does not go together may go line by line
                self._append(b"".join(lines))
                self.is_failing = False
                return
        for line in b"".join(lines).split(b"\n")[:-1]:
            try:
                self._append(line + b"\n")
            except OSError as fault:
                self.lost += 1
                self.is_failing = True
                self._complaint.tell(
                    f"log file {self.baseFilename}: {fault.strerror}; lines are lost ({self.lost} so far)"
                )
            else:
                self.is_failing = False

    def _has_room_for(self, size: int) -> bool:
        """Whether so many bytes go into a regular file before it has to be rotated."""
        if self.stream is None:
            return False
        try:
            status = os.fstat(self.stream.fileno())
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and not 0 < self.maxBytes < status.st_size + size

    def _append(self, data: bytes) -> None:
        # Past the buffer of the stream: it would keep a line that did not fit and write it torn, later.
        if self.stream is None:  # a rotation failed half way
            self.stream = self._open()
        status = os.fstat(self.stream.fileno())
        if not self._is_at_its_place(status):  # somebody removed the file, or another process has rotated it
            self._open_again()
            status = os.fstat(self.stream.fileno())
        is_regular = stat.S_ISREG(status.st_mode)
        if is_regular and 0 < self.maxBytes < status.st_size + len(data) and status.st_size:
            if self.backupCount:
                self._rotate()
            else:
                os.ftruncate(self.stream.fileno(), 0)
        descriptor, written = self.stream.fileno(), 0
        try:
            while written < len(data):
                written += os.write(descriptor, data[written:])
        except OSError:
            end = os.lseek(descriptor, 0, os.SEEK_CUR) if is_regular and written else None
            if end == os.fstat(descriptor).st_size:  # nobody has written behind it
                os.ftruncate(descriptor, end - written)
            raise

    def _rotate(self) -> None:
        """Rotate the file; of several processes that write it, one does so."""
        assert self.stream is not None, "it is open whenever something is appended"  # noqa: S101
        # The rotation closes the file before it renames it; the lock goes with the last descriptor.
        locked = os.dup(self.stream.fileno())
        try:
            fcntl.flock(locked, fcntl.LOCK_EX)
            if self._is_at_its_place(os.fstat(locked)):
                self.doRollover()
            else:
                self._open_again()
        finally:
            os.close(locked)

    def _is_at_its_place(self, status: os.stat_result) -> bool:
        try:
            return os.path.samestat(status, os.stat(self.baseFilename))  # noqa: PTH116 - as is the open file
        except FileNotFoundError:
            return False

    def _open_again(self) -> None:
        stream, self.stream = self.stream, None  # one that is closed would be written to where opening fails
        if stream is not None:
            stream.close()
        self.stream = self._open()


def open_log_file(
    path: Path,
    formatter: logging.Formatter,
    max_size: int,
    backups: int,
    complaint: Complaint,
    *,
    flag: str,
) -> LogFile:
    """Open a log file, with the folders above it; `flag` names another one.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log_file = LogFile(path, max_size, backups, complaint)
    except OSError as fault:
        raise ConfigError(
            [f"log file {path}: {fault.strerror or fault}; name another one with {flag} FILE"]
        ) from fault
    log_file.setFormatter(formatter)
    return log_file


def _is_heard(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] == OWN_LOGGER


def write_to_terminal(line: str) -> None:
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
