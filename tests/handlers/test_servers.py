"""``/api/v1/servers``, and what every REST route answers to whoever may not ask."""

import pytest

from tests.support.gateway_process import GatewayProcess
from tests.support.raw_socket import RawAnswer, fetch


def error_of(answer: RawAnswer) -> tuple[str, bool]:
    """Code and `temporary` of an error, whose shape is checked."""
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() - {"details", "retryAfterMs"} == {"code", "message", "temporary"}
    assert answer.headers["content-type"] == "application/json"
    return body["error"]["code"], body["error"]["temporary"]


@pytest.mark.gen_test
async def test_servers_are_listed_with_their_state(shared_gateway: GatewayProcess) -> None:
    bearer = {"Authorization": f"Bearer {shared_gateway.token(scopes=['servers:read'])}"}
    answer = await fetch(shared_gateway.url, "/api/v1/servers", headers=bearer)
    assert answer.status == 200
    (memory,) = answer.json()["servers"]
    assert (memory["id"], memory["state"], memory["transport"]) == ("memory", "ready", "stdio")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers


@pytest.mark.gen_test
@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
async def test_the_scheme_of_credentials_is_read_whatever_its_case(
    shared_gateway: GatewayProcess, scheme: str
) -> None:
    headers = {"Authorization": f"{scheme} {shared_gateway.token()}"}
    assert (await fetch(shared_gateway.url, "/api/v1/servers", headers=headers)).status == 200


@pytest.mark.gen_test
@pytest.mark.parametrize("credentials", [None, "Basic YTpi", "Bearer", "Bearer ", "", "token"])
async def test_no_credentials_are_401_with_a_challenge(
    shared_gateway: GatewayProcess, credentials: str | None
) -> None:
    headers = {} if credentials is None else {"Authorization": credentials}
    answer = await fetch(shared_gateway.url, "/api/v1/servers", headers=headers)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert error_of(answer) == ("auth_required", False)


@pytest.mark.gen_test
async def test_bad_credentials_are_401_with_a_challenge_that_says_so(shared_gateway: GatewayProcess) -> None:
    for token, code in (("wrong", "auth_failed"), (shared_gateway.token() + "x", "auth_failed")):
        answer = await fetch(
            shared_gateway.url, "/api/v1/servers", headers={"Authorization": f"Bearer {token}"}
        )
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
        assert error_of(answer) == (code, False)
        assert token not in answer.body.decode()


@pytest.mark.gen_test
async def test_a_token_in_the_query_proves_nothing(shared_gateway: GatewayProcess) -> None:
    token = shared_gateway.token()
    answer = await fetch(shared_gateway.url, f"/api/v1/servers?access_token={token}&token={token}")
    assert answer.status == 401


@pytest.mark.gen_test
async def test_a_missing_scope_is_403(shared_gateway: GatewayProcess) -> None:
    bearer = {"Authorization": f"Bearer {shared_gateway.token(scopes=['tools:call'])}"}
    answer = await fetch(shared_gateway.url, "/api/v1/servers", headers=bearer)
    assert answer.status == 403
    assert error_of(answer) == ("permission_denied", False)
    assert "servers:read" in answer.json()["error"]["message"]


@pytest.mark.gen_test
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    "path", ["/", "/api/v1", "/api/v1/servers/", "/api/v1/nothing", "/ws/", "/%2e%2e/etc/passwd"]
)
async def test_a_path_that_is_none_is_404(shared_gateway: GatewayProcess, method: str, path: str) -> None:
    answer = await fetch(shared_gateway.url, path, method=method)
    assert answer.status == 404
    assert error_of(answer) == ("not_found", False)


@pytest.mark.gen_test
@pytest.mark.parametrize("path", ["/ws", "/api/v1/events", "/api/v1/gateway", "/healthz", "/readyz"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_a_verb_that_is_not_there_is_405_and_says_which_are(
    shared_gateway: GatewayProcess, path: str, method: str
) -> None:
    bearer = {"Authorization": f"Bearer {shared_gateway.token()}"}
    answer = await fetch(shared_gateway.url, path, method=method, headers=bearer)
    assert answer.status == 405
    assert error_of(answer) == ("method_not_allowed", False)
    assert "GET" in answer.headers["allow"].split(", ")
    assert method not in answer.headers["allow"].split(", ")


@pytest.mark.gen_test
async def test_a_verb_that_http_does_not_know_is_405(shared_gateway: GatewayProcess) -> None:
    assert (await fetch(shared_gateway.url, "/healthz", method="BREW")).status == 405
