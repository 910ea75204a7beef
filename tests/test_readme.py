"""The programs that README.md shows, run as they stand there, only at another port."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway_process import GatewayProcess
from tests.support.node import node_22

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
INTERPRETERS = {"javascript": lambda: [str(node_22())], "python": lambda: [sys.executable, "-W", "error"]}
ENDINGS = {"javascript": "mjs", "python": "py"}


def run_example(language: str, folder: Path, url: str, token: str) -> subprocess.CompletedProcess[str]:
    """Run the one program in `language`, pasted into a file."""
    (program,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    here = url.partition("//")[2].replace("127.0.0.1", "localhost")
    assert program.count("localhost:3000") == 1
    file = folder / f"example.{ENDINGS[language]}"
    file.write_text(program.replace("localhost:3000", here), encoding="utf-8")
    return subprocess.run(
        [*INTERPRETERS[language](), file],
        cwd=folder,
        env={**os.environ, "MCPGW_TOKEN": token},
        capture_output=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )


def test_the_python_example_prints_the_result(shared_gateway: GatewayProcess, tmp_path: Path) -> None:
    done = run_example("python", tmp_path, shared_gateway.url, shared_gateway.token())
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"memories": []}


def test_the_javascript_example_prints_its_frames_and_ends(
    shared_gateway: GatewayProcess, tmp_path: Path
) -> None:
    done = run_example("javascript", tmp_path, shared_gateway.url, shared_gateway.token())
    assert (done.returncode, done.stderr) == (0, "")
    status, answer = frames(done.stdout)
    assert (status["type"], status["data"]["authenticated"]) == ("status", True)
    assert (answer["type"], answer["data"]["result"]) == ("tool_response", {"memories": []})


def test_the_javascript_example_ends_where_the_token_does_not_hold(
    shared_gateway: GatewayProcess, tmp_path: Path
) -> None:
    done = run_example("javascript", tmp_path, shared_gateway.url, "no-token-at-all")
    assert done.returncode == 0, done.stderr
    assert frames(done.stdout)[-1]["type"] == "error"


@pytest.mark.parametrize("language", list(INTERPRETERS))
def test_an_example_ends_where_no_gateway_runs(language: str, tmp_path: Path) -> None:
    done = run_example(language, tmp_path, "http://127.0.0.1:9", "some-token")
    assert done.stdout == ""
    assert done.stderr != ""


def frames(output: str) -> list[dict[str, Any]]:
    """JSON values that stand one behind the other."""
    found, decoder, rest = [], json.JSONDecoder(), output.strip()
    while rest:
        value, end = decoder.raw_decode(rest)
        found.append(value)
        rest = rest[end:].lstrip()
    return found
