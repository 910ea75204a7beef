"""schemathesis against the OpenAPI document: no 5xx, and no answer that is not in it.

schemathesis makes requests of the document, good ones and bad ones, and holds each answer against it.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.backends import SERVERS
from tests.support.command_line import clean_environment
from tests.support.gateway_process import GatewayProcess

SECONDS = 15
ENDLESS = ("/api/v1/events", "/api/v1/sse")
"""Streams end when the client does, which a request of schemathesis never does."""
FETCHING = "importCatalog"
"""It would fetch from whatever address is made up."""
STRICTER = "positive_data_acceptance"
"""Names that must be those of a setting, texts that must be a catalog: schemas cannot say it all."""

CONFIGURATION = f"""
[calls]
rate = 100000
burst = 100000
[servers.scripted]
command = "{sys.executable}"
args = ["-S", "{SERVERS / "scripted.py"}"]
[servers.scripted.tools]
allow = ["echo", "pid", "log"]
"""


def test_no_request_is_answered_with_5xx_or_with_what_is_not_documented(
    gateway_process: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    gateway = gateway_process(configuration=CONFIGURATION)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.url}/api/v1/openapi.json"]
    command += ["--header", f"Authorization: Bearer {gateway.token(scopes=['admin'])}"]
    command += [word for path in ENDLESS for word in ("--exclude-path", path)]
    command += ["--exclude-operation-id", FETCHING, "--exclude-checks", STRICTER]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "20", "--seed", "1"]
    command += ["--max-time", str(SECONDS), "--request-timeout", "5", "--continue-on-failure", "--no-color"]
    command += ["--generation-database", "none"]
    run = subprocess.run(
        command,
        check=False,
        cwd=tmp_path,
        env=clean_environment({"SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks"}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, f"{run.stdout[-20_000:]}\n{run.stderr[-2000:]}"
    assert "API Operations:" in run.stdout
    assert gateway.terminate() == 0
    assert "internal error" not in gateway.log()
