"""Passwords: what can be one, and that a check costs the same for whom there is none."""

import asyncio
import time

import pytest
from argon2 import PasswordHasher

from mcpgw.access.passwords import Passwords, password_fault
from mcpgw.errors import ConfigError, RateLimited

CHEAP = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
GOOD = "a horse and a battery"


@pytest.mark.gen_test
async def test_the_right_password_holds_and_no_other() -> None:
    passwords = Passwords(CHEAP)
    stored = await passwords.hash(GOOD)
    assert stored.startswith("$argon2id$")
    assert GOOD not in stored
    assert await passwords.verify(stored, GOOD)
    for wrong in ("", GOOD + "x", GOOD.upper(), GOOD * 100, "\ud800" * 20, "a\0b"):
        assert not await passwords.verify(stored, wrong)
    assert await passwords.hash(GOOD) != stored, "each has a salt of its own"
    passwords.close()


@pytest.mark.gen_test
async def test_nobody_s_password_holds_not_even_the_one_that_is_compared_with() -> None:
    passwords = Passwords(CHEAP)
    assert not await passwords.verify("", "nobody has this password")
    assert not await passwords.verify("", "")
    assert not await passwords.verify("not a hash", GOOD)
    passwords.close()


@pytest.mark.gen_test(timeout=60)
async def test_a_check_takes_as_long_for_nobody_as_for_somebody() -> None:
    passwords = Passwords()
    stored = await passwords.hash(GOOD)
    await passwords.verify("", GOOD)

    async def cost_of(hashed: str) -> float:
        begin = time.process_time()  # all of its threads, whatever else the machine does
        assert not await passwords.verify(hashed, "a wrong password")
        return time.process_time() - begin

    costs = [(await cost_of(stored), await cost_of("")) for _ in range(5)]
    known, unknown = (min(each) for each in zip(*costs, strict=True))
    assert 0.4 < known / unknown < 2.5, (known, unknown)
    passwords.close()


@pytest.mark.gen_test
async def test_the_same_letters_are_the_same_password_however_they_are_composed() -> None:
    passwords = Passwords(CHEAP)
    stored = await passwords.hash("caf\u00e9 caf\u00e9 caf\u00e9")
    assert await passwords.verify(stored, "cafe\u0301 cafe\u0301 cafe\u0301")
    passwords.close()


@pytest.mark.gen_test
async def test_a_flood_of_checks_is_refused_and_the_loop_runs_on() -> None:
    passwords = Passwords(PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1))
    stored = await passwords.hash(GOOD)
    checks = [asyncio.create_task(passwords.verify(stored, GOOD)) for _ in range(100)]
    ended = await asyncio.gather(*checks, return_exceptions=True)
    assert ended.count(True) == 32
    assert sum(isinstance(one, RateLimited) for one in ended) == 68
    assert await passwords.verify(stored, GOOD), "there is room again"
    passwords.close()


@pytest.mark.parametrize(
    "bad", ["", "short", "x" * 257, "x" * 20, "tab\tin the middle", "\ud800" + "abc" * 6]
)
def test_a_password_that_can_be_none_is_refused_without_being_repeated(bad: str) -> None:
    fault = password_fault(bad)
    assert fault is not None
    assert not bad or bad not in fault


@pytest.mark.gen_test
async def test_no_hash_is_made_of_a_password_that_can_be_none() -> None:
    passwords = Passwords(CHEAP)
    with pytest.raises(ConfigError, match="12 to 256"):
        await passwords.hash("short")
    passwords.close()
    assert password_fault(GOOD) is None
    assert passwords.is_dated(PasswordHasher(time_cost=2, memory_cost=64, parallelism=1).hash(GOOD))
