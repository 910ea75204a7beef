"""The MCP conformance suite: whatever a server passes alone it passes through the gateway."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.conformance import REVISIONS, SuiteRun, http_server, stdio_table
from tests.support.gateway_process import GatewayProcess

_AT_LEAST = {"2025-11-25": 60, "2026-07-28": 100}
"""Checks that the server is known to pass; fewer mean that the suite did not run."""


@pytest.mark.parametrize("revision", REVISIONS)
def test_what_a_server_passes_directly_it_passes_through_the_gateway(
    revision: str, gateway_process: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    # Each way has a server of its own: scenarios change what it offers.
    with http_server() as alone, http_server() as behind:
        tables = f'[servers.http]\nurl = "{behind}"\n{stdio_table("pipe")}'
        gateway = gateway_process(configuration=tables, arguments=["--memory-enabled", "false"])
        token = gateway.token()
        runs = {
            "directly": SuiteRun(alone, revision, tmp_path / "directly"),
            "over HTTP": SuiteRun(f"{gateway.url}/mcp/http", revision, tmp_path / "http", token),
            "over stdio": SuiteRun(f"{gateway.url}/mcp/pipe", revision, tmp_path / "stdio", token),
        }
        found = {way: run.checks() for way, run in runs.items()}
    passed = {name for name, outcome in found["directly"].items() if outcome == "SUCCESS"}
    assert len(passed) >= _AT_LEAST[revision]
    assert any(name.startswith("dns-rebinding-protection") for name in passed)
    lost = {
        way: {name: outcomes.get(name) for name in passed if outcomes.get(name) != "SUCCESS"}
        for way, outcomes in found.items()
    }
    assert lost == {"directly": {}, "over HTTP": {}, "over stdio": {}}
