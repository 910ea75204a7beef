"""Clients of others, each doing all that a client does, through ``/mcp``."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.conformance import TESTS, http_server, stdio_table
from tests.support.gateway_process import GatewayProcess, wait_until
from tests.support.node import node_22

CLIENTS = Path(__file__).parent / "clients"
INSPECTOR = TESTS / "node_modules" / "@modelcontextprotocol" / "inspector" / "clients" / "launcher" / "build"
COMMANDS = {
    "mcp.Client auto": [sys.executable, CLIENTS / "sdk_client.py", "URL", "auto"],
    "mcp.Client legacy": [sys.executable, CLIENTS / "sdk_client.py", "URL", "legacy"],
    "npm SDK": [node_22(), CLIENTS / "sdk_client.mjs", "URL"],
    "fastmcp.Client": [sys.executable, CLIENTS / "fastmcp_client.py", "URL"],
}


class Offered:
    """A gateway with the conformance server as ``main``, and what that server has recorded."""

    def __init__(self, gateway: GatewayProcess, record: Path) -> None:
        self.gateway = gateway
        self.record = record
        self.url = f"{gateway.url}/mcp"

    def run(self, *command: object) -> str:
        """Run a client; what it printed."""
        words = [self.url if word == "URL" else str(word) for word in command]
        environment = {**os.environ, "MCPGW_TOKEN": self.gateway.token()}
        done = subprocess.run(
            words, env=environment, cwd=TESTS, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def cancelled(self) -> int:
        """How many calls the server was told to stop."""
        return self.record.read_text(encoding="utf-8").count("cancelled") if self.record.exists() else 0


@contextmanager
def offering(way: str, folder: Path) -> Iterator[Offered]:
    """A gateway in front of the server: over ``http``, ``stdio``, or ``handshake`` (stdio, the older era)."""
    record = folder / "record"
    options = ["--record", str(record)] + (["--handshake"] if way == "handshake" else [])
    with http_server(record) as url:
        table = f'[servers.main]\nurl = "{url}"\n' if way == "http" else stdio_table("main", *options)
        gateway = GatewayProcess(folder, configuration=table, arguments=["--memory-enabled", "false"])
        gateway.wait_listening()
        try:
            yield Offered(gateway, record)
        finally:
            assert gateway.terminate() == 0


@pytest.fixture(scope="module", params=["http", "stdio"])
def offered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offered]:
    """The same behind each transport."""
    with offering(request.param, tmp_path_factory.mktemp("clients")) as offered:
        yield offered


def require_everything(offered: Offered, client: str) -> None:
    """Have a client do everything, and look at what came of it."""
    before = offered.cancelled()
    found = json.loads(offered.run(*COMMANDS[client]))
    assert "main__test_simple_text" in found["tools"]
    assert found["progress"] == [0, 50, 100]
    assert found["is_error"] is False
    assert found["resource"] == "This is the content of the static text resource."
    assert found["prompt"] == "Prompt with arguments: arg1='a', arg2='b'"
    assert found["elicited"] == 'User response: action=accept, content={"response": "yes"}'
    assert found["cancelled"] is True
    wait_until(lambda: offered.cancelled() == before + 1, seconds=5, what="the cancel at the server")


@pytest.mark.parametrize("client", COMMANDS)
def test_a_client_of_others_does_all_that_it_does_with_a_server(offered: Offered, client: str) -> None:
    require_everything(offered, client)


@pytest.mark.parametrize("client", ["mcp.Client auto", "mcp.Client legacy"])
def test_a_client_of_either_era_does_so_with_a_server_of_the_older_one(client: str, tmp_path: Path) -> None:
    with offering("handshake", tmp_path) as offered:
        require_everything(offered, client)


def test_the_inspector_lists_and_calls(offered: Offered) -> None:
    def inspect(*options: str) -> object:
        token = offered.gateway.token()
        header = ["--transport", "http", "--header", f"Authorization: Bearer {token}"]
        return json.loads(offered.run(node_22(), INSPECTOR / "index.js", "--cli", "URL", *header, *options))

    listed = inspect("--method", "tools/list")
    assert isinstance(listed, dict)
    assert "main__test_custom_header" in [tool["name"] for tool in listed["tools"]]
    called = ["--tool-name", "main__test_custom_header", "--tool-arg", "region=eu"]
    assert inspect("--method", "tools/call", *called) == {"content": [{"type": "text", "text": "eu"}]}
