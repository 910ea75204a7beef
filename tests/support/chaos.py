"""What chaos needs: a gateway's processes and what it holds, its events as they come, and its users."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from tornado.httpclient import AsyncHTTPClient

from tests.support.backends import SERVERS
from tests.support.forked import server_command
from tests.support.gateway_process import GatewayProcess
from tests.support.ports import free_port
from tests.support.socket_client import Frame, SocketClient
from tests.support.waiting import until

ALONE = "[memory]\nenabled = false\n"
"""The configuration of a gateway that has no server but those that follow; it starts sooner."""
SOON = 2.0
"""Seconds: 1 is promised, on a machine that does nothing else."""
ENDS = ("tool_response", "error")


@asynccontextmanager
async def connected(gateway: GatewayProcess, user: str = "ann") -> AsyncIterator[SocketClient]:
    """A client of a gateway that has read its status; closed when the block is left, however it is left."""
    client = await SocketClient.connect(gateway.socket_url, token=gateway.token(user))
    try:
        assert (await client.receive())["data"]["authenticated"] is True
        yield client
    finally:
        client.close()


class Watch:
    """The events of channels since they were subscribed to, as they come."""

    def __init__(self) -> None:
        self.events: list[Frame] = []

    def names(self, server: str) -> list[str]:
        """What became of a server, in order: neither its logs nor its faults."""
        names = [event["type"].removeprefix("server.") for event in self.of(server)]
        return [name for name in names if name not in ("log", "error")]

    def of(self, server: str) -> list[Frame]:
        """The events of one server."""
        return [event for event in self.events if event["data"].get("serverId") == server]

    async def until(self, name: str, server: str, *, seconds: float = 10.0, times: int = 1) -> Frame:
        """Wait for an event of a server; answers the first, or as many as `times` says."""

        def found() -> list[Frame]:
            return [event for event in self.of(server) if event["type"] == f"server.{name}"]

        await until(lambda: len(found()) >= times, seconds=seconds, what=f"{name} of {server}")
        return found()[times - 1]

    async def told(self, name: str, *, seconds: float = 10.0, times: int = 1) -> Frame:
        """Wait for an event by its whole name, such as ``config.error``."""

        def found() -> list[Frame]:
            return [event for event in self.events if event["type"] == name]

        await until(lambda: len(found()) >= times, seconds=seconds, what=name)
        return found()[times - 1]


@asynccontextmanager
async def watching(gateway: GatewayProcess, *channels: str) -> AsyncIterator[Watch]:
    """The events of ``servers``, or of `channels`, while the block runs."""
    watch = Watch()
    async with connected(gateway, "watcher") as client:
        for channel in channels or ("servers",):
            answer = await client.request({"type": "subscribe", "id": "s", "data": {"channel": channel}})
            assert answer["type"] == "subscribed", answer

        async def read() -> None:
            while True:
                event = await client.receive(seconds=3600)
                # The state that a subscription begins with is no news.
                if int(event["id"].rpartition("-")[2]) > answer["data"]["offset"]:
                    watch.events.append(event)

        reading = asyncio.create_task(read())
        try:
            yield watch
            assert not reading.done(), reading.exception()
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError, AssertionError):
                await reading


class Gateway(Protocol):
    """What has servers and gives tokens."""

    @property
    def url(self) -> str:
        """Its address."""

    def token(self, user: str = ...) -> str:
        """A token."""


async def servers_of(gateway: Gateway) -> dict[str, dict[str, Any]]:
    """The servers by their ids, as ``GET /api/v1/servers`` has them."""
    headers = {"Authorization": f"Bearer {gateway.token('operator')}"}
    answer = await AsyncHTTPClient().fetch(f"{gateway.url}/api/v1/servers", headers=headers)
    return {server["id"]: server for server in json.loads(answer.body)["servers"]}


async def state_of(gateway: Gateway, server: str, state: str, seconds: float = 10.0) -> None:
    """Wait until a server is in a state."""
    async with asyncio.timeout(seconds):
        while (await servers_of(gateway))[server]["state"] != state:
            await asyncio.sleep(0.02)


async def all_ready(gateway: GatewayProcess, *names: str, seconds: float = 15.0) -> None:
    """Wait until servers take calls."""
    async with asyncio.timeout(seconds):
        while True:
            servers = await servers_of(gateway)
            if all(servers[name]["state"] == "ready" for name in names or servers):
                return
            await asyncio.sleep(0.02)


async def text_of(client: SocketClient, server: str, tool: str, params: object = None, **data: Any) -> str:
    """The text of a tool's result."""
    frame = await client.call(server, tool, params, **data)
    assert frame["type"] == "tool_response", frame
    text: str = frame["data"]["content"][0]["text"]
    return text


async def pid_of(client: SocketClient, server: str) -> int:
    """The process id of a scripted server."""
    return int(await text_of(client, server, "pid", call_id=f"pid of {server}"))


async def ends_of(client: SocketClient, *ids: str, seconds: float = 15.0) -> dict[str, Frame]:
    """The end of each call, of which there must be one alone."""
    found: dict[str, Frame] = {}
    async with asyncio.timeout(seconds):
        while found.keys() != set(ids):
            frame = await client.receive(seconds)
            if frame["type"] in ENDS:
                assert frame["id"] not in found, f"a second end: {frame}"
                found[frame["id"]] = frame
    return found


def code_of(frame: Frame) -> str:
    """The code of an error; ``answered`` where it is none."""
    code: str = frame["data"]["code"] if frame["type"] == "error" else "answered"
    return code


def descendants(pid: int) -> set[int]:
    """The process ids of a process's children, and theirs."""
    found: set[int] = set()
    pending = [pid]
    while pending:
        with suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{pending.pop()}/task").iterdir():
                born = set(map(int, (task / "children").read_text().split())) - found
                found |= born
                pending += born
    return found


def running_with(word: str) -> set[int]:
    """The processes whose command line has `word` for an argument."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                if word.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                    found.add(int(folder.name))
    return found


def files_of(pid: int) -> int:
    """How many file descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - the names alone


def memory_of(pid: int) -> int:
    """Resident memory of a process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the process is gone")


async def slowest_while(condition: Callable[[], bool], work: Callable[[], Any]) -> float:
    """Do `work` again and again while `condition()` holds; answers the longest that it took, in seconds."""
    loop = asyncio.get_running_loop()
    slowest = 0.0
    while condition():
        began = loop.time()
        await work()
        slowest = max(slowest, loop.time() - began)
    return slowest


class WebServer:
    """The SDK's server of ``tests/servers/offering_server.py`` over HTTP, on a port that it keeps."""

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self._options = options
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.port}/mcp"

    async def start(self) -> None:
        """Start it; returns when it listens."""
        options = ("--http", "--port", str(self.port), *self._options)
        self._process = process = subprocess.Popen(
            server_command(SERVERS / "offering_server.py", *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        async with asyncio.timeout(20):
            assert await asyncio.to_thread(process.stdout.readline) == f"{self.port}\n"

    async def replace(self) -> None:
        """Have another process take over the port, without a moment in which nobody listens."""
        old = self._process
        await self.start()
        if old is not None:
            _end(old)

    def kill(self) -> None:
        """End it as a disaster does."""
        if self._process is not None:
            _end(self._process)
            self._process = None


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate(timeout=10)


@asynccontextmanager
async def web_server(*options: str) -> AsyncIterator[WebServer]:
    """One that runs while the block does."""
    server = WebServer(*options)
    await server.start()
    try:
        yield server
    finally:
        server.kill()
