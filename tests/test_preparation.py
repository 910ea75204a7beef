"""What is loaded when: not before it is needed, and never while the event loop waits."""

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)

from mcpgw.preparation import Preparation

if TYPE_CHECKING:
    from handlers.published_keys import KeyedRequests
else:
    from mcpgw.handlers.published_keys import KeyedRequests

LATE = (
    "aiohttp alembic argon2 cryptography difflib fastmcp httpx2 jsonschema jsonschema_rs jwt mcp mcp_types "
    "playwright pydantic regex statistics uvicorn watchfiles yaml"
)


def test_importing_the_gateway_loads_nothing_that_only_clients_servers_or_logins_need() -> None:
    program = (
        "import sys, mcpgw.cli.serve, mcpgw.app\nprint(*sorted({n.partition('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert not set(done.stdout.split()) & set(LATE.split())


@pytest.mark.gen_test
async def test_all_who_come_first_wait_for_the_same_and_later_ones_for_nothing() -> None:
    preparation = Preparation()
    first, second = preparation.under_way(), preparation.under_way()
    assert first is not None
    assert second is not None
    left = asyncio.ensure_future(first)
    left.cancel()  # who leaves keeps nobody else from it
    await second
    assert preparation.under_way() is None
    assert {"jwt", "mcpgw.wire.slow_check"} <= sys.modules.keys()


@pytest.mark.gen_test
async def test_libraries_that_cannot_be_loaded_are_logged_and_tried_again_with_the_next_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults = [OSError(24, "Too many open files")]

    def load() -> None:
        if faults:
            raise faults.pop()

    preparation = Preparation(load)
    waits = [preparation.under_way(), preparation.under_way()]
    await asyncio.gather(*(wait for wait in waits if wait))
    assert [record.getMessage() for record in caplog.records] == ["libraries not loaded"]
    again = preparation.under_way()
    assert again is not None
    await again
    assert preparation.under_way() is None


class Requests(HTTPServerConnectionDelegate, HTTPMessageDelegate):
    """Writes down the paths that are handed on."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def start_request(self, _server: object, _connection: object) -> HTTPMessageDelegate:
        return self

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> None:
        assert isinstance(start_line, RequestStartLine)
        self.paths.append(start_line.path)


@pytest.mark.gen_test
async def test_a_request_waits_until_all_is_there_and_a_probe_without_a_token_does_not() -> None:
    ready, inner = asyncio.Event(), Requests()

    async def prepared() -> None:
        await ready.wait()

    keyed = KeyedRequests(inner, lambda _token: None, lambda: None if ready.is_set() else prepared())
    waiting = []
    for path, token in (("/ws", ""), ("/healthz", ""), ("/readyz", "to be verified")):
        request = keyed.start_request(object(), HTTPConnection())
        headers = HTTPHeaders({"Authorization": f"Bearer {token}"} if token else {})
        waiting.append(request.headers_received(RequestStartLine("GET", path, "HTTP/1.1"), headers))
    assert inner.paths == ["/healthz"]
    assert waiting[1] is None
    ready.set()
    for handed in (waiting[0], waiting[2]):
        assert handed is not None
        await handed
    assert inner.paths == ["/healthz", "/ws", "/readyz"]
