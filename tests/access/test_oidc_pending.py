"""What is kept of a login while somebody is at the identity provider."""

import pytest

from mcpgw.access import oidc_pending
from mcpgw.access.oidc_pending import PENDING_SECONDS, PendingLogin, PendingLogins
from mcpgw.errors import AuthFailed

BACK = "https://gateway.example.org/api/v1/auth/callback"
KEY = bytes(range(32))


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def begun() -> PendingLogin:
    return PendingLogin("company", BACK, "/docs")


def test_a_login_is_opened_with_its_own_state_and_by_any_gateway_with_the_key() -> None:
    pending = begun()
    opened = PendingLogins(KEY).take(PendingLogins(KEY).seal(pending), pending.state)
    assert opened == pending
    assert len({pending.state, pending.nonce, pending.verifier}) == 3
    for secret in (pending.state, pending.nonce, pending.verifier):
        assert secret not in repr(pending)


def test_what_was_sealed_with_another_key_or_changed_or_is_none_opens_nothing() -> None:
    pending, logins = begun(), PendingLogins(KEY)
    sealed = logins.seal(pending)
    for text in (PendingLogins(bytes(32)).seal(pending), sealed[:-1], sealed.swapcase(), "", "é", "a" * 5000):
        with pytest.raises(AuthFailed, match="not begun in this browser"):
            logins.take(text, pending.state)
    for state in ("", pending.state[:-1], begun().state, "\ud800"):
        with pytest.raises(AuthFailed, match="not to the login"):
            logins.take(sealed, state)
    assert logins.take(sealed, pending.state) == pending


def test_after_ten_minutes_it_is_too_late_and_within_them_once_is_enough() -> None:
    clock = Clock()
    logins = PendingLogins(KEY, clock=clock)
    pending = begun()
    sealed = logins.seal(pending)
    clock.now += PENDING_SECONDS - 1
    assert logins.take(sealed, pending.state) == pending
    with pytest.raises(AuthFailed, match="used before"):
        logins.take(sealed, pending.state)
    clock.now += 2
    with pytest.raises(AuthFailed, match="too long ago"):
        logins.take(sealed, pending.state)


def test_no_more_is_remembered_than_could_come_back_and_no_more_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(oidc_pending, "_MOST_USED", 3)
    clock = Clock()
    logins = PendingLogins(KEY, clock=clock)
    for _ in range(5):
        pending = begun()
        logins.take(logins.seal(pending), pending.state)
    assert len(logins) == 3
    clock.now += PENDING_SECONDS + 1
    pending = begun()
    logins.take(logins.seal(pending), pending.state)
    assert len(logins) == 1
