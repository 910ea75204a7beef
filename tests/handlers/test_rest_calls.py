"""``POST /api/v1/servers/ID/tools/TOOL``: a tool called by one request, answered with JSON or as a stream."""

import asyncio
import json
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import pytest

from mcpgw.access.permissions import SCOPES as ALL_SCOPES
from mcpgw.wire.validation import definition_checker
from tests.conftest import LiveGateway, StartGateway
from tests.support.backends import SERVERS
from tests.support.forked import server_table
from tests.support.raw_socket import EventReader, RawAnswer, RawSocket, fetch
from tests.support.socket_client import tool_call
from tests.support.waiting import until

Json: TypeAlias = dict[str, Any]


def table(name: str, script: str, *arguments: object, more: str = "") -> str:
    """A server of ``tests/servers`` in a configuration."""
    return server_table(name, SERVERS / script, *arguments, more=more)


def headers(gateway: LiveGateway, scopes: Iterable[str] = ALL_SCOPES, **more: str) -> dict[str, str]:
    """The credentials of ann, and other headers."""
    return {"Authorization": f"Bearer {gateway.token('ann', scopes)}", **more}


def path_of(server: str, tool: str) -> str:
    """Where a tool is called."""
    return f"/api/v1/servers/{server}/tools/{quote(tool, safe='')}"


async def call(
    gateway: LiveGateway,
    server: str,
    tool: str,
    body: object = None,
    *,
    scopes: Iterable[str] = ALL_SCOPES,
    **more: str,
) -> RawAnswer:
    """Call a tool; `body` may be bytes."""
    sent = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return await fetch(
        gateway.url, path_of(server, tool), method="POST", headers=headers(gateway, scopes, **more), body=sent
    )


async def stream(gateway: LiveGateway, server: str, tool: str, body: Json) -> EventReader:
    """Call a tool, and read the frames as they come."""
    connection = await RawSocket.connect(gateway.url)
    sent = json.dumps(body).encode()
    accept = {"Accept": "text/event-stream"}
    await connection.request("POST", path_of(server, tool), headers(gateway) | accept, sent)
    return EventReader(connection, await connection.read_head())


async def frames_of(reader: EventReader) -> list[Json]:
    """Every frame to the end of the stream."""
    frames: list[Json] = []
    while (event := await reader.next_event()) is not None:
        assert event.keys() == {"data"}
        frames.append(json.loads(event["data"]))
        faults = definition_checker("server-frames", frames[-1]["type"]).faults(frames[-1])
        assert faults == []
    return frames


def error_of(answer: RawAnswer) -> Json:
    """The error of a refusal."""
    error: Json = answer.json()["error"]
    return error


def audited(folder: Path) -> list[Json]:
    """The lines of the audit log about calls."""
    [file] = folder.glob("audit-*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if line["event"] == "call"]


@pytest.mark.gen_test
async def test_a_call_is_answered_with_the_data_of_a_tool_response(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(table("s", "scripted.py"))
    answer = await call(gateway, "s", "echo", {"params": {"word": "hello"}})
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    data = answer.json()
    assert data["success"] is True
    assert data["structuredContent"] == data["result"] == {"word": "hello"}
    assert (data["serverId"], data["toolName"]) == ("s", "echo")
    frame = {"type": "tool_response", "id": "x", "timestamp": 0, "data": data}
    assert definition_checker("server-frames", "tool_response").faults(frame) == []


@pytest.mark.gen_test
async def test_a_body_may_be_left_out(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(table("s", "scripted.py"))
    bodies: list[Json | None] = [None, {}, {"params": {}}]
    for body in bodies:
        assert (await call(gateway, "s", "echo", body)).json()["result"] == {}


@pytest.mark.gen_test
async def test_a_tool_that_fails_is_an_answer_and_no_error(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(table("p", "progress_server.py"))
    answer = await call(gateway, "p", "fail")
    assert answer.status == 200
    assert (answer.json()["success"], answer.json()["isError"]) == (False, True)


@pytest.mark.gen_test
async def test_what_is_refused_has_its_status_and_its_code(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(table("slow", "slow_server.py", "/dev/null"))
    wait = {"params": {"seconds": 0, "mark": "a"}}
    for answer, status, code in (
        (await call(gateway, "slow", "wait", b"{"), 400, "parse_error"),
        (await call(gateway, "slow", "wait", b'{"params": {"seconds": NaN}}'), 400, "parse_error"),
        (await call(gateway, "slow", "wait", b"\xff"), 400, "parse_error"),
        (await call(gateway, "slow", "wait", []), 400, "invalid_params"),
        (await call(gateway, "slow", "wait", {"param": {}}), 400, "invalid_params"),
        (await call(gateway, "slow", "wait", wait | {"timeoutMs": 0}), 400, "invalid_params"),
        (await call(gateway, "slow", "wait", wait | {"timeoutMs": 1e300}), 400, "invalid_params"),
        (await call(gateway, "slow", "wait", {"params": {}}), 400, "invalid_params"),
        (await call(gateway, "slow", "wait", wait, scopes=["servers:read"]), 403, "permission_denied"),
        (
            await call(gateway, "slow", "wait", wait, scopes=["tools:call:slow/other"]),
            403,
            "permission_denied",
        ),
        (await call(gateway, "slwo", "wait", wait), 404, "server_not_found"),
        (await call(gateway, "slow", "wiat", wait), 404, "tool_not_found"),
        (await call(gateway, "slow", "wait", wait, Authorization=""), 401, "auth_required"),
        (await call(gateway, "slow", "wait", wait, Origin="http://evil.example"), 403, "permission_denied"),
        (
            await call(gateway, "slow", "wait", {"params": {"seconds": 5, "mark": "a"}, "timeoutMs": 150}),
            504,
            "timeout",
        ),
    ):
        assert (answer.status, error_of(answer)["code"]) == (status, code), answer
    allowed = await call(gateway, "slow", "wait", wait, scopes=["tools:call:slow/wait"])
    assert allowed.status == 200


@pytest.mark.gen_test
async def test_the_paths_of_faults_begin_at_the_body(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(table("slow", "slow_server.py", "/dev/null"))
    for body, path in (
        ({"params": {"seconds": "x", "mark": "a"}}, "/params/seconds"),
        ({"params": {"seconds": 1, "mark": "a"}, "timeoutMs": 10**9}, "/timeoutMs"),
        ({"parms": {}}, "/parms"),
    ):
        error = error_of(await call(gateway, "slow", "wait", body))
        assert [fault["path"] for fault in error["details"]] == [path]
        assert "/data" not in error["message"]


@pytest.mark.gen_test
async def test_a_name_of_a_tool_may_hold_what_a_path_may_not(start_gateway: StartGateway) -> None:
    more = '[servers.s.tools.echo]\nrename = "a/b c?ü"'
    gateway = await start_gateway(table("s", "scripted.py", more=more))
    answer = await call(gateway, "s", "a/b c?ü", {"params": {"n": 1}})
    assert (answer.status, answer.json()["toolName"]) == (200, "a/b c?ü")


@pytest.mark.gen_test
async def test_a_backend_s_own_error_is_502_with_what_it_said(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(table("s", "scripted.py"))
    refusal = {"code": -32000, "message": "no", "data": {"why": 1}}
    answer = await call(gateway, "s", "refuse", {"params": {"error": refusal}})
    assert (answer.status, error_of(answer)["code"]) == (502, "tool_execution_error")
    assert error_of(answer)["details"] == refusal
    half = await call(
        gateway, "s", "raw", {"params": {"result": {"content": [{"type": "text", "text": "x"}]}}}
    )
    assert half.json()["result"] == "x"


@pytest.mark.gen_test
async def test_an_answer_that_is_no_json_is_an_error_of_the_tool(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(table("s", "scripted.py"))
    line = (
        r'{"jsonrpc": "2.0", "id": %ID, "result": {"content": [{"type": "text", "text": "\ud800"}]}}' + "\n"
    )
    for accept in ("application/json", "text/event-stream"):
        body = json.dumps({"params": {"lines": [line], "silent": True}}).encode()
        async with await RawSocket.connect(gateway.url) as connection:
            await connection.request("POST", path_of("s", "bytes"), headers(gateway, Accept=accept), body)
            head = await connection.read_head()
            if accept == "application/json":
                assert head.status == 502
            else:
                [frame] = await frames_of(EventReader(connection, head))
                assert frame["data"]["code"] == "tool_execution_error"


@pytest.mark.gen_test
async def test_a_stream_has_the_frames_of_the_websocket(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(table("p", "progress_server.py"))
    async with await stream(gateway, "p", "count", {"params": {"steps": 3, "pause": 0.05}}) as reader:
        assert reader.head.headers["content-type"] == "text/event-stream"
        assert (reader.head.headers["cache-control"], reader.head.headers["x-accel-buffering"]) == (
            "no-store",
            "no",
        )
        frames = await frames_of(reader)
    assert len({frame["id"] for frame in frames}) == 1
    kinds = [frame["type"] for frame in frames]
    assert kinds.count("tool_progress") == 3
    assert "tool_log" in kinds
    assert kinds[-1] == "tool_response"
    progress = [frame["data"] for frame in frames if frame["type"] == "tool_progress"]
    assert [(one["progress"], one["total"]) for one in progress] == [(1, 3), (2, 3), (3, 3)]
    assert frames[-1]["data"]["result"] == {"result": "counted to 3"}
    # The same call over the socket.
    client = await gateway.connect()
    end = await client.call("p", "count", {"steps": 3})
    assert end["data"] | {"durationMs": 0} == frames[-1]["data"] | {"durationMs": 0}
    await client.leave()


@pytest.mark.gen_test
async def test_a_stream_that_has_begun_ends_with_an_error_frame(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(table("slow", "slow_server.py", "/dev/null"))
    body = {"params": {"seconds": 5, "mark": "a"}, "timeoutMs": 150}
    async with await stream(gateway, "slow", "wait", body) as reader:
        assert reader.head.status == 200
        [frame] = await frames_of(reader)
    assert (frame["type"], frame["data"]["code"]) == ("error", "timeout")


@pytest.mark.gen_test
async def test_what_is_refused_before_it_is_sent_has_its_status_even_where_a_stream_was_asked_for(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(table("slow", "slow_server.py", "/dev/null"))
    answer = await call(gateway, "slow", "wait", {"params": {}}, Accept="text/event-stream")
    assert (answer.status, error_of(answer)["code"]) == (400, "invalid_params")
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("accept", "is_stream"),
    [
        ("text/event-stream", True),
        ("TEXT/Event-Stream;q=0.5", True),
        ("text/event-stream, */*", True),
        ("application/json;q=0.5, text/event-stream", True),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/json, text/event-stream", False),
        ("text/event-stream;q=0.1, application/json", False),
        ("text/event-stream;q=0", False),
        ("text/event-stream;q=2", False),
    ],
)
async def test_the_client_chooses_how_it_is_answered(
    start_gateway: StartGateway, accept: str, is_stream: bool
) -> None:
    gateway = await start_gateway(table("s", "scripted.py"))
    async with await RawSocket.connect(gateway.url) as connection:
        await connection.request("POST", path_of("s", "echo"), headers(gateway, Accept=accept), b"{}")
        head = await connection.read_head()
    assert head.headers["content-type"] == ("text/event-stream" if is_stream else "application/json")


@pytest.mark.gen_test
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_a_client_that_goes_away_cancels_its_call(
    start_gateway: StartGateway, tmp_path: Path, accept: str
) -> None:
    record = tmp_path / "record"
    gateway = await start_gateway(table("slow", "slow_server.py", record))
    connection = await RawSocket.connect(gateway.url)
    body = json.dumps({"params": {"seconds": 30, "mark": "a"}}).encode()
    await connection.request("POST", path_of("slow", "wait"), headers(gateway, Accept=accept), body)
    await until(lambda: record.exists() and "started a" in record.read_text(), what="the start")
    connection.writer.close()
    await until(lambda: "cancelled a" in record.read_text(), seconds=1.5, what="the cancellation")
    assert len(gateway.services.hub) == 0
    await until(lambda: audited(tmp_path), what="the audit line")
    assert audited(tmp_path)[0]["outcome"] == "cancelled"


@pytest.mark.gen_test
async def test_a_question_of_the_server_is_declined_and_the_caller_told(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(table("o", "offering_server.py", "--handshake"))
    async with await stream(gateway, "o", "elicit", {}) as reader:
        told, end = await frames_of(reader)
    assert (told["type"], told["data"]["level"], told["data"]["logger"]) == ("tool_log", "warning", "mcpgw")
    assert "elicitation" in told["data"]["data"]
    assert end["data"]["result"]["action"] == "decline"
    plain = await call(gateway, "o", "elicit")
    assert plain.json()["result"]["action"] == "decline"


@pytest.mark.gen_test
async def test_calls_and_open_calls_of_a_user_are_bounded(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    limits = {"websocket.max_calls": 2, "calls.rate": 1, "calls.burst": 4}
    gateway = await start_gateway(table("slow", "slow_server.py", record), settings=limits)
    open_calls = [
        asyncio.create_task(call(gateway, "slow", "wait", {"params": {"seconds": 1, "mark": mark}}))
        for mark in "ab"
    ]
    await until(lambda: record.exists() and record.read_text().count("started") == 2, what="both")
    third = await call(gateway, "slow", "wait", {"params": {"seconds": 0, "mark": "c"}})
    assert (third.status, error_of(third)["code"]) == (429, "queue_full")
    assert int(third.headers["retry-after"]) >= 1
    assert [(await one).status for one in open_calls] == [200, 200]
    answers = [await call(gateway, "slow", "wait", {"params": {"seconds": 0, "mark": "d"}}) for _ in range(4)]
    refused = [answer for answer in answers if answer.status == 429]
    assert refused
    assert {error_of(answer)["code"] for answer in refused} == {"rate_limited"}
    assert error_of(refused[0])["retryAfterMs"] > 0


@pytest.mark.gen_test
async def test_others_are_told_the_same_as_of_a_call_over_the_socket(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway(table("p", "progress_server.py"))
    watcher, client = await gateway.connect("eve", ["admin"]), await gateway.connect("ann")
    subscribed = await watcher.request({"type": "subscribe", "id": "s", "data": {"channel": "calls"}})
    assert subscribed["type"] == "subscribed"

    async def heard() -> list[tuple[str, Json]]:
        told: list[tuple[str, Json]] = []
        while not told or told[-1][0] not in ("call.finished", "call.failed"):
            frame = await watcher.receive()
            told.append((frame["type"], {**frame["data"], "callId": "", "durationMs": 0}))
        return told

    errors = gateway.services.metrics.errors
    for arguments in ({"steps": 2}, {"steps": "two"}):
        counted = dict(errors())
        await client.send(tool_call("p", "count", arguments, call_id="c"))
        over_socket = await heard()
        end = await client.end_of("c")
        by_socket = {code: number - counted.get(code, 0) for code, number in errors().items()}
        counted = dict(errors())
        answer = await call(gateway, "p", "count", {"params": arguments})
        assert await heard() == over_socket
        by_rest = {code: number - counted.get(code, 0) for code, number in errors().items()}
        assert by_rest == by_socket
        assert (answer.status == 200) is (end["type"] == "tool_response")
    assert [name for name, _ in over_socket] == ["call.failed"]
    await until(lambda: len(audited(tmp_path)) == 4, what="the audit log")
    first, second, third, fourth = (
        (line["what"]["server"], line["what"]["tool"], line["outcome"], line["who"]["user"])
        for line in audited(tmp_path)
    )
    assert (first, third) == (second, fourth)
    assert first == ("p", "count", "ok", "ann")
    assert third == ("p", "count", "invalid_params", "ann")
    await watcher.leave()
    await client.leave()


@pytest.mark.gen_test
async def test_a_gateway_that_ends_lets_a_call_end_first_and_stops_it_in_the_end(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    gateway = await start_gateway(table("slow", "slow_server.py", record))
    short, long = (
        asyncio.create_task(
            call(gateway, "slow", "wait", {"params": {"seconds": seconds, "mark": f"{seconds}"}})
        )
        for seconds in (0.3, 30)
    )
    await until(lambda: record.exists() and record.read_text().count("started") == 2, what="both")
    gateway.services.gateway.begin_draining(1)
    await gateway.services.hub.drain(asyncio.get_running_loop().time() + 1)
    assert (await short).status == 200
    assert ((await long).status, error_of(await long)["code"]) == (502, "outcome_unknown")
    refused = await call(gateway, "slow", "wait", {"params": {"seconds": 0, "mark": "c"}})
    assert (refused.status, error_of(refused)["code"]) == (503, "draining")
    await until(lambda: "cancelled 30" in record.read_text(), seconds=1.5, what="the cancellation")


@pytest.mark.gen_test
async def test_a_reader_who_does_not_read_is_dropped(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(table("s", "scripted.py"), settings={"websocket.write_timeout": 0.3})
    body = json.dumps({"params": {"size": 7_500_000, "id": "first"}}).encode()
    address = ("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    with socket.create_connection(address) as deaf:
        lines = [
            f"POST {path_of('s', 'huge')} HTTP/1.1",
            f"Host: {gateway.url.removeprefix('http://')}",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in headers(gateway, Accept="text/event-stream").items()),
        ]
        deaf.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        await until(lambda: len(gateway.services.hub) == 1, what="the call")
        await until(lambda: len(gateway.services.hub) == 0, what="its end")
        deaf.settimeout(5)
        read = b""
        with suppress(ConnectionResetError):
            while part := deaf.recv(2**20):
                read += part
    assert not read.endswith(b"0\r\n\r\n"), read[-1000:]
    assert gateway.services.gateway.counts.open == 0


@pytest.mark.gen_test
async def test_a_quiet_stream_gives_signs_of_life(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        table("slow", "slow_server.py", "/dev/null"), settings={"events.heartbeat": 0.1}
    )
    body = {"params": {"seconds": 0.5, "mark": "a"}}
    async with await stream(gateway, "slow", "wait", body) as reader:
        assert await reader.connection.read_chunk() == b":\n\n"
        while (chunk := await reader.connection.read_chunk()) == b":\n\n":
            pass
        assert b"tool_response" in chunk


@pytest.mark.gen_test
async def test_a_client_of_http_1_0_is_streamed_to_without_chunks(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(table("s", "scripted.py"))
    async with await RawSocket.connect(gateway.url) as connection:
        host = gateway.url.removeprefix("http://")
        await connection.send(
            f"POST {path_of('s', 'echo')} HTTP/1.0\r\nHost: {host}\r\nAccept: text/event-stream\r\n"
            f"Authorization: Bearer {gateway.token()}\r\nContent-Length: 2\r\n\r\n{{}}".encode()
        )
        head = await connection.read_head()
        assert "transfer-encoding" not in head.headers
        text = (await connection.read_to_end()).decode()
    assert text.startswith("data: {")
    assert text.endswith("\n\n")


@pytest.mark.gen_test
async def test_a_call_waits_until_somebody_approves_it(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(table("s", "scripted.py", more='approval = "required"'))
    bearer = {"Authorization": f"Bearer {gateway.token('root', ['admin'])}"}
    for action, end in (("accept", "tool_response"), ("decline", "error")):
        async with await stream(gateway, "s", "echo", {"params": {"n": 1}}) as reader:
            waits = await reader.next_frame()
            assert (waits["type"], waits["data"]["reason"]) == ("queued", "approval")
            path = f"/api/v1/approvals/{waits['data']['requestId']}"
            body = json.dumps({"action": action}).encode()
            assert (await fetch(gateway.url, path, method="POST", headers=bearer, body=body)).status == 200
            [frame] = await frames_of(reader)
        assert frame["type"] == end
    assert frame["data"]["code"] == "permission_denied"
