"""Issuers of logins and tokens that are trusted, as ``[auth.issuers.NAME]`` has them.

    [auth.issuers.company]
    issuer = "https://login.example.org/realms/main"
    audience = "https://gateway.example.org/mcp"
    scopes = { "mcp:tools" = ["tools:call"] }
    role_claim = "groups"
    roles = { "platform" = "admin", "everyone" = "viewer" }

What none of these tables names allows nothing.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from mcpgw.errors import suggest
from mcpgw.references import References, UnresolvedReferenceError

ASYMMETRIC: Final = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
)
"""Algorithms whose key can be published (RFC 7518 section 3.1, RFC 8037)."""

ISSUER_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
ISSUER_NAME_RULE: Final = "small letters, digits, '_', '-', at most 32"
MOST_ISSUERS: Final = 20
MOST_ENTRIES: Final = 500
"""Most entries of one table of an issuer."""

_RESERVED: Final = ("guest", "room", "user", "mcpgw")
"""What names of others begin with, before the colon."""
_LONGEST_TEXT: Final = 1024


@dataclass(frozen=True)
class IssuerSettings:
    """One ``[auth.issuers.NAME]``; `source` is where it was written.

    `issuer` is the ``iss`` of its tokens, and where its discovery document begins. `audience` are the values
    of ``aud`` that an access token may be for; empty stands for the address of ``/mcp``. `scopes` says what
    a value of the claim `scope_claim` allows, `roles` which role a value of `role_claim` stands for: the
    first in the order of the table. `default_role` is that of those who have none of them. `user_claim` names
    those who log in, `login` lets them, and `create_users` makes those users that are not there;
    `login_scopes` is what a login asks the provider for.
    """

    name: str
    issuer: str
    audience: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    scope_claim: str = "scope"
    scopes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    role_claim: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    default_role: str = ""
    user_claim: str = "sub"
    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    login: bool = False
    create_users: bool = False
    login_scopes: tuple[str, ...] = ("openid", "profile", "email")
    source: str = field(default="", compare=False)

    def role_of(self, values: frozenset[str]) -> str:
        """The role that `values` of the claim stand for; empty where there is none."""
        named = next((role for value, role in self.roles.items() if value in values), "")
        return named or self.default_role

    def scopes_of(self, values: frozenset[str]) -> frozenset[str]:
        """What `values` of the scope claim allow."""
        return frozenset().union(*(self.scopes[value] for value in values if value in self.scopes))


def is_fit_url(url: str) -> bool:
    """Whether `url` is an address that secrets and keys may come from: https, or http on this machine.

    OpenID Connect Discovery 1.0 section 2 and RFC 8414 section 2: no query and no fragment.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")  # as who connects does: a name of a host has no empty or overlong part
    except ValueError:
        return False
    if not host or parts.username is not None or parts.fragment or not url.isascii() or not url.isprintable():
        return False
    return " " not in url and (parts.scheme == "https" or (parts.scheme == "http" and _is_this_machine(host)))


def read_issuers(
    tables: object, place: str, references: References | None, report: Callable[[str], None]
) -> dict[str, IssuerSettings]:
    """The issuers of ``[auth.issuers]``; every fault is reported with its place.

    Without `references` secrets are not read, for those who have no use for them. Scopes are not looked at
    here: `mcpgw.access.permissions` knows them.
    """
    if not isinstance(tables, Mapping):
        report(f"{place}: [auth] issuers: is not a table; write [auth.issuers.NAME]")
        return {}
    if len(tables) > MOST_ISSUERS:
        report(f"{place}: [auth.issuers]: has {len(tables)} entries; there may be {MOST_ISSUERS}")
        return {}
    issuers: dict[str, IssuerSettings] = {}
    for name, table in tables.items():
        where = f"{place}: [auth.issuers.{name}]"
        if not ISSUER_NAME.fullmatch(name) or name in _RESERVED:
            report(f"{where}: is not a name of an issuer ({ISSUER_NAME_RULE}; not {', '.join(_RESERVED)})")
        elif not isinstance(table, Mapping):
            report(f"{where}: is not a table; write [auth.issuers.{name}]")
        else:
            read = _Table(table, where, references, report).read(name)
            for other in issuers.values():
                if read.issuer and other.issuer == read.issuer:
                    report(f"{where} issuer: is that of [auth.issuers.{other.name}] too")
            issuers[name] = read
    return issuers


def issuer_rule_faults(
    issuers: Mapping[str, IssuerSettings], *, roles: Mapping[str, Any], own_issuer: str, public_url: str
) -> list[str]:
    """What is wrong of issuers beside other settings: roles that are none, an audience that nothing names."""
    faults: list[str] = []
    for issuer in issuers.values():
        place = issuer.source
        faults.extend(
            f"{place} roles: there is no role {role!r}{suggest(role, roles)}"
            for role in (*issuer.roles.values(), issuer.default_role)
            if role and role not in roles
        )
        if issuer.issuer == own_issuer:
            faults.append(f"{place} issuer: is auth.issuer, whose tokens are the gateway's own")
        if not issuer.login and not issuer.audience and not public_url:
            fault = "is missing; name it, or the gateway's own address in server.public_url"
            faults.append(f"{place} audience: {fault}")
    return faults


class _Table:
    """One table while it is read."""

    _KEYS: Final = tuple(
        name for name in IssuerSettings.__dataclass_fields__ if name not in ("name", "source")
    )

    def __init__(
        self,
        table: Mapping[str, Any],
        place: str,
        references: References | None,
        report: Callable[[str], None],
    ) -> None:
        self._table = table
        self._place = place
        self._references = references
        self._report = report

    def read(self, name: str) -> IssuerSettings:
        for key in self._table:
            if key not in self._KEYS:
                self._fault(key, f"unknown key{suggest(key, self._KEYS)}")
        default = IssuerSettings(name, "")
        algorithms = self._texts("algorithms", default.algorithms)
        for algorithm in algorithms:
            if algorithm not in ASYMMETRIC:
                self._fault("algorithms", f"{algorithm[:32]!r} is none of {', '.join(ASYMMETRIC)}")
        if not algorithms:
            self._fault("algorithms", "names none")
        settings = IssuerSettings(
            name,
            issuer=self._text("issuer", ""),
            audience=self._texts("audience", ()),
            algorithms=algorithms,
            scope_claim=self._text("scope_claim", default.scope_claim),
            scopes=self._scopes(),
            role_claim=self._text("role_claim", ""),
            roles=self._roles(),
            default_role=self._text("default_role", ""),
            user_claim=self._text("user_claim", default.user_claim),
            client_id=self._text("client_id", ""),
            client_secret=self._secret("client_secret"),
            login=self._flag("login"),
            create_users=self._flag("create_users"),
            login_scopes=self._texts("login_scopes", default.login_scopes),
            source=self._place,
        )
        self._check(settings)
        return settings

    def _check(self, settings: IssuerSettings) -> None:
        if not is_fit_url(settings.issuer) or "?" in settings.issuer:
            self._fault("issuer", "is not an https:// address (or http:// on this machine) without a query")
        if settings.roles and not settings.role_claim:
            self._fault("roles", "needs role_claim, the claim whose values these are")
        if settings.login and not settings.client_id:
            self._fault("login", "needs client_id, by which the provider knows the gateway")
        if settings.login and "openid" not in settings.login_scopes:
            self._fault("login_scopes", "lacks 'openid', without which there is no id token")
        if settings.create_users and not settings.login:
            self._fault("create_users", "needs login = true: users are made when they log in")
        if settings.client_id and settings.client_id in settings.audience:
            self._fault("audience", "is the client_id: id tokens could not be told from access tokens")
        for role in settings.roles.values():
            if not role:
                self._fault("roles", "has a role without a name")

    def _fault(self, key: str, fault: str) -> None:
        self._report(f"{self._place} {key}: {fault}")

    def _text(self, key: str, default: str) -> str:
        value = self._table.get(key, default)
        if not isinstance(value, str) or len(value) > _LONGEST_TEXT or not value.isprintable():
            self._fault(key, f"is not a text of at most {_LONGEST_TEXT} characters")
            return default
        if key in self._table and not value:
            self._fault(key, "must not be empty")
        return str(value)

    def _flag(self, key: str) -> bool:
        value = self._table.get(key, False)
        if not isinstance(value, bool):
            self._fault(key, "is not true or false")
            return False
        return value

    def _secret(self, key: str) -> str:
        value = self._table.get(key, "")
        if not isinstance(value, str):
            self._fault(key, "is not text")
            return ""
        if self._references is None:
            return ""
        try:
            replaced: str = self._references.replace(value)
        except UnresolvedReferenceError as error:
            for sentence in error.sentences:
                self._fault(key, sentence)
            return ""
        return replaced

    def _texts(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        value = self._table.get(key, list(default))
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
            self._fault(key, "is neither a text nor a list of texts")
            return default
        if len(texts) > MOST_ENTRIES:
            self._fault(key, f"has {len(texts)} entries; there may be {MOST_ENTRIES}")
            return default
        return tuple(texts)

    def _entries(self, key: str) -> Mapping[str, Any]:
        value = self._table.get(key, {})
        if not isinstance(value, Mapping):
            self._fault(key, "is not a table")
            return {}
        if len(value) > MOST_ENTRIES:
            self._fault(key, f"has {len(value)} entries; there may be {MOST_ENTRIES}")
            return {}
        return value

    def _scopes(self) -> Mapping[str, frozenset[str]]:
        scopes: dict[str, frozenset[str]] = {}
        for theirs, ours in self._entries("scopes").items():
            texts = [ours] if isinstance(ours, str) else ours
            if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
                scopes[theirs] = frozenset(texts)
            else:
                self._fault("scopes", f"{theirs[:64]!r} stands for neither a scope nor a list of scopes")
        return MappingProxyType(scopes)

    def _roles(self) -> Mapping[str, str]:
        roles: dict[str, str] = {}
        for theirs, ours in self._entries("roles").items():
            if isinstance(ours, str):
                roles[theirs] = ours
            else:
                self._fault("roles", f"{theirs[:64]!r} stands for no role's name")
        return MappingProxyType(roles)


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
