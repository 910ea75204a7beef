"""The REST routes that the client asks."""

from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

from mcpgw.client.address import GatewayAddress, authorization
from mcpgw.client.errors import ClientError, NotAGateway, NotReachable, error_from
from mcpgw.errors import ParseError
from mcpgw.wire import strict_json


async def list_servers(url: str, token: str | None, *, timeout: float = 30.0) -> list[dict[str, Any]]:  # noqa: ASYNC109 - given on to Tornado
    """The backend servers as ``GET /api/v1/servers`` has them; the answer takes at most `timeout` seconds.

    Raises:
        ClientError: with the code of what went wrong.
        ValueError: `url` or `token` cannot be used.
    """
    address = GatewayAddress.parse(url)
    request = HTTPRequest(
        address.endpoint("/api/v1/servers"),
        headers=authorization(token),
        connect_timeout=timeout,
        request_timeout=timeout,
        follow_redirects=False,
    )
    client = AsyncHTTPClient(force_instance=True)
    try:
        response = await client.fetch(request, raise_error=False)
    except (OSError, HTTPClientError) as error:
        raise NotReachable(address.base, reason_of(error)) from None
    finally:
        client.close()
    if isinstance(response.error, OSError | HTTPClientError) and response.code == 599:  # noqa: PLR2004 - Tornado's "none"
        raise NotReachable(address.base, reason_of(response.error))
    if response.code != 200:  # noqa: PLR2004
        raise error_from_response(address, response.code, response.body)
    try:
        servers = strict_json.loads(response.body.decode())["servers"]
    except (ParseError, UnicodeDecodeError, KeyError, TypeError):
        raise NotAGateway(address.base, "its list of servers is none") from None
    if not isinstance(servers, list) or not all(isinstance(server, dict) for server in servers):
        raise NotAGateway(address.base, "its list of servers is none")
    return servers


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
