"""Scopes: what they grant, and that everything else is refused."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpgw.access.permissions import (
    check_scope,
    may_call,
    may_call_any,
    may_read_calls,
    may_read_events,
    may_read_servers,
    require_call,
    require_call_any,
    require_publish_events,
    require_read_events,
    require_read_servers,
)
from mcpgw.errors import ConfigError, PermissionDenied


@dataclass(frozen=True)
class Person:
    scopes: frozenset[str]


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
            "'events:publish', 'events:read', 'rooms:join', 'servers:read', 'servers:write', 'tools:call'",
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
