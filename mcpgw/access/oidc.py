"""Logins at an identity provider: OpenID Connect, authorization code flow with PKCE.

    begun = await logins.begin("company", redirect_uri=…, return_to="/docs")
    # the browser goes to begun.url, keeps begun.sealed in a cookie, and comes back with a code
    finished = await logins.finish(sealed, answer, visitor)

Who comes in is known by issuer and ``sub`` alone (OpenID Connect Core 1.0 section 5.7): a name that the
provider has for them decides nothing but the name of a user who is made, and never makes them a user that is
there.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from mcpgw.access.accounts import canonical_name, check_user_name
from mcpgw.access.discovery import shown_error
from mcpgw.access.foreign import claim_of, foreign_of
from mcpgw.access.issuers import Discovery, Issuer, IssuerFault, Issuers, IssuerSettings
from mcpgw.access.logins import Granted, Logins, Visitor
from mcpgw.access.oidc_pending import PENDING_SECONDS, PendingLogin, PendingLogins
from mcpgw.audit import Actor, Audit
from mcpgw.errors import AuthFailed, ConfigError, IssuerUnavailable
from mcpgw.logs import log_event
from mcpgw.roles import Role
from mcpgw.settings import AuthSettings
from mcpgw.store import By, Store, StoredUser

__all__ = ["PENDING_SECONDS", "BegunLogin", "FinishedLogin", "OpenIdLogins", "ProviderAnswer"]

_LOGGER = logging.getLogger("mcpgw.access")
_LONGEST_CODE: Final = 4096
_CREDENTIALS: Final = "openid"


@dataclass(frozen=True, slots=True)
class BegunLogin:
    """Where the browser is to go, and what it is to keep until it is back, for `PENDING_SECONDS`."""

    url: str = field(repr=False)
    sealed: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    """What the browser brings back in the address (RFC 6749 section 4.1.2, RFC 9207); empty where it is
    not there.
    """

    state: str = field(repr=False)
    code: str = field(repr=False)
    error: str = ""
    issuer: str = ""


@dataclass(frozen=True, slots=True)
class FinishedLogin:
    """A login, the name of the issuer that it came from, and the path that the person wanted, or nothing."""

    granted: Granted
    issuer: str
    return_to: str


class OpenIdLogins:
    """Lets users in whom an identity provider knows. Every decision is in the audit log.

    `roles` gives those in force; `key` are 32 secret bytes, the same for all gateways that one login may pass
    through.
    """

    def __init__(
        self,
        store: Store,
        logins: Logins,
        issuers: Issuers,
        *,
        audit: Audit,
        settings: AuthSettings,
        roles: Callable[[], Mapping[str, Role]],
        key: bytes,
    ) -> None:
        self._store = store
        self._logins = logins
        self._issuers = issuers
        self._audit = audit
        self._settings = settings
        self._roles = roles
        self._pending = PendingLogins(key)

    @property
    def offered(self) -> list[str]:
        """The names of the issuers with whom one can log in; none where nobody logs in here."""
        return (
            [issuer.settings.name for issuer in self._issuers.with_login()] if self._logins.can_begin else []
        )

    async def begin(self, name: str, *, redirect_uri: str, return_to: str) -> BegunLogin:
        """Send somebody to the provider `name`, who sends them back to `redirect_uri`.

        Raises:
            AuthFailed: nobody logs in with it.
            IssuerUnavailable: it does not answer as it must.
        """
        issuer = self._issuer(name)
        discovery = await self._discovered(issuer)
        if discovery.authorization_endpoint is None:
            raise self._unavailable(issuer, "its discovery document names no authorization_endpoint")
        pending = PendingLogin(name, redirect_uri, return_to)
        query = {
            "response_type": "code",
            "client_id": issuer.settings.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(issuer.settings.login_scopes),
            "state": pending.state,
            "nonce": pending.nonce,
            "code_challenge": pending.challenge,
            "code_challenge_method": "S256",
        }
        return BegunLogin(_with_query(discovery.authorization_endpoint, query), self._pending.seal(pending))

    async def finish(self, sealed: str, answer: ProviderAnswer, visitor: Visitor) -> FinishedLogin:
        """Let in whom the provider has sent back, with what their browser has kept.

        Raises:
            AuthFailed: the answer does not hold, or nobody here is whom it speaks of.
            IssuerUnavailable: the provider does not answer as it must.
            StoreError: the store cannot be used.
        """
        actor = Actor(visitor.remote)
        try:
            pending = self._pending.take(sealed, answer.state)
            issuer = self._issuer(pending.issuer)
            claims = await self._claims(issuer, pending, answer)
            user = await self._user(issuer.settings, claims)
        except AuthFailed as error:
            self._audit.auth(actor, credentials=_CREDENTIALS, outcome=error.code)
            error.is_audited = True  # one line for one decision
            raise
        granted = await self._logins.with_identity(user, visitor, credentials=_CREDENTIALS)
        return FinishedLogin(granted, pending.issuer, pending.return_to)

    async def end_session_url(self, name: str, return_to: str) -> str | None:
        """Where a browser goes to log out at the provider too, and to `return_to` then (OpenID Connect
        RP-Initiated Logout 1.0 section 2); None where that is not offered, or the provider does not answer.

        The gateway is named by its `client_id`: an id token says more of a person than an address should.
        """
        issuer = self._issuers.named(name)
        if issuer is None or not issuer.settings.login:
            return None
        try:
            discovery = await self._discovered(issuer)
        except IssuerUnavailable:
            return None
        if discovery.end_session_endpoint is None:
            return None
        query = {"client_id": issuer.settings.client_id, "post_logout_redirect_uri": return_to}
        return _with_query(discovery.end_session_endpoint, query)

    def _issuer(self, name: str) -> Issuer:
        issuer = self._issuers.named(name)
        if issuer is None or name not in self.offered:
            raise AuthFailed(f"nobody logs in with {name[:32]!r} here")
        return issuer

    async def _discovered(self, issuer: Issuer) -> Discovery:
        try:
            return await issuer.discover()
        except IssuerFault as fault:
            raise self._unavailable(issuer, fault.reason) from None

    def _unavailable(self, issuer: Issuer, reason: str) -> IssuerUnavailable:
        name = issuer.settings.name
        log_event(_LOGGER, logging.WARNING, "issuer fault", issuer=name, reason=reason)
        return IssuerUnavailable(
            f"the identity provider {name!r} does not answer as it must: try again later"
        )

    async def _claims(self, issuer: Issuer, pending: PendingLogin, answer: ProviderAnswer) -> dict[str, Any]:
        """What the provider says of the person, once everything else holds."""
        settings, discovery = issuer.settings, await self._discovered(issuer)
        # RFC 9207 section 2.4: an answer that another provider has given out is not to be sent to this one.
        if answer.issuer != settings.issuer and (answer.issuer or discovery.names_issuer_in_answers):
            raise AuthFailed("the answer comes from another identity provider ('iss')")
        if answer.error:
            raise AuthFailed(f"the identity provider has let nobody in: {shown_error(answer.error)}")
        if not 0 < len(answer.code) <= _LONGEST_CODE:
            raise AuthFailed("the identity provider's answer has no code")
        form = {
            "grant_type": "authorization_code",
            "code": answer.code,
            "redirect_uri": pending.redirect_uri,
            "code_verifier": pending.verifier,
        }
        seconds = self._settings.fetch_timeout
        # An HTTP client, which a gateway without identity providers never needs.
        exchange = await asyncio.to_thread(import_module, "mcpgw.access.oidc_exchange")
        try:
            tokens = await exchange.exchange_code(discovery, settings, form, seconds=seconds)
            claims = await issuer.verify_id_token(
                tokens.id_token,
                nonce=pending.nonce,
                access_token=tokens.access_token or None,
                code=answer.code,
            )
            if _lacks(settings, claims) and discovery.userinfo_endpoint and tokens.access_token:
                endpoint, subject = discovery.userinfo_endpoint, claims["sub"]
                told = await exchange.user_claims(endpoint, tokens.access_token, subject, seconds=seconds)
                claims = told | claims
        except IssuerFault as fault:
            raise self._unavailable(issuer, fault.reason) from None
        return claims

    async def _user(self, settings: IssuerSettings, claims: Mapping[str, Any]) -> StoredUser:
        """The user of this gateway that the person is; made or given another role where that is so."""
        subject, by = claims["sub"], By(f"{settings.name} (issuer)", is_told=True)
        role = self._role(settings, claims)
        name = await self._store.identities.find(settings.issuer, subject)
        if name is None:
            name = await self._made(settings, claims, role, by)
        user = await self._store.users.get(name)
        if user is None:
            raise AuthFailed("the user of this login is not there any more")
        if role is not None and role != user.role:
            await self._store.users.set_role(name, role, by=by)
            self._audit.access(Actor("", by.user), action="users.role", target=name)
        return user

    def _role(self, settings: IssuerSettings, claims: Mapping[str, Any]) -> str | None:
        """The role that the provider's words stand for; None where they are to say nothing of it."""
        if not settings.roles and not settings.default_role:
            return None
        role = settings.role_of(foreign_of(settings, claims).roles)
        if not role or role not in self._roles():
            raise AuthFailed("no role here belongs to what the identity provider says of you: ask an admin")
        return role

    async def _made(
        self, settings: IssuerSettings, claims: Mapping[str, Any], role: str | None, by: By
    ) -> str:
        if not settings.create_users or role is None:
            raise AuthFailed("nobody here is whom the identity provider speaks of: ask an admin")
        name = _name(settings, claims)
        if await self._store.identities.make_user(
            settings.issuer, claims["sub"], name=name, role=role, by=by
        ):
            self._audit.access(Actor("", by.user), action="users.add", target=name)
            target = f"{name} {settings.issuer} {claims['sub']}"
            self._audit.access(Actor("", by.user), action="users.linked", target=target)
            return name
        # Made in this moment by the same person in another window; or somebody else's for long.
        if await self._store.identities.find(settings.issuer, claims["sub"]) != name:
            raise AuthFailed(f"the user {name!r} of this gateway is somebody else: ask an admin")
        return name


def _lacks(settings: IssuerSettings, claims: Mapping[str, Any]) -> bool:
    """Whether the id token does not say what has to be known; some providers have it at another place."""
    wanted = (settings.user_claim, settings.role_claim)
    return any(name and claim_of(claims, name) is None for name in wanted)


def _name(settings: IssuerSettings, claims: Mapping[str, Any]) -> str:
    value = claim_of(claims, settings.user_claim)
    name = canonical_name(value) if isinstance(value, str) else ""
    try:
        check_user_name(name)
    except ConfigError:
        raise AuthFailed(
            f"the claim {settings.user_claim!r} can be no user's name here: ask an admin"
        ) from None
    if settings.user_claim == "email" and claims.get("email_verified") is False:
        raise AuthFailed("the identity provider has not verified your e-mail address")
    return name


def _with_query(endpoint: str, query: Mapping[str, str]) -> str:
    """The address of an endpoint, which may have a query of its own (RFC 6749 section 3.1)."""
    parts = urlsplit(endpoint)
    return parts._replace(query="&".join(filter(None, (parts.query, urlencode(query)))), fragment="").geturl()
