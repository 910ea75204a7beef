"""Scopes: what a caller may do. What no scope grants is refused.

    tools:call               every tool of every server, their resources and prompts
    tools:call:SERVER        every tool of that server, its resources and prompts
    tools:call:SERVER/TOOL   that tool
    servers:read             the list of servers and of their tools
    servers:write            starting, stopping, adding and changing servers; a program needs admin
    events:read              the streams of events; of calls one's own
    events:publish           words to all or to one user: alerts, maintenance, notifications
    calls:read               the events of everybody's calls, without arguments and results
    calls:approve            consent to calls of others that wait for it, with their arguments
    rooms:join               every room
    rooms:join:ROOM          that room
    rooms:host               rooms of one's own, with guests who may do no more than oneself
    admin                    all of the above

Names are compared as a whole, never by a beginning. A scope that breaks this grammar grants nothing.
A tool's name may hold ``/``, ``:`` and spaces; the ``scope`` claim of a token is split at spaces
(RFC 8693 section 4.2), so a tool with a space in its name can only be granted by a claim that is a list.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from mcpgw.errors import ConfigError, PermissionDenied, suggest
from mcpgw.roles import NO_RULES, ToolPattern, ToolRules
from mcpgw.server_definitions import SERVER_NAME

ADMIN: Final = "admin"
APPROVE_CALLS: Final = "calls:approve"
CALL_TOOLS: Final = "tools:call"
READ_CALLS: Final = "calls:read"
READ_EVENTS: Final = "events:read"
PUBLISH_EVENTS: Final = "events:publish"
READ_SERVERS: Final = "servers:read"
WRITE_SERVERS: Final = "servers:write"
JOIN_ROOMS: Final = "rooms:join"
HOST_ROOMS: Final = "rooms:host"
SCOPES: Final = (
    ADMIN,
    APPROVE_CALLS,
    CALL_TOOLS,
    HOST_ROOMS,
    JOIN_ROOMS,
    PUBLISH_EVENTS,
    READ_CALLS,
    READ_EVENTS,
    READ_SERVERS,
    WRITE_SERVERS,
)
"""The scopes that name no server and no tool."""

MAXIMUM_TOOL_NAME: Final = 256
"""Longest name of a tool that a scope of its own can grant, in characters."""

_ONE_SERVER = f"{CALL_TOOLS}:"
_ONE_ROOM = f"{JOIN_ROOMS}:"
_LONGEST_IN_A_MESSAGE = 128


class Caller(Protocol):
    """Whoever asks: anything that has scopes, such as `mcpgw.access.tokens.Principal`."""

    @property
    def scopes(self) -> frozenset[str]:
        """The scopes that were granted."""


class ToolCaller(Caller, Protocol):
    """Whoever asks for tools: `rules` are those of the `role`, `granted` the scopes of a token or a key that
    bound what the rules allow, None where nothing does.
    """

    @property
    def rules(self) -> ToolRules:
        """What the role allows and denies."""

    @property
    def role(self) -> str:
        """The name of the role; empty where there is none."""

    @property
    def granted(self) -> frozenset[str] | None:
        """The scopes of the credential itself."""

    @property
    def limit(self) -> frozenset[str] | None:
        """The scopes of the role; None where there is no role."""


class HeldCaller(Protocol):
    """Whoever may be kept from all but reading for a while."""

    @property
    def held(self) -> str:
        """Why they may only read; empty where they may do what their scopes allow."""


def scope_faults(scopes: Iterable[str]) -> list[str]:
    """What is wrong with those of `scopes` that break the grammar above, in their order."""
    faults: list[str] = []
    for scope in scopes:
        try:
            check_scope(scope)
        except ConfigError as error:
            faults.extend(error.faults)
    return faults


def check_scope(text: str) -> None:
    """Raise `ConfigError`, with the nearest right scope, where `text` breaks the grammar above."""
    if text in SCOPES:
        return
    shown = repr(text[:_LONGEST_IN_A_MESSAGE])
    if text.startswith(_ONE_ROOM) and SERVER_NAME.fullmatch(text.removeprefix(_ONE_ROOM)):
        return
    if text.startswith(_ONE_SERVER):
        if _is_target(text.removeprefix(_ONE_SERVER)):
            return
        # No nearest name here: it would be the scope for every server, which grants more than was meant.
        raise ConfigError(
            [
                (
                    f"scope {shown}: behind {_ONE_SERVER!r} stands a server's name (letters, digits, '_', "
                    f"'.', '-', at most 64), alone or followed by '/' and the name of a tool (at most "
                    f"{MAXIMUM_TOOL_NAME} printable characters)"
                )
            ]
        )
    target = text.split(":", 2)[2:]
    known = [f"{_ONE_SERVER}{target[0]}"] if target and _is_target(target[0]) else SCOPES
    narrow = f"; for less than all tools, {_ONE_SERVER}SERVER or {_ONE_SERVER}SERVER/TOOL"
    raise ConfigError([f"scope {shown} is not known{suggest(text, known)}{narrow}"])


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a tool may be called, and the scope or the rule that decided it, in words.

    `place` is where the rule stands in the table of the role, such as ``deny, entry 2``; empty where no rule
    decided it.
    """

    is_allowed: bool
    reason: str
    place: str = ""


def decide_call(caller: ToolCaller, server: str, tool: str) -> Decision:
    """Whether `caller` may call `tool` of `server`, and why: what is denied wins over what is allowed."""
    denied = caller.rules.denying(server, tool)
    if denied is not None:
        return Decision(
            False,
            f"the role {caller.role!r} denies {denied.text!r}",
            _place("deny", caller.rules.deny, denied),
        )
    scope = _granting(caller.scopes, server, tool)
    if scope is not None:
        return Decision(True, f"the scope {scope!r} allows it")
    allowed = caller.rules.allowing(server, tool)
    if allowed is None:
        return Decision(False, "no scope and no rule allows it")
    if caller.granted is not None and _granting(caller.granted, server, tool) is None:
        return Decision(False, f"the role allows {allowed.text!r}, and no scope of the token or the key does")
    return Decision(
        True,
        f"the role {caller.role!r} allows {allowed.text!r}",
        _place("allow", caller.rules.allow, allowed),
    )


@dataclass(frozen=True, slots=True)
class Sight:
    """Which servers and tools are shown to somebody: those that they may use, in lists and in events.

    Whoever may use no tool by design, such as a viewer, is shown all that no rule denies: that is what their
    role is for. `allow` and `deny` are the patterns of the role; `role` and `credential` the tools' scopes of
    each that show less than everything, None where it shows all.
    """

    allow: tuple[ToolPattern, ...] = ()
    deny: tuple[ToolPattern, ...] = ()
    role: frozenset[str] | None = None
    credential: frozenset[str] | None = None

    @classmethod
    def of(cls, caller: ToolCaller) -> "Sight":
        """What `caller` is shown."""
        rules = caller.rules
        role = _narrowing(caller.scopes if caller.limit is None else caller.limit)
        if not role and (role is None or not rules.allow):
            role = None
        credential = None if caller.granted is None else _narrowing(caller.granted) or None
        if role is credential is None and not rules.deny:
            return EVERYTHING
        return cls(rules.allow if role is not None else (), rules.deny, role, credential)

    def shows_server(self, server: str) -> bool:
        """Whether something of a server is shown, and so the server is."""
        if self is EVERYTHING:
            return True
        if any(pattern.covers(server) for pattern in self.deny):
            return False
        if self.credential is not None and not _grants_any(self.credential, server):
            return False
        return (
            self.role is None
            or _grants_any(self.role, server)
            or any(pattern.touches(server) for pattern in self.allow)
        )

    def shows_all_of(self, server: str) -> bool:
        """Whether a server is shown with its resources and prompts."""
        if self is EVERYTHING:
            return True
        if any(pattern.covers(server) for pattern in self.deny):
            return False
        if self.credential is not None and not _grants_server(self.credential, server):
            return False
        return (
            self.role is None
            or _grants_server(self.role, server)
            or any(pattern.covers(server) for pattern in self.allow)
        )

    def shows_tool(self, server: str, tool: str) -> bool:
        """Whether a tool is shown, and what is done with it."""
        if self is EVERYTHING:
            return True
        if any(pattern.matches(server, tool) for pattern in self.deny):
            return False
        if self.credential is not None and _granting(self.credential, server, tool) is None:
            return False
        return (
            self.role is None
            or _granting(self.role, server, tool) is not None
            or any(pattern.matches(server, tool) for pattern in self.allow)
        )


EVERYTHING: Final = Sight()


def may_call(caller: ToolCaller, server: str, tool: str) -> bool:
    """Whether `caller` may call `tool` of `server`."""
    if caller.rules is NO_RULES:
        return _granting(caller.scopes, server, tool) is not None
    return decide_call(caller, server, tool).is_allowed


def may_call_any(caller: ToolCaller, server: str) -> bool:
    """Whether `caller` may call at least one tool of `server`, as far as patterns tell."""
    rules = caller.rules
    if any(pattern.covers(server) for pattern in rules.deny):
        return False
    if _grants_any(caller.scopes, server):
        return True
    return any(pattern.touches(server) for pattern in rules.allow) and (
        caller.granted is None or _grants_any(caller.granted, server)
    )


def may_use_server(caller: ToolCaller, server: str) -> bool:
    """Whether `caller` may use all that `server` offers: its resources and prompts too.

    A rule that denies a tool does not deny those; one that denies the server does.
    """
    rules = caller.rules
    if any(pattern.covers(server) for pattern in rules.deny):
        return False
    if _grants_server(caller.scopes, server):
        return True
    return any(pattern.covers(server) for pattern in rules.allow) and (
        caller.granted is None or _grants_server(caller.granted, server)
    )


def may_see_server(caller: ToolCaller, server: str) -> bool:
    """Whether `caller`, who may read servers, is shown this one."""
    return Sight.of(caller).shows_server(server)


def may_do_anything(caller: ToolCaller) -> bool:
    """Whether there is anything at all that `caller` may do."""
    return bool(caller.scopes or caller.rules.allow)


def may_read_servers(caller: Caller) -> bool:
    """Whether `caller` may see the servers and their tools."""
    return _has(caller, READ_SERVERS)


def may_write_servers(caller: Caller) -> bool:
    """Whether `caller` may start, stop and change servers; some of it needs more (`mcpgw.administration`)."""
    return _has(caller, WRITE_SERVERS)


def may_read_events(caller: Caller) -> bool:
    """Whether `caller` may read the streams of events."""
    return _has(caller, READ_EVENTS)


def may_read_calls(caller: Caller) -> bool:
    """Whether `caller` may see that others call tools, not what they say and hear."""
    return _has(caller, READ_CALLS)


def may_approve(caller: Caller) -> bool:
    """Whether `caller` may approve calls that wait for it, and see what they say."""
    return _has(caller, APPROVE_CALLS)


def is_admin(caller: Caller) -> bool:
    """Whether `caller` may do everything."""
    return ADMIN in caller.scopes


def may_join_room(caller: Caller, room: str) -> bool:
    """Whether `caller` may be in the room of that name, read it and speak in it."""
    return _has(caller, JOIN_ROOMS) or f"{_ONE_ROOM}{room}" in caller.scopes


def may_host_rooms(caller: Caller) -> bool:
    """Whether `caller` may open rooms for guests."""
    return _has(caller, HOST_ROOMS)


def require_host_rooms(caller: Caller) -> None:
    """Raise `PermissionDenied`, with the missing scope, unless `caller` may open rooms for guests."""
    if not may_host_rooms(caller):
        raise _denied(HOST_ROOMS)


def require_free(caller: HeldCaller) -> None:
    """Raise `PermissionDenied`, with the reason, where `caller` may only read for now."""
    if caller.held:
        raise PermissionDenied(caller.held)


def require_call(caller: ToolCaller, server: str, tool: str) -> None:
    """Raise `PermissionDenied`, with the missing scope, unless `caller` may call `tool` of `server`."""
    if not may_call(caller, server, tool):
        if caller.rules.denying(server, tool) is not None:
            raise PermissionDenied(decide_call(caller, server, tool).reason)
        narrow = f"{_ONE_SERVER}{server}/{tool}"
        raise _denied(narrow if SERVER_NAME.fullmatch(server) and _is_tool_name(tool) else CALL_TOOLS)


def require_call_any(caller: ToolCaller, server: str) -> None:
    """Raise `PermissionDenied`, with the missing scope, unless some tool of `server` may be called."""
    if not may_call_any(caller, server):
        raise _denied(f"{_ONE_SERVER}{server}" if SERVER_NAME.fullmatch(server) else CALL_TOOLS)


def require_use_server(caller: ToolCaller, server: str) -> None:
    """Raise `PermissionDenied`, with the missing scope, unless all that `server` offers may be used."""
    if not may_use_server(caller, server):
        raise _denied(f"{_ONE_SERVER}{server}" if SERVER_NAME.fullmatch(server) else CALL_TOOLS)


def require_see_server(caller: ToolCaller, server: str) -> None:
    """Raise `PermissionDenied`, with the rule, unless `caller` is shown this server."""
    if not may_see_server(caller, server):
        denied = next((pattern for pattern in caller.rules.deny if pattern.covers(server)), None)
        if denied is not None:
            raise PermissionDenied(f"the role {caller.role!r} denies {denied.text!r}")
        raise _denied(f"{_ONE_SERVER}{server}" if SERVER_NAME.fullmatch(server) else CALL_TOOLS)


def require_read_servers(caller: Caller) -> None:
    """Raise `PermissionDenied`, with the missing scope, unless `caller` may see the servers."""
    if not may_read_servers(caller):
        raise _denied(READ_SERVERS)


def require_write_servers(caller: Caller) -> None:
    """Raise `PermissionDenied`, with the missing scope, unless `caller` may change servers."""
    if not may_write_servers(caller):
        raise _denied(WRITE_SERVERS)


def require_read_events(caller: Caller) -> None:
    """Raise `PermissionDenied`, with the missing scope, unless `caller` may read events."""
    if not may_read_events(caller):
        raise _denied(READ_EVENTS)


def require_approve(caller: Caller) -> None:
    """Raise `PermissionDenied`, with the missing scope, unless `caller` may approve calls."""
    if not may_approve(caller):
        raise _denied(APPROVE_CALLS)


def require_publish_events(caller: Caller) -> None:
    """Raise `PermissionDenied`, with the missing scope, unless `caller` may speak to all users."""
    if not _has(caller, PUBLISH_EVENTS):
        raise _denied(PUBLISH_EVENTS)


def bounded(granted: frozenset[str], limit: frozenset[str]) -> frozenset[str]:
    """What both `granted` and `limit` allow: the narrower scope of each two of which one covers the other."""
    return frozenset(
        {scope for scope in granted if covers(limit, scope)}
        | {scope for scope in limit if covers(granted, scope)}
    )


def require_covered(caller: Caller, scopes: Iterable[str]) -> None:
    """Raise `PermissionDenied`, with the first missing scope, unless `caller` may do what `scopes` allow."""
    for scope in scopes:
        if not covers(caller.scopes, scope):
            raise PermissionDenied(
                f"{scope[:_LONGEST_IN_A_MESSAGE]!r} is more than you may do yourself",
                details={"missingScope": scope[:_LONGEST_IN_A_MESSAGE]},
            )


def covers(scopes: frozenset[str], scope: str) -> bool:
    """Whether `scopes` allow all that `scope` alone would."""
    if scope in scopes or ADMIN in scopes:
        return True
    if scope.startswith(_ONE_SERVER):
        server = scope.removeprefix(_ONE_SERVER).partition("/")[0]
        return CALL_TOOLS in scopes or f"{_ONE_SERVER}{server}" in scopes
    return scope.startswith(_ONE_ROOM) and JOIN_ROOMS in scopes


def _place(name: str, patterns: Sequence[ToolPattern], pattern: ToolPattern) -> str:
    return f"{name}, entry {patterns.index(pattern) + 1}"


def _narrowing(scopes: frozenset[str]) -> frozenset[str] | None:
    """Those of `scopes` that are for tools; None where one of them is for all tools."""
    if ADMIN in scopes or CALL_TOOLS in scopes:
        return None
    return frozenset(scope for scope in scopes if scope.startswith(_ONE_SERVER))


def _granting(scopes: frozenset[str], server: str, tool: str) -> str | None:
    """The scope that allows a tool."""
    if not scopes:
        return None
    for scope in (ADMIN, CALL_TOOLS):
        if scope in scopes:
            return scope
    if not SERVER_NAME.fullmatch(server):
        return None
    whole, one = f"{_ONE_SERVER}{server}", f"{_ONE_SERVER}{server}/{tool}"
    if whole in scopes:
        return whole
    return one if one in scopes and _is_tool_name(tool) else None


def _grants_any(scopes: frozenset[str], server: str) -> bool:
    if _grants_server(scopes, server):
        return True
    if not SERVER_NAME.fullmatch(server):
        return False
    one_tool = f"{_ONE_SERVER}{server}/"  # the slash ends the server's name: `a` is not the start of `ab`
    return any(scope.startswith(one_tool) and _is_tool_name(scope.removeprefix(one_tool)) for scope in scopes)


def _grants_server(scopes: frozenset[str], server: str) -> bool:
    return bool(scopes & {ADMIN, CALL_TOOLS}) or (
        SERVER_NAME.fullmatch(server) is not None and f"{_ONE_SERVER}{server}" in scopes
    )


def _denied(scope: str) -> PermissionDenied:
    return PermissionDenied(f"the token lacks the scope {scope!r}", details={"missingScope": scope})


def _has(caller: Caller, scope: str) -> bool:
    return ADMIN in caller.scopes or scope in caller.scopes


def _is_target(text: str) -> bool:
    server, slash, tool = text.partition("/")
    return SERVER_NAME.fullmatch(server) is not None and (not slash or _is_tool_name(tool))


def _is_tool_name(text: str) -> bool:
    return 0 < len(text) <= MAXIMUM_TOOL_NAME and text.isprintable()
