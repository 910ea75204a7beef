"""Approvals from the command line: the call that waits, and those who decide on it."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import ROOT, clean_environment, ended, on, run
from tests.support.forked import gateway_command, server_table
from tests.support.gateway_process import GatewayProcess, wait_until

OFFERING = ROOT / "tests" / "servers" / "offering_server.py"
CALL = ("call", "guarded", "rich", "a=1")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with the same server twice: calls of one of them need an approval."""
    folder = tmp_path_factory.mktemp("approvals")
    guarded = server_table("guarded", OFFERING, more='approval = "required"')
    configuration = f"[memory]\nenabled = false\n{guarded}{server_table('open', OFFERING)}"
    process = GatewayProcess(folder, configuration=configuration).wait_listening()
    with ended(process.process):
        yield process
        assert process.terminate() == 0


class WaitingCall:
    """``mcpgw call`` of ann, which waits for its approval."""

    def __init__(self, gateway: GatewayProcess, folder: Path, *options: str) -> None:
        self._stderr = folder / "stderr.txt"
        with self._stderr.open("w") as errors:
            self.process = subprocess.Popen(
                gateway_command(*CALL, *options, *on(gateway)),
                env=clean_environment({"MCPGW_TOKEN": gateway.token("ann")}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        wait_until(lambda: "apr-" in self.said(), what="a word of the approval")

    def said(self) -> str:
        """What stands on its stderr so far."""
        return self._stderr.read_text(encoding="utf-8")


def waiting(gateway: GatewayProcess) -> list[dict[str, Any]]:
    """What `mcpgw approvals` lists."""
    done = run("approvals", "--json", *on(gateway))
    assert done.returncode == 0, done.stdout
    found: list[dict[str, Any]] = json.loads(done.stdout)["approvals"]
    return found


def test_a_call_says_that_it_waits_and_runs_once_it_is_accepted(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    call = WaitingCall(gateway, tmp_path)
    with ended(call.process):
        (one,) = waiting(gateway)
        assert f"approvals accept {one['requestId']}" in call.said()
        assert (one["user"], one["toolName"], one["arguments"]) == ("ann", "rich", {"a": 1})
        head, row = run("approvals", *on(gateway)).stdout.splitlines()
        assert head.split("\t")[:4] == ["id", "user", "server", "tool"]
        assert row.split("\t")[:4] == [one["requestId"], "ann", "guarded", "rich"]
        assert '{"a": 1}' in row
        wrong = run("approvals", "accept", one["requestId"], "--hash", "0" * 64, *on(gateway))
        assert wrong.returncode == 5
        done = run("approvals", "accept", one["requestId"], "--hash", one["argumentsHash"], *on(gateway))
        assert (done.returncode, done.stdout) == (0, f"Accepted: {one['requestId']}\n"), done.stderr
        assert json.loads(call.process.communicate(timeout=20)[0])["kept"] == {"null": None}
        assert call.process.returncode == 0
    assert waiting(gateway) == []
    again = run("approvals", "accept", one["requestId"], *on(gateway))
    assert again.returncode == 5
    assert "is asked for" in again.stderr


def test_a_call_that_is_declined_ends_with_4(gateway: GatewayProcess, tmp_path: Path) -> None:
    call = WaitingCall(gateway, tmp_path, "--json")
    with ended(call.process):
        (one,) = waiting(gateway)
        done = run("approvals", "decline", one["requestId"], "--json", *on(gateway))
        assert json.loads(done.stdout) == {"requestId": one["requestId"], "action": "decline"}
        printed, _ = call.process.communicate(timeout=20)
        assert json.loads(printed)["error"]["code"] == "permission_denied"
        assert call.process.returncode != 0


def test_who_may_not_approve_is_told_which_token_would_do(gateway: GatewayProcess) -> None:
    done = run("approvals", *on(gateway), environment={"MCPGW_TOKEN": gateway.token("ann")})
    assert done.returncode == 4
    assert "--scope calls:approve" in done.stderr


def test_a_question_of_a_server_is_declined_with_a_word(gateway: GatewayProcess) -> None:
    done = run("call", "open", "elicit", *on(gateway))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["action"] == "decline"
    assert "open asks (elicitation): Who?" in done.stderr
    assert "declined" in done.stderr
