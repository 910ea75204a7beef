"""The REST routes of the gateway, asked for by the client."""

import json
from ssl import SSLContext
from typing import Any, Final
from urllib.parse import quote

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest, HTTPResponse

from mcpgw.client.address import GatewayAddress, authorization
from mcpgw.client.errors import ClientError, NotAGateway, NotReachable, error_from
from mcpgw.errors import ParseError
from mcpgw.wire import strict_json

_WITH_BODY: Final = frozenset({"POST", "PATCH", "PUT"})


async def list_servers(
    url: str,
    token: str | None,
    *,
    timeout: float = 30.0,  # noqa: ASYNC109 - given on to Tornado
    tls: SSLContext | None = None,
) -> list[dict[str, Any]]:
    """The backend servers as ``GET /api/v1/servers`` has them; the answer takes at most `timeout` seconds.

    Raises:
        ClientError: with the code of what went wrong.
        ValueError: `url` or `token` cannot be used.
    """
    answer = await ask(url, token, "GET", "/api/v1/servers", timeout=timeout, tls=tls)
    servers = answer.get("servers")
    if not isinstance(servers, list) or not all(isinstance(server, dict) for server in servers):
        raise NotAGateway(GatewayAddress.parse(url).base, "its list of servers is none")
    return servers


async def list_approvals(
    url: str, token: str | None, *, tls: SSLContext | None = None
) -> list[dict[str, Any]]:
    """The calls that wait until the caller approves them, the oldest first.

    Raises:
        ClientError: with the code of what went wrong.
        ValueError: `url` or `token` cannot be used.
    """
    approvals = (await ask(url, token, "GET", "/api/v1/approvals", tls=tls)).get("approvals")
    if not isinstance(approvals, list):
        raise NotAGateway(GatewayAddress.parse(url).base, "its list of approvals is none")
    return approvals


async def decide_approval(
    url: str,
    token: str | None,
    request_id: str,
    *,
    accept: bool,
    arguments_hash: str | None = None,
    tls: SSLContext | None = None,
) -> None:
    """Approve a call that waits, or do not; once.

    With the `arguments_hash` of what was seen, the decision holds for nothing else.

    Raises:
        ClientError: with the code of what went wrong, such as ``unknown_call`` where it waits no more.
        ValueError: `url` or `token` cannot be used.
    """
    body = {"action": "accept" if accept else "decline"}
    if arguments_hash is not None:
        body["argumentsHash"] = arguments_hash
    await ask(url, token, "POST", f"/api/v1/approvals/{quote(request_id, safe='')}", body=body, tls=tls)


async def ask(
    url: str,
    token: str | None,
    method: str,
    path: str,
    *,
    body: Any = None,
    timeout: float = 30.0,  # noqa: ASYNC109 - given on to Tornado
    tls: SSLContext | None = None,
) -> dict[str, Any]:
    """What a route of the gateway at `url` answers; empty where it answers nothing (204).

    `path` is such as ``/api/v1/servers/memory``, already quoted. `body` is sent as JSON; None sends none. The
    answer takes at most `timeout` seconds. `tls` says whose certificates are believed; see `trusting`.

    Raises:
        ClientError: with the code of what went wrong.
        ValueError: `url` or `token` cannot be used.
    """
    address = GatewayAddress.parse(url)
    headers = authorization(token)
    if body is not None:
        headers["Content-Type"] = "application/json"
    content = None if body is None else json.dumps(body)
    if content is None and method in _WITH_BODY:
        content = ""
    asked = HTTPRequest(
        address.endpoint(path),
        method=method,
        headers=headers,
        body=content,
        connect_timeout=timeout,
        request_timeout=timeout,
        follow_redirects=False,
        ssl_options=tls,
    )
    response = await _fetch(address, asked)
    if not 200 <= response.code < 300:  # noqa: PLR2004
        raise error_from_response(address, response.code, response.body)
    if not response.body:
        return {}
    try:
        answer = strict_json.loads(response.body.decode())
    except (ParseError, UnicodeDecodeError):
        answer = None
    if not isinstance(answer, dict):
        raise NotAGateway(address.base, "it answered no object of JSON")
    return answer


async def _fetch(address: GatewayAddress, asked: HTTPRequest) -> HTTPResponse:
    client = AsyncHTTPClient(force_instance=True)
    try:
        response = await client.fetch(asked, raise_error=False)
    except (OSError, HTTPClientError) as error:
        raise NotReachable(address.base, reason_of(error)) from None
    finally:
        client.close()
    if isinstance(response.error, OSError | HTTPClientError) and response.code == 599:  # noqa: PLR2004 - Tornado's "none"
        raise NotReachable(address.base, reason_of(response.error))
    return response


def error_from_response(address: GatewayAddress, status: int, body: bytes) -> ClientError:
    """The exception for an HTTP answer that is an error; the wire contract, section 7, has its shape."""
    try:
        data = strict_json.loads(body.decode())["error"]
        return error_from(data, data["message"])
    except (ParseError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return NotAGateway(address.base, f"HTTP {status}")


def reason_of(error: Exception) -> str:
    """What the operating system or the HTTP client says went wrong, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
