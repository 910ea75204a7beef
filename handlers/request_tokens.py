"""Every credential that a request may be judged by, before anything else is done with it."""

from collections.abc import Iterator
from urllib.parse import parse_qs

from tornado.httputil import HTTPHeaders

_SUBPROTOCOL = "bearer."
_MOST_TOKENS = 4


def tokens_of(headers: HTTPHeaders) -> Iterator[str]:
    """The tokens of its header, and of its WebSocket subprotocols."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield token.strip()
    offered = headers.get("Sec-WebSocket-Protocol", "")
    if _SUBPROTOCOL in offered:
        for name in map(str.strip, offered.split(",", _MOST_TOKENS)):
            if name.startswith(_SUBPROTOCOL):
                yield name.removeprefix(_SUBPROTOCOL)


def ticket_of(path: str) -> str:
    """The ticket in the query of a path; empty where there is none."""
    _, _, query = path.partition("?")
    if "ticket=" not in query:
        return ""
    try:
        return next(iter(parse_qs(query, max_num_fields=100).get("ticket", ())), "")
    except ValueError:
        return ""  # too many fields: whoever answers the request refuses it
