"""The time of a call that has no task: it ends it, and progress begins it anew."""

import asyncio
import time

import pytest

from mcpgw.backends.requests import SilentObserver
from mcpgw.call_time import TimedObserver, WheelTime
from mcpgw.deadlines import SLICE_SECONDS, Deadlines
from mcpgw.errors import CallTimeout
from tests.support.waiting import until

LATE = 2 * SLICE_SECONDS + 0.1


@pytest.mark.gen_test
async def test_a_silent_call_ends_at_its_limit_and_never_before() -> None:
    ended: list[tuple[float, CallTimeout]] = []
    limit, began = WheelTime(0.2, 10, 1), time.monotonic()
    limit.start(Deadlines(), lambda error: ended.append((time.monotonic() - began, error)))
    await until(lambda: bool(ended))
    [(seconds, error)] = ended
    assert 0.2 <= seconds < 0.2 + LATE
    assert "was silent for 0.2 s" in error.message


@pytest.mark.gen_test
async def test_progress_begins_the_silence_anew_up_to_the_longest_time() -> None:
    ended: list[tuple[float, CallTimeout]] = []
    limit, began = WheelTime(0.3, 0.8, 1), time.monotonic()
    observer = TimedObserver(SilentObserver(), limit)
    limit.start(Deadlines(), lambda error: ended.append((time.monotonic() - began, error)))
    while not ended:
        observer.progress(1, None, None)
        await asyncio.sleep(0.05)
    [(seconds, error)] = ended
    assert 0.8 <= seconds < 0.8 + LATE
    assert "took longer than 0.8 s" in error.message


@pytest.mark.gen_test
async def test_a_call_that_has_ended_is_not_timed_out() -> None:
    ended: list[CallTimeout] = []
    limit, after = WheelTime(0.05, 0.05, 1), WheelTime(0.2, 0.2, 1)
    deadlines = Deadlines()
    limit.start(deadlines, ended.append)
    limit.stop()
    later: list[CallTimeout] = []
    after.start(deadlines, later.append)
    await until(lambda: bool(later))
    assert ended == []


@pytest.mark.gen_test
async def test_a_pause_is_no_silence_and_what_follows_it_is() -> None:
    ended: list[float] = []
    limit, began = WheelTime(0.1, 10, 1), time.monotonic()
    limit.start(Deadlines(), lambda _: ended.append(time.monotonic() - began))
    with limit.paused(5):
        await asyncio.sleep(0.4)
        assert ended == []
    await until(lambda: bool(ended))
    assert 0.5 <= ended[0] < 0.5 + LATE
