"""Who is on the other end of a conversation: what was proved, how long it holds, and the time to prove it."""

import math
import time
from collections.abc import Callable

from mcpgw.access.tokens import Principal, Verifier
from mcpgw.deadlines import Deadline, Deadlines
from mcpgw.errors import AuthRequired, PermissionDenied, TokenExpired
from mcpgw.settings import AuthSettings


class Identity:
    """The client of one conversation, as far as its credentials prove it.

    `principal` is None until somebody has proved who they are. `on_expiring` is called ``auth.warning``
    before the time of the token is over, where it holds for longer than that, `on_expired` when it has run
    out, and `on_no_auth` when nothing was proved within ``auth.timeout``; none of them after `close`.
    """

    __slots__ = (
        "_auth_deadline",
        "_deadlines",
        "_expiry",
        "_failed_auths",
        "_on_expired",
        "_on_expiring",
        "_on_no_auth",
        "_settings",
        "_tokens",
        "principal",
    )

    def __init__(
        self,
        tokens: Verifier,
        settings: AuthSettings,
        deadlines: Deadlines,
        principal: Principal | None,
        *,
        on_expiring: Callable[[], None],
        on_expired: Callable[[], None],
        on_no_auth: Callable[[], None],
    ) -> None:
        self._tokens = tokens
        self._settings = settings
        self._deadlines = deadlines
        self._on_expiring = on_expiring
        self._on_expired = on_expired
        self._on_no_auth = on_no_auth
        self._auth_deadline: Deadline | None = None
        self._expiry: Deadline | None = None
        self._failed_auths = 0
        self.principal = principal

    @property
    def user(self) -> str | None:
        """Who it is, where that is known."""
        return None if self.principal is None else self.principal.user

    @property
    def expires_at_ms(self) -> int | None:
        """When the token's time is over, in ms since the epoch; None where it has no end."""
        if self.principal is None or math.isinf(self.principal.expires_at):
            return None
        return round(self.principal.expires_at * 1000)

    @property
    def has_failed_too_often(self) -> bool:
        """Whether ``auth.max_attempts`` tokens in a row did not hold."""
        return self._failed_auths >= self._settings.max_attempts

    def start(self) -> None:
        """Begin to count the time: of the token, or until there must be one."""
        if self.principal is not None:
            self._watch_expiry(self.principal)
        else:
            self._auth_deadline = self._deadlines.call_later(self._settings.timeout, self._on_no_auth)

    def require(self, *, unexpired: bool = True) -> Principal:
        """Who it is, where that is proved and, if `unexpired`, still holds.

        Raises:
            AuthRequired: nobody has proved who they are.
            TokenExpired: the time of the token is over.
        """
        if self.principal is None:
            raise AuthRequired("Authentication required: send an auth frame with a token first")
        if unexpired and self._has_expired(self.principal):
            raise TokenExpired("the token has expired: send an auth frame with a new one")
        return self.principal

    def prove(self, token: str) -> Principal:
        """Who `token` proves; `accept` makes it count.

        Raises:
            AuthFailed: it does not hold; `TokenExpired` where its time is over.
            PermissionDenied: it is another user's than the one before.
        """
        self._failed_auths += 1
        principal = self._tokens.verify(token)
        if self.principal is not None and principal.user != self.principal.user:
            raise PermissionDenied("this connection belongs to another user: open a new one")
        self._failed_auths = 0
        return principal

    def accept(self, principal: Principal) -> None:
        """It is `principal` from now on, for the time of that token."""
        self.principal = principal
        if self._auth_deadline is not None:
            self._auth_deadline.cancel()
            self._auth_deadline = None
        self._watch_expiry(principal)

    def close(self) -> None:
        """The conversation is over: nothing more is called."""
        for timer in (self._auth_deadline, self._expiry):
            if timer is not None:
                timer.cancel()
        self._on_expiring = self._on_expired = self._on_no_auth = _nothing

    def _has_expired(self, principal: Principal) -> bool:
        return time.time() > principal.expires_at + self._settings.leeway

    def _watch_expiry(self, principal: Principal) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        if math.isinf(principal.expires_at):
            self._expiry = None
            return
        left = principal.expires_at - self._settings.warning - time.time()
        if left > 0:
            self._expiry = self._deadlines.call_later(left, self._look_soon)
        else:
            self._watch_end(principal)

    def _watch_end(self, principal: Principal) -> None:
        left = principal.expires_at + self._settings.leeway - time.time()
        self._expiry = self._deadlines.call_later(left, self._look_again)

    def _look_soon(self) -> None:
        principal = self.principal
        if principal is None:
            return
        if time.time() < principal.expires_at - self._settings.warning:
            self._watch_expiry(principal)  # the wall clock was set back
        else:
            self._watch_end(principal)
            self._on_expiring()

    def _look_again(self) -> None:
        # The wall clock may have been set back meanwhile: the token decides, not the timer.
        if self.principal is not None and not self._has_expired(self.principal):
            self._watch_expiry(self.principal)
        else:
            self._on_expired()


def _nothing() -> None:
    """What is called when nothing more is to be called; it leads back to nobody."""
