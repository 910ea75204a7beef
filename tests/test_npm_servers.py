"""The reference servers of the MCP project, over every transport, through a gateway and its WebSocket."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from tests.conftest import LiveGateway, StartGateway
from tests.support.backends import SERVERS, connected, methods, recorded
from tests.support.gateway_process import wait_until
from tests.support.node import node_22
from tests.support.ports import free_port
from tests.support.socket_client import Frame, SocketClient, tool_call
from tests.support.waiting import until

MODULES = Path(__file__).parent / "node_modules" / "@modelcontextprotocol"
EVERYTHING_TOOLS = {
    "simulate-research-query",
    "echo",
    "get-annotated-message",
    "get-env",
    "get-resource-links",
    "get-resource-reference",
    "get-structured-content",
    "get-sum",
    "get-tiny-image",
    "gzip-file-as-resource",
    "toggle-simulated-logging",
    "toggle-subscriber-updates",
    "trigger-long-running-operation",
}
MEMORY_TOOLS = {
    "create_entities",
    "create_relations",
    "add_observations",
    "delete_entities",
    "delete_observations",
    "delete_relations",
    "read_graph",
    "search_nodes",
    "open_nodes",
}
TRANSPORTS = ["stdio", "http", "sse"]


def script(package: str) -> str:
    """The program of one npm server."""
    path = MODULES / package / "dist" / "index.js"
    assert path.exists(), f"{path} is missing: run `npm ci --prefix tests` (make test does)"
    return str(path)


class HttpServer:
    """``server-everything`` in a process of its own, on a port that it keeps over restarts."""

    def __init__(self, mode: str, output: Path) -> None:
        self.mode = mode
        self.output = output
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/" + ("sse" if self.mode == "sse" else "mcp")

    def start(self) -> "HttpServer":
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [node_22(), script("server-everything"), self.mode],
                env={"PORT": str(self.port)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        wait_until(self._listens, what="listening")
        return self

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.output.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture
def http_server(tmp_path: Path) -> Iterator[Callable[[str], HttpServer]]:
    """Starts ``server-everything`` in a mode of its own."""
    servers: list[HttpServer] = []

    def start(mode: str) -> HttpServer:
        servers.append(HttpServer(mode, tmp_path / f"{mode}.txt"))
        return servers[-1].start()

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def everything(http_server: Callable[[str], HttpServer], tmp_path: Path) -> Callable[[str], str]:
    """The configuration of ``server-everything`` over one transport; over stdio its input is recorded."""

    def configuration(transport: str) -> str:
        if transport == "stdio":
            recorder = [str(SERVERS / "recorder.py"), str(tmp_path / "record")]
            arguments = [*recorder, str(node_22()), script("server-everything")]
            table = f"[servers.everything]\ncommand = {sys.executable!r}\nargs = {arguments!r}\n"
            return "[backends]\nstop_timeout = 0.3\n" + table
        server = http_server("sse" if transport == "sse" else "streamableHttp")
        return f"[servers.everything]\nurl = {server.url!r}\ntransport = {transport!r}\n"

    return configuration


async def tool_names(client: SocketClient, server: str) -> set[str]:
    frame = await client.request({"type": "list_tools", "id": "list", "data": {"serverId": server}})
    assert "tools" in frame["data"], frame
    return {tool["name"] for tool in frame["data"]["tools"]}


def result_of(frame: Frame) -> Any:
    assert frame["type"] == "tool_response", frame
    return frame["data"]["result"]


CALLS: dict[str, dict[str, Any]] = {
    "echo": {"message": "hello"},
    "get-annotated-message": {"messageType": "success", "includeImage": True},
    "get-env": {},
    "get-resource-links": {"count": 2},
    "get-resource-reference": {"resourceType": "Text", "resourceId": 1},
    "get-structured-content": {"location": "Chicago"},
    "get-sum": {"a": 2, "b": 3},
    "get-tiny-image": {},
    "gzip-file-as-resource": {
        "name": "x.gz",
        "data": "data:text/plain;base64,aGVsbG8=",
        "outputType": "resource",
    },
    "toggle-simulated-logging": {},
    "toggle-subscriber-updates": {},
    "trigger-long-running-operation": {"duration": 0.1, "steps": 2},
    "simulate-research-query": {"topic": "tea"},
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.gen_test(timeout=40)
async def test_every_tool_is_listed_and_answers_with_what_the_server_sent(
    io_loop: IOLoop, start_gateway: StartGateway, everything: Callable[[str], str], transport: str
) -> None:
    gateway = await start_gateway(everything(transport))
    async with connected(gateway) as client:
        assert await tool_names(client, "everything") == EVERYTHING_TOOLS == CALLS.keys()
        frames = {name: await client.call("everything", name, params) for name, params in CALLS.items()}
        refused = frames.pop(
            "simulate-research-query"
        )  # it runs as a task alone, which a call does not ask for
        assert refused["data"]["isError"] is True
        assert "requires task augmentation" in result_of(refused)
        assert all(frame["data"]["success"] for frame in frames.values()), frames
        assert result_of(frames["echo"]) == "Echo: hello"
        assert "5" in result_of(frames["get-sum"])
        assert set(frames["get-structured-content"]["data"]["structuredContent"]) == {
            "temperature",
            "conditions",
            "humidity",
        }
        _, image, _ = frames["get-tiny-image"]["data"]["content"]
        assert image["type"] == "image"
        assert image["mimeType"] == "image/png"
        assert image["data"].startswith("iVBORw0KGgo")
        intro, *links = frames["get-resource-links"]["data"]["content"]
        assert intro["type"] == "text"
        assert [link["type"] for link in links] == ["resource_link"] * 2
        assert all({"uri", "name", "description", "mimeType"} <= link.keys() for link in links)
        text, second_image = frames["get-annotated-message"]["data"]["content"]
        assert text["annotations"] == {"priority": 0.7, "audience": ["user"]}
        assert second_image["annotations"]["audience"] == ["user"]
        kinds = [block["type"] for block in frames["get-resource-reference"]["data"]["content"]]
        assert "resource" in kinds


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.gen_test(timeout=40)
async def test_a_long_operation_streams_progress_in_order_before_its_response(
    io_loop: IOLoop, start_gateway: StartGateway, everything: Callable[[str], str], transport: str
) -> None:
    gateway = await start_gateway(everything(transport))
    async with connected(gateway) as client:
        params = {"duration": 0.4, "steps": 8}
        await client.send(tool_call("everything", "trigger-long-running-operation", params))
        frames = [await client.receive() for _ in range(9)]
        assert [frame["type"] for frame in frames] == ["tool_progress"] * 8 + ["tool_response"]
        assert [frame["data"]["progress"] for frame in frames[:8]] == list(range(1, 9))
        assert {frame["data"]["total"] for frame in frames[:8]} == {8}
        assert {frame["id"] for frame in frames} == {"call-1"}


async def cancelled_call(gateway: LiveGateway, client: SocketClient) -> None:
    params = {"duration": 60, "steps": 600}
    await client.send(tool_call("everything", "trigger-long-running-operation", params))
    assert (await client.receive())["type"] == "tool_progress"
    await client.send({"type": "cancel", "id": "call-1", "data": {}})
    end = await client.end_of("call-1", seconds=2)
    assert end["data"]["code"] == "cancelled"
    assert result_of(await client.call("everything", "echo", {"message": "on"}, call_id="2")) == "Echo: on"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.gen_test(timeout=40)
async def test_a_cancelled_operation_is_told_to_the_server(
    io_loop: IOLoop,
    start_gateway: StartGateway,
    everything: Callable[[str], str],
    tmp_path: Path,
    transport: str,
) -> None:
    gateway = await start_gateway(everything(transport))
    async with connected(gateway) as client:
        await cancelled_call(gateway, client)
        if (
            transport == "stdio"
        ):  # what crosses the pipe is seen; HTTP is looked at in tests/backends/test_http.py
            record = tmp_path / "record"
            await until(lambda: "notifications/cancelled" in methods(recorded(record)), seconds=1.5)
            messages = recorded(record)
            [told] = [message for message in messages if message["method"] == "notifications/cancelled"]
            sent = [message for message in messages if message["method"] == "tools/call"]
            assert told["params"]["requestId"] == sent[0]["id"]


@pytest.mark.parametrize("mode", ["http", "sse"])
@pytest.mark.gen_test(timeout=40)
async def test_calls_work_again_after_the_http_server_was_restarted(
    io_loop: IOLoop, start_gateway: StartGateway, http_server: Callable[[str], HttpServer], mode: str
) -> None:
    server = http_server("sse" if mode == "sse" else "streamableHttp")
    text = f"[servers.everything]\nurl = {server.url!r}\ntransport = {mode!r}\n"
    gateway = await start_gateway(
        text, settings={"backends.retry_initial": 0.05, "backends.retry_maximum": 0.5}
    )
    async with connected(gateway) as client:
        params = {"duration": 60, "steps": 600}
        await client.send(tool_call("everything", "trigger-long-running-operation", params))
        assert (await client.receive())["type"] == "tool_progress"
        await asyncio.to_thread(server.stop)
        end = await client.end_of("call-1")
        assert end["data"]["code"] == "outcome_unknown"
        await asyncio.to_thread(server.start)
        for attempt in range(200):
            frame = await client.call("everything", "echo", {"message": "again"}, call_id=f"again-{attempt}")
            if frame["type"] == "tool_response":
                break
            assert frame["data"]["code"] == "server_unavailable", frame
            await asyncio.sleep(0.05)
        assert result_of(frame) == "Echo: again"


@pytest.mark.gen_test(timeout=40)
async def test_the_memory_server_of_npm_remembers(
    io_loop: IOLoop, start_gateway: StartGateway, tmp_path: Path
) -> None:
    arguments = [script("server-memory")]
    gateway = await start_gateway(
        f"[servers.graph]\ncommand = {str(node_22())!r}\nargs = {arguments!r}\n"
        f"[servers.graph.env]\nMEMORY_FILE_PATH = {str(tmp_path / 'graph.json')!r}\n"
    )
    async with connected(gateway) as client:
        assert await tool_names(client, "graph") == MEMORY_TOOLS
        ann = {"name": "Ann", "entityType": "person", "observations": ["likes tea"]}
        bob = {"name": "Bob", "entityType": "person", "observations": []}
        relation = {"from": "Ann", "to": "Bob", "relationType": "knows"}
        more = {"entityName": "Bob", "contents": ["rows"]}
        less = {"entityName": "Ann", "observations": ["likes tea"]}
        calls: list[tuple[str, dict[str, Any]]] = [
            ("create_entities", {"entities": [ann, bob]}),
            ("create_relations", {"relations": [relation]}),
            ("add_observations", {"observations": [more]}),
            ("search_nodes", {"query": "tea"}),
            ("open_nodes", {"names": ["Bob"]}),
            ("delete_observations", {"deletions": [less]}),
            ("delete_relations", {"relations": [relation]}),
            ("delete_entities", {"entityNames": ["Ann"]}),
            ("read_graph", {}),
        ]
        assert {name for name, _ in calls} == MEMORY_TOOLS
        for name, params in calls:
            frame = await client.call("graph", name, params, call_id=name)
            assert frame["data"]["success"] is True, frame
        assert result_of(frame)["entities"] == [{**bob, "observations": ["rows"]}]
