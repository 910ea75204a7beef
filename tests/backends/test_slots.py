"""The line in front of a backend: its limit, its fairness, and what becomes of those who leave it."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpgw.backends import slots as slots_module
from mcpgw.backends.slots import Slots
from mcpgw.errors import QueueFull
from tests.support.waiting import until


def unheard(position: int, wait_ms: int | None) -> None:
    """For calls whose position nobody asks for."""


def never(position: int, wait_ms: int | None) -> None:
    """For calls that must not wait in line."""
    pytest.fail(f"it waits at position {position}")


class Calls:
    """Calls that hold a slot until they are told to end, in the order in which they got it."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.running: dict[str, asyncio.Event] = {}
        self.order: list[str] = []
        self.positions: dict[str, list[int]] = {}
        self.waits: dict[str, list[int | None]] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, user: str, name: str = "") -> str:
        """Begin a call of `user`; it waits in line from the next turn of the loop on."""
        name = name or f"{user}{sum(call.startswith(user) for call in self.tasks) + 1}"
        self.tasks[name] = asyncio.create_task(self._run(user, name))
        return name

    async def _run(self, user: str, name: str) -> None:
        positions, waits = self.positions.setdefault(name, []), self.waits.setdefault(name, [])

        def on_queued(position: int, wait_ms: int | None) -> None:
            positions.append(position)
            waits.append(wait_ms)

        async with self.slots.hold(user, on_queued):
            self.order.append(name)
            self.running[name] = asyncio.Event()
            try:
                await self.running[name].wait()
            finally:
                del self.running[name]

    def end(self, name: str) -> None:
        self.running[name].set()

    async def end_all(self) -> None:
        """End whatever runs, oldest first, until nobody is left."""
        while self.slots.held:
            self.end(next(iter(self.running)))
            await settle()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def settle() -> None:
    """Let everything that is ready run."""
    for _ in range(4):
        await asyncio.sleep(0)


@pytest.mark.gen_test(timeout=5)
async def test_a_free_slot_is_had_at_once_and_nothing_is_said_of_a_line() -> None:
    slots = Slots(2, 10)
    async with slots.hold("ann", never), slots.hold("ann", never):
        assert (slots.held, slots.waiting) == (2, 0)
    assert slots.held == 0


@pytest.mark.gen_test(timeout=5)
async def test_a_slot_comes_back_when_the_call_fails() -> None:
    slots = Slots(1, 10)
    with pytest.raises(OSError, match="broken"):
        async with slots.hold("ann", unheard):
            raise OSError("broken")
    assert slots.held == 0


@pytest.mark.gen_test(timeout=5)
async def test_users_take_turns_and_a_users_own_calls_keep_their_order() -> None:
    calls = Calls(Slots(1, 100))
    for user in ("ann", "ann", "ann", "ann", "bob", "bob", "cyd"):
        calls.start(user)
    await settle()
    calls.start("dan")
    await settle()
    assert calls.slots.waiting == 7
    assert [calls.positions[name][0] for name in ("ann2", "ann3", "bob1", "bob2", "cyd1", "dan1")] == [
        1,
        2,
        2,
        4,
        3,
        4,
    ]
    await calls.end_all()
    assert calls.order == ["ann1", "ann2", "bob1", "cyd1", "dan1", "ann3", "bob2", "ann4"]


@pytest.mark.gen_test(timeout=5)
async def test_five_hundred_waiting_calls_of_one_user_do_not_hold_up_the_first_of_another() -> None:
    calls = Calls(Slots(4, 1000))
    for _ in range(504):
        calls.start("ann")
    await settle()
    calls.start("bob")
    await settle()
    assert calls.positions["bob1"] == [2]
    calls.end("ann1")
    calls.end("ann2")
    await settle()
    assert "bob1" in calls.running
    await calls.end_all()
    assert len(calls.order) == 505


@pytest.mark.gen_test(timeout=5)
async def test_nobody_who_comes_later_is_faster_than_those_in_line() -> None:
    calls = Calls(Slots(1, 10))
    calls.start("ann")
    calls.start("bob")
    await settle()
    calls.end("ann1")
    while not calls.tasks["ann1"].done():
        await asyncio.sleep(0)
    calls.start("ann")  # in the moment in which the slot is on its way to bob
    await settle()
    assert list(calls.running) == ["bob1"]
    await calls.end_all()


@pytest.mark.gen_test(timeout=5)
async def test_a_call_that_is_cancelled_in_line_leaves_it() -> None:
    calls = Calls(Slots(1, 10))
    for user in ("ann", "bob", "bob", "cyd"):
        calls.start(user)
    await settle()
    calls.tasks["bob1"].cancel()
    await settle()
    assert calls.slots.waiting == 2
    await calls.end_all()
    assert calls.order == ["ann1", "bob2", "cyd1"]


@pytest.mark.gen_test(timeout=5)
async def test_a_call_that_is_cancelled_as_its_turn_comes_hands_the_slot_on() -> None:
    calls = Calls(Slots(1, 10))
    for user in ("ann", "bob", "cyd"):
        calls.start(user)
    await settle()
    calls.end("ann1")
    while not calls.tasks["ann1"].done():
        await asyncio.sleep(0)
    calls.tasks["bob1"].cancel()  # its slot has been given, and it has not run since
    await settle()
    assert calls.tasks["bob1"].cancelled()
    assert calls.order == ["ann1", "cyd1"]
    await calls.end_all()
    assert (calls.slots.held, calls.slots.waiting) == (0, 0)


@pytest.mark.gen_test(timeout=5)
async def test_a_call_that_is_cancelled_just_before_its_turn_costs_its_user_no_turn() -> None:
    calls = Calls(Slots(1, 10))
    for user in ("ann", "bob", "bob", "cyd"):
        calls.start(user)
    await settle()
    calls.end("ann1")
    calls.tasks["bob1"].cancel()  # both in one turn of the loop
    await settle()
    assert calls.order == ["ann1", "bob2"]
    await calls.end_all()
    assert calls.order == ["ann1", "bob2", "cyd1"]


@pytest.mark.gen_test(timeout=5)
async def test_a_call_whose_time_runs_out_in_line_leaves_it() -> None:
    slots = Slots(1, 10)
    async with slots.hold("ann", unheard):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02), slots.hold("bob", unheard):
                pytest.fail("the slot is held")
        assert slots.waiting == 0
    assert slots.held == 0


@pytest.mark.gen_test(timeout=5)
async def test_a_full_line_refuses_the_next_call_and_says_when_to_come_back() -> None:
    calls = Calls(Slots(2, 3))
    for _ in range(5):
        calls.start("ann")
    await settle()
    with pytest.raises(QueueFull, match="2 calls run on this server and 3 wait") as raised:
        async with calls.slots.hold("ann", never):
            pytest.fail("the line is full")
    assert raised.value.retry_after_ms == 2000  # no call has ended yet: a second for each two
    assert calls.slots.waiting == 3
    await calls.end_all()
    assert len(calls.order) == 5


@pytest.mark.gen_test(timeout=5)
async def test_the_time_to_come_back_follows_how_long_calls_take() -> None:
    slots = Slots(1, 0)
    for _ in range(100):
        async with slots.hold("ann", unheard):
            await asyncio.sleep(0)
    async with slots.hold("ann", unheard):
        with pytest.raises(QueueFull) as raised:
            await slots.hold("bob", unheard).__aenter__()
    assert raised.value.retry_after_ms == 100


@pytest.mark.gen_test(timeout=5)
async def test_where_no_line_is_allowed_a_busy_server_refuses_at_once() -> None:
    slots = Slots(1, 0)
    async with slots.hold("ann", unheard):
        with pytest.raises(QueueFull):
            await slots.hold("bob", never).__aenter__()
    async with slots.hold("bob", never):
        assert slots.held == 1


@pytest.mark.gen_test(timeout=5)
async def test_one_user_cannot_fill_the_line_against_another() -> None:
    calls = Calls(Slots(1, 3))
    for _ in range(4):
        calls.start("ann")
    await settle()
    for _ in range(2):
        calls.start("bob")
        await settle()
    # The last of ann's three gave way to bob's first; with a second, bob would have as many as ann before.
    assert isinstance(calls.tasks["ann4"].exception(), QueueFull)
    assert isinstance(calls.tasks["bob2"].exception(), QueueFull)
    assert calls.slots.waiting == 3
    await calls.end_all()
    assert calls.order == ["ann1", "ann2", "bob1", "ann3"]


@pytest.mark.gen_test(timeout=5)
async def test_a_call_that_gives_way_and_is_cancelled_in_one_moment_just_ends() -> None:
    calls = Calls(Slots(1, 2))
    for user in ("ann", "ann", "ann"):
        calls.start(user)
    await settle()
    refused = calls.start("bob")
    while calls.slots.waiting and refused not in calls.positions:
        await asyncio.sleep(0)
    calls.tasks["ann3"].cancel()
    await settle()
    assert calls.tasks["ann3"].cancelled()
    await calls.end_all()
    assert calls.order == ["ann1", "ann2", "bob1"]
    assert (calls.slots.held, calls.slots.waiting) == (0, 0)


@pytest.mark.gen_test(timeout=5)
async def test_a_listener_that_fails_ends_its_call_and_no_other() -> None:
    calls = Calls(Slots(1, 5))
    calls.start("ann")
    await settle()

    def broken(position: int, wait_ms: int | None) -> None:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        await calls.slots.hold("bob", broken).__aenter__()
    assert calls.slots.waiting == 0
    await calls.end_all()


@contextmanager
def told_every(seconds: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(slots_module, "_TELL_SECONDS", seconds)
        yield


@pytest.mark.gen_test(timeout=10)
async def test_how_long_the_wait_may_be_is_told_once_calls_have_shown_it() -> None:
    calls = Calls(Slots(1, 100))
    calls.start("ann")
    early = calls.start("ann")
    await settle()
    assert calls.waits[early] == [None], "nobody knows yet how long calls take"
    await calls.end_all()
    for _ in range(4):
        name = calls.start("ann")
        await settle()
        await asyncio.sleep(0.2)
        calls.end(name)
        await settle()
    calls.start("ann")
    waits = [calls.start("ann") for _ in range(10)]
    await settle()
    told = [wait for name in waits if (wait := calls.waits[name][0]) is not None]
    # Calls took 0.8 s together, and were six with the two that took no time.
    assert len(told) == 10
    assert 800 < told[9] < 4000
    assert told == sorted(told)
    await calls.end_all()


@pytest.mark.gen_test(timeout=10)
async def test_the_position_is_told_again_when_it_has_changed_and_not_too_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with told_every(0.1, monkeypatch):
        calls = Calls(Slots(1, 100))
        for _ in range(8):
            calls.start("ann")
        await settle()
        heard: list[tuple[float, int]] = []
        await asyncio.sleep(0.06)  # so that the next telling of the others comes too soon for bob
        last = asyncio.create_task(
            _hold_once(calls.slots, lambda at, _: heard.append((time.monotonic(), at)))
        )
        await settle()
        # bob has one turn before ann's third; what comes later than that goes on behind him.
        assert [position for _, position in heard] == [2]
        calls.end("ann1")
        await until(lambda: len(heard) == 2)
        assert heard[1][1] == 1
        assert heard[1][0] - heard[0][0] >= 0.1
        await settle()
        quiet_since = len(calls.positions["ann8"])
        await asyncio.sleep(0.35)  # three times to tell, and nothing has changed
        assert len(heard) == 2
        assert len(calls.positions["ann8"]) == quiet_since
        await calls.end_all()
        await last
    for positions in calls.positions.values():
        assert all(before != after for before, after in pairwise(positions))


async def _hold_once(slots: Slots, on_queued: Callable[[int, int | None], None]) -> None:
    async with slots.hold("bob", on_queued):
        await asyncio.sleep(0)


@pytest.mark.gen_test(timeout=10)
async def test_far_back_in_line_a_step_is_not_worth_telling(monkeypatch: pytest.MonkeyPatch) -> None:
    with told_every(0.05, monkeypatch):
        calls = Calls(Slots(1, 100))
        for _ in range(32):
            calls.start("ann")
        await settle()
        assert calls.positions["ann32"] == [31]
        calls.end("ann1")
        await until(lambda: calls.positions["ann4"][-1:] == [2], what="word to the third in line")
        assert calls.positions["ann32"] == [31]
        for name in ("ann2", "ann3", "ann4"):
            calls.end(name)
            await settle()
        await until(lambda: calls.positions["ann32"] == [31, 27], what="word after a tenth")
        await calls.end_all()


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30), st.integers(1, 3))
def test_the_positions_that_are_told_are_the_order_in_which_calls_get_their_turn(
    users: list[str], limit: int
) -> None:
    async def scenario() -> None:
        calls = Calls(Slots(limit, 100))
        for user in users:
            calls.start(user)
        await settle()
        names = list(calls.tasks)
        before = {waiter.user: 0 for waiter in calls.slots._in_order()}
        in_line: list[str] = []
        held = {user: sum(name.startswith(user) for name in calls.running) for user in before}
        for waiter in calls.slots._in_order():
            before[waiter.user] += 1
            in_line.append(f"{waiter.user}{held[waiter.user] + before[waiter.user]}")
        for user in dict.fromkeys(users[limit:]):
            last = [name for name in in_line if name.startswith(user)][-1]
            assert calls.slots._last_position(user) == in_line.index(last) + 1
        await calls.end_all()
        assert calls.order == names[:limit] + in_line

    asyncio.run(scenario())


Step = tuple[str, str, int]


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["start", "start", "start", "end", "cancel", "loop"]),
            st.sampled_from("abcd"),
            st.integers(0, 1000),
        ),
        max_size=120,
    ),
    limit=st.integers(1, 4),
    max_waiting=st.integers(0, 12),
)
@settings(max_examples=200)
def test_no_order_of_arrivals_ends_and_cancellations_breaks_the_limit_or_loses_a_slot(
    steps: list[Step], limit: int, max_waiting: int
) -> None:
    async def scenario() -> None:
        calls = Calls(Slots(limit, max_waiting))
        for step, user, number in steps:
            if step == "start":
                calls.start(user)
            elif step == "end" and calls.running:
                calls.end(list(calls.running)[number % len(calls.running)])
            elif step == "cancel" and calls.tasks:
                list(calls.tasks.values())[number % len(calls.tasks)].cancel()
            elif step == "loop":
                for _ in range(number % 4):
                    await asyncio.sleep(0)
            assert len(calls.running) <= calls.slots.held <= limit
            assert calls.slots.waiting <= max_waiting
        await settle()
        assert len(calls.running) == calls.slots.held
        assert not calls.slots.waiting or calls.slots.held == limit, "a slot is free while someone waits"
        await calls.end_all()
        assert (calls.slots.held, calls.slots.waiting) == (0, 0)
        ended = [task for task in calls.tasks.values() if not task.cancelled() and task.exception() is None]
        refused = [
            task for task in calls.tasks.values() if not task.cancelled() and task.exception() is not None
        ]
        assert all(isinstance(task.exception(), QueueFull) for task in refused)
        assert len(calls.order) >= len(ended)
        for user in "abcd":
            # One that finds a slot free runs at once; one that was just given a slot, a moment later.
            waited = [name for name in calls.order if name.startswith(user) and calls.positions[name]]
            assert waited == sorted(waited, key=lambda name: int(name[1:])), "they keep their order in line"

    asyncio.run(scenario())


@pytest.mark.gen_test(timeout=20)
async def test_under_random_load_nobody_starves_and_every_slot_comes_back() -> None:
    chance = random.Random(7)
    slots = Slots(5, 400)
    most = 0
    waits: dict[str, list[float]] = {"few": [], "many": []}

    async def call(user: str) -> None:
        nonlocal most
        begun = time.monotonic()
        async with slots.hold(user, unheard):
            waits[user.rstrip("0123456789")].append(time.monotonic() - begun)
            most = max(most, slots.held)
            await asyncio.sleep(chance.uniform(0, 0.004))

    async def later(seconds: float, begin: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(seconds)
        await begin()

    tasks = [asyncio.create_task(call("many")) for _ in range(400)]
    for number in range(40):
        user = f"few{number % 8}"
        tasks.append(asyncio.create_task(later(number * 0.003, lambda user=user: call(user))))  # type: ignore[misc]
    for task in chance.sample(tasks[:400], 80):
        asyncio.get_running_loop().call_later(chance.uniform(0, 0.15), task.cancel)
    await asyncio.wait(tasks)
    assert most == 5
    assert (slots.held, slots.waiting) == (0, 0)
    assert len(waits["few"]) == 40
    assert len(waits["many"]) >= 320
    assert max(waits["few"]) < max(waits["many"]) / 2
