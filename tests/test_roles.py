"""Roles: patterns of tools, and how [roles.NAME] is read."""

import time

import pytest

from mcpgw.access.permissions import SCOPES
from mcpgw.roles import BUILT_IN, ToolPattern, read_roles


@pytest.mark.parametrize(
    ("pattern", "server", "tool", "is_meant"),
    [
        ("memory", "memory", "add", True),
        ("memory", "memory2", "add", False),
        ("memory/*", "memory", "a/b", True),
        ("memory/add", "memory", "add", True),
        ("memory/add", "memory", "addx", False),
        ("*/delete_*", "github", "delete_repo", True),
        ("*/delete_*", "github", "undelete_repo", False),
        ("git*/get_*_all", "gitlab", "get_x_all", True),
        ("git*/get_*_all", "gitlab", "get_all", False),
        ("m.mory", "memory", "add", False),
        ("a/*b*b", "a", "b", False),
        ("a/*b*b", "a", "bb", True),
        ("a/get[x]", "a", "getx", False),
        ("a/line*", "a", "line\nbreak", True),
    ],
)
def test_a_pattern_means_whole_names_with_stars_for_anything(
    pattern: str, server: str, tool: str, is_meant: bool
) -> None:
    assert ToolPattern.parse(pattern).matches(server, tool) is is_meant


def test_only_a_pattern_without_a_tool_covers_all_of_a_server() -> None:
    assert ToolPattern.parse("memory").covers("memory")
    assert ToolPattern.parse("mem*/*").covers("memory")
    assert not ToolPattern.parse("memory/add").covers("memory")
    assert ToolPattern.parse("memory/add").touches("memory")
    assert not ToolPattern.parse("memory/add").touches("other")


@pytest.mark.parametrize("bad", ["", "/", "a/", "/a", "a b/c", "a/\n", "a" * 65, "a/" + "x" * 400])
def test_what_is_no_pattern_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="no pattern"):
        ToolPattern.parse(bad)


def test_many_stars_take_no_longer() -> None:
    pattern = ToolPattern.parse("a/" + "*a" * 100 + "*b")
    begin = time.perf_counter()
    assert not pattern.matches("a", "a" * 256)
    assert time.perf_counter() - begin < 0.1


def test_roles_of_the_configuration_stand_over_the_built_in_ones() -> None:
    faults: list[str] = []
    tables = {
        "viewer": {"scopes": ["servers:read"]},
        "support": {"allow": ["memory"], "deny": ["*/delete_*"]},
    }
    roles = read_roles(tables, "mcpgw.toml", faults.append)
    assert faults == []
    assert set(roles) == {*BUILT_IN, "support"}
    assert roles["viewer"].scopes == {"servers:read"}
    assert [pattern.text for pattern in roles["support"].rules.deny] == ["*/delete_*"]
    assert all(role.scopes <= set(SCOPES) for role in BUILT_IN.values())


def test_every_fault_of_the_roles_is_told_with_its_place() -> None:
    faults: list[str] = []
    tables = {
        "a b": {},
        "one": 3,
        "two": {"scope": ["x"], "scopes": "admin", "allow": ["a/"], "deny": [1]},
        "many": {"scopes": ["admin"] * 101},
    }
    read_roles(tables, "f", faults.append)
    assert [fault.partition(": is ")[0].partition("; did")[0] for fault in faults][:3] == [
        "f: [roles.a b]",
        "f: [roles.one]",
        "f: [roles.two] scope: unknown key",
    ]
    assert any("[roles.two] scopes: is not a list of texts" in fault for fault in faults)
    assert any("[roles.two] allow: 'a/' is no pattern" in fault for fault in faults)
    assert any("[roles.two] deny: is not a list of texts" in fault for fault in faults)
    assert any("[roles.many] scopes: has 101 entries" in fault for fault in faults)
    read_roles([], "f", faults.append)
    assert faults[-1] == "f: roles: is not a table; write [roles.NAME]"
