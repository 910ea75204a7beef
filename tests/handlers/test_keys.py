"""API keys: made, shown once, good wherever a token is, and revoked at once."""

import time

import pytest

from tests.conftest import StartGateway
from tests.support.logins import BY, add_user, audited, log_in, send
from tests.support.raw_socket import EventReader, RawSocket
from tests.support.socket_client import SocketClient
from tests.support.waiting import until

KEYS = "/api/v1/keys"


@pytest.mark.gen_test
async def test_a_key_is_good_wherever_a_token_is_and_its_end_is_everywhere_at_once(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    await add_user(gateway)
    token = (await log_in(gateway))["accessToken"]
    made = await send(
        gateway, "POST", KEYS, {"name": "robot", "scopes": ["events:read", "servers:read"]}, token=token
    )
    assert made.status == 201
    key, key_id = made.json()["key"], made.json()["id"]
    assert key.startswith(f"mcpgw_{key_id}_")
    me = (await send(gateway, "GET", "/api/v1/auth/me", token=key)).json()
    assert (me["user"], me["credentials"], me["scopes"]) == ("ann", "key", ["events:read", "servers:read"])
    assert "expiresAt" not in me
    header = await SocketClient.connect(gateway.socket_url, token=key)
    offered = await SocketClient.connect(gateway.socket_url, subprotocols=["mcpgw.v1", f"bearer.{key}"])
    frame = await SocketClient.connect(gateway.socket_url)
    for client in (header, offered, frame):
        await client.receive()
    status = await frame.request({"type": "auth", "id": "a", "data": {"token": key}})
    assert status["data"]["user"] == "ann"
    async with await EventReader.open(
        gateway.url, {"Authorization": f"Bearer {key}"}, path="/api/v1/sse?channels=servers"
    ) as stream:
        assert (await stream.next_frame())["type"] == "connected"
        assert (await send(gateway, "DELETE", f"{KEYS}/{key_id}", token=token)).status == 204
        assert (await stream.next_frame())["type"] == "disconnect"
        assert await stream.next_event() is None
    for client in (header, offered, frame):
        assert await client.closed(1) == 3503
    assert (await send(gateway, "GET", "/api/v1/auth/me", token=key)).status == 401
    assert (await send(gateway, "DELETE", f"{KEYS}/{key_id}", token=token)).status == 404
    kept = await gateway.services.store.keys.get(key_id)
    assert kept is not None
    assert key not in repr(kept)
    assert key.rpartition("_")[2] not in kept.hash
    actions = {"keys.create", "keys.revoke"}
    await until(lambda: actions <= {line["what"].get("action") for line in audited(gateway)})


@pytest.mark.gen_test
async def test_a_key_may_do_no_more_than_its_maker_and_makes_no_other(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    await add_user(gateway, role="viewer")
    token = (await log_in(gateway))["accessToken"]

    async def refused(body: object, by: str = token) -> str:
        answer = await send(gateway, "POST", KEYS, body, token=by)
        code: str = answer.json()["error"]["code"]
        return code

    assert await refused({"name": "x", "scopes": ["admin"]}) == "permission_denied"
    assert await refused({"name": "x", "scopes": ["tools:call:memory"]}) == "permission_denied"
    assert await refused({"name": "x", "scopes": ["servers:read"], "user": "bob"}) == "permission_denied"
    assert await refused({"name": "x", "scopes": []}) == "invalid_params"
    stranger = gateway.token("passer-by", ["servers:read"])
    assert await refused({"name": "x", "scopes": ["servers:read"]}, stranger) == "permission_denied"
    made = await send(gateway, "POST", KEYS, {"name": "x", "scopes": ["servers:read"]}, token=token)
    key = made.json()["key"]
    assert await refused({"name": "y", "scopes": ["servers:read"]}, key) == "permission_denied"
    assert await refused({"name": "y", "scopes": ["servers:rea"]}, gateway.token("root", ["admin"])) == (
        "invalid_params"
    )


@pytest.mark.gen_test
async def test_one_sees_and_revokes_one_s_own_keys_and_an_admin_all(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    for name in ("ann", "bob"):
        await add_user(gateway, name)
    tokens = {name: (await log_in(gateway, name))["accessToken"] for name in ("ann", "bob")}
    for name, token in tokens.items():
        await send(gateway, "POST", KEYS, {"name": f"of {name}", "scopes": ["servers:read"]}, token=token)
    (mine,) = (await send(gateway, "GET", KEYS, token=tokens["ann"])).json()["keys"]
    assert (mine["name"], mine["user"]) == ("of ann", "ann")
    assert "key" not in mine
    assert (await send(gateway, "DELETE", f"{KEYS}/{mine['id']}", token=tokens["bob"])).status == 404
    admin = gateway.token("root", ["admin"])
    assert len((await send(gateway, "GET", KEYS, token=admin)).json()["keys"]) == 2
    assert (await send(gateway, "DELETE", f"{KEYS}/{mine['id']}", token=admin)).status == 204


@pytest.mark.gen_test
async def test_a_key_ends_with_its_time_and_its_user_and_what_was_made_by_command_is_heard_of(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(settings={"auth.watch_interval": 0.05, "auth.leeway": 0})
    await add_user(gateway)
    keys = gateway.services.access.keys

    async def status(secret: str) -> int:
        return (await send(gateway, "GET", "/api/v1/auth/me", token=secret)).status

    short, _ = await keys.create("ann", "short", ["servers:read"], seconds=0.5, by=BY)
    long, kept = await keys.create("ann", "long", ["servers:read", "admin"], by=BY)
    async with await RawSocket.connect(gateway.url) as client:
        while (await status(long)) != 200:
            pass
        await client.upgrade(token=short)
        assert (await client.read_close())[0] == 3005
    assert await status(short) == 401
    me = (await send(gateway, "GET", "/api/v1/auth/me", token=long)).json()
    assert "admin" not in me["scopes"], "the role of its user bounds a key"
    await gateway.services.access.note_used()
    used = await keys.get(kept.id)
    assert used is not None
    assert abs(used.used_at / 1000 - time.time()) < 10
    await gateway.services.store.users.set_disabled("ann", True, by=BY)
    while (await status(long)) != 401:
        pass
    for wrong in (long[:-1], long + "x", "mcpgw_", "mcpgw_" + "x" * 9000):
        assert await status(wrong) == 401
