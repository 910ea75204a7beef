"""The token bucket."""

import time

from mcpgw.backends.rate_limit import RateLimit


def test_a_burst_of_one_second_passes_and_the_rest_is_counted() -> None:
    limit = RateLimit(10)
    admitted = sum(limit.admit() for _ in range(1000))
    assert 10 <= admitted <= 11  # one may have come back meanwhile
    assert limit.take_refused() == 1000 - admitted
    assert limit.take_refused() == 0


def test_tokens_come_back_with_time_up_to_one_seconds_worth() -> None:
    limit = RateLimit(100)
    while limit.admit():
        pass
    deadline = time.monotonic() + 0.1
    admitted = 0
    while time.monotonic() < deadline:
        admitted += limit.admit()
    assert 5 <= admitted <= 15


def test_a_rate_of_nothing_admits_nothing() -> None:
    assert not RateLimit(0).admit()
