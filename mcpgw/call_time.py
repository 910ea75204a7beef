"""The time that a call has: how long it may be silent, and how long it may take in all."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mcpgw.backends.requests import InputAnswer, InputRequest, Observer
from mcpgw.deadlines import Deadline, Deadlines
from mcpgw.errors import CallTimeout, GatewayError
from mcpgw.logs import log_event

_LOGGER = logging.getLogger("mcpgw.gateway")
_SHARE = 0.99


class CallTime:
    """A time limit around one call: ``async with CallTime(60, 3600, 120) as time``.

    It ends when it was silent for `idle` seconds, and after `longest` seconds whatever it did. Its progress
    begins the silence anew; and while its server waits for an answer of the caller's, for at most `input`
    seconds, it is not silent. Raises `CallTimeout` when left at a limit.
    """

    def __init__(self, idle: float, longest: float, input: float) -> None:  # noqa: A002 - what the time is for
        self._idle = min(idle, longest)
        self._longest = longest
        self._input = input
        self._questions = 0
        self._is_paused = False
        self._end = 0.0
        self._timeout: asyncio.Timeout | None = None

    async def __aenter__(self) -> "CallTime":
        now = asyncio.get_running_loop().time()
        self._end = now + self._longest
        self._timeout = asyncio.timeout_at(now + self._idle)
        await self._timeout.__aenter__()
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        timeout, self._timeout = self._timeout, None  # what still comes for the call renews nothing
        assert timeout is not None, "left without having been entered"  # noqa: S101
        at_the_end = (timeout.when() or 0) >= self._end
        try:
            await timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise self._timeout_error(at_the_end=at_the_end) from None

    def _timeout_error(self, *, at_the_end: bool) -> CallTimeout:
        what = f"took longer than {self._longest:g} s" if at_the_end else f"was silent for {self._idle:g} s"
        if self._is_paused:
            return CallTimeout(f"the call {what} before it was approved; it was not sent")
        return CallTimeout(f"the call {what}; its server was told to stop")

    def renew(self) -> None:
        """The call has shown that it goes on."""
        timeout = self._timeout
        if timeout is not None and not timeout.expired():
            silence = self._input if self._questions else self._idle
            timeout.reschedule(min(asyncio.get_running_loop().time() + silence, self._end))

    @contextmanager
    def paused(self, seconds: float) -> Iterator[None]:
        """The call waits for an approval inside the block, and is not sent yet: so long it is not silent."""
        self._is_paused = True
        idle, self._idle = self._idle, max(self._idle, seconds + 1)
        self.renew()
        try:
            yield
        finally:
            self._idle = idle
            self.renew()
        self._is_paused = False  # not where the time was over inside

    @property
    def left(self) -> float:
        """Seconds until its very end."""
        return max(0.0, self._end - asyncio.get_running_loop().time())

    async def ask(self, observer: Observer, request: InputRequest) -> InputAnswer:
        """Have the caller answer; what is not answered in time is cancelled."""
        self._questions += 1
        self.renew()
        try:
            # A little less than the call has: its server is to hear of it, and to go on.
            async with asyncio.timeout(self._input * _SHARE):
                return await observer.input_required(request)
        except TimeoutError:
            log_event(_LOGGER, logging.WARNING, "input not answered", kind=request.kind, seconds=self._input)
            return InputAnswer("cancel")
        except GatewayError as error:  # the caller is gone, or may not be asked
            log_event(_LOGGER, logging.INFO, "input refused", kind=request.kind, code=error.code)
            return InputAnswer("decline")
        finally:
            self._questions -= 1
            self.renew()


class WheelTime(CallTime):
    """The same without a task to end: once started, it gives `on_end` the `CallTimeout`, unless `stop` comes.

    By `Deadlines`, and so up to a twentieth of a second late.
    """

    def __init__(self, idle: float, longest: float, input: float) -> None:  # noqa: A002 - as above
        super().__init__(idle, longest, input)
        self._deadlines: Deadlines | None = None
        self._deadline: Deadline | None = None
        self._on_end: Callable[[CallTimeout], None] | None = None
        self._until = self._due = 0.0

    def start(self, deadlines: Deadlines, on_end: Callable[[CallTimeout], None]) -> None:
        """Begin the time."""
        now = time.monotonic()
        self._deadlines, self._on_end = deadlines, on_end
        self._end = now + self._longest
        self._until = now + self._idle
        self._look_at(now)

    def stop(self) -> None:
        """The call is over."""
        self._on_end = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def renew(self) -> None:
        """The call has shown that it goes on."""
        if self._deadlines is None:
            return  # its time has not begun
        now = time.monotonic()
        self._until = min(now + (self._input if self._questions else self._idle), self._end)
        # What is later than the deadline that is set is looked at when that comes.
        if self._until < self._due and self._on_end is not None:
            self._look_at(now)

    def _look_at(self, now: float) -> None:
        assert self._deadlines is not None, "started"  # noqa: S101
        if self._deadline is not None:
            self._deadline.cancel()
        self._due = self._until
        self._deadline = self._deadlines.call_later(self._until - now, self._come_due)

    def _come_due(self) -> None:
        self._deadline = None
        now, on_end = time.monotonic(), self._on_end
        if on_end is None:
            return
        if now < self._until:
            self._look_at(now)
        else:
            self._on_end = None
            on_end(self._timeout_error(at_the_end=self._until >= self._end))


class TimedObserver:
    """Passes on what the caller is told, and lets it renew the call's time."""

    def __init__(self, observer: Observer, limit: CallTime) -> None:
        self._observer = observer
        self._time = limit
        self._has_started = False

    def started(self) -> None:
        """The call is sent; said once, also where it is sent again."""
        self._time.renew()
        if not self._has_started:
            self._has_started = True
            self._observer.started()

    def queued(self, position: int, retry_after_ms: int | None) -> None:
        """It waits for its turn."""
        self._observer.queued(position, retry_after_ms)

    def approval_asked(self, request_id: str, expires_at: int) -> None:
        """It waits for an approval."""
        self._observer.approval_asked(request_id, expires_at)

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """How far it is."""
        self._time.renew()
        self._observer.progress(progress, total, message)

    def log(self, level: str, logger: str | None, data: Any) -> None:
        """A log message of its server."""
        self._observer.log(level, logger, data)

    async def input_required(self, request: InputRequest) -> InputAnswer:
        """Its server asks for something."""
        return await self._time.ask(self._observer, request)
