"""``mcpgw servers``: servers added, changed, switched and removed at a gateway that runs."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import PROGRESS_SERVER, clean_environment, ended, on, on_terminal, run
from tests.support.forked import server_command, server_table
from tests.support.gateway_process import GatewayProcess, wait_until

SECRET = "s3cret-0123456789"
NOISY = """
import sys, threading
print("first \\x1b[2J line", file=sys.stderr, flush=True)
threading.Timer(0.2, lambda: print("second line", file=sys.stderr, flush=True)).start()
from mcp.server.mcpserver import MCPServer
server = MCPServer("noisy")
@server.tool()
def say(text: str) -> str:
    print(text, file=sys.stderr, flush=True)
    return text
server.run("stdio")
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with one server in its configuration file, whose servers are administered."""
    folder = tmp_path_factory.mktemp("administered")
    configuration = "[memory]\nenabled = false\n" + server_table("filed", PROGRESS_SERVER, folder)
    process = GatewayProcess(folder, configuration=configuration, environment={"GATEWAYS_OWN": SECRET})
    with ended(process.process):
        yield process.wait_listening()
        assert process.terminate() == 0


def progress(gateway: GatewayProcess) -> list[str]:
    return ["--", *server_command(PROGRESS_SERVER, str(gateway.folder))]


def shown(gateway: GatewayProcess, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("servers", "show", name, "--json", *on(gateway)).stdout)
    return found


def test_servers_without_a_command_lists_them(gateway: GatewayProcess) -> None:
    plain, named = run("servers", *on(gateway)), run("servers", "list", *on(gateway))
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout == named.stdout
    assert plain.stdout.splitlines()[1].startswith("filed\tready\tstdio\t")
    assert json.loads(run("servers", "--json", *on(gateway)).stdout)["servers"][0]["id"] == "filed"
    wrong = run("servers", "restrat", *on(gateway))
    assert wrong.returncode == 2
    assert "No such command 'restrat'" in wrong.stderr


def test_a_program_is_added_started_changed_and_removed(gateway: GatewayProcess) -> None:
    options = ("--env", f"TOKEN={SECRET}", "--env", "GATEWAYS_OWN", "--set", "tools.prefix=p_")
    added = run("servers", "add", "counter", *options, *on(gateway), *progress(gateway))
    assert (added.returncode, added.stderr) == (0, "")
    assert added.stdout == "Added counter: ready, 5 tools.\n"
    definition = shown(gateway, "counter")["definition"]
    assert definition["args"] == progress(gateway)[2:]
    assert definition["env"].keys() == {"TOKEN", "GATEWAYS_OWN"}
    assert definition["env"]["GATEWAYS_OWN"] == "${env:GATEWAYS_OWN}"
    assert SECRET not in json.dumps(definition)
    assert "p_count" in run("tools", "counter", *on(gateway)).stdout

    changed = run(
        *("servers", "change", "counter", "--set", "timeout=7", "--set", 'tools.block=["p*"]'),
        *("--unset", "tools.prefix", "--env", "MORE=1", *on(gateway)),
    )
    assert (changed.returncode, changed.stderr) == (0, "")
    definition = shown(gateway, "counter")["definition"]
    assert definition["timeout"] == 7
    assert definition["tools"] == {"block": ["p*"]}
    assert definition["env"].keys() == {"TOKEN", "GATEWAYS_OWN", "MORE"}

    removed = run("servers", "remove", "counter", *on(gateway))
    assert (removed.returncode, removed.stdout) == (0, "Removed counter.\n")
    gone = run("servers", "show", "counter", *on(gateway))
    assert (gone.returncode, gone.stderr) == (5, "no server 'counter'; there is 'filed'\n")


def test_a_server_that_does_not_start_is_added_and_said_to_be_down(gateway: GatewayProcess) -> None:
    header = ("--header", "Authorization: Bearer ${env:GATEWAYS_OWN}")
    added = run("servers", "add", "away", "http://127.0.0.1:9/mcp", *header, *on(gateway))
    assert (added.returncode, added.stdout) == (0, "Added away: retrying.\n")
    assert added.stderr.startswith("away: its connection was refused")
    program = run("servers", "change", "away", "--json", *on(gateway), "--", sys.executable, "-c", "0")
    definition = json.loads(program.stdout)["definition"]
    assert definition == {"command": sys.executable, "args": ["-c", "0"]}
    listed = run("servers", *on(gateway)).stdout
    assert "its process ended" in listed
    assert run("servers", "remove", "away", *on(gateway)).returncode == 0


@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_a_definition_is_read_from_a_file_and_options_go_over_it(
    gateway: GatewayProcess, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"server.{suffix}"
    texts = {
        "json": '{"url": "http://127.0.0.1:9/mcp", "enabled": false, "timeout": 3, /* why */}',
        "toml": 'url = "http://127.0.0.1:9/mcp"\nenabled = false\ntimeout = 3\n',
    }
    file.write_text(texts[suffix], encoding="utf-8")
    name = f"from-{suffix}"
    added = run("servers", "add", name, "--definition", file, "--set", "timeout=4", "--json", *on(gateway))
    assert added.returncode == 0, added.stdout
    answer = json.loads(added.stdout)
    assert (answer["state"], answer["definition"]["timeout"]) == ("disabled", 4)
    assert json.loads(run("servers", "remove", name, "--json", *on(gateway)).stdout) == {
        "id": name,
        "removed": True,
    }


def test_every_fault_of_a_definition_is_said_with_its_place(gateway: GatewayProcess) -> None:
    options = ("--set", "timot=3", "--set", "isolation=nobody", "--env", "NOT_SET_ANYWHERE")
    done = run("servers", "add", "wrong", *options, *on(gateway), "--", "sh")
    assert (done.returncode, done.stdout) == (5, "")
    assert "/definition/timot: unknown key; did you mean 'timeout'?" in done.stderr
    assert "/definition/isolation: is none of shared, user, connection" in done.stderr
    assert "environment variable NOT_SET_ANYWHERE is not set" in done.stderr
    as_json = json.loads(run("servers", "add", "wrong", *options, "--json", *on(gateway), "--", "sh").stdout)
    assert as_json["error"]["code"] == "invalid_params"
    assert len(as_json["error"]["details"]) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "x", "sh", "-c", "true"], "put -- before that"),
        (["add", "x", "https://a.example/mcp", "more"], "'more' stands behind an address"),
        (["add", "x", "--header", SECRET, "https://a.example"], "a header is written 'NAME: VALUE'"),
        (["add", "x", "--env", f"={SECRET}", "sh"], "a variable is written NAME=VALUE"),
        (["add", "x", "--set", "lazy", "sh"], "'lazy' is no KEY=VALUE"),
        (["add", "x", "--set", "tools..a=1", "sh"], "'tools..a' is no key"),
        (["add", "x", "--set", "lazy=true", "--set", "lazy.a=1", "sh"], "'lazy.a' leads through 'lazy'"),
        (["add", "x", "--definition", "no-such-file.json"], "no-such-file.json: cannot be read"),
        (["change", "x"], "nothing to change was given"),
    ],
)
def test_what_is_no_definition_is_refused_before_anybody_is_asked(arguments: list[str], said: str) -> None:
    done = run("servers", *arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert SECRET not in done.stderr


def test_a_server_of_the_file_is_switched_but_changed_in_its_file(gateway: GatewayProcess) -> None:
    assert run("servers", "disable", "filed", *on(gateway)).stdout == "Disabled filed: disabled.\n"
    assert run("servers", "disable", "filed", *on(gateway)).returncode == 0
    started = run("servers", "start", "filed", *on(gateway))
    assert started.returncode == 5
    assert run("servers", "enable", "filed", *on(gateway)).stdout == "Enabled filed: ready, 5 tools.\n"
    for arguments in (["change", "filed", "--set", "timeout=3"], ["remove", "filed"]):
        done = run("servers", *arguments, *on(gateway))
        assert done.returncode == 5
        assert "mcpgw.toml: [servers.filed]" in done.stderr


def test_a_server_is_stopped_started_and_restarted(gateway: GatewayProcess) -> None:
    stopped = json.loads(run("servers", "stop", "filed", "--json", *on(gateway)).stdout)
    assert stopped["state"] == "idle"
    assert run("servers", "start", "filed", *on(gateway)).stdout == "Started filed: ready, 5 tools.\n"
    before = shown(gateway, "filed")["since"]
    assert run("servers", "restart", "filed", *on(gateway)).stdout == "Restarted filed: ready, 5 tools.\n"
    assert shown(gateway, "filed")["since"] > before


def test_who_may_not_is_told_which_token_would_do(gateway: GatewayProcess) -> None:
    environment = {"MCPGW_TOKEN": gateway.token(scopes=["servers:read"])}
    done = run("servers", "restart", "filed", *on(gateway), environment=environment)
    assert done.returncode == 4
    assert "lacks the scope 'servers:write'" in done.stderr
    assert "token create --user NAME --scope servers:write)" in done.stderr
    environment = {"MCPGW_TOKEN": gateway.token(scopes=["servers:write"])}
    done = run("servers", "restart", "filed", *on(gateway), environment=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Restarted filed.\n", "")


def test_show_has_the_state_first_and_obeys_no_terminal_sequence(gateway: GatewayProcess) -> None:
    run("servers", "start", "filed", *on(gateway))  # waits until it is ready
    lines = run("servers", "show", "filed", *on(gateway)).stdout.splitlines()
    assert lines[:2] == ["id: filed", "state: ready"]
    assert f"  command: {sys.executable}" in lines
    noisy = ["--", sys.executable, "-c", NOISY]
    assert run("servers", "add", "noisy", *on(gateway), *noisy).returncode == 0
    seen = on_terminal("servers", "show", "noisy", *on(gateway))
    assert "first \\x1b[2J line" in seen
    assert "\x1b[2J" not in seen
    assert run("servers", "remove", "noisy", *on(gateway)).returncode == 0


def test_logs_shows_the_last_lines_and_follows_those_to_come(gateway: GatewayProcess) -> None:
    noisy = ["--", sys.executable, "-c", NOISY]
    assert run("servers", "add", "noisy", *on(gateway), *noisy).returncode == 0
    wait_until(lambda: "second" in run("servers", "logs", "noisy", *on(gateway)).stdout, what="the line")
    printed = run("servers", "logs", "noisy", *on(gateway)).stdout
    assert printed == "first \\x1b[2J line\nsecond line\n"
    lines = json.loads(run("servers", "logs", "noisy", "--json", *on(gateway)).stdout)["lines"]
    assert lines == ["first \x1b[2J line", "second line"]

    output = gateway.folder / "followed.txt"
    with output.open("wb") as stdout:
        following = subprocess.Popen(
            [sys.executable, "-m", "mcpgw", "servers", "logs", "noisy", "--follow", *on(gateway)],
            env=clean_environment({"PYTHONUNBUFFERED": "1"}),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )
    with ended(following):
        wait_until(lambda: "second line" in output.read_text(encoding="utf-8"), what="the lines of before")
        assert run("call", "noisy", "say", "text=third line", *on(gateway)).returncode == 0
        wait_until(lambda: "third line\n" in output.read_text(encoding="utf-8"), what="the new line")
        following.send_signal(signal.SIGINT)
        _, errors = following.communicate(timeout=10)
    assert (following.returncode, errors) == (0, b"")
    assert run("servers", "remove", "noisy", *on(gateway)).returncode == 0


def test_what_was_added_is_there_after_a_restart(tmp_path: Path) -> None:
    (tmp_path / "mcpgw.toml").write_text("", encoding="utf-8")
    for turn in range(2):
        gateway = GatewayProcess(tmp_path, arguments=["--memory-enabled", "false"]).wait_listening()
        with ended(gateway.process):
            if not turn:
                assert run("servers", "add", "kept", *on(gateway), *progress(gateway)).returncode == 0
            else:
                assert shown(gateway, "kept")["origin"] == "store"
                assert shown(gateway, "kept")["state"] in ("starting", "ready")
            assert gateway.terminate() == 0
