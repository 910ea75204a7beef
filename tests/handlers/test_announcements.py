"""What an admin says to all or to one user, and what an admin may look at."""

import json
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from tests.conftest import LiveGateway, StartGateway
from tests.support.socket_client import SocketClient

ADMIN = ("admin",)
VIEWER = ("events:read", "servers:read")


async def fetch(
    gateway: LiveGateway, path: str, *, scopes: tuple[str, ...], body: object = None
) -> tuple[int, Any]:
    """Status and JSON of one request; POST where there is a body."""
    answer: HTTPResponse = await AsyncHTTPClient().fetch(
        gateway.url + path,
        method="GET" if body is None else "POST",
        body=None if body is None else json.dumps(body),
        headers={"Authorization": f"Bearer {gateway.token('root', scopes)}"},
        raise_error=False,
    )
    return answer.code, json.loads(answer.body)


async def subscribed(gateway: LiveGateway, channel: str, user: str) -> SocketClient:
    """A client that reads a channel, and has read its answer."""
    client = await gateway.connect(user, VIEWER)
    answer = await client.request({"type": "subscribe", "id": "s", "data": {"channel": channel}})
    assert answer["type"] == "subscribed"
    return client


@pytest.mark.gen_test
async def test_an_alert_of_an_admin_reaches_everyone_who_reads_system(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    client = await subscribed(gateway, "system", "ann")
    body = {"level": "warning", "message": "The room closes at six."}
    status, answer = await fetch(gateway, "/api/v1/system/alerts", scopes=ADMIN, body=body)
    assert (status, answer["published"]) == (202, "system.alert")
    event = await client.receive()
    assert (event["type"], event["channel"], event["data"]) == ("system.alert", "system", body)
    await client.leave()


@pytest.mark.gen_test
async def test_an_operator_need_not_be_an_admin(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    client = await subscribed(gateway, "system", "ann")
    body = {"message": "Tonight."}
    path = "/api/v1/system/maintenance"
    assert (await fetch(gateway, path, scopes=("events:publish",), body=body))[0] == 202
    assert (await client.receive())["data"] == body
    assert (await fetch(gateway, "/api/v1/gateway/stats", scopes=("events:publish",)))[0] == 403
    await client.leave()


@pytest.mark.gen_test
async def test_a_notification_reaches_its_user_alone(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    client = await subscribed(gateway, "user:ann", "ann")
    body = {"level": "info", "message": "Your turn."}
    assert (await fetch(gateway, "/api/v1/users/bob/notifications", scopes=ADMIN, body=body))[0] == 202
    assert (await fetch(gateway, "/api/v1/users/ann/notifications", scopes=ADMIN, body=body))[0] == 202
    event = await client.receive()
    assert (event["type"], event["channel"], event["data"]) == ("user.notification", "user:ann", body)
    await client.leave()


@pytest.mark.gen_test
@pytest.mark.parametrize("path", ["system/alerts", "system/maintenance", "users/ann/notifications"])
async def test_only_who_may_publish_announces_and_a_wrong_body_is_told_by_its_place(
    start_gateway: StartGateway, path: str
) -> None:
    gateway = await start_gateway()
    status, answer = await fetch(gateway, f"/api/v1/{path}", scopes=VIEWER, body={"message": "x"})
    assert (status, answer["error"]["code"]) == (403, "permission_denied")
    assert answer["error"]["details"] == {"missingScope": "events:publish"}
    status, answer = await fetch(gateway, f"/api/v1/{path}", scopes=ADMIN, body={"mesage": "x"})
    assert (status, answer["error"]["code"]) == (400, "invalid_params")
    assert "/message" in {fault["path"] for fault in answer["error"]["details"]}


@pytest.mark.gen_test
async def test_the_statistics_count_who_is_connected_and_what_was_called(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    client = await subscribed(gateway, "servers", "ann")
    await client.call("nowhere", "nothing")
    status, numbers = await fetch(gateway, "/api/v1/gateway/stats", scopes=ADMIN)
    assert status == 200
    assert numbers["connections"]["byKind"] == {"websocket": 1, "sse": 0}
    assert numbers["connections"]["byUser"] == {"ann": 1}
    assert numbers["events"]["subscriptions"] == {"servers": 1}
    assert numbers["calls"] == {"open": 0, "ended": {"server_not_found": 1}}
    assert numbers["frames"]["in"] >= 2
    assert numbers["memory"]["residentBytes"] > 1_000_000
    assert (await fetch(gateway, "/api/v1/gateway/stats", scopes=VIEWER))[0] == 403
    assert (await fetch(gateway, "/api/v1/gateway", scopes=VIEWER))[1]["status"] == "ready"
    await client.leave()
