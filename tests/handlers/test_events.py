"""The stream of Server-Sent Events, read byte by byte and by an EventSource."""

import asyncio
import json
import re
import subprocess
import time
import tracemalloc
from pathlib import Path

import pytest

from mcpgw.wire.events import Position
from tests.conftest import LiveGateway, StartGateway
from tests.support.gateway_process import GatewayProcess
from tests.support.node import node_22
from tests.support.raw_socket import EventReader, fetch
from tests.support.waiting import until

TESTS = Path(__file__).parent.parent
READ_TWO_EVENTS = """
import {{ EventSource }} from '{module}'
const source = new EventSource(process.argv[2])
const seen = []
source.onmessage = (event) => {{
  seen.push({{ data: JSON.parse(event.data), id: event.lastEventId, type: event.type }})
  if (seen.length === 3) {{ source.close(); console.log(JSON.stringify(seen)) }}
}}
source.onerror = (event) => {{ console.error(event); process.exit(1) }}
"""


@pytest.mark.gen_test
@pytest.mark.parametrize("credentials", ["none", "good", "bad"])
async def test_a_stream_begins_with_connected_whoever_reads(
    shared_gateway: GatewayProcess, credentials: str
) -> None:
    token = {"good": shared_gateway.token(), "bad": "wrong"}.get(credentials)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    before = int(time.time() * 1000)
    async with await EventReader.open(shared_gateway.url, headers) as stream:
        assert stream.head.status == 200
        assert stream.head.headers["content-type"] == "text/event-stream"
        assert stream.head.headers["cache-control"] == "no-store"
        assert stream.head.headers["x-accel-buffering"] == "no"
        assert "server" not in stream.head.headers
        event = await stream.next_event()
    assert event is not None
    assert list(event) == ["retry", "id", "data"]
    assert event["retry"] == "3000"
    assert re.fullmatch(r"[0-9a-f]{16}-[0-9]+", event["id"])
    data = json.loads(event["data"])
    assert (data["type"], data["message"]) == ("connected", "Connected to MCP Gateway events")
    assert before <= data["timestamp"] <= time.time() * 1000


@pytest.mark.gen_test
async def test_heartbeats_follow_without_an_id_so_that_they_never_move_the_position(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(settings={"events.heartbeat": 0.1, "events.retry": 0.25})
    async with await EventReader.open(gateway.url) as stream:
        first = await stream.next_event()
        assert first is not None
        assert first["retry"] == "250"
        for _ in range(3):
            event = await stream.next_event(seconds=2)
            assert event is not None
            assert list(event) == ["data"]
            data = json.loads(event["data"])
            assert data.keys() == {"type", "timestamp"}
            assert data["type"] == "heartbeat"
    await until(lambda: len(gateway.services.hub) == 0)


@pytest.mark.gen_test
@pytest.mark.parametrize("way", ["close", "reset"])
async def test_a_reader_that_leaves_is_noticed_before_the_next_heartbeat(
    start_gateway: StartGateway, way: str
) -> None:
    gateway = await start_gateway()
    stream = await EventReader.open(gateway.url)
    await stream.next_event()
    assert len(gateway.services.hub) == 1
    if way == "close":
        stream.connection.writer.close()
    else:
        stream.connection.reset()
    await until(lambda: len(gateway.services.hub) == 0, seconds=2, what="the end of the stream")


@pytest.mark.gen_test
async def test_a_stream_of_the_gateway_that_ends_has_an_end(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    async with await EventReader.open(gateway.url) as stream:
        await stream.next_event()
        await gateway.services.hub.drain(0)
        assert await stream.next_event() is None


@pytest.mark.gen_test
async def test_no_stream_and_no_socket_begins_on_a_gateway_that_is_ending(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    gateway.services.gateway.draining = True
    for path in ("/api/v1/events", "/ws"):
        answer = await fetch(gateway.url, path, headers={"Upgrade": "websocket", "Connection": "Upgrade"})
        assert answer.status == 503
        assert (answer.json()["error"]["code"], answer.json()["error"]["temporary"]) == ("draining", True)
        assert answer.headers["retry-after"] == "1"


@pytest.mark.gen_test
async def test_a_page_of_a_listed_origin_may_read_the_stream(start_gateway: StartGateway) -> None:
    gateway = await start_gateway('[server]\nallowed_origins = ["https://app.example"]\n')
    async with await EventReader.open(gateway.url, {"Origin": "https://app.example"}) as stream:
        assert stream.head.headers["access-control-allow-origin"] == "https://app.example"
        assert stream.head.headers["vary"] == "Origin"
        await stream.next_event()
    await until(lambda: len(gateway.services.hub) == 0)


@pytest.mark.gen_test
async def test_only_get_is_a_stream(shared_gateway: GatewayProcess) -> None:
    answer = await fetch(shared_gateway.url, "/api/v1/events", method="POST", body=b"{}")
    assert answer.status == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "GET, OPTIONS"


@pytest.mark.gen_test(timeout=30)
async def test_an_event_source_gets_connected_and_heartbeat_as_messages(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    module = TESTS / "node_modules" / "eventsource" / "dist" / "index.js"
    assert module.exists(), "make test installs tests/node_modules"
    script = tmp_path / "read.mjs"
    script.write_text(READ_TWO_EVENTS.format(module=module.as_uri()), encoding="utf-8")
    gateway = await start_gateway(settings={"events.heartbeat": 0.1})
    process = await asyncio.create_subprocess_exec(
        *(node_22(), script, f"{gateway.url}/api/v1/events"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(20):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    seen = json.loads(output)
    assert [event["type"] for event in seen] == ["message"] * 3
    assert [event["data"]["type"] for event in seen] == ["connected", "heartbeat", "heartbeat"]
    assert len({event["id"] for event in seen}) == 1
    assert re.fullmatch(r"[0-9a-f]{16}-[0-9]+", seen[0]["id"])
    await until(lambda: len(gateway.services.hub) == 0)


# --- with credentials ------------------------------------------------------------------------------------

RECONNECT = """
import {{ EventSource }} from '{module}'
const source = new EventSource(process.argv[2], {{
  fetch: (input, init) => fetch(input, {{
    ...init, headers: {{ ...init.headers, Authorization: `Bearer ${{process.argv[3]}}` }},
  }}),
}})
const lines = []
let connected = []
source.onerror = (event) => console.error(event.code, event.message)
const staying = setInterval(() => {{}}, 1000) // its timer for coming back does not keep node alive
source.onmessage = (event) => {{
  const frame = JSON.parse(event.data)
  if (frame.type === 'connected') connected.push(frame.recovered ?? null)
  if (frame.type === 'server.log') {{
    lines.push(Number(frame.data.line))
    console.log('line', frame.data.line)
    if (frame.data.line === 'last') {{
      source.close()
      clearInterval(staying)
      console.log(JSON.stringify({{ lines, connected }}))
    }}
  }}
}}
"""


def log_line(gateway: LiveGateway, line: object, server: str = "a") -> None:
    data = {"serverId": server, "level": "info", "line": str(line)}
    gateway.services.bus.publish("server.log", data)


def bearer(gateway: LiveGateway, *scopes: str, user: str = "ann") -> dict[str, str]:
    return {"Authorization": f"Bearer {gateway.token(user, scopes or ('events:read',))}"}


def position_of(gateway: LiveGateway, back: int = 0) -> str:
    position = gateway.services.bus.position
    return str(Position(position.epoch, position.offset - back))


async def lines_of(stream: EventReader, count: int) -> list[str]:
    frames = [await stream.next_frame() for _ in range(count)]
    return [frame["data"]["line"] for frame in frames]


@pytest.mark.gen_test
async def test_without_credentials_nothing_but_heartbeats_follows(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(settings={"events.heartbeat": 0.1})
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Last-Event-ID": position_of(gateway)}):
        async with await EventReader.open(
            gateway.url, headers, path="/api/v1/events?channels=servers"
        ) as stream:
            first = await stream.next_event()
            assert first is not None
            assert "recovered" not in json.loads(first["data"])
            log_line(gateway, 1)
            for _ in range(2):
                event = await stream.next_event()
                assert event is not None
                assert json.loads(event["data"])["type"] == "heartbeat"


@pytest.mark.gen_test
async def test_a_token_without_the_scope_for_events_is_given_none(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(settings={"events.heartbeat": 0.1})
    headers = bearer(gateway, "tools:call")
    async with await EventReader.open(gateway.url, headers) as stream:
        await stream.next_event()
        log_line(gateway, 1)
        event = await stream.next_event()
        assert event is not None
        assert json.loads(event["data"])["type"] == "heartbeat"
    answer = await fetch(gateway.url, "/api/v1/events?channels=servers", headers=headers)
    assert (answer.status, answer.json()["error"]["code"]) == (403, "permission_denied")


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("channels", "status", "code"),
    [
        ("servrs", 404, "unknown_channel"),
        ("servers,user:bob", 403, "permission_denied"),
        ("room:ops", 403, "permission_denied"),
    ],
)
async def test_a_channel_that_may_not_be_read_is_refused_before_the_stream_begins(
    start_gateway: StartGateway, channels: str, status: int, code: str
) -> None:
    gateway = await start_gateway()
    headers = bearer(gateway, "events:read", "rooms:join")
    answer = await fetch(gateway.url, f"/api/v1/events?channels={channels}", headers=headers)
    assert (answer.status, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/json"
    assert len(gateway.services.hub) == 0
    assert gateway.services.hub.statistics().connections == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic YTpi"])
async def test_the_protected_stream_is_401_before_anything_else(
    start_gateway: StartGateway, authorization: str | None
) -> None:
    gateway = await start_gateway()
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = await fetch(gateway.url, "/api/v1/sse?channels=nosuch", headers=headers)
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.gen_test
async def test_a_reader_is_given_all_channels_that_it_may_read(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    bus = gateway.services.bus
    headers = bearer(gateway)
    async with await EventReader.open(gateway.url, headers, path="/api/v1/sse") as stream:
        assert (await stream.next_frame())["type"] == "connected"
        assert (await stream.next_frame())["type"] == "gateway.started", "the present state"
        log_line(gateway, 1)
        bus.publish("system.log", {"level": "info", "logger": "mcpgw", "message": "for admins"})
        bus.publish("user.notification", {"level": "info", "message": "hello"}, channel="user:bob")
        bus.publish("room.message", {"user": "x", "clientId": "c", "payload": 1}, channel="room:ops")
        bus.publish("user.notification", {"level": "info", "message": "hello"}, channel="user:ann")
        bus.publish("system.alert", {"level": "alert", "message": "x"})
        bus.publish("config.updated", {"source": "file", "servers": {}})
        types = [(await stream.next_frame())["type"] for _ in range(4)]
    assert types == ["server.log", "user.notification", "system.alert", "config.updated"]


@pytest.mark.gen_test
@pytest.mark.parametrize("query", ["channels=servers,config", "channels=servers&channels=config,servers"])
async def test_channels_can_be_chosen(start_gateway: StartGateway, query: str) -> None:
    gateway = await start_gateway()
    async with await EventReader.open(gateway.url, bearer(gateway), path=f"/api/v1/events?{query}") as stream:
        assert (await stream.next_frame())["type"] == "connected"
        gateway.services.bus.publish("system.alert", {"level": "alert", "message": "x"})
        log_line(gateway, 1)
        gateway.services.bus.publish("config.updated", {"source": "file", "servers": {}})
        types = [(await stream.next_frame())["type"] for _ in range(2)]
    assert types == ["server.log", "config.updated"]


@pytest.mark.gen_test
async def test_a_newcomer_is_given_the_present_state_without_ids_that_would_move_it_back(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    bus = gateway.services.bus
    for name in ("starting", "stopped"):
        bus.publish(f"server.{name}", {"serverId": "a"})
    bus.publish("server.starting", {"serverId": "b"})
    log_line(gateway, "old")
    async with await EventReader.open(
        gateway.url, bearer(gateway), path="/api/v1/events?channels=servers"
    ) as stream:
        events = [await stream.next_event() for _ in range(3)]
        assert all(event is not None for event in events)
        first, *states = [event for event in events if event is not None]
        assert "recovered" not in json.loads(first["data"])
        assert [json.loads(event["data"])["type"] for event in states] == [
            "server.stopped",
            "server.starting",
        ]
        assert [list(event) for event in states] == [["data"], ["data"]]
        log_line(gateway, "new")
        event = await stream.next_event()
        assert event is not None
        assert event["id"] == position_of(gateway)
    # Coming back from the id of `connected` misses nothing and gives nothing twice.
    headers = {**bearer(gateway), "Last-Event-ID": first["id"]}
    async with await EventReader.open(gateway.url, headers, path="/api/v1/events?channels=servers") as stream:
        assert (await stream.next_frame())["recovered"] is True
        assert await lines_of(stream, 1) == ["new"]


@pytest.mark.gen_test
@pytest.mark.parametrize("way", ["header", "query"])
async def test_a_reader_that_comes_back_is_given_what_it_missed_however_much(
    start_gateway: StartGateway, way: str
) -> None:
    gateway = await start_gateway(settings={"events.max_waiting": 10})
    since = position_of(gateway)
    for number in range(1000):
        log_line(gateway, number)
    headers, path = bearer(gateway), "/api/v1/events?channels=servers"
    if way == "header":
        headers["Last-Event-ID"] = since
    else:
        path += f"&lastEventId={since}"
    async with await EventReader.open(gateway.url, headers, path=path) as stream:
        first = await stream.next_event()
        assert first is not None
        assert (first["id"], json.loads(first["data"])["recovered"]) == (since, True)
        assert await lines_of(stream, 500) == [str(number) for number in range(500)]
        log_line(gateway, 1000)
        assert await lines_of(stream, 501) == [str(number) for number in range(500, 1001)]


@pytest.mark.gen_test
async def test_the_header_of_a_browser_that_comes_back_counts_before_the_query(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    since = position_of(gateway)
    log_line(gateway, 1)
    headers = {**bearer(gateway), "Last-Event-ID": position_of(gateway)}
    path = f"/api/v1/events?channels=servers&lastEventId={since}"
    async with await EventReader.open(gateway.url, headers, path=path) as stream:
        assert (await stream.next_frame())["recovered"] is True
        log_line(gateway, 2)
        assert await lines_of(stream, 1) == ["2"]


@pytest.mark.gen_test
@pytest.mark.parametrize("since", ["too old", "of the future", "0123456789abcdef-1", "rubbish", "1"])
async def test_a_position_that_the_log_cannot_serve_says_so_and_gives_the_present_state(
    start_gateway: StartGateway, since: str
) -> None:
    gateway = await start_gateway(settings={"events.log_size": 5})
    start = position_of(gateway)
    gateway.services.bus.publish("server.stopped", {"serverId": "a"})
    for number in range(10):
        log_line(gateway, number)
    since = {"too old": start, "of the future": position_of(gateway, back=-5)}.get(since, since)
    headers = {**bearer(gateway), "Last-Event-ID": since}
    path = "/api/v1/events?channels=servers"
    async with await EventReader.open(gateway.url, headers, path=path) as stream:
        first = await stream.next_event()
        assert first is not None
        assert first["id"] == position_of(gateway)
        assert json.loads(first["data"])["recovered"] is False
        assert (await stream.next_frame())["type"] == "server.stopped"
        log_line(gateway, "next")
        assert await lines_of(stream, 1) == ["next"]


@pytest.mark.gen_test
async def test_a_heartbeat_comes_at_its_time_also_while_events_flow(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(settings={"events.heartbeat": 0.2})
    path = "/api/v1/events?channels=servers"
    async with await EventReader.open(gateway.url, bearer(gateway), path=path) as stream:
        deadline = time.monotonic() + 3
        seen: list[str] = []
        while "heartbeat" not in seen:
            assert time.monotonic() < deadline, "no heartbeat between events"
            log_line(gateway, 1)
            event = await stream.next_event()
            assert event is not None
            seen.append(json.loads(event["data"])["type"])
    assert "server.log" in seen


@pytest.mark.gen_test(timeout=30)
async def test_a_reader_that_stops_reading_is_dropped_and_costs_a_bounded_memory(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(
        settings={"websocket.write_timeout": 0.5, "events.max_waiting": 20, "events.log_size": 50}
    )
    path = "/api/v1/events?channels=servers"
    slow = await EventReader.open(gateway.url, bearer(gateway), path=path)
    fast = await EventReader.open(gateway.url, bearer(gateway), path=path)
    await slow.next_frame()
    await fast.next_frame()
    slow.connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
    bus, line = gateway.services.bus, "x" * 60_000
    tracemalloc.start()
    try:
        for number in range(600):
            bus.publish("server.log", {"serverId": "a", "level": "info", "line": f"{number} {line}"})
            assert (await lines_of(fast, 1))[0].startswith(f"{number} "), "the other reader notices nothing"
            if len(gateway.services.hub) == 1:
                break
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 25 * 1024 * 1024
    await until(lambda: len(gateway.services.hub) == 1, what="the end of the reader")
    slow.connection.writer.transport.resume_reading()  # type: ignore[attr-defined]
    rest = await slow.connection.reader.read()
    assert not rest.endswith(b"0\r\n\r\n"), "such a stream cannot end whole"
    slow.connection.writer.close()
    log_line(gateway, "still here")
    assert await lines_of(fast, 1) == ["still here"]
    fast.connection.writer.close()


@pytest.mark.gen_test
async def test_a_reader_that_is_too_slow_for_a_while_is_told_what_it_lost(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(settings={"events.max_waiting": 10})
    path = "/api/v1/events?channels=servers"
    async with await EventReader.open(gateway.url, bearer(gateway), path=path) as stream:
        await stream.next_frame()
        stream.connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        published, filler = 0, "x" * 60_000
        while 'mcpgw_dropped_total{reason="stream"} 5.0' not in gateway.services.metrics.render()[0].decode():
            log_line(gateway, f"{published} {filler}")
            published += 1
            await asyncio.sleep(0)
            assert published < 2000, "what is dropped is counted when it is dropped"
        stream.connection.writer.transport.resume_reading()  # type: ignore[attr-defined]
        seen: list[int] = []
        lost = 0
        while len(seen) + lost < published:
            event = await stream.next_event()
            assert event is not None
            frame = json.loads(event["data"])
            if frame["type"] == "lagged":
                assert list(event) == ["data"], "what is no event of the log has no id"
                assert frame["data"]["channel"] == "servers"
                lost += frame["data"]["dropped"]
                seen_before = len(seen)
            else:
                seen.append(int(frame["data"]["line"].split()[0]))
        assert lost == 5
        gap = list(range(seen[seen_before - 1] + 1, seen[seen_before]))
        assert len(gap) == lost, "it stands where the lines are missing"


@pytest.mark.gen_test
async def test_a_burst_reaches_who_reads_whole_however_little_may_wait(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(settings={"events.max_waiting": 10})
    path = "/api/v1/events?channels=servers"
    async with await EventReader.open(gateway.url, bearer(gateway), path=path) as stream:
        await stream.next_frame()
        for number in range(200):
            log_line(gateway, number)
        assert await lines_of(stream, 200) == [str(number) for number in range(200)]


@pytest.mark.gen_test
async def test_what_waits_is_still_sent_when_the_gateway_ends_the_stream(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    async with await EventReader.open(
        gateway.url, bearer(gateway), path="/api/v1/events?channels=gateway"
    ) as stream:
        assert (await stream.next_frame())["type"] == "connected"
        assert (await stream.next_frame())["type"] == "gateway.started"
        gateway.services.bus.publish("gateway.draining", {"state": "draining"})
        await gateway.services.hub.drain(asyncio.get_running_loop().time() + 5)
        assert (await stream.next_frame())["type"] == "gateway.draining"
        assert await stream.next_event() is None


@pytest.mark.gen_test
async def test_a_stream_ends_with_the_token_that_began_it(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(settings={"auth.leeway": 0})
    token = gateway.services.tokens.issue(user="ann", scopes=("events:read",), ttl=1)
    async with await EventReader.open(gateway.url, {"Authorization": f"Bearer {token}"}) as stream:
        await stream.next_frame()
        await stream.next_frame()
        assert await stream.next_event(seconds=5) is None
    answer = await fetch(gateway.url, "/api/v1/sse", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status, answer.json()["error"]["code"]) == (401, "token_expired")


@pytest.mark.gen_test
async def test_a_user_is_told_of_their_own_streams(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    path = "/api/v1/events?channels=user:ann"
    async with await EventReader.open(gateway.url, bearer(gateway), path=path) as stream:
        await stream.next_frame()
        other = await EventReader.open(gateway.url, bearer(gateway))
        came = await stream.next_frame()
        other.connection.writer.close()
        left = await stream.next_frame()
    assert (came["type"], left["type"]) == ("user.connected", "user.disconnected")
    assert came["data"] == left["data"]
    assert came["data"]["kind"] == "sse"


@pytest.mark.gen_test(timeout=30)
async def test_an_event_source_whose_connection_is_cut_misses_nothing(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    module = TESTS / "node_modules" / "eventsource" / "dist" / "index.js"
    assert module.exists(), "make test installs tests/node_modules"
    script = tmp_path / "reconnect.mjs"
    script.write_text(RECONNECT.format(module=module.as_uri()), encoding="utf-8")
    gateway = await start_gateway(settings={"events.retry": 0.05})
    connections: set[asyncio.StreamWriter] = set()
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = gateway.url.removeprefix("http://").split(":")
        there, out = await asyncio.open_connection(host, int(port))
        connections.update((writer, out))
        for way in ((reader, out), (there, writer)):
            task = asyncio.create_task(pump(*way))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    proxy = await asyncio.start_server(forward, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/api/v1/sse?channels=servers"
    process = await asyncio.create_subprocess_exec(
        *(node_22(), script, address, gateway.token("ann", ("events:read",))),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    await until(lambda: len(gateway.services.hub) == 1, seconds=15)
    number = 0
    for _ in range(5):
        for _ in range(20):
            number += 1
            log_line(gateway, number)
        said = ""
        while said != f"line {number}\n":
            async with asyncio.timeout(10):
                said = (await process.stdout.readline()).decode()
            assert said, (await process.stderr.read()).decode()  # type: ignore[union-attr]
        for writer in connections:
            writer.transport.abort()
        connections.clear()
        for _ in range(20):  # nobody is there to hear these
            number += 1
            log_line(gateway, number)
    log_line(gateway, "last")
    async with asyncio.timeout(20):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    told = json.loads(output.decode().splitlines()[-1])
    assert told["lines"][:-1] == list(range(1, number + 1))
    assert told["connected"] == [None] + [True] * 5
    proxy.close()
    if tasks:
        await asyncio.wait(tasks, timeout=5)
    await proxy.wait_closed()
    await until(lambda: len(gateway.services.hub) == 0)
