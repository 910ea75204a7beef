"""The AsyncAPI document: valid by AsyncAPI's own schema, whole, and true of what the gateway sends."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from mcpgw import __version__
from mcpgw.wire.asyncapi import ANSWERS, PUSHED, SOCKETS, STREAMS, asyncapi_document
from mcpgw.wire.event_texts import events_schema, schema_text
from mcpgw.wire.events import EVENT_TYPES, Event, Position
from mcpgw.wire.frames import CLIENT_TYPES
from mcpgw.wire.validation import SchemaChecker, load_schema
from tests.support.gateway_process import GatewayProcess
from tests.support.raw_socket import RawSocket, fetch
from tests.support.schemas import SERVER_TYPES
from tests.support.socket_client import SocketClient

ROOT = Path(__file__).parent.parent
META_SCHEMA = ROOT / "tests" / "node_modules" / "@asyncapi" / "specs" / "schemas" / "3.0.0.json"
DOCUMENT = asyncapi_document("gateway.example:3000", secure=False)


def references(value: object) -> Iterator[str]:
    """Every ``$ref`` in a document."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def at(reference: str) -> Any:
    """What a reference leads to."""
    place: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        place = place[part]
    return place


@cache
def payload_checker(message: str) -> Draft7Validator:
    """Checks a payload as a tool does that reads the document: with the rules of draft-07."""
    schema = {"components": DOCUMENT["components"], **DOCUMENT["components"]["messages"][message]["payload"]}
    return Draft7Validator({"allOf": [{"$ref": schema["$ref"]}], "components": schema["components"]})


def test_it_fulfils_the_schema_of_asyncapi_3() -> None:
    assert META_SCHEMA.exists(), "make test installs tests/node_modules"
    validator = Draft7Validator(json.loads(META_SCHEMA.read_text(encoding="utf-8")))
    assert [error.message[:300] for error in validator.iter_errors(DOCUMENT)] == []
    broken = {**DOCUMENT, "channels": {"ws": {"addres": "/ws"}}}
    assert not validator.is_valid(broken)


def test_every_reference_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert found
    for reference in found:
        assert at(reference) is not None
    used = {reference for reference in found if reference.startswith("#/components/messages/")}
    assert used == {f"#/components/messages/{name}" for name in DOCUMENT["components"]["messages"]}


def test_a_reference_has_nothing_beside_it() -> None:
    def walk(value: object) -> None:
        if isinstance(value, dict):
            assert "$ref" not in value or len(value) == 1, value
            for part in value.values():
                walk(part)
        elif isinstance(value, list):
            for part in value:
                walk(part)

    walk(DOCUMENT)


def test_every_frame_and_every_event_is_a_message_of_it() -> None:
    messages = DOCUMENT["components"]["messages"].keys()
    expected = {f"client.{name}" for name in CLIENT_TYPES} | {f"server.{name}" for name in SERVER_TYPES}
    expected |= {f"event.{name}" for name in EVENT_TYPES} | {"stream.connected", "stream.heartbeat"}
    assert messages == expected
    assert {f"client.{name}" for name in CLIENT_TYPES} == {f"client.{name}" for name in ANSWERS}
    answered = {answer for answers in ANSWERS.values() for answer in answers}
    assert answered | set(PUSHED) == set(SERVER_TYPES)


def test_its_version_and_addresses_are_those_of_the_gateway() -> None:
    assert (DOCUMENT["asyncapi"], DOCUMENT["info"]["version"]) == ("3.0.0", __version__)
    assert {server["host"] for server in DOCUMENT["servers"].values()} == {"gateway.example:3000"}
    assert [server["protocol"] for server in DOCUMENT["servers"].values()] == ["ws", "http"]
    secure = asyncapi_document("gateway.example", secure=True)
    assert [server["protocol"] for server in secure["servers"].values()] == ["wss", "https"]
    addresses = [channel["address"] for channel in DOCUMENT["channels"].values()]
    assert addresses == [address for address, _ in (*SOCKETS.values(), *STREAMS.values())]


def test_the_schema_file_of_events_is_what_the_table_gives() -> None:
    assert (ROOT / "schemas" / "events.json").read_text(encoding="utf-8") == schema_text(), "run: make docs"
    assert load_schema("events") == events_schema()


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_an_event_with_the_members_of_its_table_is_valid_by_both_schemas(name: str) -> None:
    samples: dict[str, Any] = {
        "string": "x",
        "integer": 1,
        "number": 0.5,
        "boolean": True,
        "array": [],
        "object": {},
    }
    event_type = EVENT_TYPES[name]
    data = {
        member: schema["enum"][0] if "enum" in schema else samples.get(schema.get("type", ""), {"any": [1]})
        for member, schema in event_type.data.items()
    }
    channel = f"{event_type.channel}x" if event_type.channel.endswith(":") else event_type.channel
    position = Position("0123456789abcdef", 7)
    frame = json.loads(Event(event_type, channel, data, 1, position).text())
    published = SchemaChecker({**events_schema(), "$ref": f"#/$defs/{name}", "oneOf": [{}]})
    assert published.faults(frame) == []
    assert payload_checker(f"event.{name}").is_valid(frame)
    frame["data"]["unheard_of"] = 1
    assert published.faults(frame)
    assert not payload_checker(f"event.{name}").is_valid(frame)


@pytest.mark.gen_test
async def test_what_a_socket_says_is_valid_by_the_document(shared_gateway: GatewayProcess) -> None:
    client = await SocketClient.connect(shared_gateway.socket_url, token=shared_gateway.token())
    try:
        await client.send({"type": "subscribe", "id": "s", "data": {"channel": "servers"}})
        await client.send({"type": "list_tools", "id": "t"})
        await client.send({"type": "publish", "id": "p", "data": {"channel": "room:x", "payload": 1}})
        read: set[str] = set()
        while not {"status", "subscribed", "tools", "error", "server.started"} <= read:
            message = await client.receive_message()
            assert isinstance(message, str)
            frame = json.loads(message)
            kind = "event" if frame["type"] in EVENT_TYPES else "server"
            faults = [e.message for e in payload_checker(f"{kind}.{frame['type']}").iter_errors(frame)]
            assert faults == []
            read.add(frame["type"])
    finally:
        client.close()


@pytest.mark.gen_test
async def test_what_a_stream_says_is_valid_by_the_document(shared_gateway: GatewayProcess) -> None:
    async with await RawSocket.connect(shared_gateway.url) as socket:
        bearer = {"Authorization": f"Bearer {shared_gateway.token()}"}
        await socket.request("GET", "/api/v1/sse?channels=servers&lastEventId=x-1", headers=bearer)
        assert (await socket.read_head()).status == 200
        text = b""
        while b"server.started" not in text:
            text += await socket.read_chunk()
    for line in text.decode().splitlines():
        if line.startswith("data: "):
            frame = json.loads(line.removeprefix("data: "))
            kind = "event" if frame["type"] in EVENT_TYPES else "stream"
            assert payload_checker(f"{kind}.{frame['type']}").is_valid(frame), frame


@pytest.mark.gen_test
async def test_the_route_gives_it_to_whoever_proves_who_they_are(shared_gateway: GatewayProcess) -> None:
    path = "/api/v1/asyncapi.json"
    assert (await fetch(shared_gateway.url, path)).status == 401
    bearer = {"Authorization": f"Bearer {shared_gateway.token(scopes=[])}"}
    answer = await fetch(shared_gateway.url, path, headers=bearer)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    host = shared_gateway.url.removeprefix("http://")
    assert answer.json() == asyncapi_document(host, secure=False)
