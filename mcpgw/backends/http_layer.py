"""The HTTP layer under the SDK's transports, for a gateway must not trust a backend.

A network fault of one request must end that request, and not the session with every other call in it, as an
exception inside the SDK's transport would; no message may hold up the next; and what a backend sends is
bounded. The layer therefore turns each fault into an HTTP answer that carries a JSON-RPC error.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import anyio
import httpx2
import mcp_types as types

from mcpgw.backends.failures import SESSION_ENDED, LocalFault, local_error, unreachable_in_words
from mcpgw.backends.lines import LineSplitter, OversizedLine, answered_id

T = TypeVar("T")

_COURTESY_SECONDS = 5.0
_MOST_COURTESIES = 64
_JSON_TYPE = "application/json"
_EVENT_TYPE = "text/event-stream"
# The SDK's client of HTTP with SSE ends the session at an event of 1 MiB, and no argument changes that.
_LONGEST_LEGACY_LINE = 1024 * 1024 - 4096
# Connections are bounded by the calls that clients may have open, not by a pool that hung calls would fill.
_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=20)

_OF_ONE_REQUEST = ("content-length", "transfer-encoding", "mcp-method", "mcp-name")
_SESSION_NOT_KNOWN = (
    (-32000, "Bad Request: No valid session ID provided"),
    (-32000, "Bad Request: Server not initialized"),
    (-32001, "Session not found"),
)

Fail = Callable[[types.RequestId, types.ErrorData], None]
"""Takes the id of a request that has failed, and why."""


class HttpBackendTransport(httpx2.AsyncBaseTransport):
    """An HTTP transport that answers network faults instead of raising them, and bounds each answer.

    `on_end` is told, with the reason, that the session cannot go on: no connection can be made, or the server
    has forgotten it. `max_message_size` is in bytes. `fail` is given for HTTP with SSE alone, where the
    answer to a POST is not the answer to its message: POSTs are then sent side by side, and `fail` gets each
    that was not taken. `tls` says whose certificates are believed; None is the usual ones.
    """

    def __init__(
        self,
        max_message_size: int,
        on_end: Callable[[str], None],
        fail: Fail | None = None,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._inner = httpx2.AsyncHTTPTransport(verify=True if tls is None else tls, limits=_LIMITS)
        self._max_message_size = max_message_size
        self._on_end = on_end
        self._fail = fail
        self._open: dict[types.RequestId, Abandonable] = {}
        self._answered: dict[types.RequestId, httpx2.Response] = {}
        self._background: set[asyncio.Task[None]] = set()
        self.cookies: httpx2.Cookies | None = None
        """The cookies that the SDK's client sends; None where the configuration names a ``Cookie``."""
        self._was_set = False
        self.list_headers: tuple[tuple[str, str], ...] | None = None
        """The headers of the last ``tools/list`` that other requests of the session have too."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request; never raises a network fault."""
        response = await self._handle(request)
        if "set-cookie" in response.headers:
            self._was_set = True  # the SDK's client keeps it
        return response

    async def _handle(self, request: httpx2.Request) -> httpx2.Response:
        message = await _message_of(request)
        request_id, method = message.get("id"), message.get("method")
        if request.method == "DELETE":
            return await self._end_session(request)
        if request.method != "POST" or method == "notifications/initialized":
            return await self._exchange(request, None)
        if method is None or request_id is None:
            # The SDK waits for the end of such a POST before it sends anything else.
            self._in_background(self._send_courtesy(request, message))
            return httpx2.Response(202, request=request)
        if method == "tools/list":
            self.list_headers = _lasting_headers(request)
        if self._fail is not None:
            self._in_background(self._send_or_fail(request, request_id, self._fail))
            return httpx2.Response(202, request=request)
        return await self._exchange(request, request_id)

    async def aclose(self) -> None:
        """Close every connection."""
        answered, self._answered = self._answered, {}
        for response in answered.values():
            await response.aclose()
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        await self._inner.aclose()

    # --- requests that were sent past the SDK ---------------------------------------------------------------

    def watch(self, request_id: types.RequestId, opened: "Abandonable") -> None:
        """Abandon `opened`, once the server was told that this request is cancelled."""
        self._open[request_id] = opened

    def forget(self, request_id: types.RequestId, opened: "Abandonable") -> None:
        """It is over, or somebody else's now."""
        if self._open.get(request_id) is opened:
            del self._open[request_id]

    @property
    def has_cookies(self) -> bool:
        """Whether the server has ever set a cookie that the SDK's client may send."""
        return self._was_set and self.cookies is not None

    def add_cookies(self, headers: MutableMapping[str, str], url: str) -> None:
        """Give a request the ``Cookie`` that the SDK's client would give it now."""
        if self.cookies is not None:
            headers.pop("cookie", None)
            request = httpx2.Request("POST", url)
            self.cookies.set_cookie_header(request)
            if (cookie := request.headers.get("cookie")) is not None:
                headers["cookie"] = cookie

    def keep_cookies(self, headers: Iterable[tuple[bytes, bytes]], url: str) -> None:
        """Keep what an answer sets, as the SDK's client keeps it."""
        if self.cookies is not None:
            self._was_set = True
            request = httpx2.Request("POST", url)
            self.cookies.extract_cookies(httpx2.Response(200, headers=list(headers), request=request))

    def hand_over(self, request_id: types.RequestId, response: httpx2.Response) -> None:
        """Answer the SDK's POST of this request with what the server has answered to it already."""
        self._answered[request_id] = response

    def fault(self, error: httpx2.TransportError) -> types.ErrorData:
        """What a request ends with that has met `error`; the session ends where no connection can be made."""
        reason = unreachable_in_words(error)
        unreachable = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
        if unreachable:
            self._on_end(reason)
        never_sent = unreachable or isinstance(error, httpx2.PoolTimeout | httpx2.UnsupportedProtocol)
        return local_error(LocalFault.NOT_SENT if never_sent else LocalFault.MAYBE_SENT, reason)

    # --- what the SDK sends ---------------------------------------------------------------------------------

    async def _exchange(self, request: httpx2.Request, request_id: types.RequestId | None) -> httpx2.Response:
        opened = _OpenRequest()
        response = None
        if request_id is not None:
            self._open[request_id] = opened
            response = self._answered.pop(request_id, None)
        try:
            if response is None:
                response = await opened.run(self._inner.handle_async_request(request))
            answer = await self._answer(request, request_id, response, opened)
        except AbandonedError:
            return _error_answer(request, LocalFault.MAYBE_SENT, "it was cancelled")
        except httpx2.TransportError as error:
            return _rpc_answer(request, self.fault(error))
        finally:
            if request_id is not None and not opened.streams:
                self.forget(request_id, opened)
        return answer

    async def _answer(
        self,
        request: httpx2.Request,
        request_id: types.RequestId | None,
        response: httpx2.Response,
        opened: "_OpenRequest",
    ) -> httpx2.Response:
        """What the SDK is to see of `response`: an event stream under guard, else a whole, bounded body."""
        content_type = response.headers.get("content-type", "").lower()
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            await response.aclose()
            return _refusal(request, "its answer is compressed, which was not asked for")
        if response.is_success and content_type.startswith(_EVENT_TYPE):
            opened.streams = True

            def forget() -> None:
                if request_id is not None:
                    self.forget(request_id, opened)

            stream = _stream_of(response)
            if self._fail is not None:
                stream = _BoundedLines(stream, min(self._max_message_size, _LONGEST_LEGACY_LINE))
            response.stream = _EventStream(stream, opened, request_id, forget)
            return response
        if response.status_code == httpx2.codes.ACCEPTED:
            return response
        body = await opened.run(self._read(response))
        if body is None:
            return _error_answer(request, LocalFault.TOO_LARGE, "the answer is over the limit of one message")
        if request_id is not None:
            match await opened.run(self._knows_session(request, response.status_code, body)):
                case False:
                    self._on_end(SESSION_ENDED)
                    return _error_answer(
                        request, LocalFault.SESSION_LOST, "the server has forgotten the session"
                    )
                case None:
                    return _error_answer(
                        request, LocalFault.MAYBE_SENT, "it is not known whether its session is still there"
                    )
            if response.is_success and content_type.startswith(_JSON_TYPE):
                body = _own_answer(body, request_id)
            elif (
                response.is_error
                and _rpc_message(body) is None
                and response.status_code != httpx2.codes.NOT_FOUND  # the SDK's "no such method"
            ):
                return _refusal(request, f"it answered with HTTP status {response.status_code}")
        headers = [
            (name, value)
            for name, value in response.headers.multi_items()
            if name not in ("content-length", "transfer-encoding", "content-encoding")
        ]
        return httpx2.Response(response.status_code, headers=headers, content=body, request=request)

    async def _knows_session(self, request: httpx2.Request, status: int, body: bytes) -> bool | None:
        """Whether a server that has refused a request knows its session; None where that cannot be told.

        The specification says 404. Servers of the TypeScript SDK answer 400 and say so in words, which an
        error of a tool may hold as well: a ping tells which of them it was.
        """
        if "mcp-session-id" not in request.headers:
            return True
        if status == httpx2.codes.NOT_FOUND:
            return False
        if not _sounds_lost(status, body):
            return True
        headers = [
            (name, value) for name, value in request.headers.multi_items() if name not in _OF_ONE_REQUEST
        ]
        message = {"jsonrpc": "2.0", "id": "is the session there", "method": "ping"}
        ping = httpx2.Request("POST", request.url, headers=headers, json=message)
        ping.extensions = dict(request.extensions)
        try:
            async with asyncio.timeout(_COURTESY_SECONDS):
                response = await self._inner.handle_async_request(ping)
                if response.is_success:
                    await response.aclose()
                    return True
                answer = await self._read(response)
        except (httpx2.TransportError, TimeoutError):
            return None
        lost = response.status_code == httpx2.codes.NOT_FOUND
        return not (lost or (answer is not None and _sounds_lost(response.status_code, answer)))

    async def _read(self, response: httpx2.Response) -> bytes | None:
        """The whole body; None where it is over the limit."""
        pieces, size = [], 0
        try:
            async for chunk in _stream_of(response):
                size += len(chunk)
                if size > self._max_message_size:
                    return None
                pieces.append(chunk)
        finally:
            await response.aclose()
        return b"".join(pieces)

    def _in_background(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _send_courtesy(self, request: httpx2.Request, message: Mapping[str, Any]) -> None:
        """Send what has no answer; a cancelled request is then let go, for servers leave its answer open."""
        if len(self._background) <= _MOST_COURTESIES:
            with suppress(httpx2.TransportError, TimeoutError):
                async with asyncio.timeout(_COURTESY_SECONDS):
                    response = await self._inner.handle_async_request(request)
                    await response.aclose()
        params = message.get("params")
        if message.get("method") == "notifications/cancelled" and isinstance(params, dict):
            opened = self._open.get(params.get("requestId", ""))
            if opened is not None:
                opened.abandon()

    async def _send_or_fail(self, request: httpx2.Request, request_id: types.RequestId, fail: Fail) -> None:
        answer = await self._exchange(request, request_id)
        await answer.aclose()
        if answer.is_success:
            return
        fault = answer.extensions.get("mcpgw_error") or types.ErrorData(
            code=types.INTERNAL_ERROR, message=f"it answered with HTTP status {answer.status_code}"
        )
        if answer.status_code == httpx2.codes.NOT_FOUND:
            self._on_end(SESSION_ENDED)
            fault = local_error(LocalFault.SESSION_LOST, "the server has forgotten the session")
        fail(request_id, fault)

    async def _end_session(self, request: httpx2.Request) -> httpx2.Response:
        try:
            async with asyncio.timeout(_COURTESY_SECONDS):
                response = await self._inner.handle_async_request(request)
                await response.aclose()
        except (httpx2.TransportError, TimeoutError):
            return httpx2.Response(200, request=request)  # it is over either way
        return httpx2.Response(response.status_code, request=request)


class AbandonedError(Exception):
    """The request was cancelled, and its server told; nobody waits for the answer any more."""


class BrokenAnswerError(httpx2.StreamError):
    """An event stream that broke off; the SDK ends or resumes its one request with it."""


class Abandonable(Protocol):
    """A request that waits for its answer."""

    def abandon(self) -> None:
        """Wait no more: the server was told that it is cancelled."""


class _OpenRequest:
    """One request that waits for its answer, until it is abandoned."""

    def __init__(self) -> None:
        self.streams = False
        self._abandoned = False
        self._scope: anyio.CancelScope | None = None

    def abandon(self) -> None:
        self._abandoned = True
        if self._scope is not None:
            self._scope.cancel()

    async def run(self, step: Awaitable[T]) -> T:
        """Await one step of the exchange.

        Raises:
            AbandonedError: the request was abandoned before it was over.
        """
        with anyio.CancelScope() as self._scope:
            if self._abandoned:
                self._scope.cancel()
            return await step
        raise AbandonedError


class _EventStream(httpx2.AsyncByteStream):
    """The body of an event stream; each event in it is bounded by the SDK's reader.

    When its request is abandoned it ends with an error as its answer, for the SDK would resume a stream that
    just ends.
    """

    def __init__(
        self,
        stream: httpx2.AsyncByteStream,
        opened: _OpenRequest,
        request_id: types.RequestId | None,
        on_close: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._opened = opened
        self._request_id = request_id
        self._on_close = on_close

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = aiter(self._stream)
        try:
            while (chunk := await self._opened.run(_next(chunks))) is not None:
                yield chunk
        except AbandonedError:
            error = local_error(LocalFault.MAYBE_SENT, "it was cancelled").model_dump()
            answer = {"jsonrpc": "2.0", "id": self._request_id, "error": error}
            yield b"\n\ndata: " + json.dumps(answer).encode() + b"\n\n"
        except httpx2.TransportError as error:
            raise BrokenAnswerError(f"the answer broke off ({type(error).__name__})") from None

    async def aclose(self) -> None:
        self._on_close()
        await self._stream.aclose()


class _BoundedLines(httpx2.AsyncByteStream):
    """An event stream in which a line over the limit becomes the error of the one request that it answers."""

    def __init__(self, stream: httpx2.AsyncByteStream, max_size: int) -> None:
        self._stream = stream
        self._lines = LineSplitter(max_size)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield b"".join(map(self._bounded, self._lines.feed(chunk)))
        yield self._lines.flush() or b""

    async def aclose(self) -> None:
        await self._stream.aclose()

    @staticmethod
    def _bounded(line: bytes | OversizedLine) -> bytes:
        if isinstance(line, bytes):
            return line + b"\n"
        request_id = answered_id(line.head.removeprefix(b"data:"), line.tail)
        if request_id is None:
            return b": dropped, over the limit\n"
        error = local_error(LocalFault.TOO_LARGE, "the answer is over the limit of one message").model_dump()
        return b"data: " + json.dumps({"jsonrpc": "2.0", "id": request_id, "error": error}).encode() + b"\n"


def _lasting_headers(request: httpx2.Request) -> tuple[tuple[str, str], ...] | None:
    """The headers of a request that are not of it alone; None where they are no UTF-8."""
    try:
        headers = [(name.decode(), value.decode()) for name, value in request.headers.raw]
    except UnicodeDecodeError:
        return None
    return tuple((name, value) for name, value in headers if name.lower() not in _OF_ONE_REQUEST)


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)


def _stream_of(response: httpx2.Response) -> httpx2.AsyncByteStream:
    stream = response.stream
    assert isinstance(stream, httpx2.AsyncByteStream), "an asynchronous transport gives no other"  # noqa: S101
    return stream


async def _message_of(request: httpx2.Request) -> dict[str, Any]:
    """The JSON-RPC message that a request of the SDK carries; nothing where it carries none."""
    if request.method != "POST":
        return {}
    message = json.loads(await request.aread())  # one that follows a redirect has only a stream
    return message if isinstance(message, dict) else {}


def _error_answer(request: httpx2.Request, fault: LocalFault, reason: str) -> httpx2.Response:
    return _rpc_answer(request, local_error(fault, reason))


def _refusal(request: httpx2.Request, reason: str) -> httpx2.Response:
    return _rpc_answer(request, types.ErrorData(code=types.INTERNAL_ERROR, message=reason))


def _rpc_answer(request: httpx2.Request, error: types.ErrorData) -> httpx2.Response:
    # The SDK takes a JSON-RPC error out of an answer that is no success, and puts the request's own id in.
    body = {"jsonrpc": "2.0", "id": None, "error": error.model_dump(exclude_none=True)}
    return httpx2.Response(503, json=body, request=request, extensions={"mcpgw_error": error})


def _sounds_lost(status: int, body: bytes) -> bool:
    """Whether a refusal has the very form in which the TypeScript SDK says that it knows no such session."""
    message = _rpc_message(body) if status == httpx2.codes.BAD_REQUEST else None
    if message is None or message.get("id") is not None:
        return False
    error = message["error"]
    return (error.get("code"), error.get("message")) in _SESSION_NOT_KNOWN


def _rpc_message(body: bytes) -> Mapping[str, Any] | None:
    """The JSON-RPC error message that `body` is; None where it is none."""
    with suppress(ValueError, RecursionError):
        message = json.loads(body)
        if isinstance(message, dict) and isinstance(message.get("error"), dict):
            return message
    return None


def _own_answer(body: bytes, request_id: types.RequestId) -> bytes:
    """`body` under the id of the request that it answers, as the SDK does for event streams.

    An answer with another id would end another caller's request.
    """
    try:
        message = types.jsonrpc_message_adapter.validate_json(body, by_name=False)
    except ValueError:
        return body  # the SDK ends the request with it
    if not isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
        error = types.ErrorData(code=types.INVALID_REQUEST, message="the answer is no JSON-RPC response")
        message = types.JSONRPCError(jsonrpc="2.0", id=request_id, error=error)
    elif message.id == request_id:
        return body
    message.id = request_id
    return message.model_dump_json(by_alias=True, exclude_unset=True).encode()
