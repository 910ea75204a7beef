"""Where a gateway is: one URL in, the URLs of its endpoints out."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

_SCHEMES: Final = {"http": "http", "ws": "http", "https": "https", "wss": "https"}
_HOST_AND_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[A-Za-z0-9._/-]*)?")
_ENDPOINTS: Final = ("/api/v1/ws", "/ws")


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """The `base` of a gateway's URLs, such as ``http://127.0.0.1:3000``, without a slash at its end."""

    base: str

    @classmethod
    def parse(cls, url: str) -> "GatewayAddress":
        """Read a URL of http, https, ws or wss, with or without ``/ws``.

        Raises ValueError where it is none, or holds what a gateway's address has not: a user, a query (a
        secret there would end in logs) or a fragment. The message does not repeat these parts.
        """
        if _HOST_AND_PORT.fullmatch(url):  # urlsplit would take the host for a scheme
            raise ValueError(f"{url!r} is not a URL: write http://{url}")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ValueError(f"the gateway's URL is none: {error}") from None
        scheme = _SCHEMES.get(parts.scheme.lower())
        if scheme is None or not host or any(sign.isspace() or not sign.isprintable() for sign in url):
            raise ValueError("the gateway's URL is none: write it as http://127.0.0.1:3000")
        if "@" in parts.netloc or "?" in url or "#" in url:
            raise ValueError("the gateway's URL holds no user, no query and no fragment; see MCPGW_TOKEN")
        path = parts.path.rstrip("/")
        for endpoint in _ENDPOINTS:
            if path.endswith(endpoint):
                path = path.removesuffix(endpoint)
                break
        shown = f"[{host}]" if ":" in host else host
        return cls(f"{scheme}://{shown}{'' if port is None else f':{port}'}{path}")

    @property
    def socket(self) -> str:
        """The WebSocket of the protocol."""
        return f"{self.base.replace('http', 'ws', 1)}/ws"

    @property
    def host(self) -> str:
        """The host alone, without the brackets of IPv6."""
        return urlsplit(self.base).hostname or ""

    @property
    def port(self) -> int:
        """The TCP port, also where the URL leaves it out."""
        parts = urlsplit(self.base)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS is spoken."""
        return self.base.startswith("https:")

    def endpoint(self, path: str) -> str:
        """The URL of a `path` such as ``/api/v1/servers``."""
        return self.base + path


def authorization(token: str | None) -> dict[str, str]:
    """The header that carries `token` (RFC 6750 section 2.1).

    Raises ValueError, without the token in its message, where it cannot stand in a header.
    """
    if token is None:
        return {}
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token is none: it is empty or holds spaces or other signs that no token has")
    return {"Authorization": f"Bearer {token}"}
