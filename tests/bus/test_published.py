"""What the gateway publishes of itself, seen by a listener of its bus and by readers of its channels."""

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpgw.app import serve
from mcpgw.backends.status import BackendState
from mcpgw.config import load_config
from mcpgw.services import Services
from mcpgw.wire.events import EVENT_TYPES, Event, Position
from tests.conftest import StartGateway
from tests.support.schemas import assert_valid_event
from tests.support.socket_client import SocketClient
from tests.support.waiting import until

ROOT = Path(__file__).parent.parent.parent
SERVERS = ROOT / "tests" / "servers"


async def subscribe(client: SocketClient, channel: str) -> None:
    """Subscribe, and read the answer."""
    answer = await client.request({"type": "subscribe", "data": {"channel": channel}})
    assert answer["type"] == "subscribed"


@pytest.mark.gen_test
async def test_an_admin_reads_the_warnings_of_the_gateway_as_they_are_logged(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    logger = logging.getLogger("mcpgw.test")
    logger.warning("nobody listens yet")
    root, ann = await gateway.connect("root", ("admin",)), await gateway.connect("ann", ("events:read",))
    for client in (root, ann):
        await subscribe(client, "system")
    logger.info("a line for each call")
    thread = threading.Thread(target=logger.warning, args=("from another thread: %s", "x" * 5000))
    thread.start()
    thread.join()
    frame = await root.receive()
    assert (frame["type"], frame["data"]["level"], frame["data"]["logger"]) == (
        "system.log",
        "warning",
        "mcpgw.test",
    )
    assert frame["data"]["message"].startswith("from another thread: xxx")
    assert len(frame["data"]["message"]) <= 2000
    logger.error("the token is %s", gateway.token())
    frame = await root.receive()
    assert frame["data"]["level"] == "error"
    assert gateway.token().rpartition(".")[2] not in frame["data"]["message"]
    gateway.services.bus.publish("system.alert", {"level": "alert", "message": "for all"})
    assert (await ann.receive())["type"] == "system.alert"
    for client in (root, ann):
        client.close()


@pytest.mark.gen_test
async def test_a_message_that_does_not_fit_its_arguments_harms_nobody(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start_gateway()
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setattr(logging.getLogger("mcpgw"), "propagate", False)
    heard: list[Event] = []
    stop = gateway.services.bus.listen("system", heard.append)
    numbers = ("one",)
    logging.getLogger("mcpgw.test").warning("%d of %d", *numbers)
    logging.getLogger("mcpgw.test").warning("and so on")
    await until(lambda: len(heard) > 0)
    stop()
    assert [event.data["message"] for event in heard] == ["and so on"]


@pytest.mark.gen_test(timeout=30)
async def test_the_health_of_the_gateway_is_told_when_a_server_comes_or_goes(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(
        "[backends]\nretry_initial = 0.2\n"
        f'[servers.script]\ncommand = "{sys.executable}"\nargs = ["{SERVERS / "scripted.py"}"]\n'
        f'[servers.broken]\ncommand = "{sys.executable}"\nargs = ["-c", "raise SystemExit(1)"]\n',
        wait_for_backends=15,
    )
    bus = gateway.services.bus
    client = await gateway.connect("ann", ("tools:call",))
    await client.call("script", "exit", {"code": 1})
    client.close()

    def told() -> list[tuple[int, int]]:
        replay = bus.since(Position(bus.position.epoch, 0), ("gateway",))
        events = [event for event in replay.events if event.type.name == "gateway.health_update"]
        for event in events:
            assert_valid_event(event)
        return [(event.data["ready"], event.data["servers"]) for event in events]

    await until(lambda: told() == [(1, 2), (0, 2), (1, 2)], seconds=15)
    newest = [event for event in bus.latest("gateway") if event.type.name == "gateway.health_update"]
    assert [event.data["ready"] for event in newest] == [1]


@pytest.fixture
def same_garbage() -> Iterator[None]:
    """Leaves the collector as it was: a gateway that is served sets it for its whole process."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.mark.gen_test(timeout=30)
@pytest.mark.usefixtures("same_garbage")
async def test_the_end_of_the_gateway_is_its_last_event(tmp_path: Path) -> None:
    flags = {
        "data.dir": tmp_path / "data",
        "memory.enabled": False,
        "audit.file": tmp_path / "audit.jsonl",
        "server.port": 0,
    }
    config = load_config(file=None, environment={}, flags=flags)
    heard: list[str] = []

    def listen(_url: str, services: Services) -> None:
        services.bus.listen("gateway", lambda event: heard.append(event.type.name))
        os.kill(os.getpid(), signal.SIGTERM)

    async with asyncio.timeout(20):
        await serve(config, listen)
    assert heard == ["gateway.draining", "gateway.stopped"]


def test_the_page_of_events_says_which_of_them_nothing_publishes_yet() -> None:
    sources = "".join(
        path.read_text("utf-8")
        for folder in ("mcpgw", "handlers")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "wire" not in path.parts and "client" not in path.parts
    )
    page = (ROOT / "docs" / "events.md").read_text("utf-8")
    listed = page[
        page.index("nothing publishes them yet") : page.index("`gateway.stopped` is the last event")
    ]
    states = {f"server.{state}" for state in (*BackendState, "started", "restarted")}
    states -= {"server.ready", "server.stopping"}
    for name in EVENT_TYPES:
        short = name.partition(".")[2]
        announced = f'_announce("{short}"' in sources or f'yield "{short}"' in sources
        is_published = name in states or f'"{name}"' in sources or announced
        is_listed = f"`{name}`" in listed.replace("(`config.applied`", "(")
        assert is_published is not is_listed, name
