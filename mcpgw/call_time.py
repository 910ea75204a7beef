"""The time that a call has: how long it may be silent, and how long it may take in all."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mcpgw.backends.requests import InputAnswer, InputRequest, Observer
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
            what = (
                f"took longer than {self._longest:g} s" if at_the_end else f"was silent for {self._idle:g} s"
            )
            if self._is_paused:
                raise CallTimeout(f"the call {what} before it was approved; it was not sent") from None
            raise CallTimeout(f"the call {what}; its server was told to stop") from None

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


class TimedObserver:
    """Passes on what the caller is told, and lets it renew the call's time."""

    def __init__(self, observer: Observer, time: CallTime) -> None:
        self._observer = observer
        self._time = time
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
