"""The process of a backend: started at once, and connected later."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from mcp.client.stdio import get_default_environment
from tornado.ioloop import IOLoop

from mcpgw.backends import processes
from mcpgw.backends.child import Child, Program, inherited_environment
from mcpgw.backends.reaper import ProcessReaper
from mcpgw.servers import start_ahead
from mcpgw.workers.peers import Peers
from tests.support.backends import alive, pid_of, running, scripted
from tests.support.gateway_process import wait_until

SPEAKS_AND_ENDS = "import os; os.write(1, b'out'); os.write(2, b'err'); os._exit(3)"
ECHOES = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
CLOSES_AND_LIVES = "import os, time; os.close({number}); time.sleep(60)"


class Heard:
    """Writes down what a child does."""

    def __init__(self) -> None:
        self.data = {1: b"", 2: b""}
        self.closed: set[int] = set()
        self.order: list[str] = []
        self.exited = asyncio.Event()
        self.changed = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes, /) -> None:
        self.data[fd] += data
        self._note("data")

    def pipe_connection_lost(self, fd: int, _exc: Exception | None, /) -> None:
        self.closed.add(fd)
        self._note("closed")

    def process_exited(self) -> None:
        self.exited.set()
        self._note("exited")

    def _note(self, what: str) -> None:
        self.order.append(what)
        self.changed.set()

    async def until(self, number: int) -> None:
        """Wait until the child has closed this pipe."""
        async with asyncio.timeout(5):
            while number not in self.closed:
                self.changed.clear()
                await self.changed.wait()


def python(program: str, **env: str) -> Program:
    return Program((sys.executable, "-S", "-c", program), env)


def is_marked(child: Child) -> bool:
    return child.pid in {process.pid for process in processes.marked([child.mark])}


@asynccontextmanager
async def connected(child: Child) -> AsyncIterator[Heard]:
    heard = Heard()
    await child.connect(heard)
    assert not heard.order, "nothing comes before whoever connects it has gone on"
    try:
        yield heard
    finally:
        child.close()
        async with asyncio.timeout(5):
            await heard.exited.wait()
            while heard.closed != {0, 1, 2}:
                await asyncio.sleep(0.01)


@pytest.mark.gen_test
async def test_what_a_child_did_before_it_was_connected_is_told_in_order() -> None:
    child = Child(python(SPEAKS_AND_ENDS))
    await asyncio.to_thread(wait_until, lambda: not alive(child.pid), seconds=5, what="its end")
    async with connected(child) as heard:
        async with asyncio.timeout(5):
            await heard.exited.wait()
        await heard.until(1)
        await heard.until(2)
        assert heard.data == {1: b"out", 2: b"err"}
        assert child.returncode == 3


@pytest.mark.gen_test
async def test_a_child_hears_and_answers_and_a_kill_is_told_by_its_signal() -> None:
    child = Child(python(ECHOES))
    async with connected(child) as heard:
        assert child.stdin is not None
        child.stdin.write(b"hello\n")
        async with asyncio.timeout(5):
            while heard.data[1] != b"hello\n":
                heard.changed.clear()
                await heard.changed.wait()
        assert child.returncode is None
    assert child.returncode == -9


@pytest.mark.gen_test
@pytest.mark.parametrize("number", [0, 1])
async def test_a_child_that_closes_a_pipe_and_lives_is_seen_beside_others(number: int) -> None:
    async with (
        connected(Child(python(CLOSES_AND_LIVES.format(number=number)))) as heard,
        connected(Child(python(ECHOES))) as other,
    ):
        await heard.until(number)
        assert not heard.exited.is_set()
        assert not other.closed


@pytest.mark.gen_test
async def test_a_connection_that_is_cancelled_kills_the_child() -> None:
    child = Child(python(ECHOES))
    heard = Heard()
    connecting = asyncio.ensure_future(child.connect(heard))
    await asyncio.sleep(0)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    async with asyncio.timeout(5):
        await heard.exited.wait()
    assert child.is_closed


@pytest.mark.gen_test
async def test_without_handles_of_processes_an_end_is_seen_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    async with connected(Child(python(SPEAKS_AND_ENDS))) as heard:
        async with asyncio.timeout(5):
            await heard.exited.wait()


def test_a_process_that_was_started_ahead_is_taken_once_and_what_nobody_takes_is_ended() -> None:
    reaper = ProcessReaper()
    mine, others = python(ECHOES, WHOSE="mine"), python(ECHOES, WHOSE="others")
    try:
        reaper.start_ahead([mine, others, Program(("/no/such/program",), {})])
        first, second = reaper.start(mine), reaper.start(mine)
        assert first.pid != second.pid
        (forgotten,) = [child for _, child in reaper._ahead]
        for child in (first, second, forgotten):
            # A moment after the start the kernel does not have it yet.
            wait_until(partial(is_marked, child), seconds=5, what="the mark in its environment")
        reaper.discard_ahead()
        assert not alive(forgotten.pid)
        assert alive(first.pid)
        with pytest.raises(FileNotFoundError, match="/no/such/program"):
            reaper.start(Program(("/no/such/program",), {}))
        for child in (first, second):
            child.end()
    finally:
        reaper.close()


def test_what_has_left_the_group_of_a_process_that_nobody_takes_is_ended_too(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    leaves = (
        "import os, subprocess, sys, time\n"
        "left = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        f"with open({str(note)!r}, 'w') as note: note.write(f'{{left.pid}}.')\n"
        "time.sleep(60)"
    )
    reaper = ProcessReaper()
    try:
        reaper.start_ahead([python(leaves)])
        wait_until(lambda: note.exists() and note.read_text().endswith("."), seconds=5, what="its process")
    finally:
        reaper.close()
    wait_until(lambda: not alive(int(note.read_text()[:-1])), seconds=3, what="the end of what has left")


BEFORE_THE_SDK = """
import asyncio, sys
from mcpgw.backends.reaper import ProcessReaper
from mcpgw.server_definitions import ServerDefinition
from mcpgw.servers import start_ahead
from mcpgw.workers.peers import Peers

class Reaper(ProcessReaper):
    def start_ahead(self, programs):
        super().start_ahead(programs)
        print(*(program.argv[-1] for program, _ in self._ahead), "mcp" in sys.modules)

def named(name, **more):
    args = ("-c", "import time; time.sleep(60)", name)
    command = {"transport": "stdio", "command": sys.executable, "args": args}
    return ServerDefinition(name=name, **(command | more))

async def main():
    reaper = Reaper()
    await start_ahead([], reaper, Peers())
    print("mcp" in sys.modules)
    web = named("web", transport="http", command=None, args=(), url="http://127.0.0.1:1/mcp")
    eager, lazy, off = named("eager"), named("lazy", lazy=True), named("off", enabled=False)
    await start_ahead([web, eager, lazy, off], reaper, Peers())
    print("mcp" in sys.modules)
    reaper.close()

asyncio.run(main())
"""


def test_what_starts_with_the_gateway_is_started_before_the_sdk_is_loaded_and_nothing_else_is() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BEFORE_THE_SDK],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == ["False", "eager False", "True"]
    assert not done.stderr


@pytest.mark.gen_test(timeout=20)
async def test_a_gateway_uses_the_process_that_was_started_ahead(io_loop: IOLoop) -> None:
    reaper, definition = ProcessReaper(), scripted()
    await start_ahead([definition], reaper, Peers())
    [(_, ahead)] = reaper._ahead
    async with running(definition, reaper=reaper) as [backend]:
        assert await pid_of(backend) == ahead.pid
    assert not alive(ahead.pid)


def test_a_child_has_the_variables_that_the_sdk_hands_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("SHELL", "() { :; }")
    monkeypatch.setenv("SECRET", "of the gateway")
    assert inherited_environment() == get_default_environment()
    assert "TERM" in inherited_environment()
