"""Logins without HTTP: who has to wait after failures, and what becomes of refresh tokens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher

from mcpgw.access.accounts import Accounts
from mcpgw.access.authority import Authority, Known, KnownUser
from mcpgw.access.lockout import ACCOUNT_FREE, PAIR_FREE
from mcpgw.access.logins import Logins, Visitor
from mcpgw.access.passwords import Passwords
from mcpgw.access.tokens import Tokens
from mcpgw.audit import Audit
from mcpgw.errors import AuthFailed, RateLimited
from mcpgw.roles import BUILT_IN
from mcpgw.settings import AuditSettings, AuthSettings
from mcpgw.store import By, Store

KEY = "a key of at least thirty-two bytes, for tests alone"
GOOD, BAD = "a horse and a battery", "a cow and a battery"
HOME = Visitor("192.0.2.1")
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@asynccontextmanager
async def logins(folder: Path, **settings: Any) -> AsyncIterator[Logins]:
    """The logins of a store with the user ann."""
    store = await Store.open(folder / "mcpgw.db")
    tokens, passwords = Tokens(algorithm="HS256", key=KEY), Passwords(CHEAP)
    authority = Authority(tokens, lambda: BUILT_IN)
    authority.learn(Known({"ann": KnownUser("operator", False)}))

    async def nothing() -> None:
        """What the store has is not read here."""

    by = By("root", is_told=False)
    try:
        with Audit(AuditSettings(file=folder / "audit.jsonl")) as audit:
            await Accounts(store, passwords, BUILT_IN).add("ann", role="operator", password=GOOD, by=by)
            yield Logins(
                store,
                tokens,
                authority=authority,
                passwords=passwords,
                audit=audit,
                settings=replace(AuthSettings(), **settings),
                refresh_known=nothing,
                take_over=nothing,
            )
    finally:
        passwords.close()
        await store.close()


async def fail(logins: Logins, times: int, visitor: Visitor, name: str = "ann") -> None:
    """Guess so many times in vain."""
    for _ in range(times):
        with pytest.raises(AuthFailed):
            await logins.with_password(name, BAD, visitor)


async def strangers_fail(logins: Logins, name: str = "ann") -> None:
    """Guess from many addresses until strangers have to wait."""
    for number in range(ACCOUNT_FREE // PAIR_FREE):
        await fail(logins, PAIR_FREE, Visitor(f"198.51.100.{number}"), name)


@pytest.mark.gen_test
async def test_a_stranger_who_guesses_at_an_account_locks_nobody_out_but_themselves(tmp_path: Path) -> None:
    async with logins(tmp_path) as here:
        stranger = Visitor("198.51.100.7")
        await fail(here, PAIR_FREE, stranger)
        with pytest.raises(RateLimited):
            await here.with_password("ann", GOOD, stranger)
        assert (await here.with_password("ann", GOOD, HOME)).principal.user == "ann"
        with pytest.raises(RateLimited):
            await here.with_password("ANN", GOOD, stranger)


@pytest.mark.gen_test
async def test_strangers_with_many_addresses_have_to_wait_and_the_owner_at_home_has_not(
    tmp_path: Path,
) -> None:
    async with logins(tmp_path) as here:
        await here.with_password("ann", GOOD, HOME)
        for name in ("ann", "nobody"):
            await strangers_fail(here, name)
            with pytest.raises(RateLimited) as told:
                await here.with_password(name, GOOD, Visitor("203.0.113.9"))
            assert 0 < (told.value.retry_after_ms or 0) <= 2000
        assert (await here.with_password("ann", GOOD, HOME)).principal.user == "ann"
        with pytest.raises(RateLimited):
            await here.with_password("ann", GOOD, Visitor("203.0.113.9"))


@pytest.mark.gen_test
async def test_a_name_is_found_however_it_is_typed(tmp_path: Path) -> None:
    async with logins(tmp_path) as here:
        for typed in ("ann", "Ann", "\uff21\uff2e\uff2e"):
            assert (await here.with_password(typed, GOOD, HOME)).principal.user == "ann"


@pytest.mark.gen_test
async def test_two_tabs_that_refresh_in_the_same_moment_get_one_and_the_same_next_token(
    tmp_path: Path,
) -> None:
    async with logins(tmp_path) as here:
        first = (await here.with_password("ann", GOOD, HOME)).refresh_token
        granted = await asyncio.gather(*(here.renew(first, HOME, has_tabs=True) for _ in range(3)))
        (second,) = {one.refresh_token for one in granted}
        assert second != first
        third = (await here.renew(second, HOME, has_tabs=True)).refresh_token
        # The next one was used meanwhile: who still has the first is not one of those tabs.
        with pytest.raises(AuthFailed, match="used before"):
            await here.renew(first, HOME, has_tabs=True)
        with pytest.raises(AuthFailed):
            await here.renew(third, HOME)


@pytest.mark.parametrize(
    ("grace", "visitor", "has_tabs"),
    [(10.0, Visitor("198.51.100.7"), True), (10.0, HOME, False), (0.0, HOME, True)],
    ids=["from elsewhere", "a program", "too late"],
)
@pytest.mark.gen_test
async def test_a_refresh_token_that_comes_again_in_any_other_way_ends_the_login(
    tmp_path: Path, grace: float, visitor: Visitor, has_tabs: bool
) -> None:
    async with logins(tmp_path, refresh_grace=grace) as here:
        first = (await here.with_password("ann", GOOD, HOME)).refresh_token
        second = (await here.renew(first, HOME, has_tabs=True)).refresh_token
        with pytest.raises(AuthFailed, match="used before"):
            await here.renew(first, visitor, has_tabs=has_tabs)
        with pytest.raises(AuthFailed, match="ended"):
            await here.renew(second, HOME)


@pytest.mark.gen_test
async def test_a_thief_who_was_in_time_for_the_same_next_token_is_found_out_when_both_use_it(
    tmp_path: Path,
) -> None:
    async with logins(tmp_path, refresh_grace=0.3) as here:
        first = (await here.with_password("ann", GOOD, HOME)).refresh_token
        mine = (await here.renew(first, HOME, has_tabs=True)).refresh_token
        stolen = (await here.renew(first, HOME, has_tabs=True)).refresh_token
        following = (await here.renew(mine, HOME, has_tabs=True)).refresh_token
        await asyncio.sleep(0.35)  # the time itself
        with pytest.raises(AuthFailed, match="used before"):
            await here.renew(stolen, HOME, has_tabs=True)
        with pytest.raises(AuthFailed):
            await here.renew(following, HOME)
