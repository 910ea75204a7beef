"""Requests that a trusted proxy passes on, told as the client has sent them.

Tornado's own reading (``xheaders``) believes every peer, knows neither networks nor hosts, and lets
``X-Real-Ip``, which proxies seldom overwrite, go over everything else.
"""

from collections.abc import Awaitable, Callable
from typing import Any, cast

from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)

from mcpgw.proxies import client_of
from mcpgw.settings import ServerSettings

from .passing_on import PassedOn, PassingOn


class ForwardedRequests(PassingOn):
    """Hands requests on to `application` with the client's own address, scheme and host.

    `settings` gives what is in force now. Of peers that are no trusted proxies nothing is changed.
    """

    def __init__(
        self, application: HTTPServerConnectionDelegate, settings: Callable[[], ServerSettings]
    ) -> None:
        super().__init__(application)
        self._settings = settings

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """One request begins; see `HTTPServerConnectionDelegate.start_request`."""
        inner = self._application.start_request(server_conn, request_conn)
        server = self._settings()
        if not server.trusted_proxies:
            return inner
        return _ForwardedRequest(inner, request_conn, server)


class _ForwardedRequest(PassedOn):
    def __init__(
        self, inner: HTTPMessageDelegate, connection: HTTPConnection, server: ServerSettings
    ) -> None:
        super().__init__(inner)
        # What Tornado takes the address and the scheme of a request from, when it makes one of the headers.
        self._context = cast("Any", connection).context
        self._server = server

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        context, server = self._context, self._server
        peer, scheme = context.remote_ip, context.protocol
        origin = client_of(peer, headers, server.trusted_proxies, server.proxy_headers)
        if origin.host is not None:
            headers["Host"] = origin.host
        context.remote_ip, context.protocol = origin.address, origin.scheme or scheme
        try:
            return self._inner.headers_received(start_line, headers)
        finally:
            # The connection stays the proxy's: its next request may be another client's.
            context.remote_ip, context.protocol = peer, scheme
