"""Who is connected: the limits, the count, and the end of all."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcpgw.hub import Hub, Place, sweep_every
from mcpgw.settings import ServerSettings
from tests.support.waiting import until


class Clock:
    """A monotonic clock that goes on only when told, and calls back what was put off until then."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._later: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self._later.append((self.now + seconds, callback))

    def go_on(self, seconds: float) -> None:
        """Let so many seconds go by."""
        self.now += seconds
        due = [callback for when, callback in self._later if when <= self.now]
        self._later = [each for each in self._later if each[0] > self.now]
        for callback in due:
            callback()


@dataclass(eq=False)
class Stream:
    """A connection that notes how it was ended."""

    fault: Exception | None = None
    drained: list[float] = field(default_factory=list)
    probed: list[float] = field(default_factory=list)

    async def drain(self, deadline: float) -> None:
        self.drained.append(deadline)
        if self.fault is not None:
            raise self.fault

    def review(self, judge: object) -> None:
        pass

    def probe(self, seconds: float) -> None:
        self.probed.append(seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hub(clock: Clock) -> Hub:
    return Hub(
        ServerSettings(max_connections=5, max_connections_per_user=2),
        clock=clock,
        call_later=clock.call_later,
    )


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
    above = hub.reserve("websocket", "ann")
    assert above.is_waiting
    assert above.refusal is None
    assert above.give_up().reason == "this user has 2 connections: close one first"
    assert (above.refusal is not None, above.is_waiting) == (True, False)
    assert hub.reserve("websocket", "bob").refusal is None


def test_a_user_who_may_have_one_connection_is_told_of_one() -> None:
    hub = Hub(ServerSettings(max_connections_per_user=1))
    hub.reserve("websocket", "ann")
    assert hub.reserve("websocket", "ann").give_up().reason == "this user has 1 connection: close one first"


def test_some_users_have_fewer_connections_than_the_others() -> None:
    hub = Hub(
        ServerSettings(max_connections_per_user=3), limit_of=lambda user: 1 if user == "guest" else None
    )
    assert not hub.reserve("websocket", "guest").is_waiting
    above = hub.reserve("websocket", "guest")
    assert above.is_waiting
    assert above.give_up().reason == "this user has 1 connection: close one first"
    assert not any(hub.reserve("websocket", "ann").is_waiting for _ in range(3))


def test_a_place_that_is_released_can_be_taken_again_and_is_counted_out_once(hub: Hub) -> None:
    first, _ = hub.reserve("websocket", "ann"), hub.reserve("websocket", "ann")
    first.release()
    first.release()
    assert hub.statistics().by_user == {"ann": 1}
    assert not hub.reserve("websocket", "ann").is_waiting
    assert hub.reserve("websocket", "ann").is_waiting


def test_a_refused_connection_takes_nobody_elses_place(hub: Hub) -> None:
    for _ in range(2):
        hub.reserve("websocket", "ann")
    waiting = [hub.reserve("websocket", "ann") for _ in range(2)]
    refused = hub.reserve("websocket", "ann")
    assert refused.refusal is not None, "as many wait as may be"
    refused.release()
    assert (hub.statistics().by_user, hub.statistics().waiting) == ({"ann": 2}, 2)
    for place in waiting:
        place.give_up()
        place.release()
    assert [hub.reserve("sse", None).refusal is None for _ in range(4)] == [True] * 3 + [False]


def test_a_place_that_comes_free_is_given_to_the_first_that_waits_for_one_of_that_user(hub: Hub) -> None:
    here = [hub.reserve("websocket", "ann") for _ in range(2)]
    first, second = hub.reserve("websocket", "ann"), hub.reserve("sse", "ann")
    told: list[str] = []
    first.on_admitted, second.on_admitted = lambda: told.append("first"), lambda: told.append("second")
    other = hub.reserve("websocket", "bob")
    other.release()
    assert told == []
    second.come_first()
    here[0].release()
    assert told == ["second"]
    assert hub.statistics().by_user == {"ann": 2}
    here[1].release()
    assert (told, hub.statistics().waiting) == (["second", "first"], 0)


def test_a_connection_that_is_being_closed_makes_room_for_one_that_waits_and_is_one_of_all(hub: Hub) -> None:
    here = [hub.reserve("websocket", "ann") for _ in range(2)]
    waiting = hub.reserve("websocket", "ann")
    assert here[0].leave()
    assert not waiting.is_waiting
    statistics = hub.statistics()
    assert (statistics.by_user, statistics.closing, statistics.connections) == ({"ann": 2}, 1, 3)
    assert here[0].leave(), "once is enough"
    here[0].release()
    assert (hub.statistics().by_user, hub.statistics().closing) == ({"ann": 2}, 0)


def test_a_user_who_has_many_connections_that_are_being_closed_gets_no_goodbye_for_more(clock: Clock) -> None:
    hub = Hub(
        ServerSettings(max_connections=100, max_connections_per_user=2),
        clock=clock,
        call_later=clock.call_later,
    )
    told = []
    for _ in range(4):
        place = hub.reserve("websocket", "ann")
        told.append(place.leave())
        if not told[-1]:
            place.release()
    assert told == [True, True, False, False]
    assert hub.statistics().connections == 2
    for _ in range(3):
        stranger = hub.reserve("websocket", None)
        for _ in range(2):
            hub.reserve("websocket", "bob")
        stranger.identify("bob")
        stranger.give_up()
        told.append(stranger.leave())
    assert told[4:] == [True, True, False], "nor for those that were refused"


def test_who_is_above_the_limit_has_the_others_asked_for_a_sign_of_life_once_in_a_while(
    hub: Hub, clock: Clock
) -> None:
    streams = {name: Stream() for name in ("ann", "again", "bob")}
    for name, user in (("ann", "ann"), ("again", "ann"), ("bob", "bob")):
        hub.add(streams[name], hub.reserve("websocket", user))
    hub.reserve("websocket", "ann")
    assert [streams[name].probed for name in ("ann", "again", "bob")] == [[2.0], [2.0], []]
    clock.go_on(1)
    hub.reserve("websocket", "ann").release()
    assert streams["ann"].probed == [2.0], "they have been asked and have some time to answer"
    clock.go_on(3)
    assert streams["ann"].probed == [2.0] * 2, "the first still waits"
    clock.go_on(2)
    hub.reserve("websocket", "ann")
    assert streams["ann"].probed == [2.0] * 3


def test_who_comes_soon_after_others_were_asked_has_them_asked_once_more_when_their_time_is_over(
    hub: Hub, clock: Clock
) -> None:
    streams = [Stream(), Stream()]
    for stream in streams:
        hub.add(stream, hub.reserve("websocket", "ann"))
    hub.reserve("websocket", "ann").release()
    clock.go_on(0.5)
    hub.reserve("websocket", "ann")
    clock.go_on(0.5)
    hub.reserve("websocket", "ann").release()
    assert [stream.probed for stream in streams] == [[2.0]] * 2
    clock.go_on(1)
    assert [stream.probed for stream in streams] == [[2.0] * 2] * 2, "one may have died since"
    clock.go_on(60)
    assert [stream.probed for stream in streams] == [[2.0] * 2] * 2, "once, however many have asked"


def test_nobody_is_asked_once_more_where_nobody_waits_any_longer(hub: Hub, clock: Clock) -> None:
    stream = Stream()
    hub.add(stream, hub.reserve("websocket", "ann"))
    hub.reserve("websocket", "ann")
    for _ in range(2):
        hub.reserve("websocket", "ann").release()
        clock.go_on(0.5)
    clock.go_on(60)
    assert stream.probed == [2.0]


def test_echoes_have_a_limit_of_their_own() -> None:
    hub = Hub(ServerSettings(max_echo=2))
    places = [hub.reserve("echo", None) for _ in range(3)]
    assert [place.refusal is None for place in places] == [True, True, False]
    assert places[2].refusal is not None
    assert places[2].refusal.reason == "the gateway has its 2 connections of echo"
    assert hub.statistics().by_kind == {"websocket": 2, "sse": 0}
    assert hub.reserve("websocket", None).refusal is None
    places[0].release()
    assert hub.reserve("echo", None).refusal is None


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
    assert (refused.is_waiting, refused.refusal) == (True, None)
    assert refused.give_up().reason == "this user has 2 connections: close one first"
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
    for _ in range(3):
        hub.add(Stream(), hub.reserve("websocket", None))
    told = [hub.reserve("websocket", "ann")]
    hub.add(Stream(), used)
    clock.now += 30
    assert hub.sweep() == 0
    clock.now += 31
    assert hub.sweep() == 1 + len(told)
    assert "stale places released" in caplog.text
    young = hub.reserve("sse", "bob")
    assert hub.sweep() == 0
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
            st.sampled_from(["reserve", "identify", "release", "leave", "come_first", "give_up"]),
            st.sampled_from(["ann", "bob", "cyd", None]),
            st.integers(0, 30),
        ),
        max_size=80,
    )
)
@example([("reserve", "bob", 0)] * 4 + [("identify", "ann", 0)])
def test_no_order_of_coming_and_going_breaks_a_limit_or_loses_a_place(
    steps: list[tuple[str, str | None, int]],
) -> None:
    clock = Clock()
    hub = Hub(
        ServerSettings(max_connections=6, max_connections_per_user=3),
        clock=clock,
        call_later=clock.call_later,
    )
    places: list[Place] = []
    for step, user, number in steps:
        if step == "reserve":
            places.append(hub.reserve("websocket", user))
        elif places and step == "identify" and user is not None:
            places[number % len(places)].identify(user)
        elif places and step == "give_up":
            if (place := places[number % len(places)]).is_waiting:
                place.give_up()
        elif places and step in ("release", "leave", "come_first"):
            getattr(places[number % len(places)], step)()
        statistics = hub.statistics()
        assert statistics.connections <= 6
        assert all(0 < count <= 3 for count in statistics.by_user.values())
        assert statistics.connections == (
            sum(statistics.by_user.values())
            + statistics.waiting
            + statistics.closing
            + statistics.unidentified
        )
        waiting = {place.user for place in places if place.is_waiting}
        assert all(statistics.by_user.get(str(user)) == 3 for user in waiting), "no free place waits"
        assert statistics.unidentified >= 0
    for place in places:
        place.release()
    statistics = hub.statistics()
    assert (statistics.connections, statistics.by_user, statistics.unidentified) == (0, {}, 0)
    assert statistics.accepted + statistics.refused >= len(places)


def test_strangers_cannot_take_every_place() -> None:
    hub = Hub(ServerSettings(max_connections=10, max_unidentified=2))
    strangers = [hub.reserve("sse", None) for _ in range(3)]
    assert [place.refusal is None for place in strangers] == [True, True, False]
    assert hub.reserve("websocket", "ann").refusal is None
    assert strangers[0].identify("bob")
    assert hub.reserve("sse", None).refusal is None
