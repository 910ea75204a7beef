"""Resuming over real connections that are cut at every moment: each call has one end and has run once."""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from tornado.websocket import WebSocketClosedError

from tests.conftest import LiveGateway, StartGateway
from tests.support.proxy import Proxy
from tests.support.raw_socket import RawSocket
from tests.support.socket_client import Frame, SocketClient, tool_call
from tests.support.waiting import until

COUNTING_SERVER = Path(__file__).parent.parent / "servers" / "slow_server.py"
ROUNDS = 200


class Counted:
    """A gateway with the counting server, and how often each call has run."""

    def __init__(self, gateway: LiveGateway, record: Path) -> None:
        self.gateway = gateway
        self._record = record

    @property
    def runs(self) -> Counter[str]:
        """How often each key has run."""
        return Counter(self._record.read_text().splitlines() if self._record.exists() else ())

    async def has_run(self, key: str) -> None:
        """Wait until a call has begun."""
        await until(lambda: self.runs[key], what=f"the run of {key}")

    async def connect(self, url: str | None = None, user: str = "ann") -> tuple[SocketClient, str]:
        """A client, by way of `url` where that is given, and the id of its session."""
        address = (url or self.gateway.url).replace("http", "ws", 1) + "/ws"
        client = await SocketClient.connect(address, token=self.gateway.token(user))
        status = await client.receive()
        return client, status["data"]["session"]


async def counted(start_gateway: StartGateway, tmp_path: Path, **settings: object) -> Counted:
    """Start one."""
    record = tmp_path / "runs.txt"
    configuration = (
        f'[servers.counting]\ncommand = "{sys.executable}"\nargs = ["{COUNTING_SERVER}", "{record}"]\n'
    )
    names = {
        "calls.rate": 100_000.0,
        "calls.burst": 100_000,
        "websocket.frames_rate": 100_000.0,
        "websocket.frames_burst": 100_000,
        "server.max_connections_per_user": 1000,
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    return Counted(await start_gateway(configuration, settings=names), record)


def resume(session: str, pending: Iterable[str], since: str | None = None) -> Frame:
    """The frame that goes on with a session."""
    data: Frame = {"session": session, "pending": list(pending)}
    if since is not None:
        data["since"] = since
    return {"type": "resume", "id": "resume", "data": data}


def count(key: str, **params: object) -> Frame:
    """The frame that calls the counting tool; the id of the call is its key."""
    return tool_call("counting", "count", {"key": key, **params}, call_id=key)


async def drop(client: SocketClient, proxy: Proxy) -> None:
    """Cut every connection of the proxy, and have the client notice."""
    proxy.cut()
    assert await client.closed() is None


@pytest.mark.gen_test
async def test_a_call_that_was_lost_on_its_way_to_the_gateway_is_told_to_be_sent_again(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await counted(start_gateway, tmp_path)
    async with Proxy(here.gateway.url) as proxy:
        client, session = await here.connect(proxy.url)
        proxy.to_gateway.hold()
        await client.send(count("a"))
        await drop(client, proxy)
    client, _ = await here.connect()
    status = await client.request(resume(session, ["a"]))
    assert (status["type"], status["data"]["resumed"]) == ("status", True)
    error = await client.receive()
    assert (error["id"], error["data"]["code"], error["data"]["details"]) == (
        "a",
        "outcome_unknown",
        {"received": False},
    )
    assert here.runs == Counter()
    await client.send(count("a"))
    assert (await client.end_of("a"))["data"]["result"] == {"result": "a"}
    assert here.runs == Counter({"a": 1})
    await client.leave()


@pytest.mark.gen_test
async def test_a_call_goes_on_while_its_client_is_away_and_answers_on_the_new_connection(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await counted(start_gateway, tmp_path)
    async with Proxy(here.gateway.url) as proxy:
        client, session = await here.connect(proxy.url)
        await client.send(count("a", seconds=0.5))
        await here.has_run("a")
        await drop(client, proxy)
    client, _ = await here.connect()
    status = await client.request(resume(session, ["a"]))
    assert (status["data"]["resumed"], status["data"]["openCalls"]) == (True, ["a"])
    end = await client.receive()
    assert (end["id"], end["data"]["result"]) == ("a", {"result": "a"})
    assert here.runs == Counter({"a": 1})
    pong = await client.request({"type": "ping", "id": "nothing more came"})
    assert pong["id"] == "nothing more came"
    await client.leave()


@pytest.mark.gen_test
@pytest.mark.parametrize("size", [0, 300_000], ids=["small", "large"])
@pytest.mark.parametrize("arrived", [0, 40])
async def test_an_answer_that_was_written_but_not_read_is_given_again(
    start_gateway: StartGateway, tmp_path: Path, arrived: int, size: int
) -> None:
    here = await counted(start_gateway, tmp_path)
    async with Proxy(here.gateway.url) as proxy:
        client, session = await here.connect(proxy.url)
        proxy.to_client.cut_after(arrived)
        await client.send(count("a", size=size))
        assert await client.closed() is None
        assert here.gateway.services.gateway.counts.ended["ok"] == 1
    client, _ = await here.connect()
    status = await client.request(resume(session, ["a"]))
    assert (status["data"]["resumed"], status["data"]["openCalls"]) == (True, [])
    end = await client.receive()
    assert (end["id"], len(end["data"]["result"]["result"])) == ("a", size + 1)
    assert here.runs == Counter({"a": 1})
    await client.leave()


@pytest.mark.gen_test
async def test_a_half_open_connection_loses_its_session_to_the_new_one_and_nothing_is_lost(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await counted(start_gateway, tmp_path)
    async with Proxy(here.gateway.url) as proxy:
        old, session = await here.connect(proxy.url)
        await old.request({"type": "subscribe", "id": "s", "data": {"channel": "config"}})
        await old.send(count("runs", seconds=0.6))
        await here.has_run("runs")
        frozen = proxy.to_client
        frozen.hold()
        await old.send(count("ends"))
        await until(lambda: here.gateway.services.gateway.counts.ended["ok"])
        here.gateway.services.bus.publish("config.updated", {"source": "1", "servers": {}})
        proxy.to_gateway.hold()
        await old.send(count("never comes"))
        position = here.gateway.services.bus.position
        since = f"{position.epoch}-{position.offset - 1}"

        new, _ = await here.connect()
        status = await new.request(resume(session, ["runs", "ends", "never comes"], since))
        assert (status["data"]["resumed"], status["data"]["openCalls"]) == (True, ["runs"])
        came = [await new.receive() for _ in range(4)]
        assert [frame["type"] for frame in came] == [
            "tool_response",
            "error",
            "subscribed",
            "config.updated",
        ]
        assert came[1]["data"]["details"] == {"received": False}
        assert (await new.end_of("runs"))["data"]["success"] is True

        # What the old connection still carried arrives now, and must not run any more.
        frozen.release()
        proxy.to_gateway.release()
        said = [await old.receive() for _ in range(3)]
        assert [frame["type"] for frame in said] == ["tool_response", "config.updated", "disconnect"]
        assert (said[2]["data"]["code"], said[2]["data"]["reconnect"]) == (3505, False)
        assert await old.closed() == 3505
    assert (await new.call("counting", "count", {"key": "last"}))["data"]["success"] is True
    assert here.runs == Counter({"runs": 1, "ends": 1, "last": 1})
    await new.leave()


@pytest.mark.gen_test
async def test_a_client_that_comes_too_late_finds_nothing_and_its_call_was_cancelled(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await counted(start_gateway, tmp_path, sessions__resume_time=0.1)
    async with Proxy(here.gateway.url) as proxy:
        client, session = await here.connect(proxy.url)
        await client.send(count("a", seconds=30))
        await here.has_run("a")
        await drop(client, proxy)
    await until(lambda: not len(here.gateway.services.sessions))
    client, _ = await here.connect()
    status = await client.request(resume(session, ["a"]))
    assert (status["data"]["resumed"], status["data"]["session"] == session) == (False, False)
    end = await client.receive()
    assert (end["data"]["code"], "details" in end["data"]) == ("outcome_unknown", False)
    await until(lambda: here.gateway.services.gateway.counts.ended["cancelled"] == 1)
    await client.leave()


@pytest.mark.gen_test
async def test_nobody_else_can_go_on_with_a_session(start_gateway: StartGateway, tmp_path: Path) -> None:
    here = await counted(start_gateway, tmp_path)
    async with Proxy(here.gateway.url) as proxy:
        client, session = await here.connect(proxy.url)
        await client.call("counting", "count", {"key": "a"}, call_id="a")
        await drop(client, proxy)
    eve, _ = await here.connect(user="eve")
    assert (await eve.request(resume(session, ["a"])))["data"]["resumed"] is False
    assert (await eve.receive())["data"]["code"] == "outcome_unknown"
    await eve.leave()


@pytest.mark.gen_test
@pytest.mark.parametrize("code", [b"", b"\x03\xe8"], ids=["no code", "1000"])
async def test_a_close_of_the_client_with_or_without_a_code_is_clean_and_cancels_its_calls(
    start_gateway: StartGateway, tmp_path: Path, code: bytes
) -> None:
    here = await counted(start_gateway, tmp_path)
    async with await RawSocket.connect(here.gateway.url) as socket:
        await socket.upgrade(token=here.gateway.token())
        await socket.send_frame(
            0x1,
            b'{"type":"tool_call","id":"a","data":{"serverId":"counting","toolName":"count",'
            b'"params":{"key":"a","seconds":30}}}',
        )
        await here.has_run("a")
        await socket.send_frame(0x8, code)
        await until(lambda: here.gateway.services.gateway.counts.ended["cancelled"] == 1)


class LostError(Exception):
    """The connection was cut."""


class Survivor:
    """A client that keeps one session over many connections, and answers for every call's one end."""

    def __init__(self, here: Counted, proxy: Proxy, chance: random.Random) -> None:
        self._here = here
        self._proxy = proxy
        self._chance = chance
        self._session = ""
        self.ends: Counter[str] = Counter()
        self.sent_again = 0
        self.cuts = 0

    async def round(self, calls: list[Frame]) -> None:
        """Send `calls`, lose the connection at a random moment, and come back until each has its end."""
        waiting = {str(call["id"]): call for call in calls}
        client, _ = await self._begin(())
        cutting = asyncio.ensure_future(self._cut())
        try:
            for call in calls:
                await client.send(call)
            await self._listen(client, waiting)
        except (LostError, WebSocketClosedError):
            pass
        client.drop()
        client.close()
        await cutting
        self._proxy.to_gateway.release()
        self._proxy.to_client.release()
        while waiting:
            # Not cut any more: what is still missing must come now.
            client, status = await self._begin(waiting)
            assert status["data"]["resumed"] is True
            await self._listen(client, waiting)
            client.drop()
            client.close()

    async def _begin(self, pending: Iterable[str]) -> tuple[SocketClient, Frame]:
        client, session = await self._here.connect(self._proxy.url)
        status: Frame = {}
        if self._session:
            status = await client.request(resume(self._session, pending))
        self._session = self._session or session
        return client, status

    async def _cut(self) -> None:
        self.cuts += 1
        match self._chance.choice(["now", "later", "to gateway", "to client"]):
            case "to gateway":
                self._proxy.to_gateway.cut_after(self._chance.randrange(400))
            case "to client":
                self._proxy.to_client.cut_after(self._chance.randrange(900))
            case "later":
                await asyncio.sleep(self._chance.random() * 0.012)
                self._proxy.cut()
            case _:
                self._proxy.cut()

    async def _listen(self, client: SocketClient, waiting: dict[str, Frame]) -> None:
        while waiting:
            message = await client.receive_message()
            if not isinstance(message, str):
                raise LostError
            frame = json.loads(message)
            call_id = str(frame.get("id"))
            if frame["type"] == "tool_response":
                assert call_id in waiting, f"an end for nobody: {frame}"
                del waiting[call_id]
                self.ends[call_id] += 1
            elif frame["type"] == "error":
                assert frame["data"]["details"] == {"received": False}, frame
                self.sent_again += 1
                await client.send(waiting[call_id])


@pytest.mark.xdist_group("load")
@pytest.mark.gen_test(timeout=60)
async def test_two_hundred_cuts_at_random_moments_leave_every_call_answered_once_and_run_once(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await counted(start_gateway, tmp_path)
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    started = time.monotonic()
    async with Proxy(here.gateway.url) as proxy:
        survivor = Survivor(here, proxy, chance)
        keys = [[f"{number}-{n}" for n in range(chance.randint(1, 3))] for number in range(ROUNDS)]
        for some in keys:
            calls = [count(key, seconds=chance.choice([0, 0, 0.005])) for key in some]
            await survivor.round(calls)
    expected = Counter({key: 1 for some in keys for key in some})
    assert survivor.ends == expected, f"seed {seed}"
    assert here.runs == expected, f"seed {seed}"
    assert survivor.cuts == ROUNDS
    assert survivor.sent_again > 0
    assert time.monotonic() - started < 25
