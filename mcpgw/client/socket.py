"""A gateway as a program sees it: calls, each with one end, over connections that may come and go."""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from ssl import SSLContext
from types import TracebackType
from typing import Any, Final, Self

from mcpgw.client.address import GatewayAddress
from mcpgw.client.answers import LogLine, Progress, Queued, ToolAnswer
from mcpgw.client.backoff import Backoff
from mcpgw.client.errors import (
    ClientError,
    ConnectionLost,
    NotAGateway,
    NotReachable,
    RequestFailed,
    error_from,
    outcome_unknown,
    renewed,
)
from mcpgw.client.feed import Feed, wanted_of
from mcpgw.client.inputs import Inputs, OnApproval, OnInput
from mcpgw.client.link import Frame, Link
from mcpgw.client.offers import ANSWER_SECONDS, Offers
from mcpgw.client.request import Request, member
from mcpgw.client.subscription import Subscription, Subscriptions
from mcpgw.client.token_source import Token, TokenSource, expires_at, renewal_delay
from mcpgw.wire import strict_json
from mcpgw.wire.events import Position

_GRACE_SECONDS: Final = 5.0
_REFRESH_SECONDS: Final = 60.0
_STEADY_SECONDS: Final = 5.0


class Gateway(Offers):
    """The gateway at `url`, connected inside ``async with``.

    A connection that breaks is made anew: calls go on, and subscriptions too. Only what the gateway itself
    ends for good (close codes 3500 to 3999), credentials that are refused, and an outage of `give_up_after`
    seconds (None: no limit; 0: nothing is made anew) end it: every request and subscription then raises why.

    `token` is a token, or a callable (async or not) that makes a fresh one: it is asked for each connection
    and before a token ends. None opens a connection that may only `ping` and ask for its `status`.
    `connect_timeout` (seconds) bounds each try to connect, until the gateway's first word; ``async with``
    itself tries once. Between tries are random pauses below a bound that doubles from `first_pause` to
    `longest_pause` seconds. `max_message_size` (bytes) bounds each of the gateway's messages. `on_approval`
    (async or not) is asked about calls of others that wait for an approval, while ``calls`` is subscribed.
    `tls` says whose certificates are believed; see `trusting`. Methods may be called from many tasks at once;
    each raises `ClientError`.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        connect_timeout: float = 10.0,
        give_up_after: float | None = 120.0,
        first_pause: float = 0.25,
        longest_pause: float = 15.0,
        max_message_size: int = 64 * 1024 * 1024,
        on_approval: OnApproval | None = None,
        tls: SSLContext | None = None,
    ) -> None:
        self._address = GatewayAddress.parse(url)
        self._tls = tls
        self._tokens = TokenSource(token)
        self._connect_timeout = connect_timeout
        self._give_up_after = math.inf if give_up_after is None else give_up_after
        self._backoff = Backoff(first_pause, longest_pause)
        self._max_message_size = max_message_size
        self._requests: dict[str, Request] = {}
        self._to_cancel: set[str] = set()
        self._numbers = itertools.count(1)
        self._inputs = Inputs(self._say, on_approval)
        self._subscriptions = Subscriptions(self._say, self._ask_for_token)
        self._link: Link | None = None
        self._session: str | None = None
        self._expires_in: float | None = None
        self._renew = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._failure: ClientError | None = None

    def __repr__(self) -> str:
        return f"Gateway({self._address.socket!r})"

    @property
    def _base(self) -> str:
        return self._address.base

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection at the moment, as far as that is known."""
        return self._link is not None

    async def __aenter__(self) -> Self:
        """Connect, and read who the gateway says we are.

        Raises:
            NotReachable: no gateway answers.
            Refused: the token does not hold.
            TokenUnavailable: the callable that makes tokens has failed.
        """
        if self._runner is not None:
            raise RuntimeError("this connection has been used: make a new Gateway")
        link = await self._open(self._connect_timeout)
        self._session = _text(link.status.get("session"))
        self._go_on(link, resumed=True)
        self._runner = asyncio.create_task(self._run(link), name=f"runner of {self!r}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; the gateway then cancels what is still open."""
        runner, link = self._runner, self._link
        assert runner is not None, "entered before"  # noqa: S101
        self._give_up_after = 0.0
        try:
            if link is not None:
                await link.close(runner)
        finally:
            self._inputs.close()
            runner.cancel()
            with suppress(asyncio.CancelledError):
                await runner

    async def call(
        self,
        server: str,
        tool: str,
        params: Mapping[str, Any] | None = None,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        on_log: Callable[[LogLine], None] | None = None,
        on_queued: Callable[[Queued], None] | None = None,
        on_input: OnInput | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the gateway keeps it and tells the backend
    ) -> ToolAnswer:
        """Call a tool and wait for its answer, at most `timeout` seconds (None: the gateway's default).

        The call goes on while the connection is away, and never runs twice: where nobody knows any more
        whether it has run, it ends with the code ``outcome_unknown``. `on_queued` is told its place while it
        waits for a busy server, or for an approval. `on_input` (async or not) answers what the server asks in
        mid-call; without it that is declined. Cancelling the awaiting task cancels the call. So does an
        exception of a callback, which is raised here.

        Raises:
            ClientError: the call has no answer; a tool that says it failed is an answer.
            ValueError: `timeout` is no positive number, or `params` is no JSON.
        """
        data: dict[str, Any] = {"serverId": server, "toolName": tool, "params": dict(params or {})}
        limit = None
        if timeout is not None:
            if not 0 < timeout < math.inf:
                raise ValueError("the timeout of a call is a number of seconds above 0")
            data["timeoutMs"] = math.ceil(timeout * 1000)
            limit = timeout + _GRACE_SECONDS
        answer = await self._request(
            "tool_call",
            data,
            limit=limit,
            on_progress=on_progress,
            on_log=on_log,
            on_queued=on_queued,
            on_input=on_input,
        )
        return ToolAnswer(
            server=server,
            tool=tool,
            success=member(answer, "success", self._address.base) is True,
            result=member(answer, "result", self._address.base),
            content=member(answer, "content", self._address.base),
            structured_content=answer.get("structuredContent"),
            duration_ms=member(answer, "durationMs", self._address.base),
            meta=answer.get("meta"),
            data=answer,
        )

    def subscribe(
        self,
        channel: str,
        *,
        since: str | None = None,
        types: Collection[str] | None = None,
        servers: Collection[str] | None = None,
        min_level: str | None = None,
        resources: Collection[tuple[str, str]] | None = None,
        queue_size: int = 10_000,
    ) -> Subscription:
        """The events of a `channel`, such as ``servers`` or ``room:NAME``, for ``async for``.

        `since` is the `id` of an event: what came after it is sent first. `types`, `servers` and `min_level`
        choose among the events; None is all. `resources` are servers with the uris of what is to be watched
        there: of ``server.resource_updated``, those alone are told. At most `queue_size` events wait for the
        reader. There may be any number of subscriptions, also of one channel.

        Raises:
            ValueError: an argument cannot be used.
        """
        place = None if since is None else Position.parse(since)
        if since is not None and place is None:
            raise ValueError("since is the id of an event, such as 0123456789abcdef-7")
        if queue_size < 1:
            raise ValueError("a queue holds at least one event")
        wanted = wanted_of(types, servers, min_level, resources)
        return Subscription(self._subscriptions, Feed(channel, wanted, place, queue_size))

    async def publish(self, channel: str, payload: Any) -> int:
        """Say something in a room that is subscribed; answers the offset of the event in the log.

        Raises:
            ClientError: ``outcome_unknown`` where the connection was lost before the answer came.
            ValueError: `payload` is no JSON.
        """
        answer = await self._request(
            "publish", {"channel": channel, "payload": payload}, limit=ANSWER_SECONDS
        )
        offset: int = member(answer, "offset", self._address.base)
        return offset

    async def status(self) -> dict[str, Any]:
        """What this connection is and may do, as section 4 of the wire contract has it."""
        return dict(await self._request("status", {}, limit=ANSWER_SECONDS))

    async def ping(self) -> float:
        """How long the gateway takes to answer, in seconds."""
        started = time.perf_counter()
        await self._request("ping", {}, limit=ANSWER_SECONDS)
        return time.perf_counter() - started

    # --- connections ---------------------------------------------------------------------------------------

    async def _run(self, link: Link) -> None:
        """Keep a connection for as long as that is possible, and give everything its end after that."""
        failure = ConnectionLost("this connection is closed")
        try:
            while True:
                failure = await self._converse(link)
                if not failure.temporary or self._give_up_after <= 0:
                    return
                link = await self._come_back(failure)
        except ClientError as error:
            self._fail(error)
        finally:
            self._link = None
            self._fail(failure)

    async def _converse(self, link: Link) -> ConnectionLost:
        """Hand every frame to whom it concerns until the connection ends; answers why it did."""
        tending = [
            asyncio.create_task(self._keep_token(), name=f"token of {self!r}"),
            asyncio.create_task(self._keep_places(), name=f"places of {self!r}"),
        ]
        started = asyncio.get_running_loop().time()
        try:
            while (frame := await link.receive()) is not None:
                self._receive(frame)
            if asyncio.get_running_loop().time() - started > _STEADY_SECONDS:
                self._backoff.reset()
            return link.farewell()
        except NotAGateway as error:
            return ConnectionLost(error.message, temporary=False)
        finally:
            self._link = None
            link.drop()
            self._subscriptions.disconnected()
            for task in tending:
                task.cancel()

    async def _come_back(self, lost: ConnectionLost) -> Link:
        """Connect again, as often as the time allows.

        Raises:
            ClientError: the time is over, or what happened will happen again.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._give_up_after
        last: ClientError = lost
        while (left := deadline - loop.time()) > 0:
            await asyncio.sleep(min(self._backoff.pause(last.retry_after), left))
            try:
                return await self._resume(max(0.1, min(self._connect_timeout, deadline - loop.time())))
            except ClientError as error:
                is_old_token = error.code == "token_expired" and self._tokens.is_renewable
                if not error.temporary and not is_old_token:
                    raise
                last = error
        raise ConnectionLost(
            f"the connection was lost and did not come back within {self._give_up_after:g} s: {last.message}",
            close_code=lost.close_code,
        ) from last

    async def _open(self, limit: float) -> Link:
        try:
            async with asyncio.timeout(limit):
                token = await self._tokens.get()
                link = await Link.open(
                    self._address,
                    token,
                    limit=limit,
                    max_message_size=self._max_message_size,
                    tls=self._tls,
                )
        except TimeoutError:
            raise NotReachable(self._address.base, f"nothing came within {limit:g} s") from None
        self._note_expiry(token, link.status)
        return link

    async def _resume(self, limit: float) -> Link:
        """Connect, and go on with the session of the connection before."""
        link = await self._open(limit)
        try:
            resumed = False
            if self._session is not None and not self._tokens.is_anonymous:
                async with asyncio.timeout(limit):
                    resumed = await self._ask_to_resume(link, self._session)
        except BaseException as error:
            link.drop()
            if isinstance(error, TimeoutError):
                raise NotReachable(self._address.base, f"nothing came within {limit:g} s") from None
            raise
        self._go_on(link, resumed=resumed)
        return link

    async def _ask_to_resume(self, link: Link, session: str) -> bool:
        identifier = f"resume-{next(self._numbers)}"
        pending = [name for name, request in self._requests.items() if request.is_call and request.is_sent]
        data = {"session": session, "pending": pending}
        link.send(strict_json.dumps({"type": "resume", "id": identifier, "data": data}))
        while (frame := await link.receive()) is not None:
            if frame.id != identifier:
                continue
            if frame.type == "error":
                raise error_from(frame.data, frame.data.get("error"))
            self._session = _text(frame.data.get("session"))
            return frame.data.get("resumed") is True
        raise link.farewell()

    def _go_on(self, link: Link, *, resumed: bool) -> None:
        """Send what waits; give an end to what the gateway does not know any more."""
        self._link = link
        self._renew.clear()
        requests = list(self._requests.items())
        for _, request in requests:
            request.waits_for_token = False
            if not request.is_sent or request.future.done():
                continue
            if request.is_harmless:
                link.send(request.text)
            elif request.kind == "publish":
                request.settle(outcome_unknown("whether it was published"))
            elif request.kind == "auth":
                request.settle(ConnectionLost("the connection was lost"))
            elif not resumed and request.kind != "tool_call":
                link.send(request.text)  # what only reads
            elif not resumed:
                request.settle(outcome_unknown("whether the call has run: the gateway has begun anew"))
        for identifier in self._to_cancel if resumed else ():
            self._say("cancel", identifier, {})
        self._to_cancel.clear()
        self._subscriptions.connected()
        for _, request in requests:
            if not request.is_sent and not request.future.done():
                self._send(request)

    def _fail(self, failure: ClientError) -> None:
        if self._failure is not None:
            return
        self._failure = failure
        for request in self._requests.values():
            request.settle(failure)
        self._subscriptions.fail(failure)

    # --- the token, and places in the log ------------------------------------------------------------------

    def _note_expiry(self, token: str | None, status: Mapping[str, Any]) -> None:
        """How long the token holds, by the gateway's clock where it tells the time."""
        expiry = None if token is None else expires_at(token)
        now = status.get("serverTime")
        seconds = now / 1000 if isinstance(now, int | float) else time.time()
        self._expires_in = None if expiry is None else expiry - seconds

    async def _keep_token(self) -> None:
        """Show a fresh token before the old one ends, and when the gateway asks for one."""
        if not self._tokens.is_renewable:
            return
        pauses, pause = Backoff(1.0, 30.0), 0.0
        while True:
            delay = None if self._expires_in is None else renewal_delay(self._expires_in) + pause
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._renew.wait()
            self._renew.clear()
            try:
                token = await self._tokens.get()
                self._note_expiry(token, await self._request("auth", {"token": token}, limit=ANSWER_SECONDS))
            except ClientError as error:
                # Whoever waits for a token is told why; the next try is soon, and then less and less so.
                self._expires_in, pause = 0.0, pauses.pause(error.retry_after)
                self._token_came(error)
            else:
                pauses.reset()
                pause = 0.0
                self._token_came(None)

    def _ask_for_token(self) -> bool:
        """Let a fresh token be shown as soon as possible; false where there can be none."""
        if self._tokens.is_renewable:
            self._renew.set()
        return self._tokens.is_renewable

    def _token_came(self, error: ClientError | None) -> None:
        for request in list(self._requests.values()):
            if request.waits_for_token:
                request.waits_for_token = False
                if error is not None:
                    request.settle(error)
                else:
                    self._send(request)

    async def _keep_places(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            self._subscriptions.refresh()

    # --- frames --------------------------------------------------------------------------------------------

    def _receive(self, frame: Frame) -> None:
        request = None if frame.id is None else self._requests.get(frame.id)
        if frame.type == "error" and frame.id is None and "requestId" in frame.data:
            self._answer_refused(frame)
        elif frame.type == "input_request" and frame.id is None:
            self._inputs.approve(frame.data)
        elif request is None:
            # A push, an answer to a subscription, or the end of a call that nobody waits for any more.
            self._subscriptions.receive(frame)
        elif frame.type == "error":
            self._refused(request, error_from(frame.data, frame.data.get("error")))
        elif frame.type == "input_request" and frame.id is not None:
            self._inputs.ask(frame.id, frame.data, request.on_input, request.settle)
        elif frame.type == request.answer_type:
            self._backoff.reset()
            request.answer(frame.data)
        else:
            request.hand_on(frame)

    def _answer_refused(self, frame: Frame) -> None:
        """An answer of a callback cannot be used; one that only came too late is no fault."""
        request = self._requests.get(self._inputs.call_of(frame.data["requestId"]) or "")
        error = error_from(frame.data, frame.data.get("error"))
        if error.code == "unknown_call":
            return
        if request is None:
            self._inputs.refused(frame.data["requestId"], error)
        else:
            request.settle(error)

    def _refused(self, request: Request, error: ClientError) -> None:
        """The end of a request, unless it has not even begun and can be sent again."""
        is_waiting = not request.future.done() and self._link is not None
        if is_waiting and error.code == "outcome_unknown" and error.details == {"received": False}:
            self._send(request)
        elif (
            is_waiting and error.code == "token_expired" and request.kind != "auth" and self._ask_for_token()
        ):
            request.waits_for_token = True
            request.is_sent = False
        else:
            request.answered = True
            request.settle(error)

    # --- requests ------------------------------------------------------------------------------------------

    async def _request(
        self,
        kind: str,
        data: Mapping[str, Any],
        *,
        limit: float | None,
        on_progress: Callable[[Progress], None] | None = None,
        on_log: Callable[[LogLine], None] | None = None,
        on_queued: Callable[[Queued], None] | None = None,
        on_input: OnInput | None = None,
    ) -> Mapping[str, Any]:
        """Send one request and wait for the data of its answer, at most `limit` seconds."""
        identifier = f"{kind}-{next(self._numbers)}"
        text = strict_json.dumps_given({"type": kind, "id": identifier, "data": data})
        size = len(text.encode())  # a lone surrogate fails here (RFC 8259 section 8.2), as ValueError
        self._require_usable(size)
        future: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        request = Request(self._address.base, kind, text, future, on_progress, on_log, on_queued, on_input)
        self._requests[identifier] = request
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                if self._link is not None and (written := self._link.send(text)) is not None:
                    request.is_sent = True
                    await written
                return await future
        except TimeoutError:
            if not scope.expired():  # a callback's own
                raise
            raise RequestFailed(
                f"the gateway did not answer within {limit:g} s", code="timeout", temporary=True
            ) from None
        finally:
            del self._requests[identifier]
            if future.done() and not future.cancelled():
                future.exception()  # seen, also where the task was cancelled in the same moment
            self._inputs.forget(identifier)
            if request.is_call and request.is_sent and not request.answered:
                self._tell_cancelled(identifier)

    def _require_usable(self, size: int) -> None:
        if self._runner is None:
            raise RuntimeError("the connection is open inside `async with` alone")
        if self._failure is not None:
            raise renewed(self._failure)
        limit = None if self._link is None else self._link.max_message_size
        if limit is not None and size > limit:
            raise RequestFailed(
                f"the gateway takes at most {limit} bytes, these are {size}", code="too_large"
            )

    def _tell_cancelled(self, identifier: str) -> None:
        """Send ``cancel``, without waiting: the awaiting task is itself being cancelled."""
        if not self._say("cancel", identifier, {}) and self._failure is None:
            self._to_cancel.add(identifier)

    def _send(self, request: Request) -> None:
        if self._link is not None and self._link.send(request.text) is not None:
            request.is_sent = True

    def _say(self, kind: str, identifier: str | None, data: Mapping[str, Any]) -> bool:
        named = {} if identifier is None else {"id": identifier}
        text = strict_json.dumps({"type": kind, **named, "data": data})
        return self._link is not None and self._link.send(text) is not None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
