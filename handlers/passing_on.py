"""What stands between Tornado and the application: each looks at requests on their way, and hands them on."""

from collections.abc import Awaitable

from tornado.httputil import (
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)


class PassingOn(HTTPServerConnectionDelegate):
    """Hands requests on to `application`; which way is for `start_request`, which its kinds have."""

    def __init__(self, application: HTTPServerConnectionDelegate) -> None:
        self._application = application

    def on_close(self, server_conn: object) -> None:
        """A connection has ended; see `HTTPServerConnectionDelegate.on_close`."""
        self._application.on_close(server_conn)


class PassedOn(HTTPMessageDelegate):
    """One request that is handed on to `inner` as it comes."""

    def __init__(self, inner: HTTPMessageDelegate) -> None:
        self._inner = inner

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        """See `HTTPMessageDelegate.headers_received`."""
        return self._inner.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """See `HTTPMessageDelegate.data_received`."""
        return self._inner.data_received(chunk)

    def finish(self) -> None:
        """See `HTTPMessageDelegate.finish`."""
        self._inner.finish()

    def on_connection_close(self) -> None:
        """See `HTTPMessageDelegate.on_connection_close`."""
        self._inner.on_connection_close()
