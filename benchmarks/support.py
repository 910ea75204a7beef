"""What the benchmarks share: servers as processes of their own, what these cost, and where they come from."""

import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.installations import HERE, MCPGW, UnavailableError, node, node_package_version
from mcpgw.access.signing_key import load_or_create_signing_key
from mcpgw.access.tokens import Tokens
from mcpgw.settings import SETTINGS

UNBOUND = 1_000_000
"""A rate, or a burst, that no benchmark reaches."""
_STOP_SECONDS = 5
_MOST_NGINX_CONNECTIONS = 65536
_NCHAN_MODULES = tuple(
    Path(folder) / "ngx_nchan_module.so"
    for folder in ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules")
)
_NGINX_CONFIGURATION = """
load_module {module};
daemon off;
worker_processes 1;
{user}
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections {files}; }}
http {{
  access_log off;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    nchan_channel_id bench;
    nchan_message_buffer_length 1;
    location = / {{ nchan_subscriber websocket; nchan_subscriber_first_message newest; }}
    location = /publish {{ nchan_publisher websocket; }}
  }}
}}
"""


@dataclass(frozen=True)
class ServerProcess:
    """A server that is being measured: its process id, its port, and the path for those who listen."""

    pid: int
    port: int
    path: str = "/"

    def headers(self, count: int) -> list[dict[str, str]]:
        """Headers for the upgrades of `count` connections."""
        return [{} for _ in range(count)]


@dataclass(frozen=True)
class GatewayProcess(ServerProcess):
    """A gateway; `tokens` are signed with its key."""

    tokens: Tokens | None = None

    def token(self, user: str, *scopes: str) -> str:
        """A token of `user` for an hour."""
        assert self.tokens is not None
        return self.tokens.issue(user=user, scopes=scopes, ttl=3600)

    def headers(self, count: int) -> list[dict[str, str]]:
        """Every connection is a user of its own, as limits and statistics are kept by user."""
        scopes = ("events:read", "servers:read", "rooms:join")
        return [{"Authorization": f"Bearer {self.token(f'user-{n}', *scopes)}"} for n in range(count)]


@contextmanager
def gateway(
    settings: Mapping[str, float | str] | None = None,
    servers: Mapping[str, Sequence[str] | str] | None = None,
    *,
    folder: Path | None = None,
) -> Iterator[GatewayProcess]:
    """A gateway with `settings` beside the defaults, in front of `servers` (commands, or URLs, by name).

    It is the installation in `.bench/`; where there is none, that of this Python. It works in `folder`, or in
    one that is gone afterwards.
    """
    python = MCPGW.python if MCPGW.is_there else sys.executable
    with nullcontext(folder) if folder else tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tables = [
            f"[servers.{server}]\n{_definition(reached)}" for server, reached in (servers or {}).items()
        ]
        (folder / "mcpgw.toml").write_text("\n".join(tables))
        flags = {setting.name: setting.flag_name for setting in SETTINGS}
        given = [f"{flags[name]}={value}" for name, value in (settings or {}).items()]
        serve = [python, "-m", "mcpgw", "serve", "--port=0", f"--data-dir={folder / 'data'}", *given]
        with _running(serve, cwd=folder, ready="/ws") as (process, _):
            note = json.loads((folder / "data" / "gateway.json").read_text())
            port = int(note["url"].rpartition(":")[2])
            tokens = Tokens(algorithm="HS256", key=load_or_create_signing_key(folder / "data"))
            yield GatewayProcess(process.pid, port, "/ws", tokens)


def _definition(reached: Sequence[str] | str) -> str:
    if isinstance(reached, str):
        return f"url = {json.dumps(reached)}\n"
    command, *arguments = reached
    return f"command = {json.dumps(command)}\nargs = {json.dumps(arguments)}\n"


@contextmanager
def node_ws(*, deflate: bool = False) -> Iterator[ServerProcess]:
    """The broadcast of `node_ws/server.js`.

    Raises:
        UnavailableError: there is no Node, or its package ws is not installed.
    """
    if not (HERE / "node_ws" / "node_modules" / "ws").exists():
        raise UnavailableError("node ws: its packages are not installed: python -m benchmarks.installations")
    command = [node(), "server.js", *(["deflate"] if deflate else [])]
    with _running(command, cwd=HERE / "node_ws") as (process, line):
        yield ServerProcess(process.pid, int(line))


@contextmanager
def bare_tornado(*, deflate: bool = False) -> Iterator[ServerProcess]:
    """The broadcast of `tornado_server.py`."""
    command = [sys.executable, "tornado_server.py", *(["deflate"] if deflate else [])]
    with _running(command, cwd=HERE) as (process, line):
        yield ServerProcess(process.pid, int(line))


@contextmanager
def nchan() -> Iterator[ServerProcess]:
    """The broadcast of nginx with the module nchan and one worker.

    Raises:
        UnavailableError: nginx or the module is not installed.
    """
    nginx = _nginx()
    module = next(filter(Path.exists, _NCHAN_MODULES), None)
    if nginx is None or module is None:
        raise UnavailableError("nchan: install nginx and nchan (Debian: apt install libnginx-mod-nchan)")
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        port = chosen.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if not 0 < files < _MOST_NGINX_CONNECTIONS:  # -1 has no bound, and nginx takes memory for each
            files = _MOST_NGINX_CONNECTIONS
        user = "user root;" if os.geteuid() == 0 else ""  # the folder is this user's alone
        configuration = _NGINX_CONFIGURATION.format(module=module, port=port, files=files, user=user)
        (Path(folder) / "nginx.conf").write_text(configuration)
        command = [nginx, "-p", folder, "-c", "nginx.conf", "-e", "stderr"]
        with _running(command, cwd=Path(folder), ready=None) as (process, _):
            yield ServerProcess(_only_child(process), port)


def versions(*, with_nchan: bool = False) -> list[str]:
    """What the report says of those of these that are there."""
    told = [f"gateway: {MCPGW.versions() if MCPGW.is_there else version('mcpgw')}"]
    package = HERE / "node_ws" / "node_modules" / "ws"
    if package.exists() and shutil.which("node"):
        told.append(f"node ws: ws {node_package_version(package)}")
    told.append(f"bare Tornado: tornado {version('tornado')}")
    if with_nchan and (nginx := _nginx()) is not None:
        said = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=True).stderr
        told.append(f"nchan: {said.rpartition(' ')[2].strip()}")
    return told


def _nginx() -> str | None:
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def _running(
    command: list[str], *, cwd: Path, ready: str | None = ""
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`command` as a process, and the first line of its output that holds `ready`; None waits for none."""
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = ""
        while ready is not None and not (line := process.stdout.readline()).strip().count(ready):
            if not line:
                raise SystemExit(f"{Path(command[0]).name} did not start: {' '.join(command[1:])}")
        yield process, line
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _only_child(process: subprocess.Popen[str]) -> int:
    """The process id of the worker, which is there once nginx listens."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for _ in range(200):
        if process.poll() is not None:
            raise SystemExit(f"nginx ended with {process.returncode}")
        if worker := children.read_text().split():
            return int(worker[0])
        time.sleep(0.05)
    raise SystemExit("nginx has no worker")


def raise_file_limit(needed: int) -> None:
    """Let this process and those it starts open `needed` files.

    Raises:
        SystemExit: the hard limit is lower; the message says how to raise it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SystemExit(
            f"{needed} open files are needed and {hard} allowed: see `ulimit -Hn`, or ask for fewer"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed if hard == resource.RLIM_INFINITY else hard, hard))


def medians(rounds: Sequence[Sequence[float]]) -> list[float]:
    """The median of each column."""
    return [statistics.median(column) for column in zip(*rounds, strict=True)]
