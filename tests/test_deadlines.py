"""One timer for all deadlines: none early, none lost, none after it was cancelled."""

import asyncio
import logging
import random
from functools import partial

import pytest

from mcpgw import deadlines as module
from mcpgw.deadlines import SLICE_SECONDS, Deadline, Deadlines

_LATE = SLICE_SECONDS + 0.25
"""What the machine's other work may add to the slice."""


@pytest.mark.gen_test(timeout=10)
async def test_every_deadline_comes_once_and_none_early() -> None:
    loop = asyncio.get_running_loop()
    deadlines = Deadlines()
    chance = random.Random(1)
    came: dict[int, list[float]] = {}

    def note(number: int) -> None:
        came.setdefault(number, []).append(loop.time())

    delays = {number: chance.uniform(0, 0.5) for number in range(500)}
    began = loop.time()
    for number, seconds in delays.items():
        deadlines.call_later(seconds, partial(note, number))
    over = asyncio.Event()
    deadlines.call_later(0.7, over.set)
    await over.wait()
    assert came.keys() == delays.keys()
    for number, (moment,) in came.items():
        assert 0 <= moment - began - delays[number] < _LATE


@pytest.mark.gen_test(timeout=10)
async def test_a_cancelled_deadline_never_comes_also_when_another_cancels_it_in_the_same_slice() -> None:
    deadlines = Deadlines()
    came: list[str] = []
    over = asyncio.Event()
    deadlines.call_later(0.05, lambda: came.append("cancelled early")).cancel()
    pair: list[Deadline] = []

    def come() -> None:
        came.append("one of two")
        for each in pair:
            each.cancel()

    pair += [deadlines.call_later(0.1, come), deadlines.call_later(0.1, come)]
    deadlines.call_later(0.3, over.set)
    await over.wait()
    assert came == ["one of two"]
    pair[0].cancel()


@pytest.mark.gen_test(timeout=10)
async def test_a_nearer_deadline_that_is_set_later_does_not_wait_for_the_farther_one() -> None:
    deadlines = Deadlines()
    over = asyncio.Event()
    far = deadlines.call_later(3600, over.set)
    deadlines.call_later(0.01, over.set)
    async with asyncio.timeout(2):
        await over.wait()
    far.cancel()


@pytest.mark.gen_test(timeout=10)
async def test_deadlines_beyond_the_horizon_come_in_their_time_and_take_no_slice_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_HORIZON_SECONDS", 0.1)
    loop = asyncio.get_running_loop()
    deadlines = Deadlines()
    over = asyncio.Event()
    began = loop.time()
    others = [deadlines.call_later(1000.0 + number, over.set) for number in range(1000)]
    deadlines.call_later(0.45, over.set)
    assert len(deadlines._slices) <= 4
    await over.wait()
    assert 0.45 <= loop.time() - began < 0.45 + _LATE
    for other in others:
        other.cancel()


@pytest.mark.gen_test(timeout=10)
async def test_a_fault_of_one_is_logged_and_the_others_still_come(caplog: pytest.LogCaptureFixture) -> None:
    deadlines = Deadlines()
    over = asyncio.Event()

    def fail() -> None:
        raise ValueError("a fault of this deadline")

    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            deadlines.call_later(0.01, fail)
        deadlines.call_later(0.1, over.set)
        await over.wait()
    assert caplog.text.count("a fault of this deadline") >= 3
