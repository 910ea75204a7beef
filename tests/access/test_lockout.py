"""Pauses after failed logins."""

import pytest

from mcpgw.access.lockout import Lockout, network_of


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_pauses_begin_behind_the_free_failures_and_double_up_to_five_minutes() -> None:
    clock = Clock()
    lockout = Lockout(3, clock=clock)
    waits = []
    for _ in range(14):
        lockout.attempt("ann")
        waits.append(lockout.wait("ann"))
        clock.now += lockout.wait("ann")
    assert waits == [0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert lockout.wait("bob") == 0


def test_many_attempts_at_once_count_before_any_of_them_has_ended() -> None:
    lockout = Lockout(3, clock=Clock())
    let_in = 0
    for _ in range(100):
        if not lockout.wait("ann"):
            lockout.attempt("ann")
            let_in += 1
    assert let_in == 3


def test_what_did_not_fail_is_taken_back_and_earlier_failures_stay() -> None:
    lockout = Lockout(3, clock=Clock())
    lockout.attempt("10.0.0.1")
    lockout.attempt("10.0.0.1")
    lockout.attempt("10.0.0.1")
    lockout.take_back("10.0.0.1")
    assert lockout.wait("10.0.0.1") == 0
    lockout.attempt("10.0.0.1")
    assert lockout.wait("10.0.0.1") == 1
    lockout.forget("10.0.0.1")
    lockout.take_back("10.0.0.1")
    assert len(lockout) == 0


def test_a_quarter_of_an_hour_forgives_and_what_is_remembered_is_bounded() -> None:
    clock = Clock()
    lockout = Lockout(1, maximum=10, clock=clock)
    for number in range(100):
        lockout.attempt(f"user{number}")
    assert len(lockout) == 10
    assert lockout.wait("user99") == 1
    clock.now += 901
    assert lockout.wait("user99") == 0
    assert lockout.sweep() == 9
    assert len(lockout) == 0


@pytest.mark.parametrize(
    ("remote", "network"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("nonsense", "nonsense"),
    ],
)
def test_an_ipv6_network_counts_as_one_address(remote: str, network: str) -> None:
    assert network_of(remote) == network
