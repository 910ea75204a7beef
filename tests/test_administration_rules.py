"""What the scope servers:write may make of a definition, and what is for admins."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mcpgw.access.tokens import Principal
from mcpgw.administration_rules import merged, require_rights
from mcpgw.errors import InvalidParams, PermissionDenied, ServerUnavailable
from tests.support.administered import ADMIN, OPERATOR, administered, program
from tests.support.waiting import until

SECRETS = {
    "url": "https://h/${PLACE}",
    "headers": {"Authorization": "Bearer ${TOKEN}", "X-Plain": "a"},
    "tools": {"echo": {"defaults": {"list": ["${A}", "b"]}, "fixed": {"key": "${KEY}"}}},
}
GUARDED = {
    "url": "https://h/",
    "approval": "writes",
    "isolation": "user",
    "warm": 7,
    "max_instances": 500,
    "tools": {
        "allow": ["read", "list"],
        "block": ["drop"],
        "read": {"approval": "required", "fixed": {"root": "/srv"}, "rename": "open"},
    },
}


def refused(before: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    """Whether an operator may not make these changes, which an admin may."""
    after = merged(before, changes)
    require_rights(ADMIN, before, after)
    try:
        require_rights(OPERATOR, before, after)
    except PermissionDenied as denied:
        return bool(denied.details == {"missingScope": "admin"})
    return False


@pytest.mark.parametrize(
    "changes",
    [
        {"headers": None, "tools": {"echo": {"defaults": {"text": "${TOKEN}"}}}},
        {"headers": {"Authorization": None, "X-Other": "Bearer ${TOKEN}"}},
        {"headers": {"Authorization": "${TOKEN}"}},
        {"headers": {"Authorization": "x${TOKEN}"}},
        {"headers": {"Authorization": None, "X-Plain": "${TOKEN}"}},
        {"tools": {"echo": {"fixed": None, "defaults": {"key": "${KEY}"}}}},
        {"tools": {"echo": {"defaults": {"list": ["b", "${A}"]}}}},
        {"tools": {"echo": None, "other": {"defaults": {"list": ["${A}", "b"]}}}},
        {"tools": {"echo": {"description": "${TOKEN}"}}},
        {"url": "https://h/${PLACE}/more"},
    ],
)
def test_a_reference_that_stands_there_already_may_not_be_moved(changes: dict[str, Any]) -> None:
    assert refused(SECRETS, changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"headers": None},
        {"headers": {"Authorization": None}},
        {"headers": {"X-Plain": "b"}},
        {"tools": {"echo": {"defaults": None}}},
        {"tools": {"echo": {"defaults": {"list": ["$${A}"]}}}},
        {"timeout": 3},
    ],
)
def test_a_reference_may_stay_or_go(changes: dict[str, Any]) -> None:
    assert not refused(SECRETS, changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"approval": "never"},
        {"approval": None},
        {"isolation": "shared"},
        {"isolation": None},
        {"tools": None},
        {"tools": {"allow": None}},
        {"tools": {"allow": ["read", "list", "drop"]}},
        {"tools": {"allow": ["*"]}},
        {"tools": {"block": None}},
        {"tools": {"block": ["other"]}},
        {"tools": {"read": None}},
        {"tools": {"read": {"approval": None}}},
        {"tools": {"write": {"approval": "never"}}},
        {"tools": {"read": {"fixed": None}}},
        {"tools": {"read": {"fixed": {"root": "/"}}}},
        {"tools": {"read": {"rename": None}}},
        {"tools": {"list": {"rename": "read"}}},
        {"tools": {"prefix": "x_"}},
        {"tools": "none"},
        {"tools": {"block": "drop"}},
        {"warm": 8},
        {"max_instances": 501},
        {"max_instances_per_user": 101},
    ],
)
def test_what_guards_a_server_may_not_be_taken_away(changes: dict[str, Any]) -> None:
    assert refused(GUARDED, changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"approval": "required"},
        {"isolation": "connection"},
        {"tools": {"allow": ["read"]}},
        {"tools": {"allow": []}},
        {"tools": {"block": ["drop", "more"]}},
        {"tools": {"hidden": ["x"]}},
        {"tools": {"read": {"fixed": {"more": 1}, "description": "words"}}},
        {"tools": {"write": {"approval": "required"}}},
        {"approval": "required", "tools": {"read": {"approval": None}}},
        {"tools": {"list": {"defaults": {"a": 1}}}},
        {"warm": 5, "max_instances": 500, "max_instances_per_user": 100},
        {"enabled": False, "timeout": 4, "lazy": True},
    ],
)
def test_a_server_may_be_guarded_better(changes: dict[str, Any]) -> None:
    assert not refused(GUARDED, changes)


def test_a_new_server_has_no_more_instances_than_an_operator_may_have() -> None:
    require_rights(OPERATOR, None, {"url": "http://h/", "isolation": "user", "warm": 5, "max_instances": 100})
    for more in ({"warm": 6}, {"max_instances": 101}, {"max_instances_per_user": 101}):
        with pytest.raises(PermissionDenied):
            require_rights(OPERATOR, None, {"url": "http://h/", "isolation": "user", **more})


@pytest.mark.parametrize(
    "changes",
    [
        {"approval": "required"},
        {"isolation": "user", "warm": 100, "max_instances": 10000},
        {"tools": {"block": ["a"]}},
        {"timeout": 3},
        {"lazy": True},
    ],
)
def test_of_a_program_an_operator_changes_the_switch_alone(changes: dict[str, Any]) -> None:
    table = {**program(), "enabled": True}
    assert refused(table, changes)
    assert not refused(table, {"enabled": False})
    assert not refused(table, {"enabled": None})


@pytest.mark.gen_test
async def test_a_secret_cannot_be_read_by_moving_it_where_it_is_shown(tmp_path: Path) -> None:
    async with administered(tmp_path, environment={"TOKEN": "secret-of-the-admin"}) as gateway:
        administration = gateway.services.administration
        table = {
            "url": "http://127.0.0.1:9/mcp",
            "lazy": True,
            "headers": {"Authorization": "Bearer ${TOKEN}"},
        }
        await administration.add("r", table, ADMIN)
        changes = {"headers": None, "tools": {"echo": {"defaults": {"text": "${TOKEN}"}}}}
        with pytest.raises(PermissionDenied):
            await administration.change("r", changes, OPERATOR)
        assert administration.describe("r").table == table


@pytest.mark.gen_test
async def test_two_servers_whose_tools_could_have_one_name_cannot_be_added(tmp_path: Path) -> None:
    remote = {"url": "http://127.0.0.1:9/mcp", "lazy": True}
    async with administered(tmp_path) as gateway:
        administration = gateway.services.administration
        await administration.add("files", remote, ADMIN)
        await administration.add("notes__all", remote, OPERATOR)
        for name in ("files__admin", "files_", "notes"):
            with pytest.raises(InvalidParams, match="could have one name at /mcp") as denied:
                await administration.add(name, remote, OPERATOR)
            assert denied.value.details[0]["path"] == "/id"
        await administration.add("files_admin", remote, OPERATOR)


@pytest.mark.gen_test
async def test_an_operator_who_stopped_a_server_finds_it_stopped_after_a_change(tmp_path: Path) -> None:
    async with administered(tmp_path) as gateway:
        administration = gateway.services.administration
        await administration.add("a", program(), ADMIN)
        await gateway.ready("a")
        await administration.stop("a", OPERATOR)
        await administration.change("a", {"env": {"A": "1"}}, ADMIN)
        assert gateway.states() == {"a": "idle"}
        assert gateway.status("a").reason == "an operator has stopped it"
        await administration.start("a", OPERATOR)
        await gateway.ready("a")


@pytest.mark.gen_test
async def test_the_last_words_of_a_program_are_for_those_who_administer_it(tmp_path: Path) -> None:
    async with administered(tmp_path) as gateway:
        code = "import sys; print('row of a customer', file=sys.stderr); sys.exit(3)"
        table = {"command": sys.executable, "args": ["-S", "-c", code]}
        await gateway.services.administration.add("a", table, ADMIN)
        await until(lambda: gateway.status("a").reason is not None, what="the end of the program")
        status = gateway.status("a")
        assert "customer" not in str(status.to_json())
        assert "ended" in status.to_json()["reason"]
        assert "row of a customer" in status.to_json(detail=True)["reason"]
        reader = Principal("bob", frozenset({"servers:read", "tools:call"}), float("inf"), "t")
        with pytest.raises(ServerUnavailable) as refused:
            gateway.services.gateway.list_tools(reader, "a")
        assert "customer" not in str(refused.value.details)
        assert "ended" in refused.value.details["reason"]
