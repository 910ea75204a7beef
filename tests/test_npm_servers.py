"""The reference servers of the MCP project, over every transport, through a gateway and its WebSocket."""

import asyncio
import base64
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
ASKING_TOOLS = {
    "get-roots-list",
    "trigger-elicitation-request",
    "trigger-sampling-request",
    "trigger-url-elicitation",
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


async def received(client: SocketClient) -> Frame:
    """The next frame, but for a question: this server asks in each session for roots, when it likes."""
    while (frame := await client.receive())["type"] == "input_request":
        assert frame["data"]["kind"] == "roots"
    return frame


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
        assert CALLS.keys() == EVERYTHING_TOOLS
        assert await tool_names(client, "everything") == EVERYTHING_TOOLS | ASKING_TOOLS
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


ANSWERS: dict[str, dict[str, Any]] = {
    "elicitation": {"name": "Ann", "check": True},
    "sampling": {"role": "assistant", "content": {"type": "text", "text": "a poem"}, "model": "m"},
    "roots": {"roots": [{"uri": "file:///home/ann", "name": "home of ann"}]},
}


async def answering(client: SocketClient, frame: Frame) -> tuple[dict[str, Frame], Frame]:
    """Send a request and answer what is asked meanwhile; the questions by their kind, and what ends it.

    This server asks once in each session for the roots, at a moment of its own.
    """
    asked: dict[str, Frame] = {}
    await client.send(frame)
    while (answer := await client.receive(seconds=15))["type"] in ("input_request", "tool_log"):
        assert answer["id"] == frame["id"]
        if answer["type"] == "input_request":
            question = answer["data"]
            asked[question["kind"]] = question
            content = ANSWERS[question["kind"]]
            data = {"requestId": question["requestId"], "action": "accept", "content": content}
            await client.send({"type": "input_response", "id": frame["id"], "data": data})
    return asked, answer


async def call_answering(
    client: SocketClient, tool: str, params: dict[str, Any]
) -> tuple[dict[str, Frame], str]:
    """What a tool asks for, and what it says when that was answered."""
    asked, end = await answering(client, tool_call("everything", tool, params))
    assert (end["type"], end["data"].get("success")) == ("tool_response", True), end
    return asked, "\n".join(block["text"] for block in end["data"]["content"])


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.gen_test(timeout=40)
async def test_what_the_server_asks_is_answered_on_the_socket_of_the_call(
    io_loop: IOLoop, start_gateway: StartGateway, everything: Callable[[str], str], transport: str
) -> None:
    gateway = await start_gateway(everything(transport))
    async with connected(gateway) as client:
        asked, text = await call_answering(client, "trigger-elicitation-request", {})
        assert "name" in asked["elicitation"]["schema"]["properties"]
        assert "- Name: Ann" in text
        sampling = {"prompt": "write", "maxTokens": 20}
        asked, text = await call_answering(client, "trigger-sampling-request", sampling)
        assert asked["sampling"]["params"]["maxTokens"] == 20
        assert "a poem" in text
        _, text = await call_answering(client, "get-roots-list", {})
        assert "file:///home/ann" in text


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.gen_test(timeout=40)
async def test_resources_prompts_and_completions_come_as_the_server_has_them(
    io_loop: IOLoop, start_gateway: StartGateway, everything: Callable[[str], str], transport: str
) -> None:
    gateway = await start_gateway(everything(transport))
    async with connected(gateway) as client:

        async def ask(frame_type: str, **data: Any) -> dict[str, Any]:
            body = {"serverId": "everything", **data}
            _, frame = await answering(client, {"type": frame_type, "id": "ask", "data": body})
            assert frame["type"] != "error", frame
            answer: dict[str, Any] = frame["data"]
            return answer

        listed = await ask("list_resources")
        assert len(listed["resources"]) == 7
        assert {one["uriTemplate"] for one in listed["resourceTemplates"]} == {
            "demo://resource/dynamic/text/{resourceId}",
            "demo://resource/dynamic/blob/{resourceId}",
        }
        [text] = (await ask("read_resource", uri=listed["resources"][0]["uri"]))["contents"]
        assert (text["mimeType"], bool(text["text"])) == ("text/markdown", True)
        [blob] = (await ask("read_resource", uri="demo://resource/dynamic/blob/2"))["contents"]
        assert base64.b64decode(blob["blob"], validate=True).startswith(b"Resource 2:")
        names = [prompt["name"] for prompt in (await ask("list_prompts"))["prompts"]]
        assert names == ["simple-prompt", "args-prompt", "completable-prompt", "resource-prompt"]
        prompt = await ask("get_prompt", name="args-prompt", arguments={"city": "Rome"})
        assert prompt["messages"][0]["content"]["text"] == "What's weather in Rome?"
        found = await ask(
            "complete",
            ref={"type": "ref/prompt", "name": "completable-prompt"},
            argument={"name": "department", "value": "E"},
        )
        assert found["values"] == ["Engineering"]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.gen_test(timeout=40)
async def test_a_long_operation_streams_progress_in_order_before_its_response(
    io_loop: IOLoop, start_gateway: StartGateway, everything: Callable[[str], str], transport: str
) -> None:
    gateway = await start_gateway(everything(transport))
    async with connected(gateway) as client:
        params = {"duration": 0.4, "steps": 8}
        await client.send(tool_call("everything", "trigger-long-running-operation", params))
        frames = [await received(client) for _ in range(9)]
        assert [frame["type"] for frame in frames] == ["tool_progress"] * 8 + ["tool_response"]
        assert [frame["data"]["progress"] for frame in frames[:8]] == list(range(1, 9))
        assert {frame["data"]["total"] for frame in frames[:8]} == {8}
        assert {frame["id"] for frame in frames} == {"call-1"}


async def cancelled_call(gateway: LiveGateway, client: SocketClient) -> None:
    params = {"duration": 60, "steps": 600}
    await client.send(tool_call("everything", "trigger-long-running-operation", params))
    assert (await received(client))["type"] == "tool_progress"
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
        assert (await received(client))["type"] == "tool_progress"
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


@pytest.mark.gen_test(timeout=40)
async def test_the_filesystem_server_of_npm_reads_and_writes_its_folder_and_no_other(
    io_loop: IOLoop, start_gateway: StartGateway, tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    (tmp_path / "private.txt").write_text("secret")
    arguments = [script("server-filesystem"), str(folder)]
    gateway = await start_gateway(f"[servers.files]\ncommand = {str(node_22())!r}\nargs = {arguments!r}\n")
    async with connected(gateway) as client:
        assert await tool_names(client, "files") >= {
            "read_text_file",
            "write_file",
            "edit_file",
            "list_directory",
        }
        file = str(folder / "note.txt")
        written = await client.call("files", "write_file", {"path": file, "content": "grün\n"})
        assert written["data"]["success"] is True
        assert (folder / "note.txt").read_text("utf-8") == "grün\n"
        edit = {"oldText": "grün", "newText": "blau"}
        assert result_of(await client.call("files", "edit_file", {"path": file, "edits": [edit]}))
        read = await client.call("files", "read_text_file", {"path": file})
        assert read["data"]["structuredContent"] == {"content": "blau\n"}
        listed = await client.call("files", "list_directory", {"path": str(folder)})
        assert result_of(listed) == {"content": "[FILE] note.txt"}
        refused = await client.call("files", "read_text_file", {"path": str(tmp_path / "private.txt")})
        assert (refused["data"]["success"], refused["data"]["isError"]) == (False, True)
        assert "secret" not in str(refused)
