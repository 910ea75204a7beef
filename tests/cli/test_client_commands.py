"""The commands of whoever uses a gateway: ``tools``, ``call`` and ``events``, and how they find it."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import (
    AS_STARTED,
    CONTROL,
    clean_environment,
    ended,
    on,
    on_terminal,
    progress_configuration,
    run,
)
from tests.support.gateway_process import GatewayProcess, wait_until
from tests.support.ports import free_port


@pytest.fixture(scope="module")
def progress_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway without the memory server and with the server whose tools report progress."""
    folder = tmp_path_factory.mktemp("progress-gateway")
    process = GatewayProcess(folder, configuration=progress_configuration(folder)).wait_listening()
    with ended(process.process):
        yield process
        assert process.terminate() == 0


def test_servers_and_tools_have_tab_separated_columns_in_a_pipe(shared_gateway: GatewayProcess) -> None:
    listed = run("servers", *on(shared_gateway))
    assert listed.stdout.splitlines()[0] == "server\tstate\ttransport\ttools\treason"
    assert listed.stdout.splitlines()[1].startswith("memory\tready\tstdio\t6")
    tools = run("tools", "memory", *on(shared_gateway))
    row = next(line for line in tools.stdout.splitlines() if "memory_search" in line)
    assert row.split("\t")[:3] == ["memory", "memory_search", "project, query?, tags?, limit?"]
    whole = json.loads(run("tools", "--json", *on(shared_gateway)).stdout)["tools"]
    assert {"serverId", "name", "description", "inputSchema"} <= whole[0].keys()


def test_call_takes_json_stdin_and_pairs(progress_gateway: GatewayProcess) -> None:
    given: list[tuple[list[str], str, str]] = [
        (['{"value": [1, 2]}'], "", "list [1, 2]"),
        (["-"], '{"value": "from stdin"}', "str from stdin"),
        (["value=5"], "", "int 5"),
        (["value=a=b c"], "", "str a=b c"),
    ]
    for arguments, stdin, expected in given:
        done = run("call", "progress", "echo", *arguments, *on(progress_gateway), stdin=stdin)
        assert (done.returncode, done.stdout) == (0, f"{expected}\n"), done.stderr


def test_call_refuses_arguments_that_are_none(shared_gateway: GatewayProcess) -> None:
    for arguments in (["{bad"], ["[1]"], ["text"], ["a=1", "b"], ["a=1", "a=2"], ["{}", "{}"]):
        done = run("call", "memory", "memory_projects", *arguments, *on(shared_gateway))
        assert done.returncode == 2, arguments
        assert len(done.stderr.splitlines()) == 1


def test_call_shows_progress_and_logs_on_stderr_and_the_result_on_stdout(
    progress_gateway: GatewayProcess,
) -> None:
    done = run("call", "progress", "count", "steps=2", *on(progress_gateway))
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"result": "counted to 2"}
    assert "progress 1/2 (50%) step 1" in done.stderr
    assert "progress 2/2 (100%) step 2" in done.stderr
    assert "[info] counter: counted 2" in done.stderr
    assert not CONTROL.search(done.stderr)


def test_call_draws_a_bar_on_a_terminal_and_json_on_several_lines(progress_gateway: GatewayProcess) -> None:
    shown = on_terminal("call", "progress", "count", "steps=3", "pause=0.4", *on(progress_gateway))
    assert "━" in shown
    assert "step 2" in shown
    assert "[info] counter: counted 3" in shown
    assert "\x1b[31mred" not in shown
    assert '{\r\n  "result": "counted to 3"\r\n}' in shown


def test_tables_on_a_terminal_show_what_servers_say_and_obey_none_of_it(
    progress_gateway: GatewayProcess,
) -> None:
    shown = on_terminal("tools", *on(progress_gateway))
    assert "Description" in shown
    assert "Fail, as a tool does." in shown
    assert "\x1b[2J" not in shown


def test_control_characters_of_a_result_are_printed_as_escapes(progress_gateway: GatewayProcess) -> None:
    done = run("call", "progress", "hostile", *on(progress_gateway))
    assert done.stdout == "before\\x1b]0;owned\\x07\\x1b[2J\\u202eafter\nsecond line\n"
    whole = run("call", "progress", "hostile", "--json", *on(progress_gateway))
    assert not CONTROL.search(whole.stdout.rstrip("\n"))
    assert "\x1b]0;owned" in json.loads(whole.stdout)["result"]


def test_a_tool_that_fails_ends_the_command_with_1(progress_gateway: GatewayProcess) -> None:
    done = run("call", "progress", "fail", *on(progress_gateway))
    assert done.returncode == 1
    assert "fail" in done.stdout
    assert "answered with an error" in done.stderr
    whole = run("call", "progress", "fail", "--json", *on(progress_gateway))
    assert whole.returncode == 1
    assert json.loads(whole.stdout)["success"] is False
    assert whole.stderr == ""


def test_an_error_of_the_gateway_ends_the_command_with_5_and_says_each_fault(
    shared_gateway: GatewayProcess,
) -> None:
    nearest = run("call", "memry", "memory_search", *on(shared_gateway))
    assert nearest.returncode == 5
    assert nearest.stderr == "no server 'memry'; did you mean 'memory'?\n"
    faults = run("call", "memory", "memory_search", "projct=p", *on(shared_gateway))
    assert faults.returncode == 5
    assert "/data/params/project: is required" in faults.stderr
    assert "did you mean 'project'?" in faults.stderr
    as_json = run("call", "memory", "memory_search", "projct=p", "--json", *on(shared_gateway))
    assert as_json.returncode == 5
    assert (as_json.stdout.count("\n"), as_json.stderr) == (1, "")
    error = json.loads(as_json.stdout)["error"]
    assert (error["code"], error["temporary"], len(error["details"])) == ("invalid_params", False, 2)


def test_a_call_past_its_time_ends_with_5(progress_gateway: GatewayProcess) -> None:
    done = run("call", "progress", "wait", "--timeout", "0.3", "--json", *on(progress_gateway))
    assert done.returncode == 5
    assert json.loads(done.stdout)["error"]["code"] == "timeout"


def test_ctrl_c_cancels_the_call_at_its_server(progress_gateway: GatewayProcess) -> None:
    started, cancelled = (progress_gateway.folder / name for name in ("started", "cancelled"))
    wait_until(lambda: not started.exists(), what="an earlier call's end")
    process = subprocess.Popen(
        [sys.executable, "-m", "mcpgw", "call", "progress", "wait", *on(progress_gateway)],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with ended(process):
        wait_until(started.exists, what="the call's start")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=10)
    assert (process.returncode, stdout, stderr) == (130, "", "interrupted\n")
    wait_until(cancelled.exists, seconds=1.5, what="the cancel at the server")


def test_events_follows_the_stream_and_ends_after_the_count(shared_gateway: GatewayProcess) -> None:
    done = run("events", "--count", "1", "--json", *on(shared_gateway))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["type"] == "connected"
    assert re.match(r"\d\d:\d\d:\d\d connected ", run("events", "--count", "1", *on(shared_gateway)).stdout)


def test_events_that_ctrl_c_ends_have_ended_well(shared_gateway: GatewayProcess) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mcpgw", "events", "--json", *on(shared_gateway)],
        env=clean_environment({"PYTHONUNBUFFERED": "1"}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with ended(process):
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["type"] == "connected"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr) == (0, "")


def test_a_call_to_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    configuration = '[memory]\nenabled = false\n[servers.broken]\ncommand = "no-such-program"\n'
    gateway = GatewayProcess(tmp_path, configuration=configuration).wait_listening()
    with ended(gateway.process):
        done = run("call", "broken", "tool", *on(gateway))
        assert done.returncode == 5
        first, reason, *_ = done.stderr.splitlines()
        assert first == "the server 'broken' is retrying"
        assert reason == "  its command 'no-such-program' is not found on PATH"
        assert gateway.terminate() == 0


def test_a_folder_that_was_named_has_its_own_gateway_or_none(
    tmp_path: Path, shared_gateway: GatewayProcess
) -> None:
    port = {"MCPGW_SERVER_PORT": shared_gateway.url.rpartition(":")[2]}
    for token in ({}, {"MCPGW_TOKEN": shared_gateway.token()}):
        done = run("servers", "--data-dir", tmp_path, environment={**port, **token})
        assert done.returncode == 3
        assert done.stderr.startswith(f"no gateway runs on {tmp_path}: start one with ")
    done = run("servers", "--data-dir", tmp_path, "--json")
    assert json.loads(done.stdout)["error"]["code"] == "not_reachable"


def test_a_folder_that_was_named_goes_over_a_url_of_the_environment(shared_gateway: GatewayProcess) -> None:
    elsewhere = {"MCPGW_URL": f"http://127.0.0.1:{free_port()}"}
    done = run("servers", *on(shared_gateway), environment=elsewhere)
    assert done.returncode == 0, done.stderr
    assert "memory\tready" in done.stdout
    assert run("servers", environment=elsewhere).returncode == 3
    url = ("--url", elsewhere["MCPGW_URL"])
    assert run("servers", *on(shared_gateway), *url).returncode == 3


def test_a_gateway_that_is_not_there_is_said_with_what_to_do(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    tokens = {"MCPGW_TOKEN": "not.a.token"}
    ways: list[tuple[tuple[str, ...], dict[str, str]]] = [
        (("call", "memory", "memory_projects"), {}),
        (("call", "memory", "memory_projects"), tokens),
        (("servers",), tokens),
        (("events",), tokens),
    ]
    for command, environment in ways:
        done = run(*command, "--url", url, "--data-dir", tmp_path / "data", environment=environment)
        assert done.returncode == 3, done.stderr
        assert done.stderr == f"no gateway answers at {url}: start one with {AS_STARTED} serve\n"


def test_a_server_that_is_no_gateway_is_said_to_be_none(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=clean_environment({"PYTHONUNBUFFERED": "1"}),
    ) as other:
        try:
            assert other.stdout is not None
            found = re.search(r"port (\d+)", other.stdout.readline())
            assert found is not None
            url = f"http://127.0.0.1:{found[1]}"
            for command_name in ("tools", "servers"):
                done = run(command_name, "--url", url, environment={"MCPGW_TOKEN": "not.a.token"})
                assert done.returncode == 3
                assert f"what answers at {url} is no gateway" in done.stderr
        finally:
            other.terminate()


def test_a_token_that_does_not_hold_ends_with_4_and_is_never_shown(shared_gateway: GatewayProcess) -> None:
    for command in (("tools",), ("servers",), ("call", "memory", "memory_projects", "--json")):
        done = run(
            *command, "--url", shared_gateway.socket_url, environment={"MCPGW_TOKEN": "no-token-at-all"}
        )
        assert done.returncode == 4
        assert "JSON Web Token" in done.stdout + done.stderr
        assert "no-token-at-all" not in done.stdout + done.stderr


def test_a_url_with_a_token_in_it_is_refused_without_repeating_it() -> None:
    done = run("tools", "--url", "http://127.0.0.1:3000/ws?token=hidden", environment={"MCPGW_TOKEN": "t"})
    assert done.returncode == 2
    assert "hidden" not in done.stderr
    assert "no query" in done.stderr


def test_a_url_without_a_scheme_is_refused_with_the_right_one() -> None:
    for url in ("localhost:3000", "127.0.0.1:3000", "[::1]:3000", "gateway.example", "localhost:3000/ws"):
        done = run("tools", "--url", url, environment={"MCPGW_TOKEN": "t"})
        assert (done.returncode, done.stderr) == (2, f"{url!r} is not a URL: write http://{url}\n")
