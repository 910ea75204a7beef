"""Rooms for guests on a gateway that runs: from the code to the end, and nothing beyond the room."""

import asyncio

import pytest

from tests.conftest import LiveGateway, StartGateway
from tests.support.logins import add_user, audited, log_in, send
from tests.support.mcp_door import Door, result_of
from tests.support.raw_socket import EventReader
from tests.support.rooms import HOST_ROLE, ROOMS, SERVERS, events, join, names, open_room, subscribe
from tests.support.socket_client import SocketClient, tool_call
from tests.support.waiting import until


def close(*clients: SocketClient) -> None:
    """Leave the sockets that a test has not seen closed."""
    for client in clients:
        client.close()


FAST = {"auth.watch_interval": 0.05, "reload.watch": False}


async def hosted(start_gateway: StartGateway, **settings: object) -> tuple[LiveGateway, str]:
    """A gateway with two servers, and the token of a user `tess` who may host rooms."""
    gateway = await start_gateway(SERVERS + HOST_ROLE, settings={**FAST, **settings})
    await add_user(gateway, "tess", "teacher")
    return gateway, (await log_in(gateway, "tess"))["accessToken"]


async def own(gateway: LiveGateway, token: str) -> SocketClient:
    """A socket of the host in the room."""
    client = await SocketClient.connect(gateway.socket_url, token=token)
    await client.receive()
    assert (await client.request(subscribe("room:demo")))["type"] == "subscribed"
    return client


@pytest.mark.gen_test(timeout=30)
async def test_guests_join_by_a_code_call_and_are_seen_in_the_room_and_its_host_rules_it(
    start_gateway: StartGateway,
) -> None:
    gateway, token = await hosted(start_gateway)
    room = await open_room(gateway, token)
    assert room["link"] == f"{gateway.url}/join#{room['code']}"
    host = await own(gateway, token)
    ann, bob = await join(gateway, room["code"].lower(), " Ann "), await join(gateway, room["code"], "Bob")
    assert (ann.answer["name"], ann.answer["credentials"], ann.answer["room"]) == ("Ann", "guest", "demo")
    assert ann.user.startswith("guest:demo:Ann:")
    at_ann, at_bob = await ann.enter(), await bob.enter()
    assert [(await host.receive())["data"]["user"] for _ in range(2)] == [ann.user, bob.user]
    assert (await at_ann.receive())["data"]["user"] == bob.user

    secret = {"text": "for Ann alone"}
    answer = await at_ann.call("one", "echo", secret)
    assert answer["type"] == "tool_response"
    for reader in (host, at_bob):
        seen = await events(reader, "call.finished")
        assert names(seen) == ["call.started", "call.finished"]
        assert all(frame["data"]["user"] == ann.user for frame in seen)
        assert "for Ann alone" not in str(seen)

    await send(gateway, "POST", f"{ROOMS}/demo/guests/bob/mute", token=token)
    assert (await events(host, "room.muted"))[-1]["data"] == {"user": bob.user}
    muted = await at_bob.call("one", "echo", secret)
    assert (muted["data"]["code"], "muted you" in muted["data"]["error"]) == ("permission_denied", True)
    say = {"type": "publish", "id": "p", "data": {"channel": "room:demo", "payload": "hello"}}
    await at_bob.send(say)
    assert (await events(at_bob, "error"))[-1]["data"]["code"] == "permission_denied"
    await send(gateway, "POST", f"{ROOMS}/demo/guests/{bob.user[-8:]}/unmute", token=token)
    await events(at_bob, "room.unmuted")
    await at_bob.send(say)
    await events(at_bob, "published")

    assert (await send(gateway, "POST", f"{ROOMS}/demo/freeze", token=token)).json()["frozen"] is True
    assert (await events(host, "room.frozen"))[-1]["channel"] == "room:demo"
    frozen = await at_ann.call("one", "echo", secret, call_id="frozen")
    assert "frozen" in frozen["data"]["error"]
    rest = await send(gateway, "POST", "/api/v1/servers/one/tools/echo", {"params": secret}, token=ann.token)
    assert rest.status == 403
    await send(gateway, "POST", f"{ROOMS}/demo/thaw", token=token)
    assert (await at_ann.call("one", "echo", secret, call_id="thawed"))["type"] == "tool_response"

    assert (await send(gateway, "POST", f"{ROOMS}/demo/guests/ANN/kick", token=token)).status == 204
    assert await at_ann.closed(1) == 3503
    assert await ann.status() == 401
    again = await send(gateway, "POST", f"{ROOMS}/join", {"code": room["code"], "name": "ann"})
    assert (again.status, again.json()["error"]["code"]) == (409, "conflict")
    assert names(await events(host, "room.left"))[-2:] == ["room.kicked", "room.left"]
    listed = (await send(gateway, "GET", f"{ROOMS}/demo/guests", token=token)).json()["guests"]
    assert [(one["name"], one["kicked"]) for one in listed] == [("Ann", True), ("Bob", False)]

    assert (await send(gateway, "DELETE", f"{ROOMS}/demo", token=token)).status == 204
    assert await at_bob.closed(1) == 3503
    assert (await events(host, "room.ended"))[-1]["data"] == {"reason": "host"}
    assert await bob.status() == 401
    dead = await send(gateway, "POST", f"{ROOMS}/join", {"code": room["code"], "name": "Cid"})
    assert (dead.status, dead.json()["error"]["code"]) == (401, "auth_failed")
    done = ["create", "join", "join", "mute", "unmute", "freeze", "thaw", "kick", "end"]
    await until(lambda: _actions(gateway) == [f"room.{one}" for one in done])
    close(host)


def _actions(gateway: LiveGateway) -> list[str]:
    actions = [line["what"].get("action", "") for line in audited(gateway)]
    return [action for action in actions if action.startswith("room.")]


@pytest.mark.gen_test(timeout=30)
async def test_when_the_time_is_over_everything_of_the_room_ends_by_itself(
    start_gateway: StartGateway,
) -> None:
    gateway, token = await hosted(start_gateway)
    room = await open_room(gateway, token, ttl=1.2)
    host, ann = await own(gateway, token), await join(gateway, room["code"], "Ann")
    at_ann = await ann.enter()
    away = await ann.connect()
    await at_ann.send(tool_call("one", "never", call_id="open"))
    await away.send(tool_call("one", "never", call_id="parked"))
    await events(host, "call.started")
    await events(host, "call.started")
    away.drop()
    await until(lambda: gateway.services.sessions.parked == 1)
    async with await EventReader.open(
        gateway.url, {"Authorization": f"Bearer {ann.token}"}, path="/api/v1/sse"
    ) as stream:
        assert (await stream.next_frame())["type"] == "connected"
        call = asyncio.create_task(
            send(gateway, "POST", "/api/v1/servers/one/tools/never", {"params": {}}, token=ann.token)
        )
        door = asyncio.create_task(
            Door(gateway, token=ann.token).modern("tools/call", {"name": "one__never"})
        )
        ended = await events(host, "room.ended")
        assert ended[-1]["data"] == {"reason": "time"}
        async with asyncio.timeout(1):
            cancelled = await at_ann.end_of("open")
            assert cancelled["data"]["code"] == "cancelled"
            assert await at_ann.closed(1) == 3503
            while (await stream.next_frame())["type"] != "disconnect":
                pass
            assert await stream.next_event() is None
            assert (await call).status == 403
            assert "holds no more" in (await door).text or "hold no more" in (await door).text
    assert gateway.services.gateway.counts.open == 0, "the parked call has ended too"
    assert await ann.status() == 401
    late = await send(gateway, "POST", f"{ROOMS}/join", {"code": room["code"], "name": "Bob"})
    assert late.status == 401
    assert (await send(gateway, "GET", ROOMS, token=token)).json() == {"rooms": []}
    await until(lambda: _actions(gateway)[-1:] == ["room.end"])
    again = await open_room(gateway, token)
    assert again["code"] != room["code"], "the name is free again"
    assert await ann.status() == 401, "and is no way back for the guests of before"
    close(host, away)


@pytest.mark.gen_test(timeout=30)
async def test_a_guest_can_do_nothing_beyond_the_room_at_any_door(start_gateway: StartGateway) -> None:
    gateway, token = await hosted(start_gateway)
    room = await open_room(gateway, token, scopes=["tools:call:one/echo", "tools:call:one/never"])
    await open_room(gateway, token, name="other")
    ann, bob = await join(gateway, room["code"], "Ann"), await join(gateway, room["code"], "Bob")
    at_ann = await ann.enter()
    for channel in ("room:other", "room:free", "servers", "gateway", "config", "system", f"user:{bob.user}"):
        refused = await at_ann.request(subscribe(channel))
        assert refused["data"]["code"] == "permission_denied", channel
    listed = (await at_ann.request({"type": "list_tools", "id": "l"}))["data"]["tools"]
    assert [(tool["serverId"], tool["name"]) for tool in listed] == [("one", "echo"), ("one", "never")]
    for server, tool in (("two", "echo"), ("one", "pid")):
        denied = await at_ann.call(server, tool, {})
        assert denied["data"]["code"] == "permission_denied"
        rest = await send(gateway, "POST", f"/api/v1/servers/{server}/tools/{tool}", {}, token=ann.token)
        assert rest.status == 403
        called = await Door(gateway, token=ann.token).modern("tools/call", {"name": f"{server}__{tool}"})
        assert "error" in result_of(called), called.text
    tools = result_of(await Door(gateway, token=ann.token).modern("tools/list"))["result"]["tools"]
    assert {tool["name"] for tool in tools} == {"one__echo", "one__never"}
    assert (await Door(gateway, "/mcp/two", ann.token).modern("tools/list")).status_code == 403

    of_calls = await ann.connect()
    assert (await of_calls.request(subscribe("calls")))["type"] == "subscribed"
    of_bob = {"params": {"text": "of Bob"}}
    assert (
        await send(gateway, "POST", "/api/v1/servers/one/tools/echo", of_bob, token=bob.token)
    ).status == 200
    await at_ann.send(tool_call("one", "echo", {"text": "of Ann"}))
    seen = await events(of_calls, "call.finished")
    assert {frame["data"]["user"] for frame in seen} == {ann.user}
    assert seen[-2]["data"]["arguments"] == {"text": "of Ann"}, "one's own calls are seen whole"

    definition = {"id": "three", "definition": {"command": "true"}}
    key = {"name": "k", "scopes": ["tools:call:one/echo"]}
    for method, path, body in (
        ("GET", "/api/v1/servers", None),
        ("POST", "/api/v1/servers", definition),
        ("DELETE", "/api/v1/servers/one", None),
        ("POST", "/api/v1/servers/one/stop", None),
        ("GET", "/api/v1/config", None),
        ("PATCH", "/api/v1/config", {"settings": {}}),
        ("GET", "/api/v1/gateway", None),
        ("GET", "/api/v1/gateway/stats", None),
        ("GET", "/api/v1/catalogs", None),
        ("GET", "/api/v1/approvals", None),
        ("POST", "/api/v1/system/alerts", {"level": "error", "message": "x"}),
        ("POST", f"/api/v1/users/{bob.user}/notifications", {"level": "error", "message": "x"}),
        ("POST", "/api/v1/keys", key),
        ("GET", ROOMS, None),
        ("POST", ROOMS, {"name": "mine", "scopes": ["tools:call:one/echo"]}),
        ("DELETE", f"{ROOMS}/demo", None),
        ("POST", f"{ROOMS}/demo/freeze", None),
        ("POST", f"{ROOMS}/demo/guests/Bob/kick", None),
        ("GET", f"{ROOMS}/demo/guests", None),
        ("GET", "/api/v1/sse?channels=servers", None),
        ("GET", "/api/v1/sse?channels=room:demo", None),
    ):
        answer = await send(gateway, method, path, body, token=ann.token)
        assert answer.status == 403, (method, path, answer.body)
    document = (await send(gateway, "GET", "/api/v1/openapi.json", token=ann.token)).body.decode()
    assert "one" in document
    assert '"server two"' not in document

    ticket = (
        await send(gateway, "POST", "/api/v1/auth/ticket", {"purpose": "websocket"}, token=ann.token)
    ).json()
    by_ticket = await SocketClient.connect(f"{gateway.socket_url}?ticket={ticket['ticket']}")
    assert (await by_ticket.receive())["data"]["user"] == ann.user
    assert (await by_ticket.request(subscribe("servers")))["data"]["code"] == "permission_denied"
    switched = await by_ticket.request({"type": "auth", "id": "a", "data": {"token": bob.token}})
    assert switched["data"]["code"] == "permission_denied", "another guest's token"
    forged = gateway.token(ann.user, ["tools:call", "rooms:join"])
    assert (await send(gateway, "GET", "/api/v1/auth/me", token=forged)).status == 401
    refresh = await send(gateway, "POST", "/api/v1/auth/refresh", {"refreshToken": ann.token})
    assert refresh.status == 400, "it is none"
    close(at_ann, of_calls, by_ticket)


@pytest.mark.gen_test(timeout=30)
async def test_a_room_of_guests_is_for_them_its_host_and_admins_alone(start_gateway: StartGateway) -> None:
    gateway, token = await hosted(start_gateway)
    await add_user(gateway, "olga", "operator")
    operator = await SocketClient.connect(
        gateway.socket_url, token=(await log_in(gateway, "olga"))["accessToken"]
    )
    await operator.receive()
    assert (await operator.request(subscribe("room:demo")))["type"] == "subscribed", "a room as any other"
    room = await open_room(gateway, token)
    assert (await operator.receive())["type"] == "unsubscribed", "whoever was there has to leave"
    ann = await (await join(gateway, room["code"], "Ann")).enter()
    assert (await operator.request(subscribe("room:demo")))["data"]["code"] == "permission_denied"
    say = {"type": "publish", "id": "p", "data": {"channel": "room:demo", "payload": 1}}
    assert (await operator.request(say))["data"]["code"] == "permission_denied"
    admin = await gateway.connect("root", ["admin"])
    present = (await admin.request(subscribe("room:demo")))["data"]["present"]
    assert [member["user"].rpartition(":")[0] for member in present] == ["guest:demo:Ann", ""]
    assert (await ann.receive())["type"] == "room.joined"

    await add_user(gateway, "tom", "teacher")
    tom = (await log_in(gateway, "tom"))["accessToken"]
    assert (await send(gateway, "GET", ROOMS, token=tom)).json() == {"rooms": []}
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/freeze"),
        ("POST", "/code"),
        ("GET", "/guests"),
        ("POST", "/guests/Ann/kick"),
    ):
        assert (await send(gateway, method, f"{ROOMS}/demo{path}", token=tom)).status == 404
    everybodys = await send(gateway, "GET", ROOMS, token=gateway.token("root", ["admin"]))
    assert [one["name"] for one in everybodys.json()["rooms"]] == ["demo"]
    close(operator, ann, admin)


@pytest.mark.gen_test(timeout=30)
async def test_nobody_gives_a_room_more_than_they_may_do_themselves_now_or_later(
    start_gateway: StartGateway,
) -> None:
    gateway, token = await hosted(start_gateway)

    async def refused(body: dict[str, object], by: str = token) -> str:
        answer = await send(
            gateway, "POST", ROOMS, {"name": "demo", "scopes": ["tools:call:one"], **body}, token=by
        )
        code: str = answer.json()["error"]["code"]
        return code

    await add_user(gateway, "olga", "operator")
    operator = (await log_in(gateway, "olga"))["accessToken"]
    assert await refused({}, operator) == "permission_denied", "without rooms:host"
    narrow = gateway.token("tess", ["rooms:host", "tools:call:two"])
    assert await refused({}, narrow) == "permission_denied"
    await add_user(gateway, "una", "patterned")
    by_pattern = gateway.token("una", ["rooms:host", "tools:call:two"])
    assert await refused({}, by_pattern) == "permission_denied", "the pattern is no wider than the token"
    assert await refused({"scopes": ["admin"]}) == "permission_denied"
    assert await refused({"scopes": ["events:read"]}) == "invalid_params", "guests call tools alone"
    assert await refused({"host": "olga"}) == "permission_denied"
    assert await refused({"quota": "60"}) == "invalid_params"
    assert await refused({"name": "join"}) == "invalid_params"
    assert await refused({"name": "a/b"}) == "invalid_params"
    assert await refused({"ttl": 32 * 86_400}) == "invalid_params"
    root = gateway.token("root", ["admin"])
    assert await refused({"host": "olga"}, root) == "invalid_params", "olga may host nothing"
    assert await refused({"host": "nobody"}, root) == "invalid_params"
    made = await send(
        gateway, "POST", "/api/v1/keys", {"name": "k", "scopes": ["rooms:host", "tools:call"]}, token=token
    )
    assert await refused({}, made.json()["key"]) == "permission_denied", "a key may be revoked, a room stays"

    room = await open_room(gateway, token)
    assert await refused({}) == "invalid_params", "there is one of that name"
    ann = await join(gateway, room["code"], "Ann")
    at_ann = await ann.enter()
    accounts, by = gateway.services.access.accounts, gateway.services.access.by
    principal = gateway.services.access.authority.verify(root)
    await accounts.set_role("tess", "viewer", by=by(principal))
    await gateway.services.access.read_changes()
    denied = await at_ann.call("one", "echo", {"text": "x"})
    assert denied["data"]["code"] == "permission_denied", "what the host may not do, no guest may"
    await accounts.set_disabled("tess", True, by=by(principal))
    await gateway.services.access.read_changes()
    assert await at_ann.closed(1) == 3503


@pytest.mark.gen_test(timeout=30)
async def test_what_a_role_denies_its_users_do_not_give_to_guests_of_a_room_that_is_not_theirs(
    start_gateway: StartGateway,
) -> None:
    denied = '[roles.admin]\nscopes = ["admin"]\ndeny = ["one/echo"]\n'
    gateway = await start_gateway(SERVERS + HOST_ROLE + denied, settings=FAST)
    await add_user(gateway, "boss", "admin")
    await add_user(gateway, "tess", "teacher")
    token = (await log_in(gateway, "boss"))["accessToken"]
    for host in ("", "tess"):
        body = {"name": "demo", "scopes": ["tools:call:one"], "host": host}
        refused = await send(gateway, "POST", ROOMS, body, token=token)
        assert (refused.status, refused.json()["error"]["code"]) == (403, "permission_denied"), host
    guest = await join(gateway, (await open_room(gateway, token))["code"], "Ann")
    client = await guest.enter()
    assert (await client.call("one", "echo", {}))["data"]["code"] == "permission_denied"
    assert (await client.call("one", "pid", {}, call_id="p"))["type"] == "tool_response"
    close(client)


@pytest.mark.gen_test(timeout=30)
async def test_sixty_calls_a_minute_are_sixty_over_all_sockets_and_doors(start_gateway: StartGateway) -> None:
    gateway, token = await hosted(
        start_gateway,
        **{"rooms.max_connections_per_guest": 2, "server.place_timeout": 0.2, "server.probe_timeout": 0.1},
    )
    room = await open_room(gateway, token, quota="60/min", scopes=["tools:call:one"])
    ann, bob = await join(gateway, room["code"], "Ann"), await join(gateway, room["code"], "Bob")
    sockets = [await ann.connect(), await ann.connect()]
    third = await SocketClient.connect(gateway.socket_url, token=ann.token)
    assert await third.closed(5) == 3504
    for number in range(29):
        for client in sockets:
            answer = await client.call("one", "echo", {"n": number}, call_id=f"c{number}")
            assert answer["type"] == "tool_response", answer
    rest, path = {"params": {"text": "x"}}, "/api/v1/servers/one/tools/echo"
    assert (await send(gateway, "POST", path, rest, token=ann.token)).status == 200
    door, call = Door(gateway, token=ann.token), {"name": "one__echo", "arguments": {"text": "x"}}
    assert "result" in result_of(await door.modern("tools/call", call))
    for client in sockets:
        limited = (await client.call("one", "echo", {}, call_id="beyond"))["data"]
        assert (limited["code"], limited["temporary"]) == ("rate_limited", True)
        assert 40_000 < limited["retryAfterMs"] <= 60_000
    beyond = await send(gateway, "POST", path, rest, token=ann.token)
    assert (beyond.status, beyond.json()["error"]["code"]) == (429, "rate_limited")
    assert "too many calls" in (await door.modern("tools/call", call)).text
    assert (await send(gateway, "POST", path, rest, token=bob.token)).status == 200, (
        "each guest has their own"
    )
    close(*sockets)


@pytest.mark.gen_test(timeout=30)
async def test_guessing_is_cut_off_and_the_right_code_is_no_way_around(start_gateway: StartGateway) -> None:
    gateway, token = await hosted(start_gateway, **{"auth.burst": 1000})
    room = await open_room(gateway, token)

    async def attempt(code: str, name: str = "Ann") -> tuple[int, dict[str, object]]:
        answer = await send(gateway, "POST", f"{ROOMS}/join", {"code": code, "name": name})
        return answer.status, answer.json()

    for _ in range(3):
        assert (await attempt(room["code"], "a\u202eb"))[0] == 400, "a bad name is no guess"
    answers = [await attempt(f"ZZZZ-{number:04}") for number in range(32)]
    assert {status for status, _ in answers[:30]} == {401}
    assert len({str(content) for _, content in answers[:30]}) == 1
    assert answers[-1][0] == 429
    status, content = await attempt(room["code"])
    assert (status, content["error"]["code"]) == (429, "rate_limited")  # type: ignore[index]

    def outcomes() -> list[str]:
        lines = audited(gateway)
        return [line["outcome"] for line in lines if line["what"].get("credentials") == "room code"]

    await until(lambda: outcomes().count("rate_limited") == 3)
    assert (outcomes().count("auth_failed"), outcomes()[-1]) == (30, "rate_limited")
    assert not [line for line in audited(gateway) if line["event"] == "refused"], "one line for one decision"


@pytest.mark.gen_test(timeout=30)
async def test_a_name_is_one_guest_s_and_a_room_has_no_more_guests_than_it_may(
    start_gateway: StartGateway,
) -> None:
    gateway, token = await hosted(start_gateway)
    room = await open_room(gateway, token, maxGuests=2)
    assert (await join(gateway, room["code"], "\uff21nn")).answer["name"] == "Ann"

    async def refused(name: str) -> str:
        answer = await send(gateway, "POST", f"{ROOMS}/join", {"code": room["code"], "name": name})
        code: str = answer.json()["error"]["code"]
        return code

    for name in ("ann", "ANN", "a.n.n", "Tess"):
        assert await refused(name) == "conflict", name
    for name in ("", " ", "\u0430nn", "a\u200db", "<b>", "x" * 33, "guest:demo:Ann"):
        assert await refused(name) == "invalid_params", name
    both = await asyncio.gather(*(refused_or_in(gateway, room["code"], name) for name in ("Bob", "BOB")))
    assert sorted(both) == [201, 409], "two at once"
    assert await refused("Cid") == "queue_full"
    assert (await send(gateway, "POST", f"{ROOMS}/demo/guests/bob/kick", token=token)).status == 204
    await join(gateway, room["code"], "Cid")
    (guest_id,) = {
        one["id"]
        for one in (await send(gateway, "GET", f"{ROOMS}/demo/guests", token=token)).json()["guests"]
        if one["name"] == "Cid"
    }
    assert (await send(gateway, "POST", f"{ROOMS}/demo/guests/ann/kick", token=token)).status == 204
    mimic = await join(gateway, room["code"], guest_id)
    for shown, status in ((guest_id, 409), (mimic.user[-8:], 204)):
        kicked = await send(gateway, "POST", f"{ROOMS}/demo/guests/{shown}/kick", token=token)
        assert kicked.status == status, "whoever takes another's id for a name does not hide behind it"
    renewed = (await send(gateway, "POST", f"{ROOMS}/demo/code", token=token)).json()
    assert renewed["link"].endswith(f"#{renewed['code']}")
    assert await refused("Dan") == "auth_failed", "the old code is dead"


async def refused_or_in(gateway: LiveGateway, code: str, name: str) -> int:
    """What somebody who wants to join is answered."""
    return (await send(gateway, "POST", f"{ROOMS}/join", {"code": code, "name": name})).status
