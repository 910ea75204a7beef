"""``mcpgw stdio``: the gateway as a server that a desktop client starts as a command."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import pytest
from mcp.client import Client, ClientRequestContext
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage

from mcpgw.cli import stdio_bridge
from mcpgw.cli.connection import Connection
from tests.support.conformance import stdio_table
from tests.support.forked import gateway_command
from tests.support.gateway_process import GatewayProcess
from tests.support.mcp_door import ERAS, Era
from tests.support.waiting import until

START = {"configuration": stdio_table("one"), "arguments": ["--memory-enabled", "false"]}


def clean_environment(**more: str) -> dict[str, str]:
    """This environment without what would tell the command where the gateway is."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MCPGW_")} | more


@asynccontextmanager
async def desktop_client(
    folder: Path, *options: str, mode: Era = "auto", **environment: str
) -> AsyncIterator[Client]:
    """A client that has started the command for the gateway of a data folder."""

    async def answer(context: ClientRequestContext, params: types.ElicitRequestParams) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"response": "yes"})

    command, *arguments = gateway_command("stdio", "--data-dir", str(folder / "data"), *options)
    parameters = StdioServerParameters(command=command, args=arguments, env=clean_environment(**environment))
    with (folder / "stderr").open("w") as errors:
        transport = stdio_client(parameters, errlog=errors)
        async with Client(transport, mode=mode, elicitation_callback=answer, cache=None) as client:
            yield client


def words_of(result: types.CallToolResult) -> str:
    """The text of a result."""
    (block,) = result.content
    assert isinstance(block, types.TextContent)
    return block.text


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.gen_test(timeout=60)
async def test_everything_goes_through_in_either_era(
    gateway_process: Callable[..., GatewayProcess], mode: Era
) -> None:
    gateway = gateway_process(**START)
    steps: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    async with desktop_client(gateway.folder, mode=mode) as client:
        assert "one__test_simple_text" in {tool.name for tool in (await client.list_tools()).tools}
        await client.call_tool("one__test_tool_with_progress", {}, progress_callback=on_progress)
        assert steps == [0, 50, 100]
        asked = await client.call_tool("one__test_elicitation", {"message": "Go on?"})
        assert 'action=accept, content={"response": "yes"}' in words_of(asked)
        # Its argument goes as a header too, from 2026-07-28 on.
        assert words_of(await client.call_tool("one__test_custom_header", {"region": "eu"})) == "eu"
        assert (await client.read_resource("test://static-text")).contents
        assert (await client.get_prompt("one__test_simple_prompt")).messages
        with pytest.raises(MCPError, match="there is no tool 'none'") as unknown:
            await client.call_tool("none", {})
        assert unknown.value.data["code"] == "invalid_params"


@pytest.mark.gen_test(timeout=60)
async def test_arguments_that_are_headers_are_learnt_by_themselves(
    gateway_process: Callable[..., GatewayProcess],
) -> None:
    gateway = gateway_process(**START)
    request: dict[str, Any] = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {
            "name": "one__test_custom_header",
            "arguments": {"region": "eu"},
            "_meta": {
                types.PROTOCOL_VERSION_META_KEY: "2026-07-28",
                types.CLIENT_CAPABILITIES_META_KEY: {},
            },
        },
    }
    process = await asyncio.create_subprocess_exec(
        *gateway_command("stdio", "--data-dir", str(gateway.data_dir)),
        env=clean_environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"no JSON\n" + json.dumps(request).encode() + b"\n")
    refused, answered = [json.loads(await process.stdout.readline()) for _ in range(2)]
    assert refused["error"]["code"] == types.PARSE_ERROR
    assert answered["result"]["content"] == [{"type": "text", "text": "eu"}]
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 10) == 0


@pytest.mark.gen_test(timeout=60)
async def test_one_server_is_there_alone(gateway_process: Callable[..., GatewayProcess]) -> None:
    gateway = gateway_process(**START)
    async with desktop_client(gateway.folder, "--server", "one") as client:
        assert "test_simple_text" in {tool.name for tool in (await client.list_tools()).tools}
        assert client.server_info is not None
        assert client.server_info.name == "conformance"


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.gen_test(timeout=60)
async def test_a_gateway_that_is_started_again_is_found_again(tmp_path: Path, mode: Era) -> None:
    record = tmp_path / "record"
    record.touch()
    configuration = stdio_table("one", "--record", str(record))

    def start() -> GatewayProcess:
        return GatewayProcess(tmp_path, configuration=configuration, arguments=["--memory-enabled", "false"])

    gateway = start().wait_listening()
    async with desktop_client(tmp_path, mode=mode) as client:
        open_call = asyncio.create_task(client.call_tool("one__test_wait", {}))
        await until(lambda: "begun" in record.read_text(), what="the call")
        gateway.kill()
        with pytest.raises(MCPError):  # it may have run, and is not run again
            await asyncio.wait_for(open_call, 10)
        late_call = asyncio.create_task(client.call_tool("one__test_simple_text", {}))
        again = start()
        try:
            await asyncio.to_thread(again.wait_listening)
            # It has waited for the gateway; the server behind may need a moment more.
            with suppress(MCPError):
                await asyncio.wait_for(late_call, 20)
            assert not (await client.call_tool("one__test_simple_text", {})).is_error
            assert record.read_text().count("begun") == 1
        finally:
            assert again.terminate() == 0


@pytest.mark.gen_test(timeout=60)
async def test_a_token_of_a_file_is_shown_and_decides(
    gateway_process: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    gateway = gateway_process(**START)
    token_file = tmp_path / "token"
    token_file.write_text(gateway.token(scopes=["tools:call:one/test_simple_text"]) + "\n")
    options = ("--url", gateway.url, "--token-file", str(token_file))
    async with desktop_client(gateway.folder, *options) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["one__test_simple_text"]


def message(method: str, params: dict[str, Any], number: int | None) -> bytes:
    """A line of the revision 2026-07-28; a notification without a `number`."""
    meta = {types.PROTOCOL_VERSION_META_KEY: "2026-07-28", types.CLIENT_CAPABILITIES_META_KEY: {}}
    line: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params | {"_meta": meta}}
    return json.dumps(line if number is None else line | {"id": number}).encode() + b"\n"


def test_what_was_asked_before_the_end_of_stdin_is_answered(
    gateway_process: Callable[..., GatewayProcess],
) -> None:
    gateway = gateway_process(**START)
    listening = message("subscriptions/listen", {"notifications": {"toolsListChanged": True}}, 99)
    asked = [message("tools/call", {"name": "one__test_simple_text"}, number) for number in range(5)]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mcpgw", "stdio", "--data-dir", str(gateway.data_dir)],
        env=clean_environment(),
        input=listening + b"".join(asked),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["id"] for one in answers if "result" in one} >= set(range(5)), answers


@pytest.mark.gen_test(timeout=60)
async def test_what_waits_for_a_gateway_that_is_gone_is_given_up_and_keeps_nothing_back(
    gateway_process: Callable[..., GatewayProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio_bridge, "_PATIENCE_SECONDS", 1.0)
    gateway = gateway_process(**START)

    def find() -> Connection:
        return Connection(gateway.url, gateway.token())

    to_bridge, from_client = anyio.create_memory_object_stream[Any](0)
    to_client, answers = anyio.create_memory_object_stream[Any](100)
    running = asyncio.create_task(stdio_bridge.Bridge(find, None, to_client).run(from_client))
    try:
        async with asyncio.timeout(20), to_client, answers:

            async def say(line: bytes) -> None:
                parsed = types.jsonrpc_message_adapter.validate_json(line)
                await to_bridge.send(SessionMessage(parsed))

            async def ask(number: int) -> Any:
                await say(message("tools/call", {"name": "one__test_simple_text"}, number))
                return (await answers.receive()).message

            assert isinstance(await ask(1), types.JSONRPCResponse)
            gateway.kill()
            assert isinstance(await ask(2), types.JSONRPCError)  # finds out that it is gone
            for number in range(3, 40):  # none of these keeps the reader from reading on
                await say(message("tools/call", {"name": "one__test_simple_text"}, number))
                await say(message("notifications/cancelled", {"requestId": number}, None))
            late = await ask(40)
            assert isinstance(late, types.JSONRPCError)
            assert late.id == 40
            await to_bridge.aclose()
            await running
    finally:
        running.cancel()


def test_what_is_wrong_with_the_command_is_said_on_stderr(tmp_path: Path) -> None:
    for options, words in (
        (["--server", "no name"], "is no server's name"),
        (["--token-file", str(tmp_path / "none")], "cannot read the token file"),
        (["--data-dir", str(tmp_path)], "no gateway runs on"),
    ):
        done = subprocess.run(
            gateway_command("stdio", *options),
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert words in done.stderr
        assert done.stdout == ""
        assert done.returncode in (2, 3)
