"""The WebSocket of a conversation, over real sockets and with a real backend."""

import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from mcpgw.access.signing_key import load_or_create_signing_key
from tests.conftest import StartGateway
from tests.support.gateway_process import GatewayProcess
from tests.support.raw_socket import RawSocket
from tests.support.socket_client import SocketClient

SECRET = "hunter2-the-secret"


async def connected(gateway: GatewayProcess, **token: Any) -> SocketClient:
    """A client that has proved who it is."""
    client = await SocketClient.connect(gateway.socket_url, token=gateway.token(**token))
    assert (await client.receive())["data"]["authenticated"] is True
    return client


async def anonymous(gateway: GatewayProcess) -> SocketClient:
    """A client that has not."""
    client = await SocketClient.connect(gateway.socket_url)
    assert (await client.receive())["data"]["requiresAuth"] is True
    return client


async def assert_open(client: SocketClient) -> None:
    """The socket still answers, and nothing else had been said before."""
    pong = await client.request({"type": "ping", "id": "still-open"})
    assert (pong["type"], pong["id"]) == ("pong", "still-open")


# --- bad input -----------------------------------------------------------------------------------------


def nested(levels: int) -> str:
    """A call of that many levels."""
    inner = "[" * (levels - 3) + "]" * (levels - 3)
    return (
        '{"type":"tool_call","id":"deep","data":{"serverId":"memory","toolName":"memory_search",'
        f'"params":{{"query":{inner}}}}}}}'
    )


def memory_call(data: dict[str, Any] | None = None, **members: Any) -> dict[str, Any]:
    """A call of ``memory_search`` with one thing changed."""
    inner = {"serverId": "memory", "toolName": "memory_search", "params": {"project": "p"}, **(data or {})}
    return {"type": "tool_call", "id": "call-1", "data": inner, **members}


BAD_MESSAGES: dict[str, tuple[object, str, str]] = {
    "no JSON": ("hello", "parse_error", "not JSON"),
    "an empty message": ("", "parse_error", "not JSON"),
    "an empty array": ("[]", "parse_error", "at least one"),
    "an array of 101": ("[" + ",".join(["{}"] * 101) + "]", "too_large", "at most 100"),
    "a number": ("5", "parse_error", "not a number"),
    "null": ("null", "parse_error", "not null"),
    "a text": ('"ping"', "parse_error", "not a string"),
    "an array in a batch": ("[[]]", "parse_error", "not an array"),
    "NaN": ('{"type":"ping","x":NaN}', "parse_error", "NaN"),
    "1e999": ('{"type":"ping","x":1e999}', "parse_error", "too large"),
    "an integer of 5000 digits": ('{"type":"ping","x":' + "9" * 5000 + "}", "parse_error", "too large"),
    "a doubled key": ('{"type":"ping","type":"ping"}', "parse_error", "twice"),
    "a lone surrogate": ('{"type":"ping","x":"\\ud800"}', "parse_error", "surrogate"),
    "a lone surrogate at depth": ("[" * 985 + '"\\ud800"' + "]" * 985, "parse_error", ""),
    "65 levels": (nested(65), "parse_error", "deeper than 64"),
    "a million brackets": ("[" * 1_000_000, "parse_error", "too deeply"),
    "no type": ({"id": "a"}, "invalid_params", "/type is required"),
    "a type that is a number": ({"type": 5}, "invalid_params", "/type must be of type string"),
    "an unknown type": ({"type": "tool_cal", "id": "a"}, "unknown_type", "did you mean 'tool_call'"),
    "an id of 129 characters": ({"type": "ping", "id": "x" * 129}, "invalid_params", "/id"),
    "an empty id": ({"type": "ping", "id": ""}, "invalid_params", "/id"),
    "an id that is a number": ({"type": "ping", "id": 5}, "invalid_params", "/id"),
    "an unknown member": ({"type": "ping", "data": {SECRET[:7]: 1}}, "invalid_params", "is not known"),
    "a call without an id": ({"type": "tool_call", "data": {}}, "invalid_params", "required"),
    "an unknown server": (memory_call({"serverId": "memry"}), "server_not_found", "did you mean 'memory'"),
    "an unknown tool": (
        memory_call({"toolName": "memory_serch"}),
        "tool_not_found",
        "did you mean 'memory_search'",
    ),
    "timeoutMs 0": (memory_call({"timeoutMs": 0}), "invalid_params", "at least 1"),
    "timeoutMs true": (memory_call({"timeoutMs": True}), "invalid_params", "type integer"),
    "timeoutMs over the maximum": (
        memory_call({"timeoutMs": 3_600_001}),
        "invalid_params",
        "at most 3600000",
    ),
    "timeoutMs of 300 digits": (memory_call({"timeoutMs": 10**299}), "invalid_params", "at most 3600000"),
    "a wrong onDisconnect": (memory_call({"onDisconnect": SECRET}), "invalid_params", "must be one of"),
    "cancel of nothing": ({"type": "cancel", "id": "nothing"}, "unknown_call", "no open call"),
    "cancel without an id": ({"type": "cancel"}, "invalid_params", "/id is required"),
}


@pytest.mark.gen_test
@pytest.mark.parametrize("name", BAD_MESSAGES)
async def test_bad_input_has_its_code_and_leaves_the_socket_open(
    shared_gateway: GatewayProcess, name: str
) -> None:
    message, code, sentence = BAD_MESSAGES[name]
    client = await connected(shared_gateway)
    error = await client.request(message)
    assert (error["type"], error["data"]["code"]) == ("error", code)
    assert sentence in error["data"]["error"]
    assert error["data"]["temporary"] is False
    await assert_open(client)
    await client.leave()


@pytest.mark.gen_test
async def test_sixty_four_levels_are_a_frame(shared_gateway: GatewayProcess) -> None:
    client = await connected(shared_gateway)
    error = await client.request(nested(64))
    assert error["data"]["code"] == "invalid_params"
    assert "/data/params/query" in [fault["path"] for fault in error["data"]["details"]]
    await client.leave()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("params", "paths"),
    [
        ({}, ["/data/params/content", "/data/params/project"]),
        ({"project": 5, "content": [SECRET]}, ["/data/params/content", "/data/params/project"]),
        ({"project": "p", "content": "c", "tag": SECRET}, ["/data/params/tag"]),
    ],
    ids=["missing", "wrong", "unknown"],
)
async def test_wrong_arguments_are_told_by_their_paths_and_never_by_their_values(
    shared_gateway: GatewayProcess, params: dict[str, Any], paths: list[str]
) -> None:
    client = await connected(shared_gateway)
    error = await client.call("memory", "memory_save", params)
    assert error["data"]["code"] == "invalid_params"
    assert sorted(fault["path"] for fault in error["data"]["details"]) == paths
    assert SECRET not in json.dumps(error)
    await client.leave()


@pytest.mark.gen_test
async def test_a_batch_is_answered_one_by_one_good_and_bad(shared_gateway: GatewayProcess) -> None:
    client = await connected(shared_gateway)
    await client.send(
        json.dumps(
            [
                {"type": "ping", "id": "1"},
                5,
                {"type": "nothing", "id": "3"},
                {"type": "status", "request_id": "4"},
            ]
        )
    )
    answers = [await client.receive() for _ in range(4)]
    assert [(a["type"], a.get("id")) for a in answers] == [
        ("pong", "1"),
        ("error", None),
        ("error", "3"),
        ("status", "4"),
    ]
    assert [a["data"]["code"] for a in answers[1:3]] == ["parse_error", "unknown_type"]
    await client.leave()


@pytest.mark.gen_test
async def test_a_batch_of_exactly_one_hundred_is_answered(shared_gateway: GatewayProcess) -> None:
    client = await connected(shared_gateway)
    await client.send(json.dumps([{"type": "ping", "id": str(n)} for n in range(100)]))
    assert [(await client.receive())["id"] for _ in range(100)] == [str(n) for n in range(100)]
    await client.leave()


# --- who is asking -------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_without_credentials_only_ping_and_status_and_auth_are_answered(
    shared_gateway: GatewayProcess,
) -> None:
    client = await anonymous(shared_gateway)
    assert (await client.request({"type": "ping", "id": "a"}))["type"] == "pong"
    status = await client.request({"type": "status", "id": "b"})
    assert (status["data"]["requiresAuth"], status["data"]["authenticated"]) == (True, False)
    assert "user" not in status["data"]
    for frame in (
        {"type": "list_tools", "id": "c"},
        memory_call(),
        {"type": "cancel", "id": "c"},
        {"type": "x", "id": "c"},
    ):
        error = await client.request(frame)
        assert (error["type"], error["id"]) == ("error", frame["id"])
        assert error["data"]["code"] == "auth_required"
    await assert_open(client)
    await client.leave()


@pytest.mark.gen_test
async def test_a_frame_brings_credentials_and_a_call_is_answered_after_it(
    shared_gateway: GatewayProcess,
) -> None:
    client = await anonymous(shared_gateway)
    status = await client.request({"type": "auth", "id": "a", "data": {"token": shared_gateway.token()}})
    assert (status["type"], status["id"], status["data"]["authenticated"]) == ("status", "a", True)
    assert (status["data"]["requiresAuth"], status["data"]["user"]) == (False, "ann")
    assert (await client.call("memory", "memory_search", {"project": "none"}))["data"]["success"] is True
    await client.leave()


@pytest.mark.gen_test
@pytest.mark.parametrize("offer", ["mcpgw.v1, bearer.{}", "bearer.{}, mcpgw.v1", "other,mcpgw.v1,bearer.{}"])
async def test_a_subprotocol_brings_credentials_and_is_never_echoed(
    shared_gateway: GatewayProcess, offer: str
) -> None:
    token = shared_gateway.token()
    async with await RawSocket.connect(shared_gateway.url) as socket:
        answer = await socket.upgrade(headers={"Sec-WebSocket-Protocol": offer.format(token)})
        assert answer.status == 101
        assert answer.headers["sec-websocket-protocol"] == "mcpgw.v1"
        assert token not in str(answer.headers)
        assert (await socket.read_json())["data"]["authenticated"] is True


@pytest.mark.gen_test
async def test_only_the_subprotocol_of_the_contract_is_ever_selected(shared_gateway: GatewayProcess) -> None:
    async with await RawSocket.connect(shared_gateway.url) as socket:
        answer = await socket.upgrade(
            headers={"Sec-WebSocket-Protocol": f"bearer.{shared_gateway.token()}, chat"}
        )
        assert answer.status == 101
        assert "sec-websocket-protocol" not in answer.headers
        assert (await socket.read_json())["data"]["authenticated"] is True


@pytest.mark.gen_test
async def test_the_header_is_stronger_than_the_subprotocol(shared_gateway: GatewayProcess) -> None:
    async with await RawSocket.connect(shared_gateway.url) as socket:
        offer = {"Sec-WebSocket-Protocol": f"mcpgw.v1, bearer.{shared_gateway.token('bob')}"}
        await socket.upgrade(token=shared_gateway.token("ann"), headers=offer)
        assert (await socket.read_json())["data"]["user"] == "ann"


@pytest.mark.gen_test
async def test_a_token_in_the_query_is_ignored(shared_gateway: GatewayProcess) -> None:
    token = shared_gateway.token()
    url = f"{shared_gateway.socket_url}?token={token}&access_token={token}&ticket={token}"
    client = await SocketClient.connect(url)
    assert (await client.receive())["data"]["authenticated"] is False
    assert token not in shared_gateway.log()
    await client.leave()


def bad_tokens(gateway: GatewayProcess) -> dict[str, tuple[str, str]]:
    """Tokens that must not hold, each with the code of its refusal."""
    key = load_or_create_signing_key(gateway.data_dir)
    now = int(time.time())
    claims = {"iss": "mcpgw", "aud": "mcpgw", "sub": "eve", "scope": "admin", "iat": now, "exp": now + 600}

    def signed(key: str = key, **changes: object) -> str:
        return jwt.encode({**claims, **changes}, key, algorithm="HS256")

    good = gateway.token("eve")
    head, body, signature = good.split(".")
    other = jwt.utils.base64url_encode(json.dumps({**claims, "sub": "ann"}).encode()).decode()
    return {
        "expired": (signed(exp=now - 60), "token_expired"),
        "wrong audience": (signed(aud="other"), "auth_failed"),
        "no audience": (jwt.encode({k: v for k, v in claims.items() if k != "aud"}, key), "auth_failed"),
        "wrong issuer": (signed(iss="other"), "auth_failed"),
        "of the future": (signed(iat=now + 600), "auth_failed"),
        "without an end": (jwt.encode({k: v for k, v in claims.items() if k != "exp"}, key), "auth_failed"),
        "alg none": (jwt.encode(claims, "", algorithm="none"), "auth_failed"),
        "another key": (signed(key="k" * 32), "auth_failed"),
        "HS512": (jwt.encode(claims, key * 2, algorithm="HS512"), "auth_failed"),
        "changed body": (f"{head}.{other}.{signature}", "auth_failed"),
        "cut signature": (f"{head}.{body}.", "auth_failed"),
        "garbage": ("garbage", "auth_failed"),
    }


@pytest.mark.gen_test
async def test_a_token_that_does_not_hold_opens_a_socket_that_says_so_and_asks_for_better(
    shared_gateway: GatewayProcess,
) -> None:
    for name, (token, code) in bad_tokens(shared_gateway).items():
        client = await SocketClient.connect(shared_gateway.socket_url, token=token)
        status, error = await client.receive(), await client.receive()
        assert (status["type"], status["data"]["requiresAuth"]) == ("status", True), name
        assert (error["type"], error["data"]["code"]) == ("error", code), name
        assert token not in json.dumps(error), name
        assert (await client.request(memory_call()))["data"]["code"] == "auth_required", name
        again = await client.request({"type": "auth", "id": "a", "data": {"token": token}})
        assert (again["id"], again["data"]["code"]) == ("a", code), name
        good = await client.request({"type": "auth", "id": "b", "data": {"token": shared_gateway.token()}})
        assert good["data"]["authenticated"] is True, name
        await client.leave()


@pytest.mark.gen_test
async def test_the_public_key_of_a_gateway_signs_no_tokens(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "public.pem").write_bytes(public)
    gateway = await start_gateway(
        f'[auth]\nalgorithm = "RS256"\npublic_key = "${{file:{tmp_path / "public.pem"}}}"\n'
    )
    now = int(time.time())
    claims = {"iss": "mcpgw", "aud": "mcpgw", "sub": "ann", "scope": "admin", "iat": now, "exp": now + 600}
    right = await SocketClient.connect(
        gateway.socket_url, token=jwt.encode(claims, private, algorithm="RS256")
    )
    assert (await right.receive())["data"]["authenticated"] is True
    forged = _hmac_token(claims, public)
    wrong = await SocketClient.connect(gateway.socket_url, token=forged)
    assert (await wrong.receive())["data"]["authenticated"] is False
    assert (await wrong.receive())["data"]["code"] == "auth_failed"
    for client in (right, wrong):
        await client.leave()


def _hmac_token(claims: dict[str, Any], key: bytes) -> str:
    # PyJWT itself refuses to sign with a public key; an attacker would not ask it.
    algorithm = jwt.get_algorithm_by_name("HS256")
    encode = jwt.utils.base64url_encode
    signed = encode(b'{"alg":"HS256","typ":"JWT"}') + b"." + encode(json.dumps(claims).encode())
    return (signed + b"." + encode(algorithm.sign(signed, key))).decode()


@pytest.mark.gen_test
async def test_no_auth_in_time_is_told_and_closed_with_3502(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(settings={"auth.timeout": 0.3})
    late = await SocketClient.connect(gateway.socket_url)
    await late.receive()
    in_time = await SocketClient.connect(gateway.socket_url)
    await in_time.receive()
    await in_time.request({"type": "auth", "data": {"token": gateway.token()}})
    disconnect = await late.receive()
    assert (disconnect["type"], disconnect["data"]["code"], disconnect["data"]["reconnect"]) == (
        "disconnect",
        3502,
        False,
    )
    assert await late.closed() == 3502
    await assert_open(in_time)
    await in_time.leave()


@pytest.mark.gen_test
async def test_too_many_failed_auths_are_closed_with_3500(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(settings={"auth.max_attempts": 3})
    client = await SocketClient.connect(gateway.socket_url)
    await client.receive()
    for _ in range(3):
        assert (await client.request({"type": "auth", "data": {"token": "wrong"}}))["data"][
            "code"
        ] == "auth_failed"
    disconnect = await client.receive()
    assert (disconnect["data"]["code"], disconnect["data"]["reconnect"]) == (3500, False)
    assert await client.closed() == 3500


@pytest.mark.gen_test
async def test_auth_again_refreshes_the_same_user_and_refuses_another(shared_gateway: GatewayProcess) -> None:
    client = await connected(shared_gateway)
    same = await client.request({"type": "auth", "id": "a", "data": {"token": shared_gateway.token("ann")}})
    assert same["data"]["authenticated"] is True
    other = await client.request({"type": "auth", "id": "b", "data": {"token": shared_gateway.token("bob")}})
    assert other["data"]["code"] == "permission_denied"
    assert (await client.request({"type": "status"}))["data"]["user"] == "ann"
    await client.leave()


@pytest.mark.gen_test
async def test_a_token_is_renewed_in_place_and_one_that_ends_closes_with_3005(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(settings={"auth.leeway": 0})
    renewed = await SocketClient.connect(gateway.socket_url, token=gateway.token(ttl=1))
    await renewed.receive()
    again = await renewed.request({"type": "auth", "data": {"token": gateway.token()}})
    assert again["data"]["authenticated"] is True
    ended = await SocketClient.connect(gateway.socket_url, token=gateway.token(ttl=1))
    await ended.receive()
    goodbye = await ended.receive()
    assert (goodbye["type"], goodbye["data"]["code"]) == ("disconnect", 3005)
    assert goodbye["data"]["reconnect"] is True
    assert await ended.closed() == 3005
    assert (await renewed.request({"type": "list_tools", "id": "a"}))["type"] == "tools"
    await renewed.leave()


@pytest.mark.gen_test
async def test_scopes_decide_what_is_listed_and_what_is_called(shared_gateway: GatewayProcess) -> None:
    client = await connected(shared_gateway, scopes=["tools:call:memory/memory_search"])
    tools = await client.request({"type": "list_tools", "id": "a", "data": {}})
    assert [(t["serverId"], t["name"]) for t in tools["data"]["tools"]] == [("memory", "memory_search")]
    assert (await client.call("memory", "memory_search", {"project": "p"}))["data"]["success"] is True
    denied = await client.call("memory", "memory_save", {"project": "p", "content": "c"})
    assert denied["data"]["code"] == "permission_denied"
    await client.leave()
    nobody = await connected(shared_gateway, scopes=["servers:read"])
    assert (await nobody.request({"type": "list_tools"}))["data"]["tools"] == []
    assert (await nobody.call("memory", "memory_search", {"project": "p"}))["data"][
        "code"
    ] == "permission_denied"
    await nobody.leave()
