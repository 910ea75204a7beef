"""Token buckets, and the limits of users that are made of them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpgw.rate_limit import FloodGuard, RateLimit, TokenBucket, UserLimits, Window, retry_after_ms


class Clock:
    """A monotonic clock that goes on only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limits(clock: Clock, max_users: int = 10_000) -> UserLimits:
    return UserLimits(
        calls_rate=5, calls_burst=2, frames_rate=10, frames_burst=4, max_users=max_users, clock=clock
    )


def test_a_bucket_gives_its_burst_at_once_and_then_says_how_long_to_wait(clock: Clock) -> None:
    bucket = TokenBucket(rate=4, burst=3, clock=clock)
    assert [bucket.try_take() for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.try_take() == pytest.approx(0.25)
    clock.advance(0.125)
    assert bucket.try_take() == pytest.approx(0.125)
    assert bucket.try_take(2) == pytest.approx(0.375)
    clock.advance(0.125)
    assert bucket.try_take() == 0.0
    assert bucket.try_take() == pytest.approx(0.25)


def test_a_bucket_never_holds_more_than_its_burst(clock: Clock) -> None:
    bucket = TokenBucket(rate=100, burst=3, clock=clock)
    assert bucket.is_full
    bucket.try_take()
    assert not bucket.is_full
    clock.advance(3600)
    assert bucket.is_full
    assert [bucket.try_take() > 0 for _ in range(4)] == [False, False, False, True]


def test_what_never_fits_is_to_be_waited_for_without_end(clock: Clock) -> None:
    assert TokenBucket(rate=1, burst=3, clock=clock).try_take(4) == math.inf
    assert TokenBucket(rate=0, burst=0, clock=clock).try_take() == math.inf


@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 2), min_size=1, max_size=60),
)
def test_no_more_is_let_through_than_the_burst_and_what_came_since_and_a_wait_is_enough(
    rate: float, burst: int, pauses: list[float]
) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock=clock)
    begun, taken = clock.now, 0
    for pause in pauses:
        clock.advance(pause)
        while (wait := bucket.try_take()) == 0.0:
            taken += 1
        assert taken <= burst + (clock.now - begun) * rate + 0.001
        assert taken >= burst - 1 or len(pauses) == 0
        clock.advance(wait)
        assert bucket.try_take() == 0.0
        taken += 1


def test_a_rate_limit_counts_what_it_refuses_until_that_is_asked_for() -> None:
    limit = RateLimit(3)
    admitted = [limit.admit() for _ in range(10)]
    assert admitted[:3] == [True, True, True]
    refused = admitted.count(False)
    assert refused >= 6  # a token may have come meanwhile
    assert limit.take_refused() == refused
    assert limit.take_refused() == 0


def test_a_rate_limit_of_nothing_lets_nothing_through() -> None:
    limit = RateLimit(0)
    assert not limit.admit()
    assert limit.take_refused() == 1


def test_one_user_at_the_limit_leaves_another_all_of_theirs(clock: Clock) -> None:
    users = limits(clock)
    assert [users.try_call("ann") for _ in range(2)] == [0.0, 0.0]
    assert users.try_call("ann") == pytest.approx(0.2)
    assert users.try_call("bob") == 0.0


def test_frames_and_calls_are_counted_apart(clock: Clock) -> None:
    users = limits(clock)
    while users.try_call("ann") == 0.0:
        pass
    assert [users.try_frame("ann") for _ in range(4)] == [0.0] * 4
    assert users.try_frame("ann") == pytest.approx(0.1)


def test_a_connection_without_a_user_has_a_bucket_of_its_own(clock: Clock) -> None:
    users = limits(clock)
    first, second = users.frames_bucket(), users.frames_bucket()
    assert [first.try_take() for _ in range(4)] == [0.0] * 4
    assert first.try_take() > 0
    assert second.try_take() == 0.0
    assert len(users) == 0


def test_a_sweep_forgets_whoever_has_rested_and_nobody_else(clock: Clock) -> None:
    users = limits(clock)
    users.try_call("ann")
    clock.advance(10)
    users.try_frame("bob")
    assert users.sweep() == 1
    assert len(users) == 1
    clock.advance(0.2)
    assert users.sweep() == 1
    assert len(users) == 0


def test_so_many_users_are_remembered_and_the_longest_away_goes_first(clock: Clock) -> None:
    users = limits(clock, max_users=3)
    for user in ("ann", "bob", "cyd"):
        while users.try_call(user) == 0.0:
            pass
    assert users.try_call("ann") > 0  # ann was here last, bob is the longest away
    users.try_call("dan")
    assert len(users) == 3
    assert users.try_call("ann") > 0
    assert users.try_call("cyd") > 0
    assert users.try_call("bob") == 0.0
    for number in range(100):
        users.try_frame(f"user-{number}")
    assert len(users) == 3


def frames_until_closed(clock: Clock, rate: float, seconds: float) -> int | None:
    """How many frames a client sends at `rate` before it is closed; None where it never is."""
    bucket, guard = TokenBucket(rate=200, burst=400, clock=clock), FloodGuard(100)
    for sent in range(1, int(rate * seconds) + 1):
        if bucket.try_take() == 0.0:
            guard.admitted()
        elif guard.refused():
            return sent
        clock.advance(1 / rate)
    return None


def test_a_flood_is_told_from_a_client_that_is_a_little_too_fast(clock: Clock) -> None:
    assert frames_until_closed(clock, rate=300, seconds=60) is None
    sent = frames_until_closed(clock, rate=1000, seconds=60)
    assert sent is not None
    assert 500 <= sent <= 1000


def test_refusals_one_after_another_reach_the_limit() -> None:
    guard = FloodGuard(3)
    assert [guard.refused() for _ in range(3)] == [False, False, True]


@given(st.floats(1e-9, 1e6))
def test_a_wait_in_milliseconds_is_never_too_short(seconds: float) -> None:
    assert retry_after_ms(seconds) >= max(1, seconds * 1000)


def test_a_window_lets_so_many_through_in_any_stretch_of_its_time(clock: Clock) -> None:
    window = Window(3, 60, clock=clock)
    assert [window.try_take() for _ in range(3)] == [0.0] * 3
    assert window.try_take() == pytest.approx(60)
    clock.advance(59.9)
    assert window.try_take() == pytest.approx(0.1), "a bucket would have filled meanwhile"
    clock.advance(0.1)
    assert window.try_take() == 0.0
    window.put_back()
    assert window.is_full
    assert window.try_take() == 0.0
    assert not window.is_full


def test_a_user_with_a_quota_has_no_more_than_it_and_no_more_than_the_others(clock: Clock) -> None:
    few = limits(clock)
    few.quota_of = lambda user: (1, 60.0) if user == "guest" else None
    assert few.try_call("guest") == 0.0
    assert few.try_call("guest") == pytest.approx(60)
    assert few.try_call("ann") == 0.0
    assert few.try_call("ann") == 0.0
    many = limits(clock)
    many.quota_of = lambda _user: (3, 60.0)
    assert [many.try_call("guest") for _ in range(2)] == [0.0, 0.0]
    assert many.try_call("guest") == pytest.approx(0.2), "the rate of all users"
    clock.advance(1)
    assert many.try_call("guest") == 0.0, "what was refused was not counted"
    assert many.try_call("guest") == pytest.approx(59)
    clock.advance(60)
    assert many.sweep() == 1
    assert many.try_call("guest") == 0.0
