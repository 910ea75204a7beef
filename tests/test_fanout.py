"""Many readers of one channel: each is given every event, in order, also those that lose their connection."""

import asyncio
import json
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpgw.wire.events import Position
from tests.conftest import LiveGateway, StartGateway
from tests.support.raw_socket import EventReader
from tests.support.waiting import until

READER = Path(__file__).parent / "support" / "fanout_reader.py"
READERS = 1000
CUT = 50
EVENTS = 1000
AT_ONCE = 5
# Readers of a busy machine: that the slow and the silent are closed in time is shown elsewhere.
LIMITS = {
    "server.max_connections": 3000,
    "server.max_connections_per_user": 3000,
    "websocket.ping_interval": 300,
    "websocket.read_timeout": 300,
    "websocket.write_timeout": 120,
}
FILES = 5000


def log_line(gateway: LiveGateway, number: int) -> None:
    data = {"serverId": "a", "level": "info", "line": str(number)}
    gateway.services.bus.publish("server.log", data)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Lets this process and its children open the sockets of all readers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        pytest.skip(f"{FILES} open files are needed and {hard} allowed: see `ulimit -Hn`")
    if soft != resource.RLIM_INFINITY and soft < FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.xdist_group("load")
@pytest.mark.gen_test(timeout=150)
@pytest.mark.usefixtures("many_files")
async def test_two_thousand_readers_are_given_a_thousand_events_in_order_cut_or_not(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(settings=LIMITS)
    options = {
        "url": gateway.url,
        "token": gateway.token("ann", ("events:read",)),
        "sse": READERS,
        "websocket": READERS,
        "cut": CUT,
        "last": EVENTS,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(READER), json.dumps(options)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        said = await process.stdout.readline()
    if said == b"ready\n":
        for number in range(1, EVENTS + 1):
            log_line(gateway, number)
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
    async with asyncio.timeout(90):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert Counter(json.loads(output)) == {f"sse 1-{EVENTS}": READERS, f"websocket 1-{EVENTS}": READERS}
    await until(lambda: len(gateway.services.hub) == 0)


@pytest.mark.gen_test
@pytest.mark.parametrize("way", ["sse", "websocket"])
async def test_a_reader_that_comes_after_the_log_moved_on_is_told_so(
    start_gateway: StartGateway, way: str
) -> None:
    gateway = await start_gateway(settings={"events.log_size": 100})
    log_line(gateway, 1)
    seen = gateway.services.bus.position
    for number in range(2, 103):
        log_line(gateway, number)
    assert gateway.services.bus.since(Position(seen.epoch, seen.offset + 1), ("servers",)).recovered
    if way == "sse":
        headers = {"Authorization": f"Bearer {gateway.token()}", "Last-Event-ID": str(seen)}
        async with await EventReader.open(
            gateway.url, headers, path="/api/v1/sse?channels=servers"
        ) as stream:
            frame = await stream.next_frame()
            recovered = frame["recovered"]
    else:
        client = await gateway.connect()
        frame = await client.request(
            {"type": "subscribe", "data": {"channel": "servers", "since": str(seen)}}
        )
        recovered = frame["data"]["recovered"]
        client.close()
    assert recovered is False
