"""Over the WebSocket: resources, prompts and completion of real servers, and what servers ask in mid-call."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LiveGateway, StartGateway
from tests.support.forked import server_table
from tests.support.socket_client import Frame, SocketClient, tool_call
from tests.support.waiting import until

OFFERING = Path(__file__).parent.parent / "servers" / "offering_server.py"
ERAS = pytest.mark.parametrize("era", [[], ["--handshake"]], ids=["2026-07-28", "handshake"])


def definition(record: Path, *options: str, more: str = "") -> str:
    """The configuration of one server that offers all there is."""
    return server_table("offering", OFFERING, "--record", record, *options, more=more)


async def offering(
    start_gateway: StartGateway, tmp_path: Path, *options: str, **settings: object
) -> tuple[LiveGateway, SocketClient]:
    """A gateway in front of the server, and a client of it."""
    names = {name.replace("__", "."): value for name, value in settings.items()}
    gateway = await start_gateway(definition(tmp_path / "record.txt", *options), settings=names)
    return gateway, await gateway.connect()


def ask(kind: str, **data: Any) -> Frame:
    """A request to a server, whose id is its type."""
    return {"type": kind, "id": kind, "data": data}


def code_of(frame: Frame) -> str:
    """The code of an error."""
    assert frame["type"] == "error", frame
    code: str = frame["data"]["code"]
    return code


async def assert_nothing_else(client: SocketClient) -> None:
    """Nothing was said that has not been read."""
    pong = await client.request({"type": "ping", "id": "nothing-else"})
    assert (pong["type"], pong["id"]) == ("pong", "nothing-else"), pong


@ERAS
@pytest.mark.gen_test
async def test_resources_prompts_and_completions_are_answered_as_the_server_has_them(
    start_gateway: StartGateway, tmp_path: Path, era: list[str]
) -> None:
    _, client = await offering(start_gateway, tmp_path, *era)
    listed = await client.request(ask("list_resources", serverId="offering"))
    assert (listed["type"], listed["id"]) == ("resources", "list_resources")
    assert [one["uri"] for one in listed["data"]["resources"]] == ["note:one", "note:two"]
    assert listed["data"]["resources"][1]["_meta"] == {"example.org/kept": 1}
    assert listed["data"]["resourceTemplates"] == [
        {"serverId": "offering", "uriTemplate": "note:{name}", "name": "note"}
    ]
    assert (await client.request(ask("list_resources")))["data"] == listed["data"]
    read = await client.request(ask("read_resource", serverId="offering", uri="note:one"))
    text, image = read["data"]["contents"]
    assert (read["type"], read["data"]["uri"], text["text"]) == ("resource", "note:one", "first")
    assert image["mimeType"] == "image/png"
    prompts = await client.request(ask("list_prompts"))
    assert prompts["data"]["prompts"] == [
        {"serverId": "offering", "name": "greet", "arguments": [{"name": "who"}]}
    ]
    prompt = await client.request(
        ask("get_prompt", serverId="offering", name="greet", arguments={"who": "Ann"})
    )
    assert (prompt["type"], prompt["data"]["description"]) == ("prompt", "A greeting")
    assert prompt["data"]["messages"][0]["content"]["text"] == "Hello Ann"
    completed = await client.request(
        ask(
            "complete",
            serverId="offering",
            ref={"type": "ref/prompt", "name": "greet"},
            argument={"name": "who", "value": "An"},
            context={"arguments": {"other": "x"}},
        )
    )
    assert completed["data"] == {"serverId": "offering", "values": ["Ana", "Anb", "other"], "total": 3}
    await client.leave()


@pytest.mark.gen_test
async def test_what_goes_wrong_with_them_has_the_code_of_a_call(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway, client = await offering(start_gateway, tmp_path)
    unknown = await client.request(ask("read_resource", serverId="offering", uri="note:none"))
    assert (code_of(unknown), unknown["data"]["details"]["code"]) == ("tool_execution_error", -32002)
    assert code_of(await client.request(ask("list_prompts", serverId="ofering"))) == "server_not_found"
    faulty = await client.request(ask("read_resource", serverId="offering", url="note:one"))
    assert code_of(faulty) == "invalid_params"
    assert {fault["path"] for fault in faulty["data"]["details"]} == {"/data/uri", "/data/url"}
    faulty = await client.request(
        ask("complete", serverId="offering", ref={"type": "ref/prompt"}, argument={"name": "a", "value": ""})
    )
    assert code_of(faulty) == "invalid_params"
    narrow = await gateway.connect("eve", ["tools:call:offering/rich"])
    refused = await narrow.request(ask("read_resource", serverId="offering", uri="note:one"))
    assert (code_of(refused), refused["data"]["details"]) == (
        "permission_denied",
        {"missingScope": "tools:call:offering"},
    )
    assert (await narrow.request(ask("list_resources")))["data"]["resources"] == []
    without = await client.request({"type": "read_resource", "data": {"serverId": "offering", "uri": "x"}})
    assert code_of(without) == "invalid_params"
    for one in (client, narrow):
        await one.leave()


@ERAS
@pytest.mark.gen_test
async def test_an_elicitation_is_asked_of_the_socket_whose_call_caused_it_and_a_wrong_answer_stays_open(
    start_gateway: StartGateway, tmp_path: Path, era: list[str]
) -> None:
    gateway, client = await offering(start_gateway, tmp_path, *era)
    other = await gateway.connect()
    await client.send(tool_call("offering", "elicit", call_id="asks"))
    asked = await client.receive()
    data = asked["data"]
    assert (asked["type"], asked["id"], data["kind"], data["message"]) == (
        "input_request",
        "asks",
        "elicitation",
        "Who?",
    )
    assert (data["serverId"], data["toolName"], data["schema"]["required"]) == (
        "offering",
        "elicit",
        ["name"],
    )
    assert data["expiresAt"] > asked["timestamp"]

    def answer(action: str, content: object = None, call: str | None = "asks") -> Frame:
        body = {"requestId": data["requestId"], "action": action}
        frame: Frame = {"type": "input_response", "data": body | ({"content": content} if content else {})}
        return frame | ({"id": call} if call else {})

    wrong = await client.request(answer("accept", {"name": 7}))
    assert (code_of(wrong), wrong["data"]["details"]) == (
        "invalid_params",
        [{"path": "/data/content/name", "reason": "must be of type string"}],
    )
    assert code_of(await client.request(answer("accept"))) == "invalid_params"
    assert code_of(await client.request(answer("accept", {"name": "x"}, "another"))) == "invalid_params"
    assert code_of(await other.request(answer("accept", {"name": "eve"}))) == "unknown_call"
    await client.send([answer("accept", {"name": "Ann"}, None), answer("decline")])
    frames = [await client.receive(), await client.receive()]
    refused = next(frame for frame in frames if frame["type"] == "error")
    end = next(frame for frame in frames if frame["type"] == "tool_response")
    assert code_of(refused) == "unknown_call"
    assert json.loads(end["data"]["content"][0]["text"])["content"] == {"name": "Ann"}
    await assert_nothing_else(other)
    for one in (client, other):
        await one.leave()


@ERAS
@pytest.mark.gen_test
async def test_sampling_and_roots_are_asked_too(
    start_gateway: StartGateway, tmp_path: Path, era: list[str]
) -> None:
    _, client = await offering(start_gateway, tmp_path, *era)
    message = {"role": "assistant", "content": {"type": "text", "text": "words"}, "model": "m"}
    for tool, wrong, right, kept in (
        ("sample", {"role": "assistant"}, message, "words"),
        ("roots", {"roots": [{"uri": "http://x"}]}, {"roots": [{"uri": "file:///tmp"}]}, "file:///tmp"),
    ):
        asked = await client.request(tool_call("offering", tool, call_id=tool))
        assert asked["data"]["kind"] == ("sampling" if tool == "sample" else "roots")
        if tool == "sample":
            assert asked["data"]["params"]["maxTokens"] == 10
        body = {"requestId": asked["data"]["requestId"], "action": "accept"}
        refused = await client.request(
            {"type": "input_response", "id": tool, "data": body | {"content": wrong}}
        )
        assert code_of(refused) == "invalid_params"
        await client.send({"type": "input_response", "id": tool, "data": body | {"content": right}})
        assert kept in (await client.end_of(tool))["data"]["content"][0]["text"]
    await client.leave()


@pytest.mark.gen_test
async def test_who_does_not_answer_in_time_is_taken_for_one_who_dismissed_the_question(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    _, client = await offering(start_gateway, tmp_path, calls__input_timeout=0.3)
    asked = await client.request(tool_call("offering", "elicit", call_id="asks"))
    end = await client.end_of("asks", 5)
    assert json.loads(end["data"]["content"][0]["text"])["action"] == "cancel"
    late = {"requestId": asked["data"]["requestId"], "action": "accept", "content": {"name": "late"}}
    assert code_of(await client.request({"type": "input_response", "data": late})) == "unknown_call"
    await client.leave()


@pytest.mark.gen_test
async def test_a_question_waits_for_a_client_that_comes_back_and_is_asked_again(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway, client = await offering(start_gateway, tmp_path)
    session = (await client.request({"type": "status"}))["data"]["session"]
    asked = await client.request(tool_call("offering", "elicit", call_id="asks"))
    client.drop()
    await client.closed()
    back = await gateway.connect()
    resume = {"type": "resume", "id": "r", "data": {"session": session, "pending": ["asks"]}}
    assert (await back.request(resume))["data"]["resumed"] is True
    again = await back.receive()
    assert (again["id"], again["data"]) == ("asks", asked["data"])
    body = {"requestId": again["data"]["requestId"], "action": "decline"}
    await back.send({"type": "input_response", "data": body})
    end = await back.end_of("asks")
    assert json.loads(end["data"]["content"][0]["text"])["action"] == "decline"
    await back.leave()


@pytest.mark.gen_test
async def test_a_cancelled_call_takes_its_question_back(start_gateway: StartGateway, tmp_path: Path) -> None:
    _, client = await offering(start_gateway, tmp_path)
    asked = await client.request(tool_call("offering", "elicit", call_id="asks"))
    assert code_of(await client.request({"type": "cancel", "id": "asks"})) == "cancelled"
    body = {"requestId": asked["data"]["requestId"], "action": "decline"}
    async with asyncio.timeout(5):
        while (await client.request({"type": "input_response", "data": body}))["type"] != "error":
            pass
    await client.leave()


@ERAS
@pytest.mark.gen_test
async def test_who_names_a_resource_is_told_of_its_changes_and_of_no_others(
    start_gateway: StartGateway, tmp_path: Path, era: list[str]
) -> None:
    gateway, client = await offering(start_gateway, tmp_path, *era)
    touching = await gateway.connect("tom")
    wanted = [{"serverId": "offering", "uri": "note:one"}]
    filters = {"types": ["server.resource_updated"], "resources": wanted}
    subscribed = await client.request(ask("subscribe", channel="servers", filter=filters))
    assert (subscribed["type"], subscribed["id"]) == ("subscribed", "subscribe")
    for uri in ("note:two", "note:one"):
        await touching.call("offering", "touch", {"uri": uri}, call_id=uri)
    event = await client.receive()
    assert (event["type"], event["data"]) == (
        "server.resource_updated",
        {"serverId": "offering", "uri": "note:one"},
    )
    gone = await client.request(ask("unsubscribe", channel="servers"))
    assert gone["type"] == "unsubscribed"
    await assert_nothing_else(client)
    for one in (client, touching):
        await one.leave()


@pytest.mark.gen_test
async def test_a_server_is_asked_to_tell_of_a_resource_only_as_long_as_somebody_wants_it(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    _, client = await offering(start_gateway, tmp_path, "--handshake")
    record = tmp_path / "record.txt"

    def asked() -> list[str]:
        lines = record.read_text().splitlines() if record.exists() else []
        return [line for line in lines if line.startswith("subscribe ")]

    def subscribe(*uris: str) -> Frame:
        wanted = [{"serverId": "offering", "uri": uri} for uri in uris]
        return ask("subscribe", channel="servers", filter={"resources": wanted})

    assert (await client.request(subscribe("note:one")))["type"] == "subscribed"
    assert asked() == ["subscribe note:one"]
    await client.send(subscribe("note:one", "note:two"))
    while (await client.receive())["type"] != "subscribed":
        pass
    assert asked() == ["subscribe note:one", "subscribe note:two"]
    await client.send(subscribe())
    # The server notes the end of a subscription in the same words.
    await until(lambda: sorted(asked()[2:]) == ["subscribe note:one", "subscribe note:two"])
    await client.leave()


@pytest.mark.gen_test
async def test_a_resource_that_cannot_be_watched_refuses_the_subscription(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway, client = await offering(start_gateway, tmp_path)

    def subscribe(channel: str, server: str) -> Frame:
        wanted = [{"serverId": server, "uri": "note:one"}]
        return ask("subscribe", channel=channel, filter={"resources": wanted})

    assert code_of(await client.request(subscribe("servers", "none"))) == "server_not_found"
    faulty = await client.request(subscribe("gateway", "offering"))
    assert (code_of(faulty), faulty["data"]["details"][0]["path"]) == (
        "invalid_params",
        "/data/filter/resources",
    )
    reader = await gateway.connect("eve", ["events:read"])
    assert code_of(await reader.request(subscribe("servers", "offering"))) == "permission_denied"
    assert (await client.request({"type": "status"}))["data"]["channels"] == []
    for one in (client, reader):
        await one.leave()


@pytest.mark.gen_test
async def test_they_run_beside_calls_count_as_calls_and_can_be_cancelled(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    _, client = await offering(start_gateway, tmp_path, websocket__max_calls=2)
    asks = {"type": "get_prompt", "id": "slow", "data": {"serverId": "offering", "name": "asked"}}
    question = await client.request(asks)
    assert (question["type"], question["id"], "toolName" in question["data"]) == (
        "input_request",
        "slow",
        False,
    )
    assert code_of(await client.request(asks)) == "duplicate_id"
    await client.send(tool_call("offering", "wait", call_id="waits"))
    record = tmp_path / "record.txt"
    await until(lambda: record.exists() and "begun" in record.read_text())
    full = await client.request(ask("read_resource", serverId="offering", uri="note:one"))
    assert code_of(full) == "queue_full"
    cancelled = await client.request({"type": "cancel", "id": "slow"})
    assert (cancelled["id"], code_of(cancelled)) == ("slow", "cancelled")
    read = await client.request(ask("read_resource", serverId="offering", uri="note:one"))
    assert read["type"] == "resource"
    limited = {"serverId": "offering", "name": "asked", "timeoutMs": 200}
    await client.send(ask("get_prompt", **limited))
    assert (await client.receive())["type"] == "input_request"
    assert code_of(await client.end_of("get_prompt", 5)) == "timeout"
    await client.leave()
