"""The stream of Server-Sent Events, read byte by byte and by an EventSource."""

import asyncio
import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import StartGateway
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
    assert re.fullmatch(r"[0-9a-f]+-0", event["id"])
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
    assert seen[0]["id"].endswith("-0")
    await until(lambda: len(gateway.services.hub) == 0)
