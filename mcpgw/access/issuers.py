"""Tokens of others: the issuers that the configuration trusts, and who their tokens speak for.

A token's ``iss`` chooses the issuer, and with it the keys and the algorithms; nothing else in a token does
(RFC 8725 sections 3.1 and 3.8). Keys are kept in memory, so that verifying waits for nobody. A key that is
not known yet is fetched: who asks for one waits, and however many ask, it is fetched now and then alone.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mcpgw.access.claims import check_times, is_name, token_id
from mcpgw.access.discovery import Discovery, IssuerFault
from mcpgw.access.foreign import foreign_of
from mcpgw.access.foreign_tokens import (
    audiences_of,
    half_hash,
    is_same,
    kind_of,
    reason_of,
    unverified,
)
from mcpgw.access.permissions import covers
from mcpgw.access.tokens import Principal
from mcpgw.errors import AuthFailed
from mcpgw.issuer_settings import IssuerSettings
from mcpgw.logs import log_event
from mcpgw.rate_limit import TokenBucket
from mcpgw.server_definitions import SERVER_NAME
from mcpgw.settings import AuthSettings

if TYPE_CHECKING:
    import jwt
    from jwt import PyJWK

__all__ = ["Discovery", "Issuer", "IssuerFault", "IssuerSettings", "Issuers"]

Clock = Callable[[], float]
T = TypeVar("T")

_LOGGER = logging.getLogger("mcpgw.access")
_FETCHES_AT_ONCE: Final = 5
"""Keys that may be fetched one after the other for unknown ids, before ``auth.keys_wait`` counts."""
_LONGEST_STALE: Final = 3600.0
"""Time for which keys hold that could not be fetched again, in seconds."""
_ACCESS_TYPES: Final = frozenset({"", "jwt", "at+jwt", "application/at+jwt"})
_ID_TYPES: Final = frozenset({"", "jwt"})
_FOR_OTHERS: Final = ("nonce", "at_hash", "c_hash", "s_hash", "events")
"""Claims of id tokens (OpenID Connect Core 1.0 section 2) and of logout tokens, which open nothing."""
_NO_ACCESS_KINDS: Final = frozenset({"id", "refresh", "offline", "logout"})
"""What Keycloak has in the claim ``typ`` of the tokens that are no access tokens."""


class Issuer:
    """One trusted issuer, and the keys that it has published.

    `audience` gives the values of ``aud`` that an access token may be for; `clock` the time in seconds since
    the epoch.
    """

    def __init__(
        self,
        settings: IssuerSettings,
        auth: AuthSettings,
        *,
        audience: Callable[[], tuple[str, ...]],
        clock: Clock = time.time,
    ) -> None:
        self.settings = settings
        self._auth = auth
        self._audience = audience
        self._clock = clock
        self._discovery: Discovery | None = None
        self._keys: dict[tuple[str | None, str], PyJWK] = {}
        self._fetched_at = 0.0
        self._fetching: asyncio.Task[None] | None = None
        self._reading: Future[tuple[Discovery, list[PyJWK]]] | None = None
        self._unknown = TokenBucket(1 / auth.keys_wait, _FETCHES_AT_ONCE)

    @cached_property
    def _reader(self) -> "jwt.PyJWT":
        import jwt  # noqa: PLC0415 - see `mcpgw.access.tokens`

        # It does not check the times, nor more than one audience as it should be: `verify…` do.
        return jwt.PyJWT(
            {
                "require": ["exp", "iss", "aud", "sub"],
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
                "verify_aud": False,
                "enforce_minimum_key_length": True,
            }
        )

    @property
    def takes_access_tokens(self) -> bool:
        """Whether access tokens may be for this gateway, and something of them can allow something."""
        return bool(self._audience() and (self.settings.scopes or self.settings.roles))

    # --- keys ----------------------------------------------------------------------------------------------

    async def discover(self) -> Discovery:
        """What the issuer says of itself, fetched where it is not known yet.

        Raises:
            IssuerFault: it does not answer as it must.
        """
        if self._discovery is None:
            await self.refresh()
        assert self._discovery is not None, "refresh() has it or raises"  # noqa: S101
        return self._discovery

    async def refresh(self) -> None:
        """Fetch the document and the keys anew; whoever asks meanwhile waits for the same.

        Raises:
            IssuerFault: it does not answer as it must; what was known holds for an hour.
        """
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch(), name=f"issuer {self.settings.name}")
            self._fetching.add_done_callback(_look_at)
        await asyncio.shield(self._fetching)

    async def key_for(self, token: str) -> "PyJWK":
        """The published key that has signed `token`, as it says; fetched where it is not known yet.

        Raises:
            AuthFailed: there is none.
            IssuerFault: it is not known, and the issuer does not answer.
        """
        header, _ = unverified(token)
        if self._is_fetching and self._lacks_key(header):
            await self.refresh()
        # What was under way may have been asked for before the key was published.
        if self._lacks_key(header) and (self._is_fetching or not self._unknown.try_take()):
            await self.refresh()
        return self._key(header)

    def needs_keys(self, token: str) -> bool:
        """Whether a key has to be fetched before `token` can be verified."""
        try:
            header, _ = unverified(token)
        except AuthFailed:
            return False
        return self._lacks_key(header)

    def close(self) -> None:
        """Wait for nothing more."""
        if self._fetching is not None:
            self._fetching.cancel()

    @property
    def _is_fetching(self) -> bool:
        return self._fetching is not None and not self._fetching.done()

    async def _fetch(self) -> None:
        timeout = self._auth.fetch_timeout
        # One thread at most: a resolver of names can hold it for longer than anybody waits.
        if self._reading is None or self._reading.done():
            self._reading = _aside(_read, self.settings.issuer, timeout)
        try:
            async with asyncio.timeout(3 * timeout + 1):  # three documents at most, and some more
                discovery, keys = await asyncio.wrap_future(self._reading)
        except TimeoutError:
            raise IssuerFault("could not be read in time") from None
        self._discovery = discovery
        self._keys = {(key.key_id, key.algorithm_name): key for key in keys}
        self._fetched_at = time.monotonic()

    def _lacks_key(self, header: Mapping[str, Any]) -> bool:
        if header.get("alg") not in self.settings.algorithms:
            return False  # it is refused whatever its key
        return not self._is_fresh() or self._found(header) is None

    def _is_fresh(self) -> bool:
        return bool(self._keys) and time.monotonic() - self._fetched_at < _LONGEST_STALE

    def _found(self, header: Mapping[str, Any]) -> "PyJWK | None":
        kid, algorithm = header.get("kid"), str(header.get("alg"))
        if kid is not None:
            return self._keys.get((kid, algorithm)) if isinstance(kid, str) else None
        # OpenID Connect Core 1.0 section 10.1: only where there is one key alone a token need not name it.
        return next(iter(self._keys.values())) if len(self._keys) == 1 else None

    def _key(self, header: Mapping[str, Any]) -> "PyJWK":
        algorithm = header.get("alg")
        if algorithm not in self.settings.algorithms:
            raise AuthFailed(f"the token is not signed with one of {', '.join(self.settings.algorithms)}")
        key = self._found(header) if self._is_fresh() else None
        if key is None:
            raise AuthFailed(f"the issuer {self.settings.name!r} has published no key that signed the token")
        return key

    # --- tokens --------------------------------------------------------------------------------------------

    def verify_access_token(self, token: str) -> Principal:
        """Who an access token speaks for; its scopes are none until somebody says what the issuer's words
        are worth (`mcpgw.access.authority`).

        RFC 9068 section 4, RFC 6750. Waits for nothing: a key that is not known is not fetched.

        Raises:
            AuthFailed: it does not hold here; `TokenExpired` where its time is over.
        """
        header, claims = self._verified(token, self._key)
        if kind_of(header) not in _ACCESS_TYPES:
            raise AuthFailed("this is no access token ('typ')")
        if any(name in claims for name in _FOR_OTHERS) or str(claims.get("typ")).lower() in _NO_ACCESS_KINDS:
            raise AuthFailed("this is an id token or another one that is no access token")
        if "cnf" in claims:
            raise AuthFailed("the token is bound to a key of its holder ('cnf'), and came without a proof")
        server = self._server_of(claims["aud"])
        foreign = foreign_of(self.settings, claims, server=server)
        if not is_name(foreign.user):
            raise AuthFailed("the token's 'sub' is too long, or has characters that cannot be seen")
        return Principal(
            user=foreign.user,
            scopes=frozenset(),
            expires_at=check_times(claims, now=self._clock(), leeway=self._auth.leeway),
            token_id=token_id(claims, token),
            foreign=foreign,
        )

    async def verify_id_token(
        self, token: str, *, nonce: str, access_token: str | None = None, code: str | None = None
    ) -> dict[str, Any]:
        """The claims of the id token that a login has brought (OpenID Connect Core 1.0 section 3.1.3.7).

        `nonce` is what was sent with the request, `access_token` and `code` what came with the token.

        Raises:
            AuthFailed: it does not hold; `TokenExpired` where its time is over.
            IssuerFault: its key is not known, and the issuer does not answer.
        """
        key = await self.key_for(token)
        header, claims = self._verified(token, lambda _header: key)
        client = self.settings.client_id
        audience = audiences_of(claims["aud"])
        if kind_of(header) not in _ID_TYPES:
            raise AuthFailed("this is no id token ('typ')")
        if not client or client not in audience:
            raise AuthFailed("the id token is not for this gateway ('aud')")
        if claims.get("azp", client) != client or (len(audience) > 1 and "azp" not in claims):
            raise AuthFailed("the id token was issued to another client ('azp')")
        if "iat" not in claims:
            raise AuthFailed("the id token lacks the claim 'iat'")
        check_times(claims, now=self._clock(), leeway=self._auth.leeway)
        if not is_same(claims.get("nonce"), nonce):
            raise AuthFailed("the id token is not the answer to this login ('nonce')")
        for name, secret in (("at_hash", access_token), ("c_hash", code)):
            wanted = None if secret is None else half_hash(secret, str(header["alg"]))
            if name in claims and wanted is not None and not is_same(claims[name], wanted):
                raise AuthFailed(f"the id token does not belong to what came with it ({name!r})")
        return claims

    def _verified(
        self, token: str, key_of: "Callable[[Mapping[str, Any]], PyJWK]"
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Header and claims of a token whose signature and issuer hold."""
        import jwt  # noqa: PLC0415 - see `mcpgw.access.tokens`

        header, _ = unverified(token)
        try:
            decoded = self._reader.decode_complete(
                token,
                key_of(header),
                algorithms=list(self.settings.algorithms),
                issuer=self.settings.issuer,
            )
        except jwt.PyJWTError as fault:
            raise AuthFailed(reason_of(fault)) from None
        if "crit" in decoded["header"]:  # RFC 7515 section 4.1.11: refuse the extensions one does not have
            raise AuthFailed("the token asks for an extension that is not supported ('crit')")
        if not is_name(decoded["payload"]["sub"]):
            raise AuthFailed("the token's 'sub' names nobody")
        return decoded["header"], decoded["payload"]

    def _server_of(self, claim: object) -> str:
        """The one server that a token for this audience is for; empty where it is for all.

        ``/mcp/SERVER`` is a resource of its own (RFC 8707): a token for it is good for that server alone.
        """
        ours, theirs = self._audience(), audiences_of(claim)
        if not ours:
            raise AuthFailed(f"no access tokens of {self.settings.name!r} are taken: see its audience")
        if any(audience in theirs for audience in ours):
            return ""
        for audience in ours:
            for resource in theirs:
                server = resource.removeprefix(f"{audience}/")
                if audience.endswith("/mcp") and server != resource and SERVER_NAME.fullmatch(server):
                    return server
        raise AuthFailed("the token is not for this gateway ('aud')")


class Issuers:
    """The issuers of the configuration in force.

    `settings` gives them, and `public_url` the address under which clients reach the gateway, empty where
    nobody has said it. An issuer whose settings change begins anew, with keys that are fetched again.
    """

    def __init__(
        self,
        settings: Callable[[], Mapping[str, IssuerSettings]],
        auth: AuthSettings,
        *,
        public_url: Callable[[], str],
        clock: Clock = time.time,
    ) -> None:
        self._settings = settings
        self._auth = auth
        self._public_url = public_url
        self._clock = clock
        self._seen: Mapping[str, IssuerSettings] = {}
        self._by_name: dict[str, Issuer] = {}
        self._by_url: dict[str, Issuer] = {}

    def __iter__(self) -> Iterator[Issuer]:
        """Every one, in the order of the configuration."""
        return iter(list(self._present().values()))

    @property
    def settings(self) -> Mapping[str, IssuerSettings]:
        """What the configuration says of them, by name."""
        return self._settings()

    def named(self, name: str) -> Issuer | None:
        """The one that the configuration calls `name`."""
        return self._present().get(name)

    def with_url(self, issuer: str) -> Issuer | None:
        """The one whose tokens have that ``iss``."""
        self._present()
        return self._by_url.get(issuer)

    def with_login(self) -> list[Issuer]:
        """Those with whom people log in."""
        return [issuer for issuer in self if issuer.settings.login]

    @property
    def authorization_servers(self) -> list[str]:
        """The addresses of those whose access tokens are taken (RFC 9728 section 2)."""
        return [issuer.settings.issuer for issuer in self if issuer.takes_access_tokens]

    @property
    def scopes_supported(self) -> list[str]:
        """Their words that allow something here, in the order of the configuration."""
        taken = (issuer.settings.scopes for issuer in self if issuer.takes_access_tokens)
        return list(dict.fromkeys(word for scopes in taken for word in scopes))

    def word_for(self, scope: str, *, name: str = "") -> str:
        """The word of an issuer, or of the one called `name`, that allows `scope` and the least beside it;
        empty where none does.
        """
        words = [
            (len(ours), word)
            for issuer in self
            if issuer.takes_access_tokens and name in ("", issuer.settings.name)
            for word, ours in issuer.settings.scopes.items()
            if covers(ours, scope)
        ]
        return min(words)[1] if words else ""

    def of_token(self, token: str) -> Issuer | None:
        """The one that `token` says it comes from; nothing of that is verified."""
        if not self._present():
            return None
        try:
            _, claims = unverified(token)
        except AuthFailed:
            return None
        issuer = claims.get("iss")
        return self._by_url.get(issuer) if isinstance(issuer, str) else None

    def fetching_keys(self, token: str) -> Awaitable[None] | None:
        """What to wait for before `token` can be verified; None, nearly always, where there is nothing."""
        issuer = self.of_token(token)
        return self._fetched(issuer, token) if issuer is not None and issuer.needs_keys(token) else None

    async def keep_fresh(self) -> None:
        """Fetch the keys of all of them again and again, until cancelled."""
        while True:
            wait = self._auth.keys_interval
            for issuer in self:
                if not await _is_refreshed(issuer):
                    wait = min(wait, self._auth.keys_wait)
            await asyncio.sleep(wait)

    def close(self) -> None:
        """Fetch nothing more."""
        for issuer in self._by_name.values():
            issuer.close()

    async def _fetched(self, issuer: Issuer, token: str) -> None:
        try:
            await issuer.key_for(token)
        except IssuerFault as fault:
            _tell(issuer, fault)
        except AuthFailed:
            pass  # said again, to the client, when the token is verified

    def _present(self) -> dict[str, Issuer]:
        settings = self._settings()
        if settings is not self._seen:
            kept = self._by_name
            self._by_name = {
                name: kept[name] if name in kept and kept[name].settings == one else self._made(one)
                for name, one in settings.items()
            }
            self._by_url = {issuer.settings.issuer: issuer for issuer in self._by_name.values()}
            self._seen = settings
        return self._by_name

    def _made(self, settings: IssuerSettings) -> Issuer:
        def audience() -> tuple[str, ...]:
            url = self._public_url()
            return settings.audience or ((f"{url.rstrip('/')}/mcp",) if url else ())

        return Issuer(settings, self._auth, audience=audience, clock=self._clock)


def _aside(read: Callable[[str, float], T], issuer: str, timeout: float) -> Future[T]:
    """What `read` will give, in a thread that nobody waits for when the gateway ends."""
    answered: Future[T] = Future()
    answered.set_running_or_notify_cancel()

    def run() -> None:
        try:
            answered.set_result(read(issuer, timeout))
        except BaseException as fault:  # noqa: BLE001 - whoever waits has it
            answered.set_exception(fault)

    threading.Thread(target=run, name="issuer", daemon=True).start()
    return answered


def _read(issuer: str, timeout: float) -> "tuple[Discovery, list[PyJWK]]":
    # In its own thread, and not before an issuer is asked.
    from mcpgw.access.issuer_documents import read_discovery, read_keys  # noqa: PLC0415

    discovery = read_discovery(issuer, timeout=timeout)
    return discovery, read_keys(discovery.jwks_uri, timeout=timeout)


async def _is_refreshed(issuer: Issuer) -> bool:
    try:
        await issuer.refresh()
    except IssuerFault as fault:
        _tell(issuer, fault)
        return False
    return True


def _tell(issuer: Issuer, fault: IssuerFault) -> None:
    log_event(_LOGGER, logging.WARNING, "issuer fault", issuer=issuer.settings.name, reason=fault.reason)


def _look_at(task: "asyncio.Task[None]") -> None:
    """Whoever waited for it has its fault; where nobody did any more, it is looked at all the same."""
    if not task.cancelled():
        task.exception()
