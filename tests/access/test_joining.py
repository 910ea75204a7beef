"""How many codes may be guessed."""

import pytest

from mcpgw.access.joining import GUESSES_OF_ADDRESS, GUESSES_OF_ALL, Guesses
from mcpgw.errors import RateLimited


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_address_that_guesses_wrong_waits_and_right_guesses_cost_nothing() -> None:
    clock = Clock()
    guesses = Guesses(clock=clock)
    for _ in range(GUESSES_OF_ADDRESS * 3):
        guesses.take("10.0.0.1")
        guesses.was_right("10.0.0.1")
    for _ in range(GUESSES_OF_ADDRESS):
        guesses.take("10.0.0.1")
    with pytest.raises(RateLimited) as refused:
        guesses.take("10.0.0.1")
    assert refused.value.retry_after_ms == 2000
    guesses.take("10.0.0.2")
    clock.now = 2.0
    guesses.take("10.0.0.1")
    with pytest.raises(RateLimited):
        guesses.take("10.0.0.1")


def test_all_addresses_together_guess_no_faster_than_one_wait_allows() -> None:
    clock = Clock()
    guesses = Guesses(clock=clock)
    for number in range(GUESSES_OF_ALL):
        guesses.take(f"10.0.{number}.1")
    with pytest.raises(RateLimited) as refused:
        guesses.take("10.1.0.1")
    assert refused.value.retry_after_ms == 500
    let_through = 0
    for step in range(4 * 3600):
        clock.now = float(step)
        for number in range(4):
            try:
                guesses.take(f"10.2.{step % 250}.{number}")
                let_through += 1
            except RateLimited:
                pass
    assert let_through + GUESSES_OF_ALL <= 29_000, "what the arithmetic of the documentation says"


def test_addresses_are_forgotten_when_nothing_is_held_against_them() -> None:
    clock = Clock()
    guesses = Guesses(clock=clock)
    for number in range(100):
        guesses.take(f"10.0.0.{number}")
    assert (guesses.sweep(), len(guesses)) == (0, 100)
    clock.now = 2.0
    assert (guesses.sweep(), len(guesses)) == (100, 0)
