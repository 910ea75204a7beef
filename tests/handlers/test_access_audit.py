"""Every decision on who may come in and do what has its line in the audit log, and no line has a secret."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.support.logins import BY, GOOD, add_user, audited, log_in, send
from tests.support.mcp_door import Door
from tests.support.socket_client import SocketClient
from tests.support.waiting import until

SCRIPTED = Path(__file__).parent.parent / "servers" / "scripted.py"
GUARDED = f'[servers.one]\ncommand = "{sys.executable}"\nargs = ["-S", "{SCRIPTED}"]\napproval = "required"\n'
LOGIN, REFRESH, LOGOUT = (f"/api/v1/auth/{name}" for name in ("login", "refresh", "logout"))


def short(line: dict[str, Any]) -> str:
    """A line in words: the event, what it was, who did it, and what came of it."""
    what = line["what"]
    name = what.get("action") or what.get("credentials") or what.get("tool") or ""
    target = "" if line["event"] != "access" or len(what.get("target", "")) > 9 else what.get("target", "")
    words = (line["event"], name, target, "by", line.get("who", {}).get("user", "-"), line["outcome"])
    return " ".join(filter(None, words))


@pytest.mark.gen_test(timeout=40)
async def test_each_decision_has_its_line_and_none_has_a_secret(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(GUARDED, settings={"auth.watch_interval": 60})
    access, secrets = gateway.services.access, [GOOD, "another long password"]
    seen: list[str] = []

    async def told(*lines: str) -> None:
        """The log has these lines, in this order, and nothing else but connections since the last time."""

        def new() -> list[str]:
            kept = (line for line in audited(gateway) if line["event"] not in ("connect", "disconnect"))
            return [short(line) for line in kept][len(seen) :]

        await until(lambda: len(new()) >= len(lines), what=f"{lines} in {new()}")
        assert new() == list(lines)
        seen.extend(lines)

    await told("access users.add admin by gateway ok", "access users.link admin by gateway ok")
    await add_user(gateway)
    await told("access users.add ann by root ok")
    mine = await log_in(gateway)
    await told("auth password by ann ok")
    for name in ("ann", "nobody"):
        await send(gateway, "POST", LOGIN, {"user": name, "password": "a wrong password"})
    await told("auth password by ann auth_failed", "auth password by - auth_failed")
    for _ in range(5):
        await send(gateway, "POST", LOGIN, {"user": "ann", "password": "a wrong password"})
    await told(*["auth password by ann auth_failed"] * 4, "auth password by ann rate_limited")
    second = (await send(gateway, "POST", REFRESH, {"refreshToken": mine["refreshToken"]})).json()
    await told("access login.refresh by ann ok")
    await send(gateway, "POST", REFRESH, {"refreshToken": mine["refreshToken"]})
    await told("access login.reused by ann auth_failed")
    await send(gateway, "GET", "/api/v1/auth/me", token=second["accessToken"])
    await told("refused GET /api/v1/auth/me by - auth_failed")
    await asyncio.sleep(1.1)  # the pause after the failures above
    link = await access.accounts.make_link("ann", by=BY)
    await access.read_changes()
    body = {"link": link, "password": "another long password", "refresh": "body"}
    mine = (await send(gateway, "POST", LOGIN, body)).json()
    await told(
        "access users.link ann by root ok", "access users.password ann by ann ok", "auth link by ann ok"
    )
    token = mine["accessToken"]
    ticket = (await send(gateway, "POST", "/api/v1/auth/ticket", {"purpose": "events"}, token=token)).json()
    await told("access ticket.make events by ann ok")
    client = await SocketClient.connect(f"{gateway.socket_url}?ticket={ticket['ticket']}")
    await client.receive()
    await client.receive()
    await told("auth ticket by - auth_failed")
    await client.request({"type": "auth", "id": "a", "data": {"token": token}})
    await told("auth frame by ann ok")
    made = await send(gateway, "POST", "/api/v1/keys", {"name": "k", "scopes": ["tools:call"]}, token=token)
    key, key_id = made.json()["key"], made.json()["id"]
    await told("access keys.create by ann ok")
    await send(gateway, "GET", "/api/v1/config", token=key)
    await told("refused GET /api/v1/config by ann permission_denied")
    await client.request({"type": "subscribe", "id": "s", "data": {"channel": "user:bob"}})
    await told("refused frame by ann permission_denied")
    calling = asyncio.create_task(Door(gateway, token=key).modern("tools/call", {"name": "one__echo"}))
    await told("approval echo by ann asked")
    await access.accounts.set_role("ann", "viewer", by=BY)
    await access.read_changes()
    await calling
    await told(
        "access users.role ann by root ok",
        "approval echo by ann withdrawn",
        "call echo by ann permission_denied",
    )
    await send(gateway, "POST", "/api/v1/servers/one/tools/echo", {}, token=token)
    await told(
        "call echo by ann permission_denied",
        "refused POST /api/v1/servers/one/tools/echo by ann permission_denied",
    )
    await send(gateway, "DELETE", f"/api/v1/keys/{key_id}", token=token)
    await told("access keys.revoke by ann ok")
    await send(gateway, "POST", LOGOUT, token=token)
    await told("access login.logout by ann ok")
    await access.accounts.set_password("ann", GOOD, by=BY)
    await access.accounts.set_disabled("ann", True, by=BY)
    await access.read_changes()
    await told("access users.password ann by root ok", "access users.disable ann by root ok")
    await send(gateway, "POST", LOGIN, {"user": "ann", "password": GOOD})
    await told("auth password by ann auth_failed")
    secrets += [key, link, ticket["ticket"], token, mine["refreshToken"], second["refreshToken"]]
    written = json.dumps(audited(gateway))
    assert not [secret for secret in secrets if secret in written]
    assert await client.closed() == 3503
