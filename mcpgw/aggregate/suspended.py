"""Requests of revision 2026-07-28 that wait for their caller's next word.

That revision lets no server ask its client. A server answers with what it asks for (``input_required``), and
the client sends its request again, with the answers and the ``requestState`` that came with the questions.
Meanwhile the request to the backend stays open here. Its state is a name that nobody can guess, holds once,
and for the user and the very request that it was given for. What nobody comes back for is cancelled.
Source: MCP 2026-07-28, "Multi round-trip requests" (SEP-2322).
"""

import asyncio
import hashlib
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS

from mcpgw.aggregate.relay import METHODS, WAITS_FOR_APPROVAL, Relay, as_answer
from mcpgw.backends.requests import InputAnswer, InputRequest, Observer
from mcpgw.errors import QueueFull

_TOGETHER_SECONDS = 0.01
"""What a backend asks for within this time is asked in one answer."""

Result: TypeAlias = dict[str, Any]


@dataclass(slots=True)
class _Question:
    request: InputRequest
    answer: asyncio.Future[InputAnswer]


class OpenRequest:
    """One request that is open at a backend, as a task of its own: the `Observer` of that request.

    `work` sends it. `answers` are those that came with the first request, before anything was asked.
    """

    def __init__(self, work: Callable[[Observer], Awaitable[Result]], answers: Mapping[str, Any]) -> None:
        self._answers = dict(answers)
        self._questions: dict[str, _Question] = {}
        self._asked = asyncio.Event()
        self._relay: Relay | None = None
        self._asks = 0
        self._is_cancelled = False
        self._task = asyncio.create_task(self._run(work), name="mcp request")
        self._task.add_done_callback(_look_at)

    async def _run(self, work: Callable[[Observer], Awaitable[Result]]) -> Result:
        return await work(self)

    async def next(self, relay: Relay) -> tuple[Result | None, Mapping[str, Any]]:
        """Wait until it has ended or asks for something: the result, or the questions by their keys.

        Where the waiting task is cancelled, so is the request.
        """
        self._relay = relay
        asked = asyncio.create_task(self._asked.wait())
        try:
            await asyncio.wait({self._task, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not self._task.done():
                await asyncio.wait({self._task}, timeout=_TOGETHER_SECONDS)
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            self._relay = None
            asked.cancel()
        if self._task.done():
            return self._task.result(), {}
        self._asked.clear()
        return None, {
            key: {"method": METHODS[question.request.kind], "params": dict(question.request.params)}
            for key, question in self._questions.items()
        }

    def answer(self, responses: Mapping[str, Any]) -> None:
        """Hand on the answers that are there; what stays without one is asked again."""
        for key, question in self._questions.items():
            response = responses.get(key)
            if isinstance(response, Mapping) and not question.answer.done():
                question.answer.set_result(as_answer(question.request.kind, response))
        if any(not question.answer.done() for question in self._questions.values()):
            self._asked.set()

    def cancel(self) -> None:
        """End it, and have the backend told; that goes on in the background."""
        # Once, and never by way of a task that awaits it: a second cancel would stop the telling itself.
        if not self._is_cancelled:
            self._is_cancelled = True
            self._task.cancel()

    async def wait(self) -> None:
        """Wait until it has ended, however."""
        await asyncio.wait({self._task})

    # --- the observer --------------------------------------------------------------------------------------

    def started(self) -> None:
        """Nothing: MCP has no word for it."""

    def queued(self, position: int, retry_after_ms: int | None) -> None:
        """Nothing: MCP has no word for it."""

    def approval_asked(self, request_id: str, expires_at: int) -> None:  # noqa: ARG002 - MCP has no place
        """Told as progress: there are no other words for it."""
        self.progress(0, None, WAITS_FOR_APPROVAL)

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """Told to whoever waits now."""
        if self._relay is not None:
            self._relay.progress(progress, total, message)

    def log(self, level: str, logger: str | None, data: Any) -> None:
        """Told to whoever waits now."""
        if self._relay is not None:
            self._relay.log(level, logger, data)

    async def input_required(self, request: InputRequest) -> InputAnswer:
        """Asked with the next answer; declined where the client has said that it cannot answer such."""
        self._asks += 1
        key = request.key or f"{request.kind}-{self._asks}"
        if isinstance(given := self._answers.pop(key, None), Mapping):
            return as_answer(request.kind, given)
        if self._relay is None or not self._relay.can_answer(request):
            return InputAnswer("decline")
        if key in self._questions:
            key = f"{key}-{self._asks}"
        question = self._questions[key] = _Question(request, asyncio.get_running_loop().create_future())
        self._asked.set()
        try:
            return await question.answer
        finally:
            del self._questions[key]


@dataclass(frozen=True, slots=True)
class Binding:
    """Whom and what a state was given for: `request` is the request without what a retry adds."""

    user: str
    server: str | None
    method: str
    request: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Parked:
    request: OpenRequest
    binding: Binding
    timer: asyncio.TimerHandle


class Suspended:
    """The requests that wait; at most `most` of them, `most_of_user` of one user, each for `seconds`."""

    def __init__(self, most: int, most_of_user: int, seconds: float) -> None:
        self._most = most
        self._most_of_user = most_of_user
        self._seconds = seconds
        self._parked: dict[bytes, _Parked] = {}
        self._by_user: Counter[str] = Counter()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._parked)

    def park(self, request: OpenRequest, binding: Binding) -> str:
        """Keep a request until its caller comes back; the ``requestState`` to come back with.

        Raises:
            QueueFull: as many wait as may.
        """
        if len(self._parked) >= self._most or self._by_user[binding.user] >= self._most_of_user:
            raise QueueFull("too many requests wait for their callers' answers", retry_after_ms=1000)
        state = secrets.token_urlsafe(32)
        key = _key(state)
        timer = asyncio.get_running_loop().call_later(self._seconds, self._expire, key)
        self._parked[key] = _Parked(request, binding, timer)
        self._by_user[binding.user] += 1
        return state

    def take(self, state: str, binding: Binding) -> OpenRequest:
        """The request that `state` was given for; no other caller and no second time gets it.

        Raises:
            MCPError: there is none, or none of this caller for this request.
        """
        key = _key(state)
        parked = self._parked.get(key)
        if parked is None or parked.binding != binding:
            raise MCPError(
                code=INVALID_PARAMS,
                message="no request waits under this requestState: it is not known, was used, or is too old",
            )
        self._forget(key)
        return parked.request

    async def close(self) -> None:
        """Cancel all that wait."""
        requests = [self._forget(key).request for key in list(self._parked)]
        for request in requests:
            request.cancel()
        for request in requests:
            await request.wait()

    def _expire(self, key: bytes) -> None:
        self._forget(key).request.cancel()

    def _forget(self, key: bytes) -> _Parked:
        parked = self._parked.pop(key)
        parked.timer.cancel()
        user = parked.binding.user
        self._by_user[user] -= 1
        if not self._by_user[user]:
            del self._by_user[user]
        return parked


def _look_at(task: asyncio.Task[Result]) -> None:
    """What an abandoned request ends with is no fault that nobody has seen."""
    if not task.cancelled():
        task.exception()


def _key(state: str) -> bytes:
    # Looked up by its digest, so that the time of a look-up tells nothing of the state.
    return hashlib.sha256(state.encode("utf-8", "surrogatepass")).digest()
