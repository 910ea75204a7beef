"""Turns of the event loop."""

import asyncio
import logging

import pytest

from mcpgw.turns import Turns, in_batch, is_in_batch, put_off


@pytest.mark.gen_test
async def test_a_turn_lasts_until_the_loop_has_done_what_it_had_to_do() -> None:
    turns = Turns()
    seen: list[tuple[str, int]] = []
    loop = asyncio.get_running_loop()

    def begin(name: str) -> None:
        turns.begin()
        seen.append((name, turns.number))
        turns.at_end(lambda: seen.append((f"end of {name}", turns.number)))

    loop.call_soon(begin, "a")
    loop.call_soon(begin, "b")
    for _ in range(3):
        await asyncio.sleep(0)
    begin("c")
    assert turns.is_running
    for _ in range(2):
        await asyncio.sleep(0)
    assert not turns.is_running
    assert seen == [("a", 0), ("b", 0), ("end of a", 1), ("end of b", 1), ("c", 1), ("end of c", 2)]


@pytest.mark.gen_test
async def test_a_fault_at_the_end_of_a_turn_keeps_nothing_from_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    turns, done = Turns(), list[str]()

    def faulty() -> None:
        turns.at_end(lambda: done.append("in the next turn"))
        raise ZeroDivisionError("a fault")

    turns.at_end(faulty)
    turns.at_end(lambda: done.append("in the same"))
    with caplog.at_level(logging.ERROR):
        for _ in range(4):
            await asyncio.sleep(0)
    assert done == ["in the same", "in the next turn"]
    assert "a fault" in caplog.text


def test_what_a_batch_puts_off_is_done_once_at_its_end_and_in_order() -> None:
    seen: list[str] = []

    def work(name: str) -> str:
        assert put_off(lambda: seen.append(f"end of {name}"))
        seen.append(name)
        if name == "outer":
            assert in_batch(work, "inner") == "inner is done"
        return f"{name} is done"

    assert in_batch(work, "outer") == "outer is done"
    assert seen == ["outer", "inner", "end of outer", "end of inner"]
    assert not is_in_batch()
    assert not put_off(lambda: seen.append("never"))
    assert len(seen) == 4


def test_a_fault_in_a_batch_or_in_what_it_puts_off_keeps_nothing_from_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done: list[str] = []

    def faulty() -> None:
        assert not is_in_batch()
        raise ZeroDivisionError("a fault at the end")

    def work() -> None:
        put_off(faulty)
        put_off(lambda: done.append("the next"))
        raise KeyError("a fault amid the work")

    with caplog.at_level(logging.ERROR), pytest.raises(KeyError):
        in_batch(work)
    assert done == ["the next"]
    assert "a fault at the end" in caplog.text
    assert not is_in_batch()
