"""What was revoked reaches all that is open, also while the store fails."""

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import Connection

from mcpgw.access.accounts import Accounts
from mcpgw.access.passwords import Passwords
from mcpgw.store import Store
from tests.conftest import LiveGateway, StartGateway
from tests.support.logins import BY, add_user, audited, log_in, send
from tests.support.rooms import HOST_ROLE, SERVERS, join, open_room
from tests.support.socket_client import SocketClient
from tests.support.waiting import until

FAST = {"auth.watch_interval": 0.05, "reload.watch": False}


@asynccontextmanager
async def elsewhere(gateway: LiveGateway) -> AsyncIterator[Accounts]:
    """The users, as a command or another gateway on the same store changes them."""
    store, passwords = await Store.open(gateway.services.config.data.dir / "mcpgw.db"), Passwords()
    try:
        yield Accounts(store, passwords, gateway.services.config.roles)
    finally:
        passwords.close()
        await store.close()


async def take_no_writes(gateway: LiveGateway, *, refused: bool) -> None:
    """Have the store of the gateway refuse what it is to write, or take it again."""

    def work(connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA query_only={'ON' if refused else 'OFF'}")

    await gateway.services.store.run(work, reads=True)


async def socket(gateway: LiveGateway, token: str) -> SocketClient:
    """A socket that was greeted."""
    client = await SocketClient.connect(gateway.socket_url, token=token)
    await client.receive()
    return client


@pytest.mark.gen_test(timeout=30)
async def test_a_user_who_is_disabled_elsewhere_is_out_while_the_store_takes_no_writes(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(SERVERS, settings=FAST)
    await add_user(gateway)
    client = await socket(gateway, (await log_in(gateway))["accessToken"])
    await take_no_writes(gateway, refused=True)
    async with elsewhere(gateway) as accounts:
        await accounts.set_disabled("ann", True, by=BY)
    assert await client.closed(2) == 3503
    assert not [line for line in audited(gateway) if line["what"].get("action") == "users.disable"]
    await take_no_writes(gateway, refused=False)
    await until(lambda: any(line["what"].get("action") == "users.disable" for line in audited(gateway)))


@pytest.mark.gen_test(timeout=30)
async def test_a_room_whose_end_cannot_be_written_ends_and_keeps_no_other_change_from_being_read(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(SERVERS + HOST_ROLE, settings=FAST)
    await add_user(gateway, "tess", "teacher")
    await add_user(gateway)
    token = (await log_in(gateway, "tess"))["accessToken"]
    room = await open_room(gateway, token, ttl=1)
    guest = await (await join(gateway, room["code"], "Bob")).enter()
    client = await socket(gateway, (await log_in(gateway))["accessToken"])
    await take_no_writes(gateway, refused=True)
    assert await guest.closed(3) == 3503
    async with elsewhere(gateway) as accounts:
        await accounts.set_disabled("ann", True, by=BY)
    assert await client.closed(2) == 3503


@pytest.mark.gen_test(timeout=30)
async def test_a_row_that_cannot_be_understood_ends_nothing_of_the_watch_for_changes(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await start_gateway(SERVERS + HOST_ROLE, settings=FAST)
    await add_user(gateway, "tess", "teacher")
    await add_user(gateway)
    await open_room(gateway, (await log_in(gateway, "tess"))["accessToken"])
    client = await socket(gateway, (await log_in(gateway))["accessToken"])
    store = gateway.services.store
    kept = (await store.rooms.list())[0].scopes

    async def write(scopes: str) -> None:
        await store.run(lambda c: c.exec_driver_sql("UPDATE rooms SET scopes = ?", (scopes,)) and None)

    await write("[")
    async with elsewhere(gateway) as accounts:
        await accounts.set_disabled("ann", True, by=BY)
        await until(lambda: "changes could not be taken over" in caplog.text)
    await write(json.dumps(kept))
    assert await client.closed(2) == 3503


async def refuse_reads_of_the_journal(gateway: LiveGateway) -> None:
    """Have the store of the gateway refuse to say whether anything has changed; it takes what is written."""

    def refuse(_action: int, table: str | None, column: str | None, *_: object) -> int:
        is_read = _action == sqlite3.SQLITE_READ and table == "access_changes" and column == "id"
        return sqlite3.SQLITE_DENY if is_read else sqlite3.SQLITE_OK

    def work(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.set_authorizer(refuse)

    await gateway.services.store.run(work, reads=True)


@pytest.mark.gen_test(timeout=30)
async def test_what_was_done_is_answered_and_in_the_audit_log_where_it_cannot_be_read_again(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(SERVERS + HOST_ROLE, settings=FAST)
    await add_user(gateway, "tess", "teacher")
    granted = await log_in(gateway, "tess")
    token, again = granted["accessToken"], (await log_in(gateway, "tess"))["accessToken"]
    await refuse_reads_of_the_journal(gateway)
    body = {"name": "x", "scopes": ["tools:call:one"]}
    made = await send(gateway, "POST", "/api/v1/keys", body, token=token)
    assert (made.status, made.json()["key"].startswith("mcpgw_")) == (201, True), "it is shown this once"
    key = made.json()["id"]
    assert (await send(gateway, "DELETE", f"/api/v1/keys/{key}", token=token)).status == 204
    room = await open_room(gateway, token)
    assert room["code"]
    assert (await send(gateway, "POST", "/api/v1/rooms/demo/code", token=token)).json()["code"]
    assert (await send(gateway, "POST", "/api/v1/auth/logout", token=again)).status == 204
    wanted = {"keys.create", "keys.revoke", "room.create", "room.code", "login.logout"}
    await until(lambda: wanted <= {line["what"].get("action") for line in audited(gateway)})
