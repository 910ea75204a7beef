"""Logins: in by password or link, on by refresh tokens, out again. Every decision is in the audit log."""

import hmac
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

from mcpgw.access.accounts import canonical_name, digest
from mcpgw.access.authority import Authority
from mcpgw.access.lockout import (
    ACCOUNT_FREE,
    ACCOUNT_PAUSE,
    ADDRESS_FREE,
    PAIR_FREE,
    Lockout,
    network_of,
)
from mcpgw.access.passwords import Passwords, password_fault
from mcpgw.access.tokens import Principal, Tokens
from mcpgw.audit import Actor, Audit
from mcpgw.errors import AuthFailed, Conflict, GatewayError, InvalidParams, RateLimited
from mcpgw.rate_limit import UserLimits, retry_after_ms
from mcpgw.settings import AuthSettings
from mcpgw.store import By, Store, StoredLogin, StoredUser
from mcpgw.store.runner import now
from mcpgw.workers.peers import Peers

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
    """Lets users in, on and out. `refresh_known` makes the gateway hold to what the store has now, and
    `take_over` too, as soon as that can be read. `peers` are the workers that count failures together.
    """

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
        take_over: Callable[[], Awaitable[None]],
        peers: Peers | None = None,
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._authority = authority
        self._passwords = passwords
        self._audit = audit
        self._settings = settings
        self._refresh_known = refresh_known
        self._take_over = take_over
        self._pairs = Lockout(PAIR_FREE)
        self._accounts = Lockout(ACCOUNT_FREE, longest=ACCOUNT_PAUSE)
        self._addresses = Lockout(ADDRESS_FREE)
        if peers is not None:
            for name, lockout in (
                ("pairs", self._pairs),
                ("accounts", self._accounts),
                ("addresses", self._addresses),
            ):
                lockout.share(peers, f"failed logins of {name}")
        self._refresh_key = tokens.derived_key("refresh")
        self._requests = UserLimits(settings.rate, settings.burst, settings.rate, settings.burst)

    @property
    def can_begin(self) -> bool:
        """Whether anybody logs in here; else tokens come from elsewhere."""
        return self._tokens.can_issue

    def sweep(self) -> None:
        """Forget failures and rates of long ago."""
        for lockout in (self._pairs, self._accounts, self._addresses):
            lockout.sweep()
        self._requests.sweep()

    def require_rate(self, visitor: Visitor, principal: Principal | None = None) -> None:
        """Count one request of an address; or of a user, whose credentials hold wherever they come from.

        Raises:
            RateLimited: there were too many; says when to come again.
        """
        counted, whose = network_of(visitor.remote), "from this address"
        if principal is not None:
            counted, whose = f"user {principal.user}", "of this user"
        if wait := self._requests.try_call(counted):
            raise RateLimited(f"too many requests {whose}", retry_after_ms=retry_after_ms(wait))

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
        self._require_passwords()
        name, network = canonical_name(name[: _LONGEST_NAME + 1]), network_of(visitor.remote)
        user = await self._store.users.get(name)
        known = {network_of(remote) for remote in await self._store.logins.remotes_of(name)}
        actor = Actor(visitor.remote, None if user is None else user.name)
        counts = [(self._pairs, f"{network} {name}"), (self._addresses, network)]
        if network not in known:
            counts.append((self._accounts, name))
        wait = max(lockout.wait(key) for lockout, key in counts)
        if wait:
            limited = RateLimited("too many failed logins: wait", retry_after_ms=retry_after_ms(wait))
            self._refuse(actor, "password", limited)
        for lockout, key in counts:
            lockout.attempt(key)
        try:
            holds = await self._passwords.verify("" if user is None else user.password_hash, password)
        except RateLimited as limited:
            for lockout, key in counts:
                lockout.take_back(key)
            self._refuse(actor, "password", limited)
        if not holds or user is None or user.disabled:
            self._refuse(actor, "password", AuthFailed(_WRONG))
        for lockout, key in counts:
            lockout.take_back(key)
        self._pairs.forget(f"{network} {name}")
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
        if password is not None:
            self._require_passwords()
        network = network_of(visitor.remote)
        if wait := self._addresses.wait(network):
            limited = RateLimited("too many failed logins: wait", retry_after_ms=retry_after_ms(wait))
            self._refuse(Actor(visitor.remote), "link", limited)
        if password is not None and (fault := password_fault(password)):
            raise InvalidParams(fault, details=[{"path": "/password", "reason": fault}])
        password_hash = "" if password is None else await self._passwords.hash(password)
        self._addresses.attempt(network)
        user = await self._store.users.take_link(digest(secret), password_hash=password_hash)
        if user is None:
            unknown = AuthFailed("the link does not hold: it was used, or is too old")
            self._refuse(Actor(visitor.remote), "link", unknown)
        self._addresses.take_back(network)
        if password is not None:
            actor = Actor(visitor.remote, user.name)
            self._audit.access(actor, action="users.password", target=user.name)
        return await self._begin(user, visitor, "link")

    async def with_identity(self, user: StoredUser, visitor: Visitor, *, credentials: str) -> Granted:
        """Let in a user whom somebody else has recognized, by `credentials` such as ``openid``.

        Raises:
            AuthFailed: the user is disabled.
            Conflict: nobody logs in here.
            StoreError: the store cannot be used.
        """
        self._require_issuing()
        if user.disabled:
            self._refuse(Actor(visitor.remote, user.name), credentials, AuthFailed("this user is disabled"))
        return await self._begin(user, visitor, credentials, seconds=self._settings.issuer_login_time)

    async def renew(self, refresh_token: str, visitor: Visitor, *, has_tabs: bool = False) -> Granted:
        """A new access token and the next refresh token for one that was not used yet.

        Of a browser, which `has_tabs`, two may show the same one in the same moment: they get the same next
        one. See `mcpgw.store.logins`.

        Raises:
            AuthFailed: it does not hold. One that was used before ends its whole login.
            StoreError: the store cannot be used.
        """
        self._require_issuing()
        following = self._following(refresh_token)
        by = By("gateway", is_told=True)
        rotation = await self._store.logins.rotate(
            digest(refresh_token),
            digest(following),
            by=by,
            used_from=network_of(visitor.remote),
            grace=self._settings.refresh_grace if has_tabs else 0.0,
        )
        login = rotation.login
        if login is None:
            fault = AuthFailed("the refresh token does not hold: log in again")
            self._refuse(Actor(visitor.remote), "refresh", fault)
        actor = Actor(visitor.remote, login.user, login.id)
        match rotation.outcome:
            case "reused":
                self._audit.access(actor, action="login.reused", target=login.id, outcome=AuthFailed.code)
                await self._take_over()
                raise _audited(
                    AuthFailed("the refresh token was used before: its login has ended, log in again")
                )
            case "ended":
                self._refuse(actor, "refresh", AuthFailed("the login has ended: log in again"))
        granted = self._grant(login, following)
        self._audit.access(actor, action="login.refresh", target=login.id)
        return granted

    async def login_of(self, refresh_token: str) -> str:
        """The id of the login that a refresh token, used or not, belongs to; empty where there is none.

        Raises:
            StoreError: the store cannot be used.
        """
        login = await self._store.logins.of_token(digest(refresh_token))
        return "" if login is None else login.id

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
            await self._take_over()
        return has_ended

    async def _begin(
        self, user: StoredUser, visitor: Visitor, credentials: str, *, seconds: float | None = None
    ) -> Granted:
        """A login that can be refreshed for `seconds`, by default those of the settings."""
        moment = now()
        login = StoredLogin(
            secrets.token_hex(16),
            user.name,
            moment,
            moment,
            moment + round(1000 * (self._settings.login_time if seconds is None else seconds)),
            0,
            "",
            visitor.remote,
            visitor.agent[:_LONGEST_AGENT],
        )
        refresh_token = REFRESH_PREFIX + secrets.token_urlsafe(32)
        by = By("gateway", is_told=True)
        actor = Actor(visitor.remote, user.name, login.id)
        if not await self._store.logins.begin(login, digest(refresh_token), by=by):
            self._refuse(actor, credentials, AuthFailed(_WRONG))  # disabled in this moment
        await self._refresh_known()
        self._audit.auth(actor, credentials=credentials)
        return self._grant(login, refresh_token)

    def _following(self, refresh_token: str) -> str:
        """The one refresh token that can come behind this one: nobody else can tell it, nor is it kept."""
        raw = hmac.digest(self._refresh_key, refresh_token.encode("utf-8", "surrogatepass"), "sha256")
        return REFRESH_PREFIX + urlsafe_b64encode(raw).rstrip(b"=").decode()

    def _grant(self, login: StoredLogin, refresh_token: str) -> Granted:
        left = max(1, (login.expires_at - now()) // 1000)
        seconds = min(self._settings.access_time, left)
        access_token = self._tokens.issue(user=login.user, scopes=(), ttl=seconds, login=login.id)
        principal = self._authority.verify(access_token)
        return Granted(principal, access_token, int(seconds), refresh_token, left)

    def _require_issuing(self) -> None:
        if not self._tokens.can_issue:
            raise Conflict(_NOT_HERE.format(issuer=self._settings.issuer))

    def _require_passwords(self) -> None:
        if not self._settings.passwords:
            raise Conflict("nobody logs in with a password here: log in with the identity provider")

    def _refuse(self, actor: Actor, credentials: str, error: GatewayError) -> NoReturn:
        self._audit.auth(actor, credentials=credentials, outcome=error.code)
        raise _audited(error)


def _audited(error: GatewayError) -> GatewayError:
    """One line for one decision: the audit log has this one."""
    error.is_audited = True
    return error
