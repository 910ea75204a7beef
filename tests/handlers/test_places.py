"""Coming back at the limit of a user: the dead make room, the living stay, and nobody is punished twice."""

import asyncio
import gc
import json
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mcpgw.errors import CloseCode
from tests.conftest import LiveGateway, StartGateway
from tests.handlers.test_resume import Counted, count, counted, resume
from tests.handlers.test_slow_readers import connect, stop_reading
from tests.support.proxy import Proxy
from tests.support.raw_socket import PING, PONG, TEXT, EventReader, RawSocket, fetch
from tests.support.socket_client import SocketClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from handlers.ws import GatewaySocket
else:
    from mcpgw.handlers.ws import GatewaySocket

Frame = dict[str, Any]
LIMIT = 3


async def limited(start_gateway: StartGateway, tmp_path: Path, **settings: object) -> Counted:
    """A gateway where a user has three connections, with the counting server."""
    times: dict[str, object] = {"server__place_timeout": 0.8, "server__probe_timeout": 0.4}
    return await counted(
        start_gateway, tmp_path, **(times | {"server__max_connections_per_user": LIMIT} | settings)
    )


async def frozen(here: Counted, proxy: Proxy, user: str = "ann") -> list[tuple[SocketClient, str]]:
    """As many connections as a user may have, all of them cut by the network without anybody being told."""
    clients = [await here.connect(proxy.url, user) for _ in range(LIMIT)]
    proxy.to_gateway.hold()
    proxy.to_client.hold()
    return clients


def of_ann(gateway: LiveGateway) -> int:
    """How many connections count as ann's."""
    return gateway.services.hub.statistics().by_user.get("ann", 0)


def user_events(gateway: LiveGateway) -> list[tuple[str, str]]:
    """Collects the types and clients of what is told of ann, from now on."""
    told: list[tuple[str, str]] = []
    gateway.services.bus.listen(
        "user:ann", lambda event: told.append((event.type.name, event.data["clientId"]))
    )
    return told


def sockets_of(gateway: LiveGateway) -> list[GatewaySocket]:
    """Every open socket of a gateway."""
    services = gateway.services
    return [
        each
        for each in gc.get_objects()
        # isinstance would ask a proxy for its class, whose object may be gone.
        if issubclass(type(each), GatewaySocket) and each.services is services
    ]


async def assert_refused(client: SocketClient) -> None:
    """The next frame is the goodbye of a connection that is one too many."""
    goodbye = await client.receive()
    assert (goodbye["type"], goodbye["data"]["code"]) == ("disconnect", CloseCode.CONNECTION_LIMIT)
    assert goodbye["data"]["reason"] == f"this user has {LIMIT} connections: close one first"
    assert await client.closed() == 3504


@pytest.mark.gen_test(timeout=20)
async def test_a_laptop_that_wakes_resumes_all_its_sessions_above_the_limit(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    # So long that no probe can be what makes room here.
    here = await limited(start_gateway, tmp_path, server__place_timeout=30, server__probe_timeout=30)
    async with Proxy(here.gateway.url) as proxy:
        old = [await here.connect(proxy.url) for _ in range(LIMIT)]
        for number, (client, _) in enumerate(old):
            await client.send(count(str(number), seconds=0.6))
            await here.has_run(str(number))
        proxy.to_gateway.hold()
        proxy.to_client.hold()
        began = time.monotonic()
        new = [await here.connect() for _ in range(LIMIT)]
        for number, (client, _) in enumerate(new):
            status = await client.request(resume(old[number][1], [str(number)]))
            assert (status["data"]["resumed"], status["data"]["openCalls"]) == (True, [str(number)])
        assert time.monotonic() - began < 5
        for number, (client, _) in enumerate(new):
            assert (await client.end_of(str(number)))["data"]["success"] is True
        assert here.runs == Counter({"0": 1, "1": 1, "2": 1})
        assert of_ann(here.gateway) == LIMIT
        proxy.to_gateway.release()
        proxy.to_client.release()
        for client, _ in old:
            assert await client.closed() == 3505
    statistics = here.gateway.services.hub.statistics
    await until(lambda: statistics().connections == LIMIT)
    assert (statistics().waiting, statistics().closing) == (0, 0)
    for client, _ in new:
        await client.leave()


@pytest.mark.gen_test(timeout=20)
async def test_a_connection_that_resumes_nothing_has_the_place_of_one_that_is_found_dead(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await limited(start_gateway, tmp_path)
    async with Proxy(here.gateway.url) as proxy:
        dead = [await here.connect(proxy.url) for _ in range(LIMIT - 1)]
        alive, _ = await here.connect()
        proxy.to_gateway.hold()
        proxy.to_client.hold()
        told = user_events(here.gateway)
        new, session = await here.connect()
        # What it asks for meanwhile is held, in order, and answered then.
        for frame in ({"type": "ping"}, count("a"), {"type": "status", "id": "s"}, {"type": "list_tools"}):
            await new.send(frame)
        assert (await new.receive())["type"] == "pong"
        assert here.runs == Counter()
        assert [name for name, _ in told] == []
        assert (await new.end_of("a"))["data"]["success"] is True
        assert here.runs == Counter({"a": 1})
        assert Counter(name for name, _ in told)["user.connected"] == 1
        assert (await alive.request({"type": "ping"}))["type"] == "pong", "who lives stays"
        proxy.to_gateway.release()
        proxy.to_client.release()
        for client, _ in dead:
            assert await client.closed() == 3012
        # Their sessions wait for them, as after every lost connection.
        assert here.gateway.services.sessions.take(dead[0][1], "ann") is not None
        assert here.gateway.services.sessions.take(session, "ann") is not None
    await new.leave()
    await alive.leave()


@pytest.mark.gen_test(timeout=20)
async def test_where_all_live_one_more_is_told_after_a_moment_and_has_done_nothing(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await limited(start_gateway, tmp_path)
    living = [await here.connect() for _ in range(LIMIT)]
    told = user_events(here.gateway)
    sessions = len(here.gateway.services.sessions)
    began = time.monotonic()
    one_more, session = await here.connect()
    await one_more.send(count("never"))
    await assert_refused(one_more)
    assert 0.7 < time.monotonic() - began < 5
    # A session that was never there cannot be resumed; one that is another's cannot be taken either.
    stranger, _ = await here.connect(user="eve")
    for wanted in (session, living[0][1]):
        answer = await stranger.request(resume(wanted, []))
        assert answer["data"]["resumed"] is False
    await stranger.leave()
    assert told == []
    assert here.runs == Counter()
    await until(lambda: here.gateway.services.hub.statistics().connections == LIMIT)
    assert len(here.gateway.services.sessions) == sessions + 1, "that of the stranger"
    for client, _ in living:
        assert (await client.request({"type": "ping"}))["type"] == "pong"
        await client.leave()


@pytest.mark.gen_test(timeout=20)
async def test_only_so_many_wait_and_the_next_is_told_at_once(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await limited(start_gateway, tmp_path, server__place_timeout=30, server__probe_timeout=1)
    living = [await here.connect() for _ in range(LIMIT)]
    waiting = [await here.connect() for _ in range(LIMIT)]
    told = user_events(here.gateway)
    for _ in range(20):
        await assert_refused((await here.connect())[0])
    other, _ = await here.connect(user="bob")
    assert (await other.request({"type": "ping"}))["type"] == "pong", "nobody else is kept out"
    statistics = here.gateway.services.hub.statistics()
    assert (statistics.by_user["ann"], statistics.waiting) == (LIMIT, LIMIT)
    assert told == []
    # Whoever leaves makes room for the one that waits longest.
    await living[0][0].leave()
    answer = await waiting[0][0].request({"type": "list_tools", "id": "t"})
    assert answer["type"] == "tools"
    waiting[1][0].drop()
    await until(lambda: here.gateway.services.hub.statistics().waiting == LIMIT - 2)
    assert sorted(name for name, _ in told) == ["user.connected", "user.disconnected"]
    other.close()
    for client, _ in (*living[1:], *waiting):
        client.close()


@pytest.mark.gen_test(timeout=20)
async def test_who_proves_their_user_later_waits_and_resumes_in_the_same_way(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await limited(start_gateway, tmp_path, server__place_timeout=30, server__probe_timeout=30)
    async with Proxy(here.gateway.url) as proxy:
        old = await frozen(here, proxy)
        new = await SocketClient.connect(here.gateway.socket_url)
        await new.receive()
        answer = await new.request({"type": "auth", "data": {"token": here.gateway.token("ann")}})
        assert answer["data"]["authenticated"] is True
        assert here.gateway.services.hub.statistics().waiting == 1
        assert (await new.request(resume(old[1][1], [])))["data"]["resumed"] is True
        assert here.gateway.services.hub.statistics().waiting == 0
        assert (await new.call("counting", "count", {"key": "a"}))["data"]["success"] is True
        await new.leave()
    for client, _ in old:
        client.close()


@pytest.mark.gen_test(timeout=20)
async def test_the_limit_of_all_holds_for_those_who_wait(start_gateway: StartGateway, tmp_path: Path) -> None:
    here = await limited(start_gateway, tmp_path, server__max_connections=LIMIT + 1)
    living = [await here.connect() for _ in range(LIMIT)]
    waiting, _ = await here.connect()
    for user in ("ann", "bob"):
        refused, _ = await here.connect(user=user)
        assert (await refused.receive())["data"]["reason"] == f"the gateway has its {LIMIT + 1} connections"
        assert await refused.closed() == 3504
    await assert_refused(waiting)
    for client, _ in living:
        await client.leave()


@pytest.mark.gen_test(timeout=30)
async def test_taking_over_again_and_again_leaves_no_heap_of_dying_connections(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await limited(start_gateway, tmp_path)
    sockets, sessions = [], []
    for number in range(30):
        socket = await RawSocket.connect(here.gateway.url)
        sockets.append(socket)
        assert (await socket.upgrade(token=here.gateway.token("ann"))).status == 101
        sessions.append((await socket.read_json())["data"]["session"])
        if number >= LIMIT:
            # None of these ever answers its close.
            frame = resume(sessions[number - LIMIT], [])
            await socket.send_frame(TEXT, json.dumps(frame).encode())
            assert (await socket.read_json())["data"]["resumed"] is True
            sessions[number] = sessions[number - LIMIT]
        statistics = here.gateway.services.hub.statistics()
        assert statistics.by_user["ann"] <= LIMIT
        assert statistics.closing <= LIMIT + 1, statistics
        await asyncio.sleep(0)
    for socket in sockets:
        socket.writer.close()


@pytest.mark.gen_test(timeout=20)
async def test_a_sleeper_who_answers_the_probe_in_time_stays(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await limited(start_gateway, tmp_path, server__max_connections_per_user=1)
    async with await RawSocket.connect(here.gateway.url) as sleeper:
        assert (await sleeper.upgrade(token=here.gateway.token("ann"))).status == 101
        await sleeper.read_json()
        one_more, _ = await here.connect()
        assert await sleeper.read_frame() == (PING, b"")
        await sleeper.send_frame(PONG)
        assert (await one_more.receive())["data"]["code"] == 3504
        assert await one_more.closed() == 3504
        await sleeper.send_frame(TEXT, b'{"type":"ping"}')
        assert (await sleeper.read_json())["type"] == "pong"


@pytest.mark.gen_test(timeout=30)
async def test_who_is_not_read_while_it_waits_is_alive_all_the_same(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await limited(
        start_gateway,
        tmp_path,
        server__max_connections_per_user=1,
        server__place_timeout=30,
        server__probe_timeout=30,
        websocket__ping_interval=0.4,
        websocket__pong_timeout=0.2,
        websocket__read_timeout=0.6,
    )
    living, _ = await here.connect()
    waiting, _ = await here.connect()
    await waiting.send({"type": "list_tools", "id": "t"})
    # Nothing is said while it waits, and its pongs are read by nobody.
    with pytest.raises(TimeoutError):
        await waiting.receive_message(2.5)
    await living.leave()
    answer = await waiting.receive()
    assert (answer["type"], answer["id"]) == ("tools", "t")
    with pytest.raises(TimeoutError):
        await waiting.receive_message(1.5)
    await waiting.leave()


@pytest.mark.gen_test(timeout=20)
async def test_who_says_twice_who_they_are_while_they_wait_leaves_nothing_behind(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await limited(start_gateway, tmp_path, server__place_timeout=30, server__probe_timeout=30)
    living = [await here.connect() for _ in range(LIMIT)]
    gone = {id(each) for each in sockets_of(here.gateway)}
    waiting, _ = await here.connect()
    (handler,) = (weakref.ref(each) for each in sockets_of(here.gateway) if id(each) not in gone)
    for _ in range(2):
        answer = await waiting.request({"type": "auth", "data": {"token": here.gateway.token("ann")}})
        assert answer["data"]["authenticated"] is True
    assert here.gateway.services.hub.statistics().waiting == 1
    waiting.drop()
    await until(lambda: here.gateway.services.hub.statistics().waiting == 0)

    def is_gone() -> bool:
        gc.collect()
        return handler() is None

    await until(is_gone, seconds=5, what="the end of the socket")
    waiting.close()
    for client, _ in living:
        await client.leave()


# --- streams -----------------------------------------------------------------------------------------------


def credentials(here: Counted) -> dict[str, str]:
    """The header of ann."""
    return {"Authorization": f"Bearer {here.gateway.token('ann')}"}


@pytest.mark.gen_test(timeout=20)
async def test_a_stream_above_the_limit_begins_when_another_connection_is_found_dead(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await limited(start_gateway, tmp_path)
    async with Proxy(here.gateway.url) as proxy:
        dead = await frozen(here, proxy)
        position = here.gateway.services.bus.position
        here.gateway.services.bus.publish("config.updated", {"source": "missed", "servers": {}})
        headers = credentials(here) | {"Last-Event-ID": str(position)}
        path = "/api/v1/sse?channels=config"
        async with await EventReader.open(here.gateway.url, headers, path=path) as stream:
            assert stream.head.status == 200
            assert (await stream.next_frame())["recovered"] is True
            assert (await stream.next_frame())["data"] == {"source": "missed", "servers": {}}
    for client, _ in dead:
        client.close()


@pytest.mark.gen_test(timeout=20)
async def test_a_stream_above_the_limit_of_the_living_is_503_after_a_moment(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await limited(start_gateway, tmp_path)
    told = user_events(here.gateway)
    streams = [await EventReader.open(here.gateway.url, credentials(here)) for _ in range(LIMIT)]
    connected = len(told)
    began = time.monotonic()
    refused = await fetch(here.gateway.url, "/api/v1/sse", headers=credentials(here))
    assert (refused.status, refused.json()["error"]["code"]) == (503, "queue_full")
    assert time.monotonic() - began > 0.7
    assert len(told) == connected == LIMIT
    # Each of them has been asked, and its machine has taken the heartbeat.
    for stream in streams:
        while (event := await stream.next_event()) is not None and '"heartbeat"' not in event["data"]:
            pass
        assert event is not None
        stream.connection.writer.close()
    await until(lambda: here.gateway.services.hub.statistics().connections == 0)


@pytest.mark.gen_test(timeout=20)
async def test_a_stream_whose_machine_takes_nothing_any_more_makes_room(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await limited(
        start_gateway, tmp_path, server__max_connections_per_user=1, websocket__write_timeout=60
    )
    stalled = await connect(here.gateway.url)
    await stalled.request("GET", "/api/v1/sse?channels=config", credentials(here))
    assert (await stalled.read_head()).status == 200
    await stalled.read_chunk()
    stop_reading(stalled)
    for number in range(100):
        here.gateway.services.bus.publish(
            "config.updated", {"source": f"{number} " + "x" * 50_000, "servers": {}}
        )
        await asyncio.sleep(0)
    # At first its machine still takes what its process does not read.
    for _ in range(5):
        async with await EventReader.open(here.gateway.url, credentials(here)) as stream:
            if stream.head.status == 200:
                assert (await stream.next_frame())["type"] == "connected"
                break
    else:
        pytest.fail("the stalled stream kept its place")
    stalled.writer.close()


@pytest.mark.gen_test(timeout=20)
async def test_a_stream_that_waits_while_the_gateway_ends_is_sent_elsewhere(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await limited(start_gateway, tmp_path, server__place_timeout=30, server__probe_timeout=30)
    told = user_events(here.gateway)
    hub = here.gateway.services.hub
    streams = [await EventReader.open(here.gateway.url, credentials(here)) for _ in range(LIMIT)]
    async with await RawSocket.connect(here.gateway.url) as waiting:
        await waiting.request("GET", "/api/v1/sse", credentials(here))
        await until(lambda: hub.statistics().waiting == 1)
        here.gateway.services.gateway.begin_draining(5)
        await hub.drain(0)
        answer = await waiting.read_answer()
        assert (answer.status, answer.json()["error"]["code"]) == (503, "draining")
    await until(lambda: len(hub) == 0)
    assert Counter(name for name, _ in told) == {"user.connected": LIMIT, "user.disconnected": LIMIT}
    for stream in streams:
        stream.connection.writer.close()


@pytest.mark.gen_test(timeout=20)
async def test_a_reader_that_leaves_while_their_stream_waits_was_never_there(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    here = await limited(start_gateway, tmp_path, server__place_timeout=30, server__probe_timeout=30)
    told = user_events(here.gateway)
    statistics = here.gateway.services.hub.statistics
    streams = [await EventReader.open(here.gateway.url, credentials(here)) for _ in range(LIMIT)]
    waiting = await RawSocket.connect(here.gateway.url)
    await waiting.request("GET", "/api/v1/sse", credentials(here))
    await until(lambda: statistics().waiting == 1)
    waiting.reset()
    await until(lambda: statistics().waiting == 0)
    await until(lambda: statistics().connections == LIMIT)
    assert Counter(name for name, _ in told) == {"user.connected": LIMIT}
    for stream in streams:
        stream.connection.writer.close()
