"""Roles on a gateway that runs: what they show, what they refuse, and that a change is there at once."""

import sys
from pathlib import Path

import pytest

from tests.conftest import LiveGateway, StartGateway
from tests.support.logins import add_user, log_in, send
from tests.support.socket_client import SocketClient

SCRIPTED = Path(__file__).parent.parent / "servers" / "scripted.py"
SERVERS = "".join(
    f'[servers.{name}]\ncommand = "{sys.executable}"\nargs = ["-S", "{SCRIPTED}"]\n'
    for name in ("one", "two")
)
ROLE = '[roles.support]\nscopes = ["servers:read"]\nallow = ["one/e*", "two/echo"]\ndeny = ["two"]\n'


async def tools(gateway: LiveGateway, token: str) -> set[str]:
    """The tools of the OpenAPI document and of the WebSocket, which are the same."""
    client = await SocketClient.connect(gateway.socket_url, token=token)
    await client.receive()
    listed = (await client.request({"type": "list_tools", "id": "l"}))["data"]["tools"]
    await client.leave()
    return {f"{tool['serverId']}/{tool['name']}" for tool in listed}


@pytest.mark.gen_test(timeout=40)
async def test_lists_show_what_may_be_used_and_a_changed_role_is_there_on_open_sockets(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway(
        SERVERS + ROLE, settings={"auth.watch_interval": 0.05, "reload.watch": False}
    )
    await add_user(gateway, role="support")
    token = (await log_in(gateway))["accessToken"]
    seen = await tools(gateway, token)
    assert "one/echo" in seen
    assert all(name.startswith("one/e") for name in seen)
    client = await SocketClient.connect(gateway.socket_url, token=token)
    await client.receive()
    assert (await client.call("one", "echo", {"text": "x"}))["type"] == "tool_response"
    denied = await client.call("two", "echo", {"text": "x"}, call_id="c2")
    assert denied["data"]["code"] == "permission_denied"
    assert "denies 'two'" in denied["data"]["error"]
    rest = await send(gateway, "POST", "/api/v1/servers/two/tools/echo", {"params": {}}, token=token)
    assert rest.status == 403
    file = tmp_path / "mcpgw-0.toml"
    file.write_text(SERVERS + ROLE.replace('deny = ["two"]', 'deny = ["one"]'), encoding="utf-8")
    await gateway.services.configuration.reload()
    await gateway.services.access.read_changes()
    denied = await client.call("one", "echo", {"text": "x"}, call_id="c3")
    assert "denies 'one'" in denied["data"]["error"]
    assert (await client.call("two", "echo", {"text": "x"}, call_id="c4"))["type"] == "tool_response"
    assert await tools(gateway, token) == {"two/echo"}
    file.write_text(SERVERS, encoding="utf-8")
    await gateway.services.configuration.reload()
    await gateway.services.access.read_changes()
    assert await tools(gateway, token) == set(), "a role that is configured no more allows nothing"
    await client.leave()
