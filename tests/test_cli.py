"""The ``mcpgw`` command as people and scripts use it: real processes, against real gateways."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
import jwt
import pytest

import mcpgw
from mcpgw.cli import main
from mcpgw.cli.exit_codes import MEANINGS
from tests.support.gateway_process import GatewayProcess, wait_until
from tests.support.ports import free_port

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
PROGRESS_SERVER = ROOT / "tests" / "servers" / "progress_server.py"
AS_STARTED = f"{sys.executable} -m mcpgw"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


@pytest.fixture(scope="module")
def progress_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway without the memory server and with the server whose tools report progress."""
    folder = tmp_path_factory.mktemp("progress-gateway")
    process = GatewayProcess(folder, configuration=progress_configuration(folder)).wait_listening()
    with ended(process.process):
        yield process
        assert process.terminate() == 0


def progress_configuration(folder: Path) -> str:
    return (
        "[memory]\nenabled = false\n[servers.progress]\n"
        f"command = {json.dumps(sys.executable)}\n"
        f"args = {json.dumps([str(PROGRESS_SERVER), str(folder)])}\n"
    )


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MCPGW_")}
    return {**kept, "PYTHONPATH": str(ROOT), **(extra or {})}


def run(
    *arguments: object,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: str = "",
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mcpgw", *map(str, arguments)],
        cwd=folder,
        env=clean_environment(environment),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def on(gateway: GatewayProcess) -> tuple[str, str]:
    """The option that names a gateway by its data folder, as its own user would."""
    return "--data-dir", str(gateway.data_dir)


def on_terminal(*arguments: object) -> str:
    """Run a command whose stdout and stderr are a terminal of 100 columns; answers what it showed."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "mcpgw", *map(str, arguments)],
        env=clean_environment({"TERM": "xterm-256color"}),
        stdin=subprocess.DEVNULL,
        stdout=secondary,
        stderr=secondary,
    )
    os.close(secondary)
    shown, deadline = b"", time.monotonic() + 20
    with ended(process), closing(os.fdopen(primary, "rb", buffering=0)) as terminal:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 1)[0]:
                continue
            try:
                chunk = terminal.read(65536)
            except OSError:  # Linux says EIO where the other side is closed
                break
            if not chunk:
                break
            shown += chunk
        assert process.wait(10) == 0, shown
    return shown.decode()


@contextmanager
def ended(process: "subprocess.Popen[Any]") -> Iterator[None]:
    """Kill the process when the block is left, where it still runs then."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


# --- the gateway's own commands -----------------------------------------------------------------------------


def test_serve_says_its_addresses_servers_and_log_file_and_a_command_that_works(
    shared_gateway: GatewayProcess,
) -> None:
    printed = shared_gateway.printed()
    assert f"WebSocket  {shared_gateway.socket_url}\n" in printed
    assert f"Events     {shared_gateway.url}/api/v1/events" in printed
    assert f"Log file   {shared_gateway.log_file}\n" in printed
    assert "memory: ready, 6 tools" in printed
    example = re.search(r"mcpgw (call memory memory_search .*)\n", printed)
    assert example is not None
    assert example[1].startswith("""call memory memory_search '{"project": "my-project"}'""")
    done = subprocess.run(
        f"{sys.executable} -m mcpgw {example[1]}",
        shell=True,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"memories": []}


def test_serve_ends_with_0_on_sigterm_and_on_ctrl_c_and_takes_a_flag_for_a_truth(tmp_path: Path) -> None:
    for number, signal_number in enumerate((signal.SIGTERM, signal.SIGINT)):
        folder = tmp_path / str(number)
        folder.mkdir()
        gateway = GatewayProcess(folder, arguments=["--memory-enabled", "false"]).wait_listening()
        with ended(gateway.process):
            gateway.process.send_signal(signal_number)
            assert gateway.process.wait(10) == 0
        assert (
            f"none: name some in mcpgw.toml ({sys.executable} -m mcpgw init writes one)" in gateway.printed()
        )
        assert gateway.printed().endswith("Stop with Ctrl-C.\nStopping.\n")
        assert "Traceback" not in gateway.printed()


def test_ctrl_c_says_what_serve_waits_for_and_a_second_one_ends_it_now(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path, configuration=progress_configuration(tmp_path)).wait_listening()
    command = [sys.executable, "-m", "mcpgw", "call", "progress", "wait", *on(gateway)]
    with ended(gateway.process):
        caller = subprocess.Popen(
            command, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        with ended(caller):
            wait_until((tmp_path / "started").exists, what="the call's start")
            gateway.process.send_signal(signal.SIGINT)
            said = "Stopping: waiting up to 10 s for 1 call; Ctrl-C again to stop now.\n"
            wait_until(lambda: said in gateway.printed(), what="the line")
            assert gateway.process.poll() is None
            gateway.process.send_signal(signal.SIGINT)
            assert gateway.process.wait(8) == 0


def test_files_of_the_current_folder_never_stand_in_for_modules(tmp_path: Path) -> None:
    for name in ("mcp", "token", "mcpgw", "tornado"):
        program = f"from pathlib import Path\nPath({str(tmp_path / 'was run')!r}).touch()\n"
        (tmp_path / f"{name}.py").write_text(program, encoding="utf-8")
    gateway = GatewayProcess(tmp_path).wait_listening()
    with ended(gateway.process):
        assert "memory: ready, 6 tools" in gateway.printed()
        assert gateway.terminate() == 0
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize("on_path", [True, False])
def test_hints_name_the_command_as_it_was_started(tmp_path: Path, on_path: bool) -> None:
    script = Path(sys.executable).parent / "mcpgw"
    path = f"{script.parent if on_path else tmp_path}{os.pathsep}/usr/bin:/bin"
    done = subprocess.run(
        [script, "servers", "--data-dir", tmp_path],
        env=clean_environment({"PATH": path}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    started = "mcpgw" if on_path else script
    assert (
        done.stderr
        == f"no gateway runs on {tmp_path}: start one with {started} serve --data-dir {tmp_path}\n"
    )


def test_serve_names_every_fault_on_a_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "mcpgw.toml").write_text("[server]\nprot = 1\n[log]\nlevel = 'loud'\n", encoding="utf-8")
    done = run("serve", "--port", "http", folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == [
        "mcpgw.toml",
        "mcpgw.toml",
        "flag --port",
    ]
    assert "did you mean 'port'" in done.stderr


def test_serve_says_which_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        arguments = ("--port", port, "--data-dir", tmp_path / "data", "--memory-enabled", "no")
        done = run("serve", *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr


def test_check_shows_values_with_their_places_and_no_secret(tmp_path: Path) -> None:
    secret = "s3cret-" * 8
    (tmp_path / "mcpgw.toml").write_text("[server]\nport = 3111\n", encoding="utf-8")
    environment = {"MCPGW_AUTH_SECRET": secret, "MCPGW_CALLS_TIMEOUT": "7"}
    data_dir = tmp_path / "data"
    done = run("check", "--data-dir", data_dir, folder=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert "port = 3111  (mcpgw.toml: [server] port)" in done.stdout
    assert "timeout = 7.0 seconds  (environment MCPGW_CALLS_TIMEOUT)" in done.stdout
    assert f"dir = {data_dir}  (flag --data-dir)" in done.stdout
    assert "secret = (set)  (environment MCPGW_AUTH_SECRET)" in done.stdout
    assert "  memory: embedded\n" in done.stdout
    assert secret not in done.stdout + done.stderr
    assert not data_dir.exists()


def test_check_shows_how_each_server_is_reached_and_notes_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "mcpgw.toml").write_text(
        f"""
        [servers.good]
        command = {json.dumps(sys.executable)}
        args = ["--key", "s3cret"]
        cwd = {json.dumps(str(tmp_path))}
        [servers.absent]
        command = "no-such-program"
        cwd = "no-such-folder"
        [servers.whole]
        command = "sh -c s3cret"
        [servers.off]
        command = "no-such-program"
        enabled = false
        [servers.web]
        url = "https://tools.example:8443/s3cret/mcp?key=s3cret"
        """,
        encoding="utf-8",
    )
    done = run("check", "--data-dir", tmp_path, folder=tmp_path)
    assert done.returncode == 0
    assert "secret = (the key in the data folder)\n" in done.stdout
    for line in (
        f"  good: stdio {sys.executable}  (",
        "  absent: stdio no-such-program  (",
        "  whole: stdio sh …  (",
        "  off: stdio no-such-program, disabled  (",
        "  web: http https://tools.example:8443  (",
    ):
        assert line in done.stdout
    assert done.stderr.splitlines() == [
        f"note: server 'absent': its folder (cwd) {str(tmp_path / 'no-such-folder')!r} does not exist",
        "note: server 'absent': its command 'no-such-program' is not found on PATH",
        "note: server 'whole': its command 'sh …' holds arguments: put what follows 'sh' into args",
    ]
    assert "s3cret" not in done.stdout + done.stderr


def test_check_names_a_key_that_the_gateway_could_not_use(tmp_path: Path) -> None:
    key = tmp_path / "signing.key"
    key.write_text("00" * 32, encoding="utf-8")
    key.chmod(0o644)
    done = run("check", "--data-dir", tmp_path, folder=tmp_path)
    assert done.returncode == 2
    assert f"chmod 600 {key}" in done.stderr


def test_init_writes_a_file_that_check_takes_and_overwrites_none(tmp_path: Path) -> None:
    assert run("init", folder=tmp_path).returncode == 0
    assert "#port = 3000" in (tmp_path / "mcpgw.toml").read_text(encoding="utf-8")
    assert run("check", folder=tmp_path).returncode == 0
    (tmp_path / "mcpgw.toml").write_text("# mine\n", encoding="utf-8")
    again = run("init", tmp_path)
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert (tmp_path / "mcpgw.toml").read_text(encoding="utf-8") == "# mine\n"
    assert run("init", "--force", folder=tmp_path).returncode == 0
    assert "#port = 3000" in (tmp_path / "mcpgw.toml").read_text(encoding="utf-8")


# --- tokens -------------------------------------------------------------------------------------------------


def test_token_create_prints_the_token_alone_with_its_user_scopes_and_time(
    shared_gateway: GatewayProcess,
) -> None:
    done = run(
        "token", "create", "--user", "ann", "--scope", "servers:read", "--ttl", "30m", *on(shared_gateway)
    )
    assert (done.returncode, done.stderr) == (0, "")
    token = done.stdout.strip()
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["sub"], claims["scope"]) == ("ann", "servers:read")
    assert 1800 <= claims["exp"] - claims["iat"] <= 1801
    environment = {"MCPGW_TOKEN": token}
    allowed = run("servers", "--json", "--url", shared_gateway.url, environment=environment)
    assert json.loads(allowed.stdout)["servers"][0]["id"] == "memory"
    denied = run("call", "memory", "memory_projects", "--url", shared_gateway.url, environment=environment)
    assert denied.returncode == 4
    assert "tools:call" in denied.stderr


@pytest.mark.parametrize("ttl", ["0", "367d", "8w", "-1", "1e9", "99999999999d"])
def test_token_create_refuses_a_time_it_cannot_keep(ttl: str) -> None:
    command = main.commands["token"]
    assert isinstance(command, click.Group)
    with pytest.raises(click.BadParameter, match=r"is (no time|not between)"):
        command.commands["create"].make_context("create", ["--user", "ann", f"--ttl={ttl}"])


def test_token_create_names_every_wrong_scope_and_the_nearest_right_one(
    shared_gateway: GatewayProcess,
) -> None:
    scopes = ("--scope", "tool:call", "--scope", "server:read")
    done = run("token", "create", "--user", "ann", *scopes, *on(shared_gateway))
    assert done.returncode == 2
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert "did you mean 'tools:call'" in first
    assert "did you mean 'servers:read'" in second


def test_no_command_of_a_client_makes_a_key(tmp_path: Path, shared_gateway: GatewayProcess) -> None:
    data_dir = tmp_path / "data"
    for arguments in (
        ("token", "create", "--user", "ann"),
        ("tools", "--url", shared_gateway.url),
    ):
        done = run(*arguments, "--data-dir", data_dir)
        assert done.returncode == 2
        assert f"no signing key in {data_dir}" in done.stderr
        assert "--data-dir" in done.stderr
    assert not data_dir.exists()


def test_a_token_made_here_is_never_sent_to_another_machine(shared_gateway: GatewayProcess) -> None:
    done = run("tools", "--url", "http://192.0.2.1:3000", *on(shared_gateway))  # RFC 5737: nobody's address
    assert done.returncode == 2
    assert "MCPGW_TOKEN is not set" in done.stderr


# --- clients ------------------------------------------------------------------------------------------------


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
    shown = on_terminal("call", "progress", "count", "steps=3", "pause=0.15", *on(progress_gateway))
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


# --- the whole command --------------------------------------------------------------------------------------


def test_version_and_help_come_fast_and_import_nothing_heavy() -> None:
    assert run("--version").stdout == f"mcpgw, version {mcpgw.__version__}\n"
    program = (
        "import sys\nfrom mcpgw.cli import main\nmain(['--help'], standalone_mode=False)\n"
        "print([name for name in ('tornado', 'mcp', 'jwt', 'rich', 'jsonschema') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_is_a_command_too() -> None:
    assert run("help").stdout == run("--help").stdout
    assert run("help", "token", "create").stdout == run("token", "create", "--help").stdout
    for names in (("tokn",), ("call", "memory")):
        done = run("help", *names)
        assert done.returncode == 2
        assert f"no such command {names[-1]!r}" in done.stderr


def test_the_page_has_every_command_with_every_option_of_its_own() -> None:
    shared = {"--url", "--data-dir", "--config", "--help", "--json", "--servers"}
    for path, command in commands(main, "mcpgw"):
        assert f"### {path}\n" in PAGE
        if path in ("mcpgw serve", "mcpgw check"):
            continue  # a flag for every setting: docs/configuration.md
        section = PAGE.partition(f"### {path}\n")[2].partition("\n### ")[0]
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--") and option not in shared:
                    assert option in section, f"{path} {option}"


def test_the_page_and_the_help_of_call_have_every_exit_code() -> None:
    documented = dict(re.findall(r"^\| (\d+) \| (.+) \|$", PAGE.partition("## Exit codes")[2], re.MULTILINE))
    assert documented == {str(code.value): meaning for code, meaning in MEANINGS.items()}
    printed = run("call", "--help").stdout
    for code, meaning in documented.items():
        assert re.search(rf"^ +{code} +{re.escape(meaning)}$", printed, re.MULTILINE), code


def commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    for key, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {key}")
        else:
            yield f"{name} {key}", command
