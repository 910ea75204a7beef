"""Every route of the gateway, without credentials: 401, but for those that docs/security.md names."""

import re
from typing import Final

import pytest
from tornado.web import RequestHandler

import mcpgw.app
from tests.attacks.conftest import Besieged
from tests.support.raw_socket import RawSocket

pytestmark = pytest.mark.xdist_group("attacks")

OPEN: Final = re.compile(
    r"/ws(/echo)?|/api/v1/events|/api/v1/auth/(login.*|refresh|logout|callback)|/healthz|/readyz|/metrics|/docs.*"
    r"|/\.well-known/.*|/join.*|/api/v1/rooms/join"
)
"""What is open by intent: see "Without credentials" of docs/security.md."""

METHODS: Final = ("get", "post", "put", "patch", "delete")


def routes() -> list[tuple[str, str]]:
    """Each method that there is of each path, with `x` in the place of names."""
    found: list[tuple[str, type[RequestHandler]]] = vars(mcpgw.app)["ROUTES"]
    absent = RequestHandler._unimplemented_method
    return [
        (method.upper(), path_of(pattern))
        for pattern, handler in found
        for method in METHODS
        if getattr(handler, method) is not absent
    ]


def path_of(pattern: str) -> str:
    """A path that fits the pattern of a route."""

    def chosen(group: re.Match[str]) -> str:
        return next((one for one in group[1].split("|") if one), "x") if "[" not in group[1] else "x"

    path = re.sub(r"\(([^)]*)\)", chosen, pattern).replace("\\", "").replace(".{1,1024}", "x")
    assert re.fullmatch(pattern, path), (pattern, path)
    return path


# What is no WebSocket gets 426 there; the table of attacks has that door.
SOCKET: Final = "/api/v1/ws"
CLOSED: Final = [one for one in routes() if not OPEN.fullmatch(one[1]) and one[1] != SOCKET]


@pytest.mark.gen_test
async def test_no_route_answers_without_credentials_unless_it_is_meant_to(besieged: Besieged) -> None:
    assert len(CLOSED) > 40
    answered = {}
    for method, path in CLOSED:
        async with await RawSocket.connect(besieged.url) as client:
            body = b"" if method in ("GET", "DELETE") else b"{}"
            await client.request(method, path, {"Content-Type": "application/json"}, body)
            answer = await client.read_head()
        if answer.status != 401 or not answer.headers.get("www-authenticate", "").startswith("Bearer"):
            answered[f"{method} {path}"] = answer.status
    assert answered == {}
