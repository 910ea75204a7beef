"""Requests that wait: the first ones for what clients need, those with another issuer's token for its key.

Nearly all are handed on at once: the key is in memory. That it is looked at before anything else of the
request leaves every handler, and the upgrade of every WebSocket, free to verify without waiting.
"""

from collections.abc import Awaitable, Callable

from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)

from .passing_on import PassedOn, PassingOn
from .request_tokens import tokens_of

Preparing = Callable[[], Awaitable[None] | None]
FetchingKeys = Callable[[str], Awaitable[None] | None]
_PROBES = ("/healthz", "/readyz")


class KeyedRequests(PassingOn):
    """Hands requests on to `application` when the keys of their tokens are there, or cannot be had.

    `preparing` gives what to wait for before any request but a probe is served, and None where that is done.
    A probe that shows a token waits as well: it is verified as any other.
    `fetching` gives what to wait for before a token can be verified, and None where there is nothing.
    """

    def __init__(
        self, application: HTTPServerConnectionDelegate, fetching: FetchingKeys, preparing: Preparing
    ) -> None:
        super().__init__(application)
        self._preparing = preparing
        self._fetching = fetching

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """One request begins; see `HTTPServerConnectionDelegate.start_request`."""
        inner = self._application.start_request(server_conn, request_conn)
        return _KeyedRequest(inner, self._fetching, self._preparing)


class _KeyedRequest(PassedOn):
    def __init__(self, inner: HTTPMessageDelegate, fetching: FetchingKeys, preparing: Preparing) -> None:
        super().__init__(inner)
        self._preparing = preparing
        self._fetching = fetching

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        if not _is_probe(start_line, headers) and (prepared := self._preparing()) is not None:
            return self._after(prepared, start_line, headers)
        return self._keyed(start_line, headers)

    def _keyed(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        for token in tokens_of(headers):
            fetched = self._fetching(token)
            if fetched is not None:
                return self._later(fetched, start_line, headers)
        return self._inner.headers_received(start_line, headers)

    async def _after(
        self,
        prepared: Awaitable[None],
        start_line: RequestStartLine | ResponseStartLine,
        headers: HTTPHeaders,
    ) -> None:
        await prepared
        handed = self._keyed(start_line, headers)
        if handed is not None:
            await handed

    async def _later(
        self,
        fetched: Awaitable[None],
        start_line: RequestStartLine | ResponseStartLine,
        headers: HTTPHeaders,
    ) -> None:
        await fetched
        handed = self._inner.headers_received(start_line, headers)
        if handed is not None:
            await handed


def _is_probe(start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> bool:
    """Whether nobody in particular asks how the gateway is: a probe neither waits, nor is it a client."""
    if not isinstance(start_line, RequestStartLine) or start_line.path not in _PROBES:
        return False
    return next(tokens_of(headers), None) is None
