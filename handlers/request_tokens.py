"""Every credential that a request may be judged by, before anything else is done with it."""

from collections.abc import Iterator
from urllib.parse import parse_qs

from tornado.httputil import HTTPHeaders

_SUBPROTOCOL = "bearer."


def bearer_token(headers: HTTPHeaders) -> str | None:
    """The token of ``Authorization: Bearer …`` (RFC 6750 section 2.1), where there is one."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def subprotocol_token(headers: HTTPHeaders) -> str | None:
    """The token that a browser's WebSocket offers as a subprotocol, where there is one."""
    offered = headers.get("Sec-WebSocket-Protocol", "")
    if _SUBPROTOCOL in offered:
        for name in map(str.strip, offered.split(",")):
            if name.startswith(_SUBPROTOCOL):
                return name.removeprefix(_SUBPROTOCOL)
    return None


def tokens_of(headers: HTTPHeaders) -> Iterator[str]:
    """The tokens of its header, and of its WebSocket subprotocols."""
    for token in (bearer_token(headers), subprotocol_token(headers)):
        if token is not None:
            yield token


def ticket_of(path: str) -> str:
    """The ticket in the query of a path; empty where there is none."""
    _, _, query = path.partition("?")
    if "ticket=" not in query:
        return ""
    try:
        return next(iter(parse_qs(query, max_num_fields=100).get("ticket", ())), "")
    except ValueError:
        return ""  # too many fields: whoever answers the request refuses it
