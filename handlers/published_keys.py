"""Requests with the token of another issuer, which wait until the key that has signed it is known.

Nearly all are handed on at once: the key is in memory. That it is looked at before anything else of the
request leaves every handler, and the upgrade of every WebSocket, free to verify without waiting.
"""

from collections.abc import Awaitable, Callable, Iterator

from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)

from .passing_on import PassedOn, PassingOn

FetchingKeys = Callable[[str], Awaitable[None] | None]
_SUBPROTOCOL = "bearer."
_MOST_TOKENS = 4


class KeyedRequests(PassingOn):
    """Hands requests on to `application` when the keys of their tokens are there, or cannot be had.

    `fetching` gives what to wait for before a token can be verified, and None where there is nothing.
    """

    def __init__(self, application: HTTPServerConnectionDelegate, fetching: FetchingKeys) -> None:
        super().__init__(application)
        self._fetching = fetching

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """One request begins; see `HTTPServerConnectionDelegate.start_request`."""
        return _KeyedRequest(self._application.start_request(server_conn, request_conn), self._fetching)


class _KeyedRequest(PassedOn):
    def __init__(self, inner: HTTPMessageDelegate, fetching: FetchingKeys) -> None:
        super().__init__(inner)
        self._fetching = fetching

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        for token in _tokens(headers):
            fetched = self._fetching(token)
            if fetched is not None:
                return self._later(fetched, start_line, headers)
        return self._inner.headers_received(start_line, headers)

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


def _tokens(headers: HTTPHeaders) -> Iterator[str]:
    """Every token that a request may be judged by: of its header, and of its WebSocket subprotocols."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield token.strip()
    offered = headers.get("Sec-WebSocket-Protocol", "")
    if _SUBPROTOCOL in offered:
        for name in map(str.strip, offered.split(",", _MOST_TOKENS)):
            if name.startswith(_SUBPROTOCOL):
                yield name.removeprefix(_SUBPROTOCOL)
