"""Calls that wait until a person approves them, over every way in."""

import asyncio
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient

from mcpgw.access.callers import Caller
from mcpgw.access.tokens import Principal
from mcpgw.audit import Actor
from mcpgw.backends.requests import SilentObserver
from mcpgw.server_definitions import ToolRule
from tests.conftest import LiveGateway, StartGateway
from tests.support.forked import server_table
from tests.support.gateway_process import ALL_SCOPES
from tests.support.mcp_door import ERAS, mcp_client
from tests.support.socket_client import Frame, SocketClient, tool_call
from tests.support.waiting import until

OFFERING = Path(__file__).parent.parent / "servers" / "offering_server.py"
APPROVER = ("events:read", "calls:approve")
ARGUMENTS = {"b": 1, "a": "ü", "password": "hunter2"}


async def guarded(start_gateway: StartGateway, approval: str = "required", **settings: object) -> LiveGateway:
    """A gateway in front of a server all of whose calls need an approval."""
    configuration = server_table("offering", OFFERING, more=f'approval = "{approval}"')
    names = {name.replace("__", "."): value for name, value in settings.items()}
    return await start_gateway(configuration, settings=names)


async def approver(gateway: LiveGateway, user: str = "olga", *scopes: str) -> SocketClient:
    """A client of somebody who may approve, and reads calls."""
    client = await gateway.connect(user, (*APPROVER, *scopes))
    answer = await client.request({"type": "subscribe", "id": "s", "data": {"channel": "calls"}})
    assert answer["type"] == "subscribed"
    return client


async def next_of(client: SocketClient, kind: str) -> Frame:
    """The next frame of a type; others are passed over."""
    while True:
        frame = await client.receive()
        if frame["type"] == kind:
            return frame


async def fetch(
    gateway: LiveGateway, path: str, user: str, scopes: tuple[str, ...], body: object = None
) -> tuple[int, Any]:
    """Status and JSON of one request; POST where there is a body."""
    answer = await AsyncHTTPClient().fetch(
        gateway.url + path,
        method="GET" if body is None else "POST",
        body=None if body is None else json.dumps(body),
        headers={"Authorization": f"Bearer {gateway.token(user, scopes)}"},
        raise_error=False,
    )
    return answer.code, json.loads(answer.body)


def decision(asked: Frame, action: str) -> Frame:
    """The frame that decides."""
    return {"type": "input_response", "data": {"requestId": asked["data"]["requestId"], "action": action}}


def audited(gateway: LiveGateway) -> list[tuple[str, str | None]]:
    """What the audit log has of approvals: what came of each, and by whom."""
    file = gateway.services.config.audit.file
    assert file is not None
    lines = [json.loads(line) for line in file.read_text().split("\n")[:-1]]
    return [(line["outcome"], line["who"].get("user")) for line in lines if line["event"] == "approval"]


@pytest.mark.gen_test
async def test_a_call_waits_until_somebody_who_may_approves_it_once(start_gateway: StartGateway) -> None:
    gateway = await guarded(start_gateway)
    olga, ann = await approver(gateway), await gateway.connect("ann")
    waits = await ann.request(tool_call("offering", "rich", ARGUMENTS, call_id="guarded"))
    assert (waits["type"], waits["id"], waits["data"]["reason"]) == ("queued", "guarded", "approval")
    event = await olga.receive()
    asked = await olga.receive()
    data = asked["data"]
    assert (asked["type"], "id" in asked, data["kind"]) == ("input_request", False, "approval")
    assert (data["user"], data["serverId"], data["toolName"]) == ("ann", "offering", "rich")
    assert data["requestId"] == waits["data"]["requestId"]
    assert data["arguments"] == {**ARGUMENTS, "password": "[redacted]"}
    assert data["hidden"] == ["/password"]
    canonical = '{"a":"ü","b":1,"password":"hunter2"}'
    assert data["argumentsHash"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert (event["type"], event["data"]["arguments"]) == ("call.approval_requested", data["arguments"])
    await olga.send(decision(asked, "accept"))
    end = await ann.end_of("guarded")
    assert end["data"]["structuredContent"] == {"kept": {"null": None}}
    await olga.send(decision(asked, "accept"))
    again = await next_of(olga, "error")
    assert again["data"]["code"] == "unknown_call"
    await ann.send(tool_call("offering", "rich", ARGUMENTS, call_id="next"))
    another = await next_of(olga, "input_request")
    assert another["data"]["requestId"] != data["requestId"], "an approval is of one call alone"
    await olga.send(decision(another, "decline"))
    refused = await ann.end_of("next")
    assert refused["data"]["code"] == "permission_denied"
    declined = await next_of(olga, "call.declined")
    assert (declined["data"]["reason"], declined["data"]["by"]) == ("declined", "olga")
    await until(lambda: len(audited(gateway)) == 4)
    assert audited(gateway) == [
        ("asked", "ann"),
        ("approved", "olga"),
        ("asked", "ann"),
        ("declined", "olga"),
    ]
    for one in (olga, ann):
        await one.leave()


@pytest.mark.gen_test
async def test_nobody_approves_a_call_of_their_own_and_nobody_without_the_right(
    start_gateway: StartGateway,
) -> None:
    gateway = await guarded(start_gateway)
    ann = await gateway.connect("ann", (*ALL_SCOPES, "calls:approve"))
    await ann.request({"type": "subscribe", "id": "s", "data": {"channel": "calls"}})
    await ann.send(tool_call("offering", "rich", call_id="own"))
    waits = await next_of(ann, "queued")
    eve = await gateway.connect("eve")
    for client in (ann, eve):
        await client.send(decision(waits, "accept"))
        assert (await next_of(client, "error"))["data"]["code"] == "permission_denied"
    path = f"/api/v1/approvals/{waits['data']['requestId']}"
    for user, scopes in (("ann", ("calls:approve",)), ("ann", ("admin",)), ("eve", ALL_SCOPES)):
        status, answer = await fetch(gateway, path, user, scopes, {"action": "accept"})
        assert (status, answer["error"]["code"]) == (403, "permission_denied")
    assert (await fetch(gateway, "/api/v1/approvals", "eve", ALL_SCOPES))[0] == 403
    assert await fetch(gateway, "/api/v1/approvals", "ann", ("calls:approve",)) == (200, {"approvals": []})
    await ann.send({"type": "cancel", "id": "own"})
    assert (await ann.end_of("own"))["data"]["code"] == "cancelled"
    for one in (ann, eve):
        await one.leave()


@pytest.mark.gen_test
async def test_where_the_settings_say_so_one_may_approve_ones_own(start_gateway: StartGateway) -> None:
    gateway = await guarded(start_gateway, calls__approve_own=True)
    ann = await approver(gateway, "ann", "tools:call")
    await ann.send(tool_call("offering", "rich", call_id="own"))
    await ann.send(decision(await next_of(ann, "input_request"), "accept"))
    assert (await ann.end_of("own"))["type"] == "tool_response"
    await ann.leave()


@pytest.mark.gen_test
async def test_rest_lists_what_waits_and_decides(start_gateway: StartGateway) -> None:
    gateway = await guarded(start_gateway)
    ann = await gateway.connect("ann")
    await ann.request(tool_call("offering", "rich", ARGUMENTS, call_id="guarded"))
    status, answer = await fetch(gateway, "/api/v1/approvals", "olga", APPROVER)
    (waiting,) = answer["approvals"]
    assert (status, waiting["user"], waiting["toolName"]) == (200, "ann", "rich")
    assert waiting["expiresAt"] - waiting["askedAt"] == 120_000
    path = f"/api/v1/approvals/{waiting['requestId']}"
    for body, code in (
        ({"action": "accept", "argumentsHash": "0" * 64}, "invalid_params"),
        ({"action": "cancel"}, "invalid_params"),
        ({"action": "accept", "hash": "x"}, "invalid_params"),
    ):
        status, answer = await fetch(gateway, path, "olga", APPROVER, body)
        assert (status, answer["error"]["code"]) == (400, code)
    body = {"action": "accept", "argumentsHash": waiting["argumentsHash"]}
    expected = {"requestId": waiting["requestId"], "action": "accept"}
    assert await fetch(gateway, path, "olga", APPROVER, body) == (200, expected)
    assert (await ann.end_of("guarded"))["type"] == "tool_response"
    status, answer = await fetch(gateway, path, "olga", APPROVER, body)
    assert (status, answer["error"]["code"]) == (404, "unknown_call")
    await ann.leave()


@pytest.mark.gen_test
async def test_what_nobody_approves_is_refused_in_time_and_a_cancelled_call_is_withdrawn(
    start_gateway: StartGateway,
) -> None:
    gateway = await guarded(start_gateway, calls__approval_timeout=0.3, calls__timeout=0.1)
    olga, ann = await approver(gateway), await gateway.connect("ann")
    end = await ann.call("offering", "rich", call_id="late")
    assert (end["data"]["code"], "nobody approved" in end["data"]["error"]) == ("permission_denied", True)
    assert (await next_of(olga, "call.declined"))["data"]["reason"] == "expired"
    await ann.request(tool_call("offering", "rich", call_id="left"))
    await ann.send({"type": "cancel", "id": "left"})
    assert (await ann.end_of("left"))["data"]["code"] == "cancelled"
    assert (await next_of(olga, "call.declined"))["data"]["reason"] == "withdrawn"
    short = await ann.call("offering", "rich", call_id="short", timeoutMs=100)
    assert short["data"]["code"] == "timeout"
    await until(
        lambda: [what for what, _ in audited(gateway) if what != "asked"] == ["expired", *["withdrawn"] * 2]
    )
    for one in (olga, ann):
        await one.leave()


@pytest.mark.gen_test
async def test_who_comes_later_is_asked_what_waits_and_who_only_reads_calls_sees_no_arguments(
    start_gateway: StartGateway,
) -> None:
    gateway = await guarded(start_gateway)
    reader = await gateway.connect("rita", ("events:read", "calls:read"))
    await reader.request({"type": "subscribe", "id": "s", "data": {"channel": "calls"}})
    ann = await gateway.connect("ann")
    await ann.request(tool_call("offering", "rich", ARGUMENTS, call_id="guarded"))
    seen = await next_of(reader, "call.approval_requested")
    assert "arguments" not in seen["data"]
    olga = await approver(gateway)
    asked = await next_of(olga, "input_request")
    await olga.leave()
    back = await approver(gateway)
    assert (await next_of(back, "input_request"))["data"] == asked["data"]
    await back.send(decision(asked, "accept"))
    assert (await ann.end_of("guarded"))["type"] == "tool_response"
    for one in (reader, ann, back):
        await one.leave()


@pytest.mark.gen_test
async def test_one_user_cannot_fill_the_room_for_all(start_gateway: StartGateway) -> None:
    gateway = await guarded(start_gateway, calls__max_approvals=8)
    ann, bob = await gateway.connect("ann"), await gateway.connect("bob")
    for number in (1, 2):
        assert (await ann.request(tool_call("offering", "rich", call_id=str(number))))["type"] == "queued"
    assert (await ann.call("offering", "rich", call_id="3"))["data"]["code"] == "queue_full"
    assert (await bob.request(tool_call("offering", "rich", call_id="1")))["type"] == "queued"
    for one in (ann, bob):
        await one.leave()


@pytest.mark.gen_test
async def test_a_call_that_waited_is_not_sent_where_its_tool_has_changed(start_gateway: StartGateway) -> None:
    gateway = await guarded(start_gateway)
    ann = await gateway.connect("ann")
    waits = await ann.request(tool_call("offering", "rich", call_id="guarded"))
    definition = gateway.services.gateway.definition("offering")
    policy = replace(definition.tools, rules={"rich": ToolRule(fixed={"depth": 3})})
    await gateway.services.gateway.replace_server(replace(definition, tools=policy))
    path = f"/api/v1/approvals/{waits['data']['requestId']}"
    assert (await fetch(gateway, path, "olga", APPROVER, {"action": "accept"}))[0] == 200
    end = await ann.end_of("guarded")
    assert (end["data"]["code"], "was changed" in end["data"]["error"]) == ("permission_denied", True)
    await ann.leave()


@pytest.mark.gen_test
async def test_calls_over_rest_and_mcp_wait_too(start_gateway: StartGateway) -> None:
    gateway = await guarded(start_gateway)
    olga = await approver(gateway)
    body = {"params": {"way": "rest"}}
    path = "/api/v1/servers/offering/tools/rich"
    for action, status in (("accept", 200), ("decline", 403)):
        calling = asyncio.create_task(fetch(gateway, path, "ann", ALL_SCOPES, body))
        await olga.send(decision(await next_of(olga, "input_request"), action))
        assert (await calling)[0] == status
    steps: list[str | None] = []

    async def progress(progress: float, total: float | None, message: str | None) -> None:
        steps.append(message)

    for era in ERAS:
        async with mcp_client(gateway, mode=era) as (client, _):
            asking = client.call_tool("offering__rich", {"way": era}, progress_callback=progress)
            mcp_call = asyncio.create_task(asking)
            asked = await next_of(olga, "input_request")
            assert (asked["data"]["user"], asked["data"]["arguments"]) == ("ann", {"way": era})
            await until(lambda: steps == ["the call waits until somebody approves it"])
            await olga.send(decision(asked, "accept"))
            assert (await mcp_call).structured_content == {"kept": {"null": None}}
        steps.clear()
    await olga.leave()


@pytest.mark.gen_test
async def test_one_tool_alone_can_need_an_approval(start_gateway: StartGateway) -> None:
    gateway = await guarded(start_gateway, "never")
    definition = gateway.services.gateway.definition("offering")
    rules = {"rich": ToolRule(approval="required")}
    policy = replace(definition.tools, rules=rules)
    await gateway.services.gateway.replace_server(replace(definition, tools=policy))
    ann = await gateway.connect("ann")
    assert (await ann.call("offering", "meta", call_id="free"))["type"] == "tool_response"
    assert (await ann.request(tool_call("offering", "rich", call_id="guarded")))["type"] == "queued"
    await ann.leave()


@pytest.mark.gen_test
async def test_what_the_policy_adds_is_approved_too_and_its_secrets_are_seen_by_nobody(
    start_gateway: StartGateway,
) -> None:
    configuration = server_table("offering", OFFERING, more='approval = "required"') + (
        "[servers.offering.tools.rich]\ndefaults = {depth = 3, wide = 4}\n"
        'fixed = {root = "${ROOT_OF_ALL:-/s3cret}", mode = "delete"}\n'
    )
    gateway = await start_gateway(configuration)
    olga, ann = await approver(gateway), await gateway.connect("ann", (*ALL_SCOPES, "events:read"))
    await ann.request({"type": "subscribe", "id": "s", "data": {"channel": "calls"}})
    await ann.send(tool_call("offering", "rich", {"wide": 5}, call_id="guarded"))
    seen = await next_of(ann, "call.approval_requested")
    assert "arguments" not in seen["data"], "what is fixed is not for callers"
    asked = (await next_of(olga, "input_request"))["data"]
    shown = {"depth": 3, "wide": 5, "root": "[redacted]", "mode": "delete"}
    assert (asked["arguments"], asked["hidden"]) == (shown, ["/root"])
    canonical = '{"depth":3,"mode":"delete","root":"[redacted]","wide":5}'
    assert asked["argumentsHash"] == hashlib.sha256(canonical.encode()).hexdigest()
    _, listed = await fetch(gateway, "/api/v1/approvals", "olga", APPROVER)
    assert listed["approvals"][0]["arguments"] == shown
    await olga.send(decision({"data": asked}, "accept"))
    assert (await ann.end_of("guarded"))["type"] == "tool_response"
    for one in (olga, ann):
        await one.leave()


@pytest.mark.gen_test
async def test_a_caller_hides_no_more_than_texts_and_numbers_under_names_of_secrets(
    start_gateway: StartGateway,
) -> None:
    gateway = await guarded(start_gateway)
    ann = await gateway.connect("ann")
    given = {
        "token": {"path": "/etc", "password": ["a", 7, {"b": True}]},
        "a/b": {"secret": "c"},
        "api_key": None,
    }
    await ann.request(tool_call("offering", "rich", given, call_id="guarded"))
    _, answer = await fetch(gateway, "/api/v1/approvals", "olga", APPROVER)
    (waiting,) = answer["approvals"]
    masked = "[redacted]"
    assert waiting["arguments"] == {
        "token": {"path": "/etc", "password": [masked, masked, {"b": True}]},
        "a/b": {"secret": masked},
        "api_key": None,
    }
    assert waiting["hidden"] == ["/a~1b/secret", "/token/password/0", "/token/password/1"]
    await ann.leave()


@pytest.mark.gen_test
async def test_a_call_that_ends_before_its_approval_says_that_it_was_not_sent(
    start_gateway: StartGateway,
) -> None:
    gateway = await guarded(start_gateway)
    ann = await gateway.connect("ann")
    began = time.time() * 1000
    waits = await ann.request(tool_call("offering", "rich", call_id="short", timeoutMs=600))
    assert began < waits["data"]["expiresAt"] <= time.time() * 1000 + 600
    end = (await ann.end_of("short"))["data"]
    assert (end["code"], end["error"]) == (
        "timeout",
        "the call took longer than 0.6 s before it was approved; it was not sent",
    )
    await ann.leave()


@pytest.mark.gen_test
async def test_a_decision_counts_where_the_call_is_cancelled_in_the_same_moment(
    start_gateway: StartGateway,
) -> None:
    gateway = await guarded(start_gateway)
    approvals, settings = gateway.services.approvals, gateway.services.gateway.call_settings
    caller = Caller(Principal("ann", frozenset(), time.time() + 60, "t"), "test")
    olga = Principal("olga", frozenset({"calls:approve"}), time.time() + 60, "t")
    asking = asyncio.create_task(
        approvals.ask(caller, "offering", "rich", {}, settings=settings, observer=SilentObserver())
    )
    await until(lambda: approvals.pending(olga, settings) != [])
    (request,) = approvals.pending(olga, settings)
    approvals.decide(olga, request.id, "accept", actor=Actor("", "olga"), settings=settings)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: audited(gateway) == [("asked", "ann"), ("approved", "olga")])
