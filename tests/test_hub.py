"""Who is connected: the limits, the count, and the end of all."""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpgw.hub import Hub, Place, sweep_every
from mcpgw.settings import ServerSettings
from tests.support.waiting import until


class Clock:
    """A monotonic clock that goes on only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(eq=False)
class Stream:
    """A connection that notes how it was ended."""

    fault: Exception | None = None
    drained: list[float] = field(default_factory=list)

    async def drain(self, deadline: float) -> None:
        self.drained.append(deadline)
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hub(clock: Clock) -> Hub:
    return Hub(ServerSettings(max_connections=5, max_connections_per_user=2), clock=clock)


def test_connections_beyond_the_limit_of_all_are_refused_with_the_reason(hub: Hub) -> None:
    places = [hub.reserve("websocket", f"user-{number}") for number in range(6)]
    assert [place.refusal is None for place in places] == [True] * 5 + [False]
    assert places[5].refusal is not None
    assert places[5].refusal.reason == "the gateway has its 5 connections"
    assert places[5].refusal.can_be_told
    assert hub.statistics().connections == 5


def test_a_user_at_the_limit_is_refused_and_another_is_not(hub: Hub) -> None:
    hub.reserve("websocket", "ann")
    hub.reserve("sse", "ann")
    refused = hub.reserve("websocket", "ann")
    assert refused.refusal is not None
    assert refused.refusal.reason == "this user has 2 connections: close one first"
    assert hub.reserve("websocket", "bob").refusal is None


def test_a_place_that_is_released_can_be_taken_again_and_is_counted_out_once(hub: Hub) -> None:
    first, _ = hub.reserve("websocket", "ann"), hub.reserve("websocket", "ann")
    first.release()
    first.release()
    assert hub.statistics().by_user == {"ann": 1}
    assert hub.reserve("websocket", "ann").refusal is None
    assert hub.reserve("websocket", "ann").refusal is not None


def test_a_refused_connection_takes_nobody_elses_place(hub: Hub) -> None:
    for _ in range(3):
        hub.reserve("websocket", "ann")
    refused = hub.reserve("websocket", "ann")
    refused.release()
    assert hub.statistics().by_user == {"ann": 2}
    assert [hub.reserve("sse", None).refusal is None for _ in range(4)] == [True] * 3 + [False]


def test_a_place_is_released_when_its_block_is_left_by_a_fault(hub: Hub) -> None:
    with pytest.raises(OSError, match="gone"), hub.reserve("sse", "ann"):
        raise OSError("gone")
    assert hub.statistics().connections == 0


def test_when_very_many_are_being_told_the_next_is_refused_without_an_upgrade(hub: Hub) -> None:
    for _ in range(5):
        hub.reserve("sse", None)
    told = [hub.reserve("websocket", None) for _ in range(100)]
    assert all(place.refusal is not None and place.refusal.can_be_told for place in told)
    late = hub.reserve("websocket", None)
    assert late.refusal is not None
    assert not late.refusal.can_be_told
    told[0].release()
    again = hub.reserve("websocket", None).refusal
    assert again is not None
    assert again.can_be_told


def test_a_connection_that_proves_its_user_counts_as_that_users(hub: Hub) -> None:
    place = hub.reserve("websocket", None)
    assert hub.statistics().unidentified == 1
    assert place.identify("ann")
    assert place.identify("ann")
    assert place.user == "ann"
    statistics = hub.statistics()
    assert statistics.by_user == {"ann": 1}
    assert statistics.unidentified == 0
    place.release()
    assert hub.statistics().by_user == {}


def test_a_connection_that_proves_a_user_who_has_too_many_is_refused(hub: Hub) -> None:
    places = [hub.reserve("websocket", None) for _ in range(3)]
    assert [place.identify("ann") for place in places] == [True, True, False]
    refused = places[2]
    assert refused.refusal is not None
    assert refused.refusal.reason == "this user has 2 connections: close one first"
    places[0].release()
    assert not refused.identify("ann"), "what was refused stays refused"
    assert hub.statistics().connections == 2, "until it is closed it is one of all"
    refused.release()
    statistics = hub.statistics()
    assert (statistics.connections, statistics.by_user, statistics.refused) == (1, {"ann": 1}, 1)


def test_the_statistics_say_who_is_connected_since_when_and_what_was_sent(hub: Hub, clock: Clock) -> None:
    empty = hub.statistics()
    assert (empty.newest_age, empty.median_age, empty.oldest_age) == (0, 0, 0)
    assert empty.by_kind == {"websocket": 0, "sse": 0}
    first = hub.reserve("websocket", "ann")
    first.frames_in, first.frames_out = 3, 5
    clock.now += 60
    second = hub.reserve("sse", "ann")
    second.frames_out = 7
    clock.now += 10
    hub.reserve("websocket", None)
    clock.now += 5
    statistics = hub.statistics()
    assert statistics.by_kind == {"websocket": 2, "sse": 1}
    assert statistics.by_user == {"ann": 2}
    assert (statistics.newest_age, statistics.median_age, statistics.oldest_age) == (5, 15, 75)
    assert (statistics.frames_in, statistics.frames_out) == (3, 12)
    first.release()
    first.release()
    second.frames_out += 1
    later = hub.statistics()
    assert (later.frames_in, later.frames_out, later.accepted) == (3, 13, 3), "what was sent stays counted"
    assert later.oldest_age == 15


def test_a_sweep_releases_places_that_nobody_uses_and_says_so(
    hub: Hub, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    used, forgotten = hub.reserve("websocket", "ann"), hub.reserve("websocket", "ann")
    told = [hub.reserve("websocket", "ann")]
    hub.add(Stream(), used)
    clock.now += 30
    assert hub.sweep() == 0
    clock.now += 31
    young = hub.reserve("sse", "bob")
    assert hub.sweep() == 1 + len(told)
    assert "stale places released" in caplog.text
    assert hub.statistics().by_user == {"ann": 1, "bob": 1}
    forgotten.release()
    young.release()
    assert hub.statistics().by_user == {"ann": 1}


def test_removing_a_connection_releases_its_place(hub: Hub) -> None:
    stream, place = Stream(), hub.reserve("sse", "ann")
    hub.add(stream, place)
    assert len(hub) == 1
    hub.remove(stream)
    hub.remove(stream)
    assert len(hub) == 0
    assert hub.statistics().connections == 0


@pytest.mark.gen_test(timeout=5)
async def test_draining_ends_every_connection_whatever_becomes_of_one(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    streams = [Stream(), Stream(fault=OSError("broken")), Stream()]
    for stream in streams:
        hub.add(stream)
    await hub.drain(7.0)
    assert [stream.drained for stream in streams] == [[7.0]] * 3
    assert "a connection could not be ended" in caplog.text


@pytest.mark.gen_test(timeout=5)
async def test_the_hub_is_empty_when_the_last_connection_is_removed(hub: Hub) -> None:
    streams = [Stream(), Stream()]
    for stream in streams:
        hub.add(stream)
    waiting = asyncio.create_task(hub.wait_empty())
    hub.remove(streams[0])
    await asyncio.wait({waiting}, timeout=0.02)
    assert not waiting.done()
    hub.remove(streams[1])
    await waiting


@pytest.mark.gen_test(timeout=5)
async def test_sweeps_are_done_again_and_again_until_they_are_cancelled() -> None:
    done: list[str] = []
    task = asyncio.create_task(sweep_every(0.01, lambda: done.append("hub"), lambda: done.append("users")))
    await until(lambda: len(done) >= 4)
    task.cancel()
    await asyncio.wait({task})
    assert done[:4] == ["hub", "users", "hub", "users"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["reserve", "identify", "release"]),
            st.sampled_from(["ann", "bob", "cyd", None]),
            st.integers(0, 30),
        ),
        max_size=80,
    )
)
def test_no_order_of_coming_and_going_breaks_a_limit_or_loses_a_place(
    steps: list[tuple[str, str | None, int]],
) -> None:
    hub = Hub(ServerSettings(max_connections=6, max_connections_per_user=3))
    places: list[Place] = []
    for step, user, number in steps:
        if step == "reserve":
            places.append(hub.reserve("websocket", user))
        elif places and step == "identify" and user is not None:
            places[number % len(places)].identify(user)
        elif places and step == "release":
            places[number % len(places)].release()
        statistics = hub.statistics()
        assert statistics.connections <= 6
        assert all(0 < count <= 3 for count in statistics.by_user.values())
        assert statistics.connections == sum(statistics.by_user.values()) + statistics.unidentified
        assert statistics.unidentified >= 0
    for place in places:
        place.release()
    statistics = hub.statistics()
    assert (statistics.connections, statistics.by_user) == (0, {})
    assert statistics.accepted + statistics.refused >= len(places)


def test_strangers_cannot_take_every_place() -> None:
    hub = Hub(ServerSettings(max_connections=10, max_unidentified=2))
    strangers = [hub.reserve("sse", None) for _ in range(3)]
    assert [place.refusal is None for place in strangers] == [True, True, False]
    assert hub.reserve("websocket", "ann").refusal is None
    assert strangers[0].identify("bob")
    assert hub.reserve("sse", None).refusal is None
