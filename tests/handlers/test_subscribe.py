"""Subscriptions and rooms over real WebSockets."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mcpgw.wire.events import Position
from tests.conftest import LiveGateway, StartGateway
from tests.support.raw_socket import TEXT, RawSocket
from tests.support.socket_client import SocketClient, tool_call
from tests.support.waiting import until

READS = ("events:read",)
JOINS = ("events:read", "rooms:join")


def log_line(gateway: LiveGateway, line: object, level: str = "info", server: str = "a") -> None:
    data = {"serverId": server, "level": level, "line": str(line)}
    gateway.services.bus.publish("server.log", data)


def position_of(gateway: LiveGateway) -> Position:
    return gateway.services.bus.position


async def subscribe(client: SocketClient, channel: str, **data: Any) -> dict[str, Any]:
    """Subscribe; answers the data of ``subscribed``."""
    frame = await client.request({"type": "subscribe", "id": "s", "data": {"channel": channel, **data}})
    assert (frame["type"], frame["id"], frame["data"].get("channel")) == ("subscribed", "s", channel), frame
    told: dict[str, Any] = frame["data"]
    return told


async def refused(client: SocketClient, channel: str, kind: str = "subscribe", **data: Any) -> dict[str, Any]:
    frame = await client.request({"type": kind, "id": "r", "data": {"channel": channel, **data}})
    assert (frame["type"], frame["id"]) == ("error", "r"), frame
    error: dict[str, Any] = frame["data"]
    return error


async def lines(client: SocketClient, count: int) -> list[str]:
    frames = [await client.receive() for _ in range(count)]
    assert {frame["type"] for frame in frames} <= {"server.log"}, frames
    return [frame["data"]["line"] for frame in frames]


async def assert_silent(client: SocketClient) -> None:
    """Nothing more had been said before the answer to this."""
    assert (await client.request({"type": "ping", "id": "p"}))["type"] == "pong"


@pytest.mark.gen_test
async def test_the_older_spelling_works_byte_for_byte(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    async with await RawSocket.connect(gateway.url) as socket:
        await socket.upgrade(token=gateway.token(), path="/api/v1/ws")
        await socket.read_json()
        await socket.send_frame(TEXT, b'{"type":"subscribe","channel":"servers","request_id":"sub-1"}')
        frame = await socket.read_json()
    assert (frame["type"], frame["id"], frame["request_id"]) == ("subscribed", "sub-1", "sub-1")
    assert frame["data"]["channel"] == "servers"
    assert frame["data"]["recovered"] is True


@pytest.mark.gen_test
async def test_servers_gives_a_newcomer_the_present_state_of_each_server_and_then_what_happens(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    bus = gateway.services.bus
    for name, server in (("starting", "a"), ("starting", "b"), ("stopped", "a")):
        bus.publish(f"server.{name}", {"serverId": server})
    log_line(gateway, "past")
    client = await gateway.connect(scopes=READS)
    told = await subscribe(client, "servers")
    assert (told["epoch"], told["offset"]) == (position_of(gateway).epoch, position_of(gateway).offset)
    states = [await client.receive() for _ in range(2)]
    assert [(state["type"], state["data"]["serverId"]) for state in states] == [
        ("server.starting", "b"),
        ("server.stopped", "a"),
    ]
    log_line(gateway, "live")
    assert await lines(client, 1) == ["live"]
    client.close()


@pytest.mark.gen_test
async def test_what_was_missed_since_a_position_comes_in_order_before_what_happens(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    since = position_of(gateway)
    for number in range(2000):
        log_line(gateway, number)
    client = await gateway.connect(scopes=READS)
    told = await subscribe(client, "servers", since=str(since))
    assert told["recovered"] is True
    log_line(gateway, 2000)
    assert await lines(client, 2001) == [str(number) for number in range(2001)]
    await assert_silent(client)
    client.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("which", ["too old", "of the future", "of another log"])
async def test_a_position_that_the_log_cannot_serve_is_not_recovered_and_the_state_comes(
    start_gateway: StartGateway, which: str
) -> None:
    gateway = await start_gateway(settings={"events.log_size": 5})
    start = position_of(gateway)
    gateway.services.bus.publish("server.stopped", {"serverId": "a"})
    for number in range(10):
        log_line(gateway, number)
    now = position_of(gateway)
    since = {
        "too old": start,
        "of the future": Position(now.epoch, now.offset + 100),
        "of another log": Position("0" * 16, now.offset),
    }[which]
    client = await gateway.connect(scopes=READS)
    told = await subscribe(client, "servers", since=str(since))
    assert (told["recovered"], told["epoch"]) == (False, now.epoch)
    assert (await client.receive())["type"] == "server.stopped"
    await assert_silent(client)
    client.close()


@pytest.mark.gen_test
async def test_subscribing_again_takes_the_place_of_the_first_and_nothing_comes_twice(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    client = await gateway.connect(scopes=READS)
    await subscribe(client, "servers")
    await subscribe(client, "servers", filter={"minLevel": "warning"})
    log_line(gateway, "quiet")
    log_line(gateway, "loud", "error")
    assert await lines(client, 1) == ["loud"]
    await subscribe(client, "servers")
    log_line(gateway, "quiet")
    assert await lines(client, 1) == ["quiet"]
    status = await client.request({"type": "status"})
    assert status["data"]["channels"] == ["servers"]
    client.close()


@pytest.mark.gen_test
async def test_nothing_comes_after_unsubscribed(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    client = await gateway.connect(scopes=READS)
    await subscribe(client, "servers")
    frame = await client.request({"type": "unsubscribe", "id": "u", "data": {"channel": "servers"}})
    assert (frame["type"], frame["id"], frame["data"]) == ("unsubscribed", "u", {"channel": "servers"})
    log_line(gateway, 1)
    await assert_silent(client)
    assert (await refused(client, "servers", "unsubscribe"))["code"] == "unknown_channel"
    client.close()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"types": ["server.stopped"]}, ["server.stopped a", "server.stopped b"]),
        ({"servers": ["b"]}, ["server.log b", "server.stopped b"]),
        ({"minLevel": "error"}, ["server.stopped a", "server.stopped b"]),
        ({"types": ["server.log"], "servers": ["a"], "minLevel": "info"}, ["server.log a"]),
    ],
)
async def test_a_filter_holds_for_what_was_missed_and_for_what_happens(
    start_gateway: StartGateway, wanted: dict[str, Any], expected: list[str]
) -> None:
    gateway = await start_gateway()
    since = position_of(gateway)

    def happen() -> None:
        for server in ("a", "b"):
            log_line(gateway, 1, server=server)
            gateway.services.bus.publish("server.stopped", {"serverId": server})

    happen()
    client = await gateway.connect(scopes=READS)
    await subscribe(client, "servers", since=str(since), filter=wanted)
    happen()
    frames = [await client.receive() for _ in range(2 * len(expected))]
    assert [f"{frame['type']} {frame['data']['serverId']}" for frame in frames] == expected * 2
    await assert_silent(client)
    client.close()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("scopes", "channel", "code"),
    [
        (("tools:call", "servers:read"), "servers", "permission_denied"),
        (("tools:call",), "calls", "permission_denied"),
        (("rooms:join",), "user:ann", "permission_denied"),
        (READS, "user:bob", "permission_denied"),
        (READS, "room:ops", "permission_denied"),
        (("rooms:join:ops",), "room:other", "permission_denied"),
        (("rooms:join",), "room:not a room", "unknown_channel"),
        (("admin",), "nosuch", "unknown_channel"),
    ],
)
async def test_what_nothing_allows_is_refused(
    start_gateway: StartGateway, scopes: tuple[str, ...], channel: str, code: str
) -> None:
    gateway = await start_gateway()
    client = await gateway.connect("ann", scopes)
    assert (await refused(client, channel))["code"] == code
    status = await client.request({"type": "status"})
    assert status["data"]["channels"] == []
    client.close()


@pytest.mark.gen_test
async def test_a_channel_that_is_none_is_refused_with_the_nearest(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    client = await gateway.connect(scopes=READS)
    error = await refused(client, "srevers")
    assert (error["code"], error["temporary"]) == ("unknown_channel", False)
    assert "'servers'" in error["error"]
    client.close()


@pytest.mark.gen_test
async def test_users_hear_their_own_channel_and_admins_any(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    ann, root = await gateway.connect("ann", READS), await gateway.connect("root", ("admin",))
    await subscribe(ann, "user:ann")
    await subscribe(root, "user:ann")
    other = await gateway.connect("ann", ())
    for client in (ann, root):
        frame = await client.receive()
        assert (frame["type"], frame["data"]["kind"]) == ("user.connected", "websocket")
    await other.leave()
    for client in (ann, root):
        assert (await client.receive())["type"] == "user.disconnected"
        client.close()


@pytest.mark.gen_test
async def test_calls_are_seen_whole_by_their_user_masked_by_admins_and_by_nobody_else(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(memory=True)
    ann = await gateway.connect("ann", ("tools:call", "events:read"))
    bob, root = await gateway.connect("bob", READS), await gateway.connect("root", ("admin",))
    for client in (ann, bob, root):
        await subscribe(client, "calls")
    secret = "the-quick-brown-secret"
    await ann.send(
        {
            "type": "tool_call",
            "id": "c1",
            "data": {
                "serverId": "memory",
                "toolName": "memory_search",
                "params": {"project": "p", "query": secret},
            },
        }
    )
    own = [await ann.receive() for _ in range(3)]
    started, finished = (frame for frame in own if frame["type"].startswith("call."))
    assert started["data"]["arguments"] == {"project": "p", "query": secret}
    assert (finished["type"], finished["data"]["success"]) == ("call.finished", True)
    assert "result" in finished["data"]
    masked = [await root.receive() for _ in range(2)]
    assert [frame["type"] for frame in masked] == ["call.started", "call.finished"]
    assert not {"arguments", "result"} & (masked[0]["data"].keys() | masked[1]["data"].keys())
    assert secret not in json.dumps(masked)
    assert masked[0]["data"]["user"] == "ann"
    await assert_silent(bob)
    for client in (ann, bob, root):
        client.close()


@pytest.mark.gen_test
async def test_large_arguments_never_stand_in_an_event(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(memory=True)
    ann = await gateway.connect("ann", ("tools:call", "events:read"))
    await subscribe(ann, "calls")
    await ann.send(
        {
            "type": "tool_call",
            "id": "c1",
            "data": {
                "serverId": "memory",
                "toolName": "memory_search",
                "params": {"project": "p", "query": "x" * 5000},
            },
        }
    )
    frames = [await ann.receive() for _ in range(3)]
    events = [frame for frame in frames if frame["type"].startswith("call.")]
    assert [frame["type"] for frame in events] == ["call.started", "call.finished"]
    assert all(len(json.dumps(frame)) < 4096 for frame in events)
    assert "arguments" not in events[0]["data"]
    ann.close()


@pytest.mark.gen_test
async def test_the_log_of_the_gateway_is_for_admins_alone(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    ann, root = await gateway.connect("ann", READS), await gateway.connect("root", ("admin",))
    for client in (ann, root):
        await subscribe(
            client, "system", filter={"types": ["system.log", "system.alert"], "minLevel": "alert"}
        )
    gateway.services.bus.publish("system.log", {"level": "alert", "logger": "mcpgw", "message": "x"})
    gateway.services.bus.publish("system.alert", {"level": "alert", "message": "y"})
    assert [(await root.receive())["type"] for _ in range(2)] == ["system.log", "system.alert"]
    assert (await ann.receive())["type"] == "system.alert"
    for client in (ann, root):
        client.close()


@pytest.mark.gen_test(timeout=40)
async def test_what_was_missed_waits_in_the_log_for_a_slow_reader_and_nothing_of_it_is_dropped(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(settings={"events.max_waiting": 10, "websocket.compression": False})
    since = position_of(gateway)
    count, long = 3000, "x" * 4000
    for number in range(count):
        log_line(gateway, f"{number} {long}")
    async with await RawSocket.connect(gateway.url) as socket:
        await socket.upgrade(token=gateway.token(scopes=READS))
        await socket.read_json()
        transport: asyncio.ReadTransport = socket.writer.transport  # type: ignore[assignment]
        transport.pause_reading()
        request = {"type": "subscribe", "data": {"channel": "servers", "since": str(since)}}
        await socket.send_frame(TEXT, json.dumps(request).encode())
        # All that the kernel takes is taken; what happens now comes behind what was missed.
        for number in range(count, count + 50):
            await asyncio.sleep(0.002)
            log_line(gateway, number)
        transport.resume_reading()
        assert (await socket.read_json())["data"]["recovered"] is True
        for number in range(count + 50):
            frame = await socket.read_json()
            assert frame["type"] == "server.log", frame
            assert frame["data"]["line"].split()[0] == str(number)


@pytest.mark.gen_test(timeout=40)
@pytest.mark.parametrize("size", [4200, 8000, 30_000])
@pytest.mark.parametrize("how", ["subscribe", "resume"])
async def test_large_events_that_were_missed_come_whole_and_in_order(
    start_gateway: StartGateway, size: int, how: str
) -> None:
    gateway = await start_gateway(settings={"websocket.compression": False})
    first = await gateway.connect(scopes=READS)
    session = (await first.request({"type": "status", "id": "st"}))["data"]["session"]
    await subscribe(first, "system")
    told = await subscribe(first, "servers")
    since = f"{told['epoch']}-{told['offset']}"
    first.drop()
    assert await first.closed() is None
    await until(lambda: gateway.services.bus.listeners().get("servers", 0) == 0)
    for number in range(120):
        log_line(gateway, f"{number} {'x' * size}")
    client = await gateway.connect(scopes=READS)
    if how == "subscribe":
        assert (await subscribe(client, "servers", since=since))["recovered"] is True
    else:
        data = {"session": session, "pending": [], "since": since}
        assert (await client.request({"type": "resume", "id": "r", "data": data}))["data"]["resumed"]
        assert [(await client.receive())["type"] for _ in range(2)] == ["subscribed"] * 2
    got = [line.split()[0] for line in await lines(client, 120)]
    assert got == [str(number) for number in range(120)]
    log_line(gateway, "live")
    assert await lines(client, 1) == ["live"]
    client.close()


@pytest.mark.gen_test(timeout=40)
async def test_a_cut_amid_what_was_missed_loses_nothing_where_another_channel_was_ahead(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(settings={"websocket.compression": False})
    since = position_of(gateway)
    for number in range(400):
        gateway.services.bus.publish("system.alert", {"level": "info", "message": str(number)})
    first = await gateway.connect(scopes=READS)
    session = (await first.request({"type": "status", "id": "st"}))["data"]["session"]
    await subscribe(first, "servers")
    seen: list[str] = []
    last, frame = "", dict[str, Any](type="")
    assert (await subscribe(first, "system", since=str(since)))["recovered"] is True
    while frame["type"] != "server.log":
        log_line(gateway, "ahead")
        frame = await first.receive()
        last = frame["id"]
        seen += [frame["data"]["message"]] if frame["type"] == "system.alert" else []
    assert len(seen) < 400
    first.drop()
    assert await first.closed() is None
    await until(lambda: gateway.services.bus.listeners().get("servers", 0) == 0)
    client = await gateway.connect(scopes=READS)
    data = {"session": session, "pending": [], "since": last}
    assert (await client.request({"type": "resume", "id": "r", "data": data}))["data"]["resumed"]
    told = {(frame := await client.receive())["data"]["channel"]: frame["data"]["recovered"] for _ in "12"}
    assert told == {"servers": True, "system": True}
    again: list[str] = []
    while len(again) < 400:
        frame = await client.receive()
        again += [frame["data"]["message"]] if frame["type"] == "system.alert" else []
    assert again == [str(number) for number in range(400)]
    client.close()


# --- rooms -------------------------------------------------------------------------------------------------


def members(told: dict[str, Any]) -> list[str]:
    return [member["user"] for member in told["present"]]


@pytest.mark.gen_test
async def test_members_know_who_is_there_who_comes_and_who_goes(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    ann, bob = await gateway.connect("ann", JOINS), await gateway.connect("bob", JOINS)
    assert members(await subscribe(ann, "room:ops")) == ["ann"]
    await assert_silent(ann)
    assert members(await subscribe(bob, "room:ops")) == ["ann", "bob"]
    came = await ann.receive()
    assert (came["type"], came["channel"], came["data"]["user"]) == ("room.joined", "room:ops", "bob")
    assert members(await subscribe(bob, "room:ops")) == ["ann", "bob"], "coming twice is coming once"
    await assert_silent(ann)
    await bob.request({"type": "unsubscribe", "data": {"channel": "room:ops"}})
    left = await ann.receive()
    assert (left["type"], left["data"]) == ("room.left", came["data"])
    ann.close()
    bob.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("way", ["leave", "drop"])
async def test_who_disconnects_leaves_and_another_connection_of_the_same_user_stays(
    start_gateway: StartGateway, way: str
) -> None:
    gateway = await start_gateway()
    ann = await gateway.connect("ann", JOINS)
    first, second = await gateway.connect("bob", JOINS), await gateway.connect("bob", JOINS)
    for client in (ann, first, second):
        told = await subscribe(client, "room:ops")
    assert members(told) == ["ann", "bob", "bob"]
    came = [await ann.receive() for _ in range(2)]
    if way == "leave":
        await first.leave()
    else:
        first.drop()
        await first.closed()
    left = await ann.receive()
    assert (left["type"], left["data"]) == ("room.left", came[0]["data"])
    present = gateway.services.rooms.present("room:ops")
    assert [member["user"] for member in present] == ["ann", "bob"]
    await ann.leave()
    await second.leave()
    await until(lambda: gateway.services.rooms.present("room:ops") == ())


@pytest.mark.gen_test
async def test_what_a_member_publishes_comes_to_all_members_in_one_order(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    ann, bob = await gateway.connect("ann", JOINS), await gateway.connect("bob", ("rooms:join:ops",))
    await subscribe(ann, "room:ops")
    await subscribe(bob, "room:ops")
    assert (await ann.receive())["type"] == "room.joined"
    frame = {"type": "publish", "id": "p1", "data": {"channel": "room:ops", "payload": {"n": [1, None]}}}
    await bob.send(frame)
    got = [await bob.receive() for _ in range(2)]
    message, published = sorted(got, key=lambda frame: str(frame["type"]), reverse=True)
    assert (published["type"], published["id"]) == ("published", "p1")
    assert message["type"] == "room.message"
    assert message["id"] == f"{position_of(gateway).epoch}-{published['data']['offset']}"
    assert (message["data"]["user"], message["data"]["payload"]) == ("bob", {"n": [1, None]})
    assert await ann.receive() == message
    ann.close()
    bob.close()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("scopes", "channel", "code"),
    [
        (JOINS, "room:ops", "permission_denied"),
        (READS, "room:ops", "permission_denied"),
        (("admin",), "room:ops", "permission_denied"),
        (("admin",), "servers", "unknown_channel"),
        (("admin",), "user:ann", "unknown_channel"),
        (READS, "nosuch", "unknown_channel"),
    ],
)
async def test_who_is_not_in_a_room_cannot_speak_in_it_nor_anybody_elsewhere(
    start_gateway: StartGateway, scopes: tuple[str, ...], channel: str, code: str
) -> None:
    gateway = await start_gateway()
    client = await gateway.connect("ann", scopes)
    before = position_of(gateway)
    assert (await refused(client, channel, "publish", payload=1))["code"] == code
    replay = gateway.services.bus.since(before, (channel,))
    assert (replay.recovered, replay.events) == (True, ())
    client.close()


@pytest.mark.gen_test
async def test_who_has_left_a_room_cannot_speak_in_it(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    client = await gateway.connect("ann", JOINS)
    await subscribe(client, "room:ops")
    await client.request({"type": "unsubscribe", "data": {"channel": "room:ops"}})
    assert (await refused(client, "room:ops", "publish", payload=1))["code"] == "permission_denied"
    client.close()


@pytest.mark.gen_test
async def test_a_member_that_comes_back_is_given_what_was_said_and_a_newcomer_is_not(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    ann, bob = await gateway.connect("ann", JOINS), await gateway.connect("bob", JOINS)
    await subscribe(ann, "room:ops")
    await subscribe(bob, "room:ops")
    since = (await ann.receive())["id"]
    session = (await ann.request({"type": "status"}))["data"]["session"]
    await ann.leave()
    for number in range(3):
        await bob.send({"type": "publish", "data": {"channel": "room:ops", "payload": number}})
    await until(lambda: position_of(gateway).offset >= Position.parse(since).offset + 5)  # type: ignore[union-attr]
    newcomer = await gateway.connect("cyd", JOINS)
    told = await subscribe(newcomer, "room:ops", since=since)
    assert (told["recovered"], sorted(members(told))) == (False, ["bob", "cyd"])
    await bob.send({"type": "publish", "data": {"channel": "room:ops", "payload": "new"}})
    assert (await newcomer.receive())["data"]["payload"] == "new"
    await newcomer.leave()
    again = await gateway.connect("ann", JOINS)
    resume = {"session": session, "pending": [], "since": since}
    assert (await again.request({"type": "resume", "id": "r", "data": resume}))["data"]["resumed"] is True
    told = (await again.receive())["data"]
    assert (told["recovered"], sorted(members(told))) == (True, ["ann", "bob"])
    seen = [await again.receive() for _ in range(8)]
    assert [frame["type"].removeprefix("room.") for frame in seen] == [
        *("left", "message", "message", "message"),
        *("joined", "message", "left", "joined"),
    ]
    assert [frame["data"].get("payload") for frame in seen[1:4]] == [0, 1, 2]
    again.close()
    bob.close()


@pytest.mark.gen_test
async def test_what_a_server_writes_to_its_stderr_is_told_without_its_secrets(
    start_gateway: StartGateway,
) -> None:
    script = Path(__file__).parent.parent / "servers" / "scripted.py"
    gateway = await start_gateway(
        f"[servers.one]\ncommand = {sys.executable!r}\nargs = ['-S', {str(script)!r}]\n"
    )
    client = await gateway.connect("ann", ("events:read", "tools:call"))
    await client.request({"type": "subscribe", "id": "s", "data": {"channel": "servers"}})
    words = {"text": "password=hunter2secret Authorization: Bearer abcdef.secret\n", "times": 1}
    await client.send(tool_call("one", "complain", words))
    while (event := await client.receive())["type"] != "server.log":
        pass
    assert "hunter2secret" not in event["data"]["line"]
    assert "abcdef.secret" not in event["data"]["line"]
    await client.leave()


@pytest.mark.gen_test
async def test_a_room_takes_no_payload_of_any_size(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    client = await gateway.connect("ann", ("rooms:join",))
    await client.request({"type": "subscribe", "id": "s", "data": {"channel": "room:big"}})
    await client.send(
        {"type": "publish", "id": "p", "data": {"channel": "room:big", "payload": "x" * 70_000}}
    )
    while (answer := await client.receive()).get("id") != "p":
        pass
    assert answer["data"]["code"] == "too_large"
    await client.leave()
