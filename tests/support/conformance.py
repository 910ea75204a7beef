"""The server that the MCP conformance suite's scenarios ask for, as processes, and the suite itself."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.backends import SERVERS
from tests.support.forked import server_command, server_table
from tests.support.node import node_22

TESTS = Path(__file__).parent.parent
SERVER = SERVERS / "conformance_server.py"
SUITE = TESTS / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
REVISIONS = ("2025-11-25", "2026-07-28")
_AUTHORIZE = TESTS / "conformance" / "authorize.mjs"
_LONGEST = 90


@contextmanager
def http_server(record: Path | None = None) -> Iterator[str]:
    """The server over Streamable HTTP; gives its URL."""
    options = [] if record is None else ["--record", str(record)]
    process = subprocess.Popen(
        server_command(SERVER, *options),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/mcp"
    finally:
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


def stdio_table(name: str, *options: str) -> str:
    """The part of a configuration that has the server over stdio."""
    return server_table(name, SERVER, "--stdio", *options)


class SuiteRun:
    """One run of the suite's scenarios for one revision, against the server at `url`."""

    def __init__(self, url: str, revision: str, folder: Path, token: str | None = None) -> None:
        assert SUITE.exists(), f"{SUITE} is missing: run `npm ci --prefix tests` (make test does)"
        self._folder = folder
        preload = [] if token is None else [f"--import={_AUTHORIZE}"]
        options = ["--url", url, "--suite", "all", "--spec-version", revision, "--output-dir", str(folder)]
        environment = os.environ if token is None else {**os.environ, "MCPGW_TOKEN": token}
        self._process = subprocess.Popen(
            [node_22(), *preload, SUITE, "server", *options],
            env=environment,
            cwd=TESTS,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def checks(self) -> Mapping[str, str]:
        """Wait for its end: every check, by the scenario's name and its own, with its worst outcome."""
        try:
            self._process.wait(_LONGEST)
        finally:
            self._process.kill()
            self._process.wait(10)
        found: dict[str, str] = {}
        for file in sorted(self._folder.glob("*/checks.json")):
            scenario = file.parent.name.removeprefix("server-").split("-20")[0]
            for check in json.loads(file.read_text(encoding="utf-8")):
                if check["status"] == "INFO":
                    continue
                name = f"{scenario}: {check['id']} ({check['name']})"
                found[name] = max(found.get(name, ""), check["status"], key=_WORST_LAST.index)
        return found


_WORST_LAST = ("", "SUCCESS", "SKIPPED", "WARNING", "FAILURE")
