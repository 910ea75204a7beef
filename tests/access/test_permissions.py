"""Scopes: what they grant, and that everything else is refused."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpgw.access.permissions import (
    bounded,
    check_scope,
    decide_call,
    may_call,
    may_call_any,
    may_read_calls,
    may_read_events,
    may_read_servers,
    may_use_server,
    require_call,
    require_call_any,
    require_publish_events,
    require_read_events,
    require_read_servers,
)
from mcpgw.errors import ConfigError, PermissionDenied
from mcpgw.roles import NO_RULES, ToolPattern, ToolRules


@dataclass(frozen=True)
class Person:
    scopes: frozenset[str]
    rules: ToolRules = NO_RULES
    role: str = ""
    granted: frozenset[str] | None = None
    limit: frozenset[str] | None = None


def person(*scopes: str) -> Person:
    return Person(frozenset(scopes))


def test_without_scopes_nothing_is_allowed() -> None:
    nobody = person()
    assert not may_call(nobody, "memory", "add")
    assert not may_call_any(nobody, "memory")
    assert not may_read_servers(nobody)
    assert not may_read_events(nobody)
    assert not may_read_calls(nobody)
    with pytest.raises(PermissionDenied, match="events:publish"):
        require_publish_events(nobody)


def test_admin_may_do_everything() -> None:
    admin = person("admin")
    require_call(admin, "memory", "add")
    require_call_any(admin, "memory")
    require_read_servers(admin)
    require_read_events(admin)
    require_publish_events(admin)
    assert may_read_calls(admin)


def test_an_operator_sees_calls_and_speaks_to_all_and_no_more() -> None:
    operator = person("calls:read", "events:publish")
    require_publish_events(operator)
    assert may_read_calls(operator)
    assert not may_read_events(operator)
    assert not may_read_servers(operator)
    assert not may_call_any(operator, "memory")
    for other in ("events:read", "calls:publish", "events", "calls"):
        assert not may_read_calls(person(other))


@pytest.mark.parametrize(
    ("scope", "server", "tool", "allowed"),
    [
        ("tools:call", "memory", "add", True),
        ("tools:call:memory", "memory", "add", True),
        ("tools:call:memory/add", "memory", "add", True),
        ("tools:call:memory/add", "memory", "add2", False),
        ("tools:call:memory/add", "memory", "ad", False),
        ("tools:call:memory/add", "memory", "ADD", False),
        ("tools:call:a", "ab", "add", False),
        ("tools:call:ab", "a", "add", False),
        ("tools:call:a", "A", "add", False),
        ("tools:call:a/b", "a", "b/c", False),
        ("tools:call:a/b/c", "a", "b/c", True),
        ("tools:call:a/b:c d", "a", "b:c d", True),
        ("tools:call:a/b", "a/b", "c", False),
        ("tools:call:a/b/c", "a/b", "c", False),
        ("tools:call:a/", "a", "", False),
        ("tools:call:", "", "add", False),
        ("tools:call:/add", "", "add", False),
        ("tools:call:a\n", "a\n", "add", False),
        ("tools:call:*", "a", "add", False),
        ("tools", "a", "add", False),
        ("TOOLS:CALL", "a", "add", False),
        ("servers:read", "a", "add", False),
        ("events:read", "a", "add", False),
        ("administrator", "a", "add", False),
    ],
)
def test_a_scope_allows_exactly_the_tools_it_names(scope: str, server: str, tool: str, allowed: bool) -> None:
    assert may_call(person(scope), server, tool) is allowed


def test_one_tool_of_a_server_is_enough_to_call_something_there() -> None:
    caller = person("tools:call:memory/add", "tools:call:files", "tools:call:broken/")
    assert may_call_any(caller, "memory")
    assert may_call_any(caller, "files")
    assert not may_call_any(caller, "mem")
    assert not may_call_any(caller, "memory2")
    assert not may_call_any(caller, "broken")
    assert not may_call_any(caller, "memory/add")
    assert may_call_any(person("tools:call"), "memory")


def test_reading_servers_and_reading_events_are_two_permissions() -> None:
    assert may_read_servers(person("servers:read"))
    assert not may_read_events(person("servers:read"))
    assert may_read_events(person("events:read"))
    assert not may_read_servers(person("events:read", "tools:call"))


def test_a_refusal_names_the_narrowest_scope_that_is_missing() -> None:
    with pytest.raises(PermissionDenied, match="'tools:call:memory/add'") as caught:
        require_call(person("tools:call:files"), "memory", "add")
    assert caught.value.details == {"missingScope": "tools:call:memory/add"}
    with pytest.raises(PermissionDenied, match="'tools:call:memory'"):
        require_call_any(person(), "memory")
    with pytest.raises(PermissionDenied, match="'servers:read'"):
        require_read_servers(person())
    with pytest.raises(PermissionDenied, match="'events:read'"):
        require_read_events(person())


def test_a_refusal_never_repeats_a_name_that_no_scope_could_have() -> None:
    for server, tool in (("x" * 100_000, "add"), ("memory", "y" * 100_000), ("me\nmory", "add")):
        with pytest.raises(PermissionDenied) as caught:
            require_call(person(), server, tool)
        assert caught.value.details == {"missingScope": "tools:call"}
        assert len(str(caught.value)) < 100


@pytest.mark.parametrize(
    "scope",
    ["admin", "tools:call", "servers:read", "events:read", "tools:call:a", "tools:call:a-1_B.c/any: tool/ü"],
)
def test_a_scope_of_the_grammar_passes(scope: str) -> None:
    check_scope(scope)


@pytest.mark.parametrize(
    ("scope", "help_text"),
    [
        ("tool:call", "did you mean 'tools:call'?"),
        ("tools:cal:memory/add", "did you mean 'tools:call:memory/add'?"),
        ("server:read", "did you mean 'servers:read'?"),
        ("Admin", "did you mean 'admin'?"),
        (
            "",
            "'events:publish', 'events:read', 'rooms:host', 'rooms:join', 'servers:read', 'servers:write'",
        ),
        ("zzz", "there is 'admin'"),
        ("tools:call:", "a server's name"),
        ("tools:call:my server", "a server's name"),
        ("tools:call:-a", "a server's name"),
        ("tools:call:a/", "a server's name"),
        ("tools:call:a/b\nc", "a server's name"),
        ("tools:call:a\n", "a server's name"),
        (f"tools:call:a/{'b' * 257}", "a server's name"),
        (f"tools:call:{'a' * 65}", "a server's name"),
    ],
)
def test_a_wrong_scope_is_refused_with_help(scope: str, help_text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_scope(scope)
    assert help_text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


names = st.text(alphabet="ab/:. *\n", max_size=8)


@given(scopes=st.frozensets(names.map("tools:call:{}".format) | names, max_size=4), server=names, tool=names)
def test_a_call_is_only_ever_allowed_by_a_right_scope_for_just_that_server_and_tool(
    scopes: frozenset[str], server: str, tool: str
) -> None:
    caller = Person(scopes)
    if may_call(caller, server, tool):
        granting = scopes & {f"tools:call:{server}", f"tools:call:{server}/{tool}"}
        for scope in granting:
            check_scope(scope)
        assert granting
        assert "/" not in server
        assert may_call_any(caller, server)
    else:
        with pytest.raises(PermissionDenied):
            require_call(caller, server, tool)


def with_rules(
    *scopes: str,
    allow: tuple[str, ...] = (),
    deny: tuple[str, ...] = (),
    granted: tuple[str, ...] | None = None,
) -> Person:
    """Somebody whose role has rules."""
    rules = ToolRules(tuple(map(ToolPattern.parse, allow)), tuple(map(ToolPattern.parse, deny)))
    bound = None if granted is None else frozenset(granted)
    return Person(frozenset(scopes), rules, "support", bound)


def test_what_a_rule_denies_is_refused_whatever_allows_it_and_the_rule_is_named() -> None:
    for scopes in (("admin",), ("tools:call",), ("tools:call:github/delete_repo",)):
        caller = with_rules(*scopes, allow=("github",), deny=("*/delete_*",))
        assert not may_call(caller, "github", "delete_repo")
        with pytest.raises(PermissionDenied, match=r"the role 'support' denies '\*/delete_\*'"):
            require_call(caller, "github", "delete_repo")
    admin = with_rules("admin", deny=("*/delete_*", "secret"))
    assert may_call(admin, "github", "get_repo")
    assert may_use_server(admin, "github"), "a rule for tools denies no resources"
    assert not may_call_any(admin, "secret")
    assert not may_use_server(admin, "secret")


def test_a_rule_allows_what_no_scope_does_and_nothing_beside_it() -> None:
    caller = with_rules(allow=("memory", "github/get_*"))
    assert may_call(caller, "memory", "add")
    assert may_use_server(caller, "memory")
    assert may_call(caller, "github", "get_repo")
    assert not may_call(caller, "github", "add_repo")
    assert may_call_any(caller, "github")
    assert not may_use_server(caller, "github")
    assert not may_call_any(caller, "other")
    assert decide_call(caller, "github", "get_repo").reason == "the role 'support' allows 'github/get_*'"
    assert decide_call(caller, "github", "x").reason == "no scope and no rule allows it"


def test_a_key_may_use_no_more_of_its_role_s_rules_than_its_scopes_say() -> None:
    narrow = with_rules(allow=("memory", "github"), granted=("servers:read", "tools:call:memory/add"))
    assert may_call(narrow, "memory", "add")
    assert not may_call(narrow, "memory", "remove")
    assert may_call_any(narrow, "memory")
    assert not may_use_server(narrow, "memory")
    assert not may_call_any(narrow, "github")
    assert "no scope of the token" in decide_call(narrow, "github", "x").reason
    wide = with_rules(allow=("memory",), granted=("tools:call",))
    assert may_use_server(wide, "memory")
    assert not may_call(wide, "github", "x")


@pytest.mark.parametrize(
    ("granted", "limit", "left"),
    [
        ("admin", "tools:call servers:read", "tools:call servers:read"),
        ("tools:call servers:read", "admin", "tools:call servers:read"),
        ("tools:call", "tools:call:a tools:call:b/c", "tools:call:a tools:call:b/c"),
        ("tools:call:a/x tools:call:b", "tools:call:a", "tools:call:a/x"),
        ("tools:call:a", "tools:call:ab", ""),
        ("rooms:join", "rooms:join:one", "rooms:join:one"),
        ("servers:write", "servers:read", ""),
        ("admin", "", ""),
    ],
)
def test_of_two_lists_of_scopes_the_narrower_of_each_is_left(granted: str, limit: str, left: str) -> None:
    one, other = frozenset(granted.split()), frozenset(limit.split())
    assert bounded(one, other) == bounded(other, one) == frozenset(left.split())
