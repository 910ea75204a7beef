"""The commands of whoever runs the gateway: ``serve``, ``check``, ``init`` and ``token``."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click
import jwt
import pytest

from mcpgw.access.permissions import SCOPES
from mcpgw.cli import main
from tests.support.command_line import ROOT, clean_environment, ended, on, progress_configuration, run
from tests.support.gateway_process import GatewayProcess, wait_until


def test_serve_says_its_addresses_servers_and_log_file_and_a_command_that_works(
    shared_gateway: GatewayProcess,
) -> None:
    printed = shared_gateway.printed()
    assert f"WebSocket  {shared_gateway.socket_url}\n" in printed
    assert f"Events     {shared_gateway.url}/api/v1/events" in printed
    assert f"MCP        {shared_gateway.url}/mcp" in printed
    assert f"API        {shared_gateway.url}/docs" in printed
    assert re.search(r"mcpgw connect --data-dir \S+", printed)
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
    gateway = GatewayProcess(tmp_path, forked=False).wait_listening()
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


def test_the_help_and_the_page_of_token_create_have_every_scope() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = page.partition("### mcpgw token create\n")[2].partition("\n### ")[0]
    said = run("token", "create", "--help").stdout
    for scope in (*SCOPES, "tools:call:SERVER", "tools:call:SERVER/TOOL", "rooms:join:ROOM"):
        assert re.search(rf"(?<!\S){scope}(?=[,.\s])", said), scope
        assert f"`{scope}`" in section, scope


@pytest.mark.parametrize("ttl", ["0", "367d", "8w", "-1", "1e9", "99999999999d"])
def test_token_create_refuses_a_time_it_cannot_keep(ttl: str) -> None:
    command = main.get_command(click.Context(main), "token")
    assert command is not None
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
