"""``test-websocket.py`` and ``test-websocket.js``, as the host of a workshop runs them: from outside."""

import asyncio
import json
import os
import pty
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketHandler

from mcpgw.access.signing_key import load_or_create_signing_key
from mcpgw.access.tokens import Tokens
from tests.support.gateway_process import ALL_SCOPES, GatewayProcess
from tests.support.node import node_20, node_22
from tests.support.ports import free_port
from tests.support.socket_client import SocketClient

TOP = Path(__file__).parent.parent
COMMANDS: dict[str, Callable[[], list[str]]] = {
    "python": lambda: [sys.executable, "-W", "error", str(TOP / "test-websocket.py")],
    "node 20": lambda: [str(node_20()), str(TOP / "test-websocket.js")],
    "node 22": lambda: [str(node_22()), str(TOP / "test-websocket.js")],
}
STEPS = [
    "connect",
    "status comes first",
    "ping",
    "call before auth is refused",
    "auth",
    "list_tools",
    "memory_save",
    "memory_search",
    "unknown tool is refused",
    "cancel",
    "memory_delete",
    "close",
]
INSTALLED = TOP / ".venv" / "bin" / "mcpgw"
CREATE = f"{shlex.quote(str(INSTALLED)) if INSTALLED.exists() else 'mcpgw'} token create --user me"
HOW_TO_CREATE = f'export MCPGW_TOKEN="$({CREATE})"'
Script = Callable[..., subprocess.CompletedProcess[str]]


def environment(url: str, token: str) -> dict[str, str]:
    """This process's own, with a gateway's address and a token."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MCPGW_")}
    return {**clean, "MCPGW_URL": url, "MCPGW_TOKEN": token}


@pytest.fixture(params=list(COMMANDS))
def command(request: pytest.FixtureRequest) -> list[str]:
    """The command of one script on one interpreter."""
    return COMMANDS[request.param]()


@pytest.fixture
def script(command: list[str], tmp_path: Path) -> Script:
    """Runs one script to its end: ``script(url, token, '--json')``; the token must not be in its output."""

    def run(url: str = "", token: str = "", *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*command, *arguments],
            cwd=tmp_path,
            env=environment(url, token),
            capture_output=True,
            encoding="utf-8",
            timeout=20,
            check=False,
        )
        if token:
            assert token not in done.stdout + done.stderr
        return done

    return run


def steps_of(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """The steps of a JSON report by their names; fails where the report has other steps."""
    report = json.loads(done.stdout)
    assert [step["name"] for step in report["steps"]] == STEPS
    assert report["passed"] is (done.returncode == 0)
    return {step["name"]: step for step in report["steps"]}


def refused_step(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The only step that failed."""
    assert done.returncode == 1, done.stderr
    (failed,) = [step for step in steps_of(done).values() if step["passed"] is False]
    return failed


# --- all is well -------------------------------------------------------------------------------------------


def test_every_step_passes_at_a_running_gateway(script: Script, shared_gateway: GatewayProcess) -> None:
    done = script(shared_gateway.socket_url, shared_gateway.token())
    assert (done.returncode, done.stderr) == (0, "")
    *lines, summary = done.stdout.splitlines()
    assert [line.rpartition("  ")[0] for line in lines if "(each of" not in line] == [f"✓ {s}" for s in STEPS]
    assert all(line.endswith(" ms") for line in lines)
    assert summary == f"12 of 12 steps passed ({shared_gateway.socket_url})"


def test_the_address_may_be_the_gateways_http_address(script: Script, shared_gateway: GatewayProcess) -> None:
    done = script("", "", "--url", shared_gateway.url, "--token", shared_gateway.token(), "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["url"] == shared_gateway.socket_url
    assert all(step["passed"] is True and step["ms"] >= 0 for step in steps_of(done).values())


def test_flags_win_over_the_environment(script: Script, shared_gateway: GatewayProcess) -> None:
    done = script(
        "ws://127.0.0.1:1/ws", "wrong", "--url", shared_gateway.url, "--token", shared_gateway.token()
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.gen_test(timeout=30)
async def test_the_memory_server_is_left_as_it_was(
    command: list[str], shared_gateway: GatewayProcess
) -> None:
    client = await SocketClient.connect(shared_gateway.socket_url, token=shared_gateway.token())
    before = await client.call("memory", "memory_projects", call_id="before")
    status, output = await run_beside(command, shared_gateway.socket_url, shared_gateway.token())
    assert status == 0, output
    after = await client.call("memory", "memory_projects", call_id="after")
    assert after["data"]["result"] == before["data"]["result"]
    client.close()


def test_both_scripts_say_the_same_words(shared_gateway: GatewayProcess, tmp_path: Path) -> None:
    reports = []
    for command in COMMANDS.values():
        words = []
        for token in (shared_gateway.token(), "", "this-is-no-token-at-all"):
            done = subprocess.run(
                [*command(), "--json"],
                cwd=tmp_path,
                env=environment(shared_gateway.socket_url, token),
                capture_output=True,
                encoding="utf-8",
                timeout=20,
                check=False,
            )
            words.append(
                [(step["problem"], step["advice"], step["passed"]) for step in steps_of(done).values()]
            )
        reports.append(words)
    assert reports[0] == reports[1] == reports[2]


@pytest.mark.parametrize("installed", [True, False])
def test_the_hint_names_the_command_where_it_was_installed(
    command: list[str], shared_gateway: GatewayProcess, tmp_path: Path, installed: bool
) -> None:
    *interpreter, script = command
    copy = shutil.copy(script, tmp_path)
    expected = "mcpgw"
    if installed:
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        (tmp_path / ".venv" / "bin" / "mcpgw").touch()
        expected = ".venv/bin/mcpgw"
    done = subprocess.run(
        [*interpreter, copy, "--json"],
        cwd=tmp_path,
        env=environment(shared_gateway.socket_url, ""),
        capture_output=True,
        encoding="utf-8",
        timeout=20,
        check=False,
    )
    assert f"create one: {expected} token create --user me" in str(refused_step(done)["advice"])


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colour_is_for_terminals_and_only_where_it_is_wanted(
    command: list[str], shared_gateway: GatewayProcess, no_color: str
) -> None:
    ours, theirs = pty.openpty()
    env = {**environment(shared_gateway.socket_url, shared_gateway.token()), "NO_COLOR": no_color}
    with subprocess.Popen(command, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        output = b""
        try:
            while piece := os.read(ours, 4096):
                output += piece
        except OSError:  # how Linux says that nobody writes to the terminal any more
            pass
        assert process.wait(20) == 0
    os.close(ours)
    assert output.count(b"\x1b[32m") == (0 if no_color else len(STEPS))


# --- what a host gets wrong --------------------------------------------------------------------------------


def test_without_a_gateway_it_says_how_to_start_one(script: Script) -> None:
    port = free_port()
    done = script(f"ws://127.0.0.1:{port}/ws", "some-token-that-is-not-shown")
    assert done.returncode == 1
    first, advice, summary = done.stdout.splitlines()
    assert first.startswith("✗ connect  ")
    assert first.endswith(f" ms: nothing listens at 127.0.0.1:{port}")
    assert advice == "  → the gateway does not run: start it with: make run"
    assert summary.startswith("0 of 12 steps passed, 1 failed, 11 not run ")
    assert "\x1b" not in done.stdout


def test_without_a_token_it_says_how_to_create_and_pass_one(
    script: Script, shared_gateway: GatewayProcess
) -> None:
    failed = refused_step(script(shared_gateway.socket_url, "", "--json"))
    assert (failed["name"], failed["problem"]) == ("auth", "the token is missing")
    assert failed["advice"].splitlines() == [
        f"create one: {CREATE}",
        f"and pass it: {HOW_TO_CREATE}",
    ]


def test_a_token_that_does_not_hold_is_refused_with_the_reason(
    script: Script, shared_gateway: GatewayProcess
) -> None:
    key = load_or_create_signing_key(shared_gateway.data_dir)
    foreign = Tokens(algorithm="HS256", key="another key of at least 32 bytes length")
    past = Tokens(algorithm="HS256", key=key, clock=lambda: time.time() - 3600)
    tokens = {
        "not-a-token-but-long-enough": "auth_failed: this is not a JSON Web Token",
        foreign.issue(
            user="ann", scopes=ALL_SCOPES, ttl=60
        ): "auth_failed: the token's signature does not hold",
        past.issue(user="ann", scopes=ALL_SCOPES, ttl=60): "token_expired: the token has expired",
    }
    for token, reason in tokens.items():
        done = script(shared_gateway.socket_url, token, "--json")
        failed = refused_step(done)
        assert failed["name"] == "auth"
        assert failed["problem"].startswith(reason)
        assert HOW_TO_CREATE in failed["advice"]
        assert steps_of(done)["memory_save"]["remark"] == "not run: it needs list_tools"


def test_a_token_without_the_right_to_call_is_told_apart(
    script: Script, shared_gateway: GatewayProcess
) -> None:
    token = shared_gateway.token(scopes=["servers:read"])
    failed = refused_step(script(shared_gateway.socket_url, token, "--json"))
    assert (failed["name"], failed["problem"]) == (
        "list_tools",
        "not in the list: memory_save, memory_search",
    )
    assert failed["advice"].startswith("this token may not do it: ")


@pytest.fixture(scope="module")
def gateway_without_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway whose memory server is switched off."""
    configuration = "[memory]\nenabled = false\n"
    process = GatewayProcess(tmp_path_factory.mktemp("no-memory"), configuration=configuration)
    yield process.wait_listening()
    assert process.terminate() == 0


def test_a_memory_server_that_is_off_is_to_be_switched_on(
    script: Script, gateway_without_memory: GatewayProcess
) -> None:
    failed = refused_step(script(gateway_without_memory.socket_url, gateway_without_memory.token(), "--json"))
    assert failed["name"] == "list_tools"
    assert failed["problem"].startswith("server_not_found: no server 'memory'")
    assert failed["advice"] == "switch the memory server on: [memory] enabled = true in mcpgw.toml"


def test_a_path_that_is_not_the_websockets_is_told(script: Script, shared_gateway: GatewayProcess) -> None:
    failed = refused_step(script(f"{shared_gateway.url}/socket", "", "--json"))
    assert failed["problem"].endswith(" answered with HTTP 404 and opened no WebSocket")
    assert failed["advice"].startswith("the gateway's WebSocket ends in /ws\n")


class _Page(BaseHTTPRequestHandler):
    """A web server that is no gateway."""

    def do_GET(self) -> None:
        """Answer with a page, whatever was asked."""
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Write nothing to the tests' output."""


def test_a_web_server_on_the_port_is_told_apart(script: Script) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            failed = refused_step(script(f"ws://127.0.0.1:{server.server_port}/ws", "", "--json"))
        finally:
            server.shutdown()
            thread.join(10)
    assert failed["problem"].endswith(" answered with a page and opened no WebSocket")
    assert "check --url: another program may have this port" in failed["advice"]


def test_a_port_that_never_answers_is_given_up_in_time(script: Script) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        started = time.monotonic()
        failed = refused_step(script(f"ws://127.0.0.1:{port}/ws", "", "--json", "--timeout", "0.5"))
    assert time.monotonic() - started < 5
    assert failed["problem"] == f"nothing answered at 127.0.0.1:{port} within 0.5 s"
    assert "check --url: another program may have this port" in failed["advice"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--url", "nonsense"],
        ["--url", "ftp://127.0.0.1/ws"],
        ["--url", "ws://name:password@127.0.0.1/ws"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--timout", "3"],
    ],
)
def test_wrong_usage_ends_with_2_and_shows_the_usage(script: Script, arguments: list[str]) -> None:
    done = script("", "", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "usage: " in done.stderr
    assert "password" not in done.stderr


def test_help_names_every_option(script: Script) -> None:
    done = script("", "", "--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("--url", "--token", "--timeout", "--json"))


def test_a_node_that_has_no_websocket_at_all_is_told_to_be_too_old(tmp_path: Path) -> None:
    """The flag is given already and WebSocket is still missing: no script may start itself for ever."""
    gone = tmp_path / "gone.js"
    gone.write_text("delete globalThis.WebSocket;\n", encoding="utf-8")
    done = subprocess.run(
        [node_20(), "--require", gone, TOP / "test-websocket.js"],
        capture_output=True,
        encoding="utf-8",
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert "this Node is too old" in done.stderr
    assert "install Node 20.10 or newer" in done.stderr


# --- gateways that are at fault ----------------------------------------------------------------------------


async def run_beside(command: list[str], url: str, token: str, *arguments: str) -> tuple[int | None, str]:
    """Run a script while the test's own loop goes on: its exit code, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        *arguments,
        env=environment(url, token),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(20):
        output, _ = await process.communicate()
    return process.returncode, output.decode()


class _FaultyGateway(WebSocketHandler):
    """Answers every frame at once; `answers` gives the answers to a frame."""

    def initialize(self, answers: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> None:
        """Take the answers."""
        self.answers = answers

    def open(self, *_args: str, **_kwargs: str) -> None:
        """Greet as a gateway does."""
        self.write_message(json.dumps({"type": "status", "data": {"requiresAuth": True}}))

    def on_message(self, message: str | bytes) -> None:
        """Answer one frame."""
        frame = json.loads(message)
        for answer in self.answers(frame):
            self.write_message(json.dumps({"id": frame["id"], **answer}))


@contextmanager
def faulty_gateway(answers: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> Iterator[str]:
    """The address of a gateway at fault, inside the test's own loop."""
    server = HTTPServer(Application([("/ws", _FaultyGateway, {"answers": answers})]))
    (listening,) = bind_sockets(0, "127.0.0.1", family=socket.AF_INET)
    server.add_socket(listening)
    yield f"ws://127.0.0.1:{listening.getsockname()[1]}/ws"
    server.stop()


def error(code: str, message: str) -> dict[str, Any]:
    """An ``error`` frame without its id."""
    return {"type": "error", "data": {"error": message, "code": code, "temporary": False}}


def nearly_right(frame: dict[str, Any]) -> list[dict[str, Any]]:
    """What a gateway answers that ends a cancelled call twice."""
    kind, data = frame["type"], frame["data"]
    if kind == "ping":
        return [{"type": "pong", "data": {"timestamp": 1}}]
    if kind == "auth":
        return [{"type": "status", "data": {"authenticated": True}}]
    if kind == "list_tools":
        tools = [{"name": "memory_save"}, {"name": "memory_search"}]
        return [{"type": "tools", "data": {"tools": tools}}]
    if kind == "cancel":
        return [error("cancelled", "the call was cancelled")]
    if frame["id"].startswith("early"):
        return [error("auth_required", "Authentication required")]
    results = {
        "memory_save": {"memory": {"id": "m"}},
        "memory_search": {"memories": [{"id": "m"}]},
        "memory_delete": {"deleted": True},
    }
    if data["toolName"] not in results:
        return [error("tool_not_found", "no tool 'memory_serch'; did you mean 'memory_search'?")]
    return [{"type": "tool_response", "data": {"success": True, "result": results[data["toolName"]]}}]


@pytest.mark.gen_test(timeout=30)
async def test_a_cancelled_call_with_two_ends_is_a_fault(command: list[str]) -> None:
    with faulty_gateway(nearly_right) as url:
        status, output = await run_beside(command, url, "a-token-of-some-length", "--timeout", "3")
    assert status == 1
    (failed,) = [line for line in output.splitlines() if line.startswith("✗")]
    assert failed.startswith("✗ cancel  ")
    assert failed.endswith(" ms: the call had 2 ends")
    assert output.count("✓") == len(STEPS) - 1


@pytest.mark.gen_test(timeout=30)
async def test_a_call_that_outran_its_cancel_five_times_passes_with_a_remark(command: list[str]) -> None:
    def answers(frame: dict[str, Any]) -> list[dict[str, Any]]:
        if frame["type"] == "cancel":
            return [error("unknown_call", "no open call has this id")]
        return nearly_right(frame)

    with faulty_gateway(answers) as url:
        status, output = await run_beside(command, url, "a-token-of-some-length", "--timeout", "3")
    assert status == 0, output
    assert " ms  (each of 5 calls was faster than its cancel)\n" in output


@pytest.mark.gen_test(timeout=30)
async def test_a_token_that_the_other_side_sends_back_is_not_printed(command: list[str]) -> None:
    token = "secret-" * 60

    def answers(frame: dict[str, Any]) -> list[dict[str, Any]]:
        return [error("auth_failed", f"\x1b[2J{frame['data'].get('token')}")]

    with faulty_gateway(answers) as url:
        status, output = await run_beside(command, url, token, "--timeout", "3")
    assert status == 1
    assert "auth_failed: \\u001b[2J[token]\n" in output
    assert "secret" not in output
    assert "\x1b" not in output


@pytest.mark.gen_test(timeout=30)
async def test_a_gateway_that_falls_silent_fails_each_step_in_its_time(command: list[str]) -> None:
    with faulty_gateway(lambda _frame: []) as url:
        status, output = await run_beside(command, url, "a-token-of-some-length", "--timeout", "0.3")
    assert status == 1
    assert output.count("no answer within 0.3 s") == 3  # ping, the early call, auth
    assert "✓ close" in output


@pytest.mark.gen_test(timeout=30)
@pytest.mark.parametrize("refusals", [2, 1000])
async def test_a_memory_server_that_is_starting_is_waited_for_but_not_for_ever(
    command: list[str], refusals: int
) -> None:
    asked = 0

    def answers(frame: dict[str, Any]) -> list[dict[str, Any]]:
        nonlocal asked
        if frame["type"] == "list_tools":
            asked += 1
            if asked <= refusals:
                return [error("server_unavailable", "the server 'memory' is starting")]
        if frame["type"] == "cancel":
            return []
        return nearly_right(frame)

    with faulty_gateway(answers) as url:
        status, output = await run_beside(command, url, "a-token-of-some-length", "--timeout", "1")
    if refusals == 2:
        assert (status, asked) == (0, 3), output
    else:
        assert status == 1
        assert " ms: server_unavailable: the server 'memory' is starting\n" in output
        assert "the memory server is not ready: try again in some seconds" in output
        assert 2 <= asked <= 5
