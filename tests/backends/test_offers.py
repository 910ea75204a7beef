"""Everything that MCP offers beside calls of tools: in both protocol eras, over stdio and over HTTP."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from tornado.ioloop import IOLoop

from mcpgw.backends import mcp_requests
from mcpgw.backends.requests import Asker, InputAnswer, InputRequest
from mcpgw.backends.server import Server
from mcpgw.errors import InvalidParams, ToolExecutionError
from mcpgw.server_definitions import ServerDefinition
from tests.servers.offering_server import PIXEL, QUESTIONS, RICH
from tests.support.backends import SERVERS, Announced, Heard, serving, text_of, use
from tests.support.forked import server_command
from tests.support.waiting import until

ANN = Asker("ann", "connection of ann")
WAYS = pytest.mark.parametrize(
    "way", ["stdio 2025-11-25", "stdio 2026-07-28", "http 2025-11-25", "http 2026-07-28"]
)


@asynccontextmanager
async def offering(
    way: str, record: Path, announced: Announced | None = None, **changes: Any
) -> AsyncIterator[Server]:
    """The offering server, reached in one way."""
    transport, era = way.split()
    options = ["--record", str(record)]
    options += ["--handshake"] if era < "2026" else []
    options += ["--http"] if transport == "http" else []
    command, *arguments = server_command(SERVERS / "offering_server.py", *options)
    if transport == "stdio":
        definition = ServerDefinition("offering", "stdio", command=command, args=tuple(arguments))
        async with serving(definition, announced=announced, **changes) as server:
            assert server.status.protocol_version == era
            yield server
        return
    with subprocess.Popen([command, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            port = int(await asyncio.to_thread(process.stdout.readline))
            definition = ServerDefinition("offering", "http", url=f"http://127.0.0.1:{port}/mcp")
            async with serving(definition, announced=announced, **changes) as server:
                assert server.status.protocol_version == era
                yield server
        finally:
            process.kill()


def answering(*answers: InputAnswer) -> Heard:
    """A caller that gives these answers, one after the other."""
    left = list(answers)

    async def answer(_request: InputRequest) -> InputAnswer:
        return left.pop(0)

    return Heard(answer=answer)


@WAYS
@pytest.mark.gen_test(timeout=40)
async def test_what_a_server_offers_is_listed_kept_and_passed_on_unharmed(
    io_loop: IOLoop, tmp_path: Path, way: str
) -> None:
    record, announced = tmp_path / "record", Announced()
    async with offering(way, record, announced) as server:
        assert server.offer is not None
        assert server.offer.instructions == "Ask me anything."
        assert {"resources", "prompts", "completions"} <= server.offer.capabilities.keys()

        listed = await server.list(ANN, "resources")
        assert [one["uri"] for one in listed] == ["note:one", "note:two"]
        assert listed[1]["_meta"] == {"example.org/kept": 1}
        assert await server.list(ANN, "resources") == listed
        assert record.read_text().count("resources listed") == 2, "two pages, once"
        assert (await server.list(ANN, "templates"))[0]["uriTemplate"] == "note:{name}"
        assert [one["name"] for one in await server.list(ANN, "prompts")] == ["greet"]

        read = await server.request(ANN, mcp_requests.read_resource("note:one", None), observer=Heard())
        assert read["contents"] == [
            {"uri": "note:one", "mimeType": "text/plain", "text": "first"},
            {"uri": "note:one", "mimeType": "image/png", "blob": PIXEL},
        ]
        with pytest.raises(ToolExecutionError, match="Resource not found") as refused:
            await server.request(ANN, mcp_requests.read_resource("note:none", None), observer=Heard())
        assert refused.value.details["code"] == -32002
        assert refused.value.details["data"] == {"uri": "note:none"}

        got = await server.request(
            ANN, mcp_requests.get_prompt("greet", {"who": "world"}, None), observer=Heard()
        )
        assert got["messages"] == [{"role": "user", "content": {"type": "text", "text": "Hello world"}}]
        completing = mcp_requests.complete(
            {"type": "ref/prompt", "name": "greet"}, {"name": "who", "value": "x"}, {"arguments": {"c": "1"}}
        )
        completed = await server.request(ANN, completing, observer=Heard())
        assert completed["completion"] == {"values": ["xa", "xb", "c"], "total": 3}

        rich = (await use(server, "rich")).raw
        assert (rich["content"], rich["structuredContent"]) == (RICH["content"], RICH["structuredContent"])
        assert rich["_meta"]["example.org/trace"] == "kept"
        tool = server.tools["meta"]
        meta = {"example.org/a": 1, "progressToken": "mine", "io.modelcontextprotocol/protocolVersion": "x"}
        handed_on = await server.call_tool(ANN, tool, {}, observer=Heard(), meta=meta)
        assert "example.org/a" in json.loads(text_of(handed_on))

        await use(server, "grow")
        await until(lambda: {"resources_changed", "prompts_changed"} <= set(announced.names()), seconds=5)
        assert len(await server.list(ANN, "resources")) == 3
        assert [one["name"] for one in await server.list(ANN, "prompts")] == ["greet", "part"]


@pytest.mark.parametrize("way", ["stdio 2026-07-28", "http 2026-07-28"])
@pytest.mark.gen_test(timeout=40)
async def test_what_one_caller_says_of_a_request_goes_with_no_other(
    io_loop: IOLoop, tmp_path: Path, way: str
) -> None:
    async with offering(way, tmp_path / "record") as server:
        before = text_of(await use(server, "log_level"))
        meta = {types.LOG_LEVEL_META_KEY: "debug"}
        reading = mcp_requests.read_resource("note:one", meta)
        await server.request(ANN, reading, observer=Heard())
        tool = server.tools["log_level"]
        own = text_of(await server.call_tool(ANN, tool, {}, observer=Heard(), meta=meta))
        assert own == "debug"
        assert text_of(await use(server, "log_level", user="bob")) == before != "debug"


@WAYS
@pytest.mark.gen_test(timeout=40)
async def test_a_watched_resource_tells_of_its_changes_until_nobody_watches(
    io_loop: IOLoop, tmp_path: Path, way: str
) -> None:
    announced, bob = Announced(), Asker("bob", "connection of bob")

    def updates() -> list[Any]:
        return [data["uri"] for name, data, _ in announced.entries if name == "resource_updated"]

    async def touch_until_told(count: int) -> None:
        # A stream that was just asked for takes a moment to be there.
        async with asyncio.timeout(10):
            while len(updates()) < count:
                await use(server, "touch", {"uri": "note:one"})
                await asyncio.sleep(0.1)

    async with offering(way, tmp_path / "record", announced) as server:
        for asker in (ANN, ANN, bob):
            await server.watch_resource(asker, "note:one")
        await touch_until_told(1)
        await server.unwatch_resource(ANN, "note:one")
        await touch_until_told(len(updates()) + 1)
        server.connection_ended(bob.connection)
        await until(lambda: not any(one.backend.resources.uris for one in server._instances))
        if way.endswith("2026-07-28"):
            known = len(updates())
            async with asyncio.timeout(5):
                while True:
                    await use(server, "touch", {"uri": "note:one"})
                    await asyncio.sleep(0.1)
                    if len(updates()) == known:
                        break
                    known = len(updates())
        assert set(updates()) == {"note:one"}


@WAYS
@pytest.mark.gen_test(timeout=40)
async def test_what_a_server_asks_reaches_the_caller_of_that_very_call(
    io_loop: IOLoop, tmp_path: Path, way: str
) -> None:
    async with offering(way, tmp_path / "record") as server:
        waiting = [asyncio.create_task(use(server, "wait", user=user)) for user in ("ann", "bob")]
        # Over stdio, in the handshake revisions, it could be anybody's while others' calls are open.
        if way == "stdio 2025-11-25":
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            server._instances.find(ANN).backend._connection._abandoned.clear()  # type: ignore[union-attr]
        heard = answering(InputAnswer("accept", {"name": "Ann"}))
        assert json.loads(text_of(await use(server, "elicit", heard=heard))) == {
            "action": "accept",
            "content": {"name": "Ann"},
        }
        [asked] = heard.asked
        assert (asked.kind, asked.message) == ("elicitation", "Who?")
        assert asked.params["requestedSchema"] == QUESTIONS["elicit"]["params"]["requestedSchema"]

        declined = answering(InputAnswer("decline"))
        assert json.loads(text_of(await use(server, "elicit", heard=declined)))["action"] == "decline"

        said = {"role": "assistant", "content": {"type": "text", "text": "something"}, "model": "m"}
        heard = answering(InputAnswer("accept", said))
        sampled = json.loads(text_of(await use(server, "sample", heard=heard)))
        assert {name: sampled[name] for name in said} == said
        assert heard.asked[0].params["maxTokens"] == 10

        roots = {"roots": [{"uri": "file:///home/ann", "name": "home"}]}
        heard = answering(InputAnswer("accept", roots))
        assert json.loads(text_of(await use(server, "roots", heard=heard)))["roots"] == roots["roots"]

        for refusing in (InputAnswer("decline"), InputAnswer("accept", {"no": "message"})):
            if way.endswith("2026-07-28"):
                with pytest.raises(ToolExecutionError, match=r"refused|not usable"):
                    await use(server, "sample", heard=answering(refusing))
            else:
                assert "refused: " in text_of(await use(server, "sample", heard=answering(refusing)))

        prompt = mcp_requests.get_prompt("asked", None, None)
        heard = answering(InputAnswer("accept", {"name": "Ann"}))
        got = await server.request(ANN, prompt, observer=heard)
        assert json.loads(got["messages"][0]["content"]["text"])["content"] == {"name": "Ann"}
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


@WAYS
@pytest.mark.gen_test(timeout=40)
async def test_a_question_ends_with_its_call(io_loop: IOLoop, tmp_path: Path, way: str) -> None:
    ended = asyncio.Event()

    async def never(_request: InputRequest) -> InputAnswer:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with offering(way, tmp_path / "record") as server:
        heard = Heard(answer=never)
        asking = asyncio.create_task(use(server, "elicit", heard=heard))
        await until(lambda: heard.asked)
        asking.cancel()
        async with asyncio.timeout(2):
            await ended.wait()
        await use(server, "rich")


@WAYS
@pytest.mark.gen_test(timeout=40)
async def test_a_call_that_is_given_up_is_cancelled_at_the_server(
    io_loop: IOLoop, tmp_path: Path, way: str
) -> None:
    record = tmp_path / "record"
    async with offering(way, record) as server:
        waiting = asyncio.create_task(use(server, "wait"))
        await until(lambda: record.exists() and "begun" in record.read_text())
        waiting.cancel()
        await until(lambda: "cancelled" in record.read_text(), seconds=1.5)
        await use(server, "rich")


@pytest.mark.gen_test(timeout=40)
async def test_a_server_that_asks_without_end_is_stopped_asking(io_loop: IOLoop, tmp_path: Path) -> None:
    async with offering("stdio 2026-07-28", tmp_path / "record") as server:
        heard = answering(*[InputAnswer("accept", {"name": "Ann"})] * 20)
        with pytest.raises(ToolExecutionError, match="asked for input more than 10 times"):
            await use(server, "ask_on_and_on", heard=heard)
        assert len(heard.asked) == 10


def test_a_completion_that_is_none_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidParams) as refused:
        mcp_requests.complete({"type": "ref/prompt"}, {"name": "a", "value": "secret"}, None)
    assert refused.value.details
    assert "secret" not in str(refused.value.to_data())
