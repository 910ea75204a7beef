"""Turns of the event loop."""

import asyncio
import logging

import pytest

from mcpgw.turns import Turns


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
