"""A bound on the bodies of requests that is answered, with 413 (RFC 9110 section 15.5.14).

Tornado's own bound answers 400 without a word. Here the answer goes out as soon as the bound is passed; what
the client still sends is read and thrown away, within the server's time for a body, since a connection that
is closed over unread bytes takes the answer with it.
"""

from collections.abc import Awaitable

from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)

from mcpgw.errors import TooLarge
from mcpgw.wire import strict_json

from .passing_on import PassedOn, PassingOn
from .security_headers import SECURITY_HEADERS


class LimitedBodies(PassingOn):
    """Hands requests on to `application`, none of them with a body of more than `limit` bytes."""

    def __init__(self, application: HTTPServerConnectionDelegate, limit: int) -> None:
        super().__init__(application)
        self._limit = limit

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """One request begins; see `HTTPServerConnectionDelegate.start_request`."""
        inner = self._application.start_request(server_conn, request_conn)
        return _LimitedRequest(inner, request_conn, self._limit)


class _LimitedRequest(PassedOn):
    def __init__(self, inner: HTTPMessageDelegate, connection: HTTPConnection, limit: int) -> None:
        super().__init__(inner)
        self._connection = connection
        self._limit = limit
        self._size = 0
        self._refused = False

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        length = headers.get("Content-Length", "")
        # What is no number is Tornado's to refuse.
        if length.isdecimal() and (len(length) > 18 or int(length) > self._limit):  # noqa: PLR2004
            self._refuse()
            if headers.get("Expect", "").lower() == "100-continue":
                self._connection.finish()  # nothing has been sent yet, and now nothing will be
            return None
        return self._inner.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        self._size += len(chunk)
        if self._refused:
            return None
        if self._size > self._limit:
            self._inner.on_connection_close()
            self._refuse()
            return None
        return self._inner.data_received(chunk)

    def finish(self) -> None:
        if self._refused:
            self._connection.finish()
        else:
            self._inner.finish()

    def on_connection_close(self) -> None:
        if not self._refused:
            self._inner.on_connection_close()

    def _refuse(self) -> None:
        self._refused = True
        error = TooLarge(f"the body is larger than {self._limit} bytes: see server.max_body_size")
        data = error.to_data()
        data["message"] = data.pop("error")
        body = strict_json.dumps({"error": data}).encode()
        headers = HTTPHeaders(
            {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                **SECURITY_HEADERS,
            }
        )
        line = ResponseStartLine("HTTP/1.1", error.http_status, "Content Too Large")
        self._connection.write_headers(line, headers, body)
