"""The memory MCP server: real processes, spoken to by the SDK's client over stdio."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import IO, Any

import anyio
import pytest
from jsonschema import Draft202012Validator
from mcp import Client, StdioServerParameters, stdio_client
from mcp.client.client import ConnectMode
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolResult, TextContent, TextResourceContents

import mcpgw
from mcpgw.backends.memory import DATABASE_VARIABLE, READS_AT_ONCE, database_path
from tests.support.forked import memory_command

ROOT = Path(mcpgw.__file__).parent.parent
COMMAND = [sys.executable, "-m", "mcpgw.backends.memory"]
TOOLS = ["memory_save", "memory_search", "memory_list", "memory_get", "memory_delete", "memory_projects"]
ERAS: list[tuple[ConnectMode, str]] = [("auto", "2026-07-28"), ("legacy", "2025-11-25")]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@asynccontextmanager
async def memory_server(
    database: Path, *options: str, mode: ConnectMode = "auto", errors: IO[str] | None = None
) -> AsyncIterator[Client]:
    command, *arguments = memory_command("--database", str(database), *options)
    parameters = StdioServerParameters(command=command, args=arguments, cwd=ROOT)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - what must be silent is tested with a file
        transport = stdio_client(parameters, errlog=errors or nowhere)  # type: ignore[arg-type]
        async with Client(transport, mode=mode, read_timeout_seconds=15) as client:
            yield client


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert json.loads(text_of(result)) == result.structured_content
    assert isinstance(result.structured_content, dict)
    return result.structured_content


async def refusal(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert result.structured_content is None
    return text_of(result)


def text_of(result: CallToolResult) -> str:
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


def saved_contents(database: Path) -> set[str]:
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.execute("INSERT INTO memory_words (memory_words) VALUES ('integrity-check')")
        (indexed,) = connection.execute("SELECT count(*) FROM memory_words").fetchone()
        contents = [row[0] for row in connection.execute("SELECT content FROM memories")]
        assert len(contents) == indexed
        return set(contents)


@pytest.mark.parametrize(("mode", "version"), ERAS)
@pytest.mark.gen_test(timeout=30)
async def test_every_tool_answers_by_its_listed_schema_in_both_eras(
    database: Path, mode: ConnectMode, version: str
) -> None:
    async with memory_server(database, mode=mode) as client:
        assert client.protocol_version == version
        assert client.server_info is not None
        assert (client.server_info.name, client.server_info.version) == ("memory", mcpgw.__version__)
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert list(tools) == TOOLS
        schemas = {}
        for name, tool in tools.items():
            assert tool.title
            assert tool.description
            assert tool.annotations is not None
            assert tool.annotations.open_world_hint is False
            assert tool.input_schema["additionalProperties"] is False
            assert all(property_.get("description") for property_ in tool.input_schema["properties"].values())
            assert tool.output_schema is not None
            Draft202012Validator.check_schema(tool.input_schema)
            Draft202012Validator.check_schema(tool.output_schema)
            schemas[name] = Draft202012Validator(tool.output_schema)

        async def checked(tool: str, **arguments: Any) -> dict[str, Any]:
            data = await call(client, tool, **arguments)
            schemas[tool].validate(data)
            return data

        saved = await checked(
            "memory_save", project="p", content="hello world", tags=["a"], metadata={"n": 1}
        )
        memory = saved["memory"]
        assert set(memory) == {"id", "project", "content", "tags", "metadata", "createdAt", "updatedAt"}
        assert (memory["content"], memory["tags"], memory["metadata"]) == ("hello world", ["a"], {"n": 1})
        (found,) = (await checked("memory_search", project="p", query="wor", tags=["a"], limit=1))["memories"]
        assert found.pop("score") > 0
        assert found == memory
        assert await checked("memory_search", project="p") == {"memories": [memory]}
        assert await checked("memory_list", project="p") == {"memories": [memory]}
        assert await checked("memory_get", id=memory["id"]) == saved
        assert await checked("memory_projects") == {
            "projects": [{"name": "p", "memories": 1, "updatedAt": memory["updatedAt"]}]
        }
        assert await checked("memory_delete", id=memory["id"]) == {"deleted": True}
        assert await checked("memory_delete", id=memory["id"]) == {"deleted": False}
        assert await checked("memory_list", project="p") == {"memories": []}
        assert "no memory has this id" in await refusal(client, "memory_get", id=memory["id"])


@pytest.mark.gen_test(timeout=30)
async def test_hints_say_which_tools_change_and_which_destroy(database: Path) -> None:
    async with memory_server(database) as client:
        hints = {tool.name: tool.annotations for tool in (await client.list_tools()).tools}
    assert {name for name, hint in hints.items() if hint and not hint.read_only_hint} == {
        "memory_save",
        "memory_delete",
    }
    assert {name for name, hint in hints.items() if hint and hint.destructive_hint} == {"memory_delete"}
    assert {name for name, hint in hints.items() if hint and not hint.idempotent_hint} == {"memory_save"}


@pytest.mark.gen_test(timeout=30)
async def test_wrong_arguments_are_named_with_the_way_out_and_never_repeated(
    database: Path, tmp_path: Path
) -> None:
    with (tmp_path / "stderr").open("w+") as errors:
        async with memory_server(database, errors=errors) as client:
            secret = "hunter2" * 20_000
            text = await refusal(
                client,
                "memory_save",
                contnt="hunter2",
                content=secret,
                tags=["ok", "hunter2" * 20, 7],
                metadata=["hunter2"],
            )
            assert "project: is missing; memory_save needs it" in text
            assert "'contnt' is no argument of memory_save; did you mean 'content'?" in text
            assert "content: is too long; give at most 100000 characters" in text
            assert "tags[1]: is too long; give at most 100 characters" in text
            assert "tags[2]: must be text" in text
            assert "metadata: must be an object" in text
            assert "hunter2" not in text
            large = {"key": "hunter2" * 3_000}
            text = await refusal(client, "memory_save", project="p", content="c", metadata=large)
            assert text == "metadata: takes 21010 bytes as JSON; give at most 16384"
            assert "limit: is too large; give at most 100" in await refusal(
                client, "memory_list", project="p", limit=101
            )
            assert "limit: is too small; give at least 1" in await refusal(
                client, "memory_search", project="p", limit=0
            )
            assert "cursor: is no cursor" in await refusal(
                client, "memory_list", project="p", cursor="hunter2"
            )
            assert "'id' is no argument" in await refusal(client, "memory_projects", id="hunter2")
            assert "tags: has too many items; give at most 50" in await refusal(
                client, "memory_search", project="p", tags=["t"] * 51
            )
            with pytest.raises(MCPError, match="did you mean 'memory_save'") as unknown:
                await client.call_tool("memory_sav", {"content": "hunter2"})
            assert unknown.value.code == INVALID_PARAMS
            await call(client, "memory_save", project="p", content="hunter2")
            await call(client, "memory_search", project="p", query="hunter2 OR [\x00")
        errors.seek(0)
        assert errors.read() == ""
    assert saved_contents(database) == {"hunter2"}


@pytest.mark.gen_test(timeout=30)
async def test_text_that_looks_like_json_is_text_and_whole_floats_are_whole_numbers(database: Path) -> None:
    async with memory_server(database) as client:
        await call(client, "memory_save", project="1", content='{"a": [1]}')
        found = await call(client, "memory_search", project="1", query="[1]", limit=5.0)
        assert [memory["content"] for memory in found["memories"]] == ['{"a": [1]}']


@pytest.mark.gen_test(timeout=30)
async def test_pages_follow_each_other_to_the_end(database: Path) -> None:
    async with memory_server(database) as client:
        for number in range(5):
            await call(client, "memory_save", project="p", content=str(number))
        seen: list[str] = []
        arguments: dict[str, Any] = {"project": "p", "limit": 2}
        for _ in range(3):
            page = await call(client, "memory_list", **arguments)
            seen += [memory["content"] for memory in page["memories"]]
            arguments["cursor"] = page.get("nextCursor")
        assert seen == ["4", "3", "2", "1", "0"]
        assert arguments["cursor"] is None


@pytest.mark.parametrize(("mode", "version"), ERAS)
@pytest.mark.gen_test(timeout=30)
async def test_each_project_is_a_resource_whatever_its_name(
    database: Path, mode: ConnectMode, version: str
) -> None:
    names = sorted(["plain", "a/b c?d#e", "100%25", "Grüße 東京", "🚀"])
    async with memory_server(database, mode=mode) as client:
        for name in names:
            await call(client, "memory_save", project=name, content=f"first of {name}")
            await call(client, "memory_save", project=name, content=f"second of {name}")
        resources = (await client.list_resources()).resources
        assert [resource.name for resource in resources] == names
        for resource in resources:
            (contents,) = (await client.read_resource(resource.uri)).contents
            assert isinstance(contents, TextResourceContents)
            assert contents.mime_type == "application/json"
            data = json.loads(contents.text)
            assert data["project"] == resource.name
            assert [memory["content"] for memory in data["memories"]] == [
                f"second of {resource.name}",
                f"first of {resource.name}",
            ]
        (template,) = (await client.list_resource_templates()).resource_templates
        assert template.uri_template == "memory://{project}"
        for wrong in ("memory://nobody", "memory://%ff", "other://plain"):
            with pytest.raises(MCPError, match=r"^uri: ") as refused:
                await client.read_resource(wrong)
            assert refused.value.code == INVALID_PARAMS


@pytest.mark.gen_test(timeout=30)
async def test_resources_are_listed_page_by_page(database: Path) -> None:
    async with memory_server(database) as client:
        async with anyio.create_task_group() as group:
            for number in range(120):
                arguments = {"project": f"p{number:03}", "content": "c"}
                group.start_soon(client.call_tool, "memory_save", arguments)
        first = await client.list_resources()
        assert first.next_cursor is not None
        second = await client.list_resources(cursor=first.next_cursor)
        listed = [resource.name for resource in (*first.resources, *second.resources)]
        assert listed == [f"p{number:03}" for number in range(120)]
        assert second.next_cursor is None


@pytest.mark.gen_test(timeout=60)
async def test_every_acknowledged_memory_outlives_a_kill_in_the_middle_of_a_stream(database: Path) -> None:
    acknowledged: set[str] = set()
    for turn in range(2):
        process = await anyio.open_process(
            [*COMMAND, "--database", str(database)], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for line in requests(f"turn {turn}", 400):
                await process.stdin.send(line)
            received = b""
            with anyio.fail_after(30):
                while received.count(b"\n") < 60:
                    received += await process.stdout.receive()
                os.kill(process.pid, signal.SIGKILL)
                # What was answered before it died still counts.
                async for rest in process.stdout:
                    received += rest
                assert await process.wait() == -signal.SIGKILL
        finally:
            await process.aclose()
        answers = [json.loads(line) for line in received.split(b"\n")[:-1]]
        saved = [answer["result"]["structuredContent"]["memory"]["content"] for answer in answers[1:]]
        assert 50 < len(saved) < 400
        acknowledged.update(saved)
        assert acknowledged <= saved_contents(database)
    async with memory_server(database) as client:
        assert (await call(client, "memory_projects"))["projects"][0]["memories"] == len(
            saved_contents(database)
        )
        await call(client, "memory_save", project="p", content="after the kills")
        found = await call(client, "memory_search", project="p", query="kills")
        assert [memory["content"] for memory in found["memories"]] == ["after the kills"]


def requests(name: str, count: int) -> list[bytes]:
    hello = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }
    messages: list[dict[str, Any]] = [
        {"id": 0, "method": "initialize", "params": hello},
        {"method": "notifications/initialized"},
    ]
    for number in range(1, count + 1):
        arguments = {"project": "p", "content": f"{name} number {number}"}
        messages.append(
            {"id": number, "method": "tools/call", "params": {"name": "memory_save", "arguments": arguments}}
        )
    return [json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n" for message in messages]


@pytest.mark.gen_test(timeout=60)
async def test_four_servers_on_one_new_file_save_side_by_side_and_lose_nothing(database: Path) -> None:
    async def save_fifty(name: str) -> None:
        async with memory_server(database) as client, anyio.create_task_group() as group:
            for number in range(50):
                arguments = {"project": name, "content": f"{name} {number}", "tags": ["t"]}
                group.start_soon(save, client, arguments)

    async def save(client: Client, arguments: dict[str, Any]) -> None:
        await call(client, "memory_save", **arguments)

    async with anyio.create_task_group() as group:
        for name in ("a", "b", "c", "d"):
            group.start_soon(save_fifty, name)
    assert saved_contents(database) == {f"{name} {number}" for name in "abcd" for number in range(50)}


@pytest.mark.gen_test(timeout=30)
async def test_a_call_that_waits_for_a_lock_holds_up_no_other(database: Path) -> None:
    async with memory_server(database) as client:
        await call(client, "memory_save", project="p", content="before")
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with anyio.create_task_group() as group:
                # More than there are threads for reading, which they must not take.
                for _ in range(READS_AT_ONCE + 4):
                    group.start_soon(call_save, client)
                with anyio.fail_after(5):
                    # Requests are taken in order: the saves wait already when the list is asked for.
                    assert len((await client.list_tools()).tools) == len(TOOLS)
                    page = await call(client, "memory_list", project="p")
                    assert [memory["content"] for memory in page["memories"]] == ["before"]
                other.execute("ROLLBACK")
        assert (await call(client, "memory_projects"))["projects"][0]["memories"] == READS_AT_ONCE + 5


async def call_save(client: Client) -> None:
    await call(client, "memory_save", project="p", content="waited")


@pytest.mark.gen_test(timeout=30)
async def test_a_full_database_is_a_tools_error_and_the_server_goes_on(database: Path) -> None:
    async with memory_server(database, "--maximum-megabytes", "1") as client:
        refused: list[str] = []
        for _ in range(30):
            result = await client.call_tool("memory_save", {"project": "p", "content": "word " * 19_000})
            if result.is_error:
                refused.append(text_of(result))
        assert refused
        assert all("delete memories or make room" in text for text in refused)
        kept = (await call(client, "memory_projects"))["projects"][0]["memories"]
        assert kept == 30 - len(refused)


def test_only_protocol_is_on_stdout_and_the_end_of_stdin_is_the_end(database: Path) -> None:
    ended = subprocess.run(
        [*COMMAND],
        input=b"".join(requests("end", 1)) + b"no json\n\xff\xfe\n",
        env={**os.environ, DATABASE_VARIABLE: str(database)},
        cwd=ROOT,
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 0
    assert ended.stderr == b""
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in ended.stdout.splitlines())
    assert json.loads(ended.stdout.splitlines()[0])["result"]["serverInfo"]["name"] == "memory"
    assert database.exists()


@pytest.mark.parametrize("kind", ["text", "newer", "folder"])
def test_an_unusable_database_ends_the_start_with_one_clear_line(database: Path, kind: str) -> None:
    if kind == "text":
        database.write_text("no database at all\n" * 100)
    elif kind == "folder":
        database.mkdir()
    else:
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA application_id = 0x6D637067")
            connection.execute("PRAGMA user_version = 1000")
    ended = subprocess.run(
        [*COMMAND, "--database", str(database)],
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"memory server: {str(database)!r}: ")
    assert ended.stderr.count("\n") == 1


def test_the_option_comes_before_the_variable_and_the_variable_before_the_users_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert database_path("/a/b.db", {DATABASE_VARIABLE: "/c.db"}) == Path("/a/b.db")
    assert database_path(None, {DATABASE_VARIABLE: "~/c.db"}) == tmp_path / "c.db"
    assert database_path(None, {"XDG_DATA_HOME": "/data"}) == Path("/data/mcpgw/memory.db")
    expected = tmp_path / ".local" / "share" / "mcpgw" / "memory.db"
    assert database_path(None, {"XDG_DATA_HOME": "relative", DATABASE_VARIABLE: ""}) == expected
