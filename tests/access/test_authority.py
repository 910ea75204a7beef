"""Who a credential proves, where names and times are not what they seem."""

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import delete, update

from mcpgw.access.accounts import Accounts, canonical_name
from mcpgw.access.authority import Authority, Known, KnownUser
from mcpgw.access.passwords import Passwords
from mcpgw.access.permissions import EVERYTHING, Sight
from mcpgw.access.tokens import Principal, Tokens
from mcpgw.errors import AuthFailed, ConfigError
from mcpgw.roles import BUILT_IN, Role, ToolPattern, ToolRules
from mcpgw.store import By, OpenRoom, Store, StoredRoom
from mcpgw.store.tables import LOGINS, USERS
from tests.conftest import StartGateway
from tests.support.logins import add_user, log_in, send

TOKENS = Tokens(algorithm="HS256", key="a key of at least thirty-two bytes, for tests alone")
BY = By("root", is_told=False)


def authority(*users: str, created_at: int = 0, **roles: Role) -> Authority:
    """One that knows these users, all of them operators."""
    made = Authority(TOKENS, lambda: {**BUILT_IN, **roles})
    made.learn(Known({name: KnownUser("operator", False, created_at) for name in users}))
    return made


def test_a_credential_that_is_older_than_the_user_of_its_name_is_not_that_users() -> None:
    token = TOKENS.issue(user="ann", scopes=["admin"], ttl=60)
    moment = int(time.time())
    assert authority("ann", created_at=(moment - 5) * 1000).verify(token).role == "operator"
    later = authority("ann", created_at=(moment + 5) * 1000)
    with pytest.raises(AuthFailed, match="older than the user"):
        later.verify(token)
    before = authority().verify(token)
    assert before.scopes == {"admin"}, "as long as there is no such user the token says what it is for"
    with pytest.raises(AuthFailed, match="older than the user"):
        later.review(before)


@pytest.mark.parametrize("name", ["Ann", "ANN", "\uff41\uff4e\uff4e", "\uff21nn"])
def test_a_name_that_looks_like_that_of_a_user_is_nobody(name: str) -> None:
    with pytest.raises(AuthFailed, match="too like"):
        authority("ann").verify(TOKENS.issue(user=name, scopes=["admin"], ttl=60))
    assert authority("bob").verify(TOKENS.issue(user=name, scopes=["admin"], ttl=60)).user == name


def test_a_name_has_one_way_to_be_written() -> None:
    assert canonical_name("Ann.Lee@Example.COM") == "ann.lee@example.com"
    assert canonical_name("\uff21\uff2e\uff2e") == "ann"
    assert canonical_name("Stra\u00dfe") == canonical_name("STRASSE")


@pytest.mark.gen_test
async def test_no_two_users_have_names_that_differ_in_their_case_alone(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "mcpgw.db")
    accounts = Accounts(store, Passwords(), BUILT_IN)
    try:
        await accounts.add("ann", role="viewer", password=None, by=BY)
        for name in ("Ann", "\uff41nn", "анн", "ann\u200b"):
            with pytest.raises(ConfigError, match="no name of a user"):
                await accounts.add(name, role="viewer", password=None, by=BY)
        with pytest.raises(ConfigError, match="write 'bob'"):
            await accounts.add("BOB", role="viewer", password=None, by=BY)
    finally:
        await store.close()


@pytest.mark.gen_test
async def test_the_token_of_a_user_who_was_deleted_is_not_that_of_the_next_one_of_the_name(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    await add_user(gateway)
    old = await log_in(gateway)
    by_hand = gateway.token("ann", ["servers:read"])
    services = gateway.services
    gone = delete(USERS).where(USERS.c.name == "ann")
    await services.store.run(lambda connection: connection.execute(gone) and None)
    time.sleep(1.0 - time.time() % 1.0)  # a token tells the second in which it was made
    await add_user(gateway, role="admin")
    for token in (old["accessToken"], by_hand):
        assert (await send(gateway, "GET", "/api/v1/auth/me", token=token)).status == 401
    body = {"refreshToken": old["refreshToken"]}
    assert (await send(gateway, "POST", "/api/v1/auth/refresh", body)).status == 401
    assert (await log_in(gateway))["role"] == "admin"


def rules(*, allow: tuple[str, ...] = (), deny: tuple[str, ...] = ()) -> ToolRules:
    """Rules of these patterns."""
    return ToolRules(*(tuple(ToolPattern.parse(text) for text in texts) for texts in (allow, deny)))


def who(*scopes: str, limit: tuple[str, ...] | None = None, with_rules: ToolRules | None = None) -> Principal:
    """Somebody with a token of these scopes, or with a login where there are none, and a role."""
    known = Principal("ann", frozenset(scopes), math.inf, "t")
    if limit is None:
        return known
    granted = frozenset(scopes) if scopes else None
    bound = frozenset(limit)
    return replace(known, limit=bound, granted=granted, scopes=bound, rules=with_rules or ToolRules())


@pytest.mark.parametrize(
    ("principal", "servers"),
    [
        (who("servers:read"), "memory tickets other"),
        (who("servers:read", "tools:call"), "memory tickets other"),
        (who("servers:read", "tools:call:memory"), "memory"),
        (who("servers:read", "tools:call:tickets/get"), "tickets"),
        (who("admin", "tools:call:memory"), "memory tickets other"),
        (who(limit=("servers:read",)), "memory tickets other"),
        (who(limit=("servers:read",), with_rules=rules(allow=("memory", "tick*/get_*"))), "memory tickets"),
        (who(limit=("tools:call",), with_rules=rules(deny=("other",))), "memory tickets"),
        (who(limit=("admin",), with_rules=rules(deny=("other", "*/delete_*"))), "memory tickets"),
        (who("servers:read", limit=("servers:read", "tools:call:memory")), "memory"),
        (who("servers:read", limit=("servers:read",), with_rules=rules(allow=("memory",))), "memory"),
        (who("tools:call:other", limit=("tools:call",)), "other"),
        (who("tools:call:other", limit=("servers:read",), with_rules=rules(allow=("memory",))), ""),
    ],
)
def test_who_may_use_some_servers_is_shown_those_and_who_looks_at_all_is_shown_all(
    principal: Principal, servers: str
) -> None:
    sight = Sight.of(principal)
    shown = [server for server in ("memory", "tickets", "other") if sight.shows_server(server)]
    assert shown == servers.split()
    assert (sight is EVERYTHING) is (len(shown) == 3)


def test_a_tool_that_is_denied_is_not_shown_where_its_server_is() -> None:
    sight = Sight.of(who(limit=("tools:call",), with_rules=rules(deny=("tickets/delete_*",))))
    assert sight.shows_server("tickets")
    assert sight.shows_all_of("tickets")
    assert sight.shows_tool("tickets", "get_one")
    assert not sight.shows_tool("tickets", "delete_all")
    narrow = Sight.of(who("tools:call:tickets/get_one"))
    assert not narrow.shows_all_of("tickets")
    assert narrow.shows_tool("tickets", "get_one")
    assert not narrow.shows_tool("tickets", "get_two")
    assert Sight.of(who("tools:call:tickets/get_one")) == narrow, "one audience"


def test_guests_of_a_host_who_is_no_user_any_more_may_do_nothing() -> None:
    made = authority("tess")
    room = StoredRoom(
        id="r1",
        name="demo",
        host="tess",
        scopes=("tools:call",),
        quota_calls=1,
        quota_ms=1000,
        max_guests=1,
        code_hash="",
        created_by="tess",
        created_at=0,
        ends_at=round((time.time() + 60) * 1000),
    )
    users = {"tess": KnownUser("operator", disabled=False)}
    made.learn(Known(users, rooms={"r1": OpenRoom(room)}))
    token = TOKENS.issue(user="guest:demo:Bob:g1", scopes=(), ttl=60, guest="r1.g1")
    assert "tools:call" in made.verify(token).scopes
    made.learn(Known({}, rooms={"r1": OpenRoom(room)}))
    with pytest.raises(AuthFailed, match="host"):
        made.verify(token)


@pytest.mark.gen_test(timeout=30)
async def test_a_login_that_has_ended_stays_ended_on_a_gateway_whose_own_tokens_hold_for_less(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    shared: dict[str, object] = {"data.dir": tmp_path / "shared", "reload.watch": False}
    one = await start_gateway(settings={**shared, "auth.access_time": 3600})
    await add_user(one)
    token = (await log_in(one))["accessToken"]
    assert (await send(one, "POST", "/api/v1/auth/logout", token=token)).status == 204
    half_an_hour = 1800 * 1000
    await one.services.store.run(
        lambda c: c.execute(update(LOGINS).values(revoked_at=LOGINS.c.revoked_at - half_an_hour)) and None
    )
    other = await start_gateway(settings={**shared, "auth.access_time": 60})
    assert (await send(other, "GET", "/api/v1/auth/me", token=token)).status == 401
