"""Logins: in by password or link, on by refresh tokens, out again. Every decision is in the audit log."""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

from mcpgw.access.accounts import digest
from mcpgw.access.authority import Authority
from mcpgw.access.lockout import ACCOUNT_FREE, ADDRESS_FREE, Lockout, network_of
from mcpgw.access.passwords import Passwords, password_fault
from mcpgw.access.tokens import Principal, Tokens
from mcpgw.audit import Actor, Audit
from mcpgw.errors import AuthFailed, Conflict, InvalidParams, RateLimited
from mcpgw.rate_limit import UserLimits, retry_after_ms
from mcpgw.settings import AuthSettings
from mcpgw.store import By, Store, StoredLogin, StoredUser
from mcpgw.store.runner import now

REFRESH_PREFIX: Final = "mcpgw-refresh-"
"""How every refresh token begins, so that searches for lost secrets find it."""

_LONGEST_NAME = 128
_LONGEST_AGENT = 256
_WRONG = "the user's name or the password is wrong"
_NOT_HERE = "nobody logs in here: tokens come from the issuer {issuer!r}"


@dataclass(frozen=True, slots=True)
class Granted:
    """What a login is given: `access_token` holds for `expires_in` seconds, `refresh_token` gets the next.

    The login as a whole holds for `login_seconds`.
    """

    principal: Principal
    access_token: str = field(repr=False)
    expires_in: int
    refresh_token: str = field(repr=False)
    login_seconds: int


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who is at the door, before it is known who that is: the address, and what its program says it is."""

    remote: str
    agent: str = ""


class Logins:
    """Lets users in, on and out. `refresh_known` makes the gateway hold to what the store has now."""

    def __init__(
        self,
        store: Store,
        tokens: Tokens,
        *,
        authority: Authority,
        passwords: Passwords,
        audit: Audit,
        settings: AuthSettings,
        refresh_known: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._authority = authority
        self._passwords = passwords
        self._audit = audit
        self._settings = settings
        self._refresh_known = refresh_known
        self._accounts = Lockout(ACCOUNT_FREE)
        self._addresses = Lockout(ADDRESS_FREE)
        self._requests = UserLimits(settings.rate, settings.burst, settings.rate, settings.burst)

    def sweep(self) -> None:
        """Forget failures and rates of long ago."""
        self._accounts.sweep()
        self._addresses.sweep()
        self._requests.sweep()

    def require_rate(self, visitor: Visitor) -> None:
        """Count one request of an address.

        Raises:
            RateLimited: there were too many; says when to come again.
        """
        wait = self._requests.try_call(network_of(visitor.remote))
        if wait:
            raise RateLimited("too many requests from this address", retry_after_ms=retry_after_ms(wait))

    async def with_password(self, name: str, password: str, visitor: Visitor) -> Granted:
        """Let in whoever knows the password of a user.

        The answer and its time are the same for a wrong password, no such user, a disabled one, and one
        without a password.

        Raises:
            AuthFailed: name or password is wrong.
            RateLimited: after too many failures, of the account or the address; says when to come again.
            Conflict: nobody logs in here.
            StoreError: the store cannot be used.
        """
        self._require_issuing()
        name, network = name[: _LONGEST_NAME + 1], network_of(visitor.remote)
        user = await self._store.users.get(name)
        actor = Actor(visitor.remote, None if user is None else user.name)
        wait = max(self._accounts.wait(name), self._addresses.wait(network))
        if wait:
            self._audit.auth(actor, credentials="password", outcome=RateLimited.code)
            raise RateLimited("too many failed logins: wait", retry_after_ms=retry_after_ms(wait))
        self._accounts.attempt(name)
        self._addresses.attempt(network)
        try:
            holds = await self._passwords.verify("" if user is None else user.password_hash, password)
        except RateLimited:
            self._accounts.take_back(name)
            self._addresses.take_back(network)
            raise
        if not holds or user is None or user.disabled:
            self._refuse(actor, "password", _WRONG)
        self._accounts.forget(name)
        self._addresses.take_back(network)
        if self._passwords.is_dated(user.password_hash):
            renewed = await self._passwords.hash(password)
            await self._store.users.renew_hash(user.name, user.password_hash, renewed)
        return await self._begin(user, visitor, "password")

    async def with_link(self, secret: str, visitor: Visitor, *, password: str | None = None) -> Granted:
        """Let in whoever has a link, once; `password` becomes the user's password.

        Raises:
            AuthFailed: the link does not hold.
            InvalidParams: it can be no password; the link still holds.
            RateLimited: after too many failures of the address.
            Conflict: nobody logs in here.
            StoreError: the store cannot be used.
        """
        self._require_issuing()
        network = network_of(visitor.remote)
        if wait := self._addresses.wait(network):
            raise RateLimited("too many failed logins: wait", retry_after_ms=retry_after_ms(wait))
        if password is not None and (fault := password_fault(password)):
            raise InvalidParams(fault, details=[{"path": "/password", "reason": fault}])
        password_hash = "" if password is None else await self._passwords.hash(password)
        self._addresses.attempt(network)
        user = await self._store.users.take_link(digest(secret), password_hash=password_hash)
        if user is None:
            self._refuse(Actor(visitor.remote), "link", "the link does not hold: it was used, or is too old")
        self._addresses.take_back(network)
        return await self._begin(user, visitor, "link")

    async def renew(self, refresh_token: str, visitor: Visitor) -> Granted:
        """A new access token and the next refresh token for one that was not used yet.

        Raises:
            AuthFailed: it does not hold. One that was used before ends its whole login.
            StoreError: the store cannot be used.
        """
        self._require_issuing()
        following = REFRESH_PREFIX + secrets.token_urlsafe(32)
        by = By("gateway", is_told=True)
        rotation = await self._store.logins.rotate(digest(refresh_token), digest(following), by=by)
        login = rotation.login
        if login is None:
            self._refuse(Actor(visitor.remote), "refresh", "the refresh token does not hold: log in again")
        actor = Actor(visitor.remote, login.user, login.id)
        match rotation.outcome:
            case "reused":
                self._audit.access(actor, action="login.reused", target=login.id, outcome=AuthFailed.code)
                await self._refresh_known()
                raise AuthFailed("the refresh token was used before: its login has ended, log in again")
            case "ended":
                self._refuse(actor, "refresh", "the login has ended: log in again")
        granted = self._grant(login, following)
        self._audit.access(actor, action="login.refresh", target=login.id)
        return granted

    async def end(self, principal: Principal | None, refresh_token: str, visitor: Visitor) -> bool:
        """End the login of an access token or of a refresh token; whether one ended now.

        Raises:
            StoreError: the store cannot be used.
        """
        login_id, user = ("", None) if principal is None else (principal.login, principal.user)
        if not login_id and refresh_token:
            login = await self._store.logins.of_token(digest(refresh_token))
            if login is not None:
                login_id, user = login.id, login.user
        if not login_id:
            return False
        by = By(user or "", is_told=True)
        has_ended = await self._store.logins.revoke(login_id, "logout", by=by)
        if has_ended:
            self._audit.access(Actor(visitor.remote, user, login_id), action="login.logout", target=login_id)
            await self._refresh_known()
        return has_ended

    async def _begin(self, user: StoredUser, visitor: Visitor, credentials: str) -> Granted:
        moment = now()
        login = StoredLogin(
            secrets.token_hex(16),
            user.name,
            moment,
            moment,
            moment + round(self._settings.login_time * 1000),
            0,
            "",
            visitor.remote,
            visitor.agent[:_LONGEST_AGENT],
        )
        refresh_token = REFRESH_PREFIX + secrets.token_urlsafe(32)
        by = By("gateway", is_told=True)
        actor = Actor(visitor.remote, user.name, login.id)
        if not await self._store.logins.begin(login, digest(refresh_token), by=by):
            self._refuse(actor, credentials, _WRONG)  # disabled in this moment
        await self._refresh_known()
        self._audit.auth(actor, credentials=credentials)
        return self._grant(login, refresh_token)

    def _grant(self, login: StoredLogin, refresh_token: str) -> Granted:
        left = max(1, (login.expires_at - now()) // 1000)
        seconds = min(self._settings.access_time, left)
        access_token = self._tokens.issue(user=login.user, scopes=(), ttl=seconds, login=login.id)
        principal = self._authority.verify(access_token)
        return Granted(principal, access_token, int(seconds), refresh_token, left)

    def _require_issuing(self) -> None:
        if not self._tokens.can_issue:
            raise Conflict(_NOT_HERE.format(issuer=self._settings.issuer))

    def _refuse(self, actor: Actor, credentials: str, reason: str) -> NoReturn:
        self._audit.auth(actor, credentials=credentials, outcome=AuthFailed.code)
        raise AuthFailed(reason)
