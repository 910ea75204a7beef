"""Roles: named bundles of scopes, with rules that allow and deny tools by patterns.

    [roles.support]
    scopes = ["servers:read", "events:read"]
    allow = ["memory", "tickets/get_*"]
    deny = ["*/delete_*"]

A pattern is ``SERVER``, ``SERVER/*`` or ``SERVER/TOOL``; in both parts ``*`` stands for any number of signs.
What `deny` names is refused, whatever allows it; what neither a scope nor `allow` names is refused too.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from mcpgw.errors import suggest

ROLE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
ROLE_NAME_RULE: Final = "letters, digits, '_', '.', '-', at most 64"
MOST_ENTRIES: Final = 100
"""Most scopes of a role, most patterns in `allow`, and most in `deny`."""

_KEYS: Final = ("scopes", "allow", "deny")
_LONGEST_PATTERN = 320
_SERVER_PATTERN = re.compile(r"[A-Za-z0-9_.*-]{1,64}")


@dataclass(frozen=True, slots=True)
class ToolPattern:
    """Tools of servers. `text` is as it was written, `tool` None where all that a server has is meant."""

    text: str
    server: "re.Pattern[str]"
    tool: "re.Pattern[str] | None"

    @classmethod
    def parse(cls, text: str) -> "ToolPattern":
        """The pattern that `text` is; raises ValueError, with words, where it is none."""
        server, slash, tool = text.partition("/")
        if len(text) > _LONGEST_PATTERN or not _SERVER_PATTERN.fullmatch(server):
            raise ValueError(f"{text[:64]!r} is no pattern: write SERVER, SERVER/TOOL or SERVER/get_*")
        if slash and (not tool or not tool.isprintable()):
            raise ValueError(f"{text[:64]!r} is no pattern: behind the slash stands a tool's name, or *")
        whole = not slash or set(tool) == {"*"}
        return cls(text, _compiled(server), None if whole else _compiled(tool))

    def matches(self, server: str, tool: str) -> bool:
        """Whether that tool is meant."""
        return self.server.fullmatch(server) is not None and (
            self.tool is None or self.tool.fullmatch(tool) is not None
        )

    def touches(self, server: str) -> bool:
        """Whether some tool of the server may be meant."""
        return self.server.fullmatch(server) is not None

    def covers(self, server: str) -> bool:
        """Whether all that the server has is meant: its resources and prompts too."""
        return self.tool is None and self.touches(server)


@dataclass(frozen=True, slots=True)
class ToolRules:
    """Which tools may be used beside those of the scopes, and which may not at all."""

    allow: tuple[ToolPattern, ...] = ()
    deny: tuple[ToolPattern, ...] = ()

    def denying(self, server: str, tool: str) -> ToolPattern | None:
        """The pattern that refuses a tool."""
        return next((pattern for pattern in self.deny if pattern.matches(server, tool)), None)

    def allowing(self, server: str, tool: str) -> ToolPattern | None:
        """The pattern that allows a tool."""
        return next((pattern for pattern in self.allow if pattern.matches(server, tool)), None)


NO_RULES: Final = ToolRules()


@dataclass(frozen=True, slots=True)
class Role:
    """A role: what its users may do. `source` is where it was written."""

    name: str
    scopes: frozenset[str]
    rules: ToolRules = NO_RULES
    source: str = "built in"


BUILT_IN: Final[Mapping[str, Role]] = MappingProxyType(
    {
        "viewer": Role("viewer", frozenset({"servers:read", "events:read"})),
        "operator": Role(
            "operator",
            frozenset(
                {
                    "tools:call",
                    "servers:read",
                    "servers:write",
                    "events:read",
                    "events:publish",
                    "calls:read",
                    "calls:approve",
                    "rooms:join",
                }
            ),
        ),
        "admin": Role("admin", frozenset({"admin"})),
    }
)
"""The roles that there are without any configuration."""


def read_roles(tables: object, place: str, report: Callable[[str], None]) -> dict[str, Role]:
    """The built-in roles, and over them those of ``[roles.NAME]``; every fault is reported with its place.

    Scopes are not looked at here: `mcpgw.access.permissions` knows them.
    """
    roles = dict(BUILT_IN)
    if not isinstance(tables, Mapping):
        report(f"{place}: roles: is not a table; write [roles.NAME]")
        return roles
    for name, table in tables.items():
        where = f"{place}: [roles.{name}]"
        if not ROLE_NAME.fullmatch(name):
            report(f"{where}: is not a name of a role ({ROLE_NAME_RULE})")
        elif not isinstance(table, Mapping):
            report(f"{where}: is not a table; write [roles.{name}]")
        else:
            roles[name] = _role(name, table, where, report)
    return roles


def _role(name: str, table: Mapping[str, Any], place: str, report: Callable[[str], None]) -> Role:
    for key in table:
        if key not in _KEYS:
            report(f"{place} {key}: unknown key{suggest(key, _KEYS)}")
    lists = {key: tuple(_texts(table.get(key, []), f"{place} {key}", report)) for key in _KEYS}
    rules = ToolRules(*(tuple(_patterns(lists[key], f"{place} {key}", report)) for key in ("allow", "deny")))
    return Role(name, frozenset(lists["scopes"]), rules, place)


def _texts(value: object, place: str, report: Callable[[str], None]) -> Iterator[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        report(f"{place}: is not a list of texts")
    elif len(value) > MOST_ENTRIES:
        report(f"{place}: has {len(value)} entries; there may be {MOST_ENTRIES}")
    else:
        yield from value


def _patterns(texts: tuple[str, ...], place: str, report: Callable[[str], None]) -> Iterator[ToolPattern]:
    for text in texts:
        try:
            yield ToolPattern.parse(text)
        except ValueError as error:
            report(f"{place}: {error}")


def _compiled(text: str) -> "re.Pattern[str]":
    first, *rest = (re.escape(part) for part in re.split(r"\*+", text))
    if not rest:
        return re.compile(first)
    # Atomic groups: where a part was found first is good enough, and the time stays linear.
    between = "".join(f"(?>.*?{part})" for part in rest[:-1])
    return re.compile(f"{first}{between}.*{rest[-1]}", re.DOTALL)
