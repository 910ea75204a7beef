"""Servers added, changed, removed and switched while the gateway runs: what holds, who may, what is kept."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from mcpgw.administration import Administration
from mcpgw.audit import Actor
from mcpgw.errors import (
    Conflict,
    Draining,
    DuplicateId,
    GatewayError,
    InvalidParams,
    PermissionDenied,
    PreconditionFailed,
    ServerNotFound,
    ServerUnavailable,
)
from mcpgw.store import StoreError
from tests.support.administered import ADMIN, OPERATOR, READER, administered, program, toml
from tests.support.backends import alive, children

REMOTE = {"url": "http://127.0.0.1:9/mcp", "lazy": True}


def programs() -> list[int]:
    """The process ids of the scripted servers."""
    return [pid for pid in children() if "scripted.py" in Path(f"/proc/{pid}/cmdline").read_text()]


def shown(administration: Administration, name: str) -> dict[str, Any]:
    """The definition of a server as it is shown."""
    table = administration.describe(name).table
    assert table is not None
    return dict(table)


@pytest.mark.gen_test
async def test_an_added_server_is_started_and_is_there_after_a_restart(tmp_path: Path) -> None:
    environment = {"SECRET": "one"}
    async with administered(tmp_path, environment=environment) as gateway:
        table = program(env={"A": "${SECRET}"}, timeout=5)
        await gateway.services.administration.add("a", table, ADMIN)
        await gateway.ready("a")
        assert gateway.told("config.updated") == [{"source": "rest", "servers": {"added": ["a"]}}]
        assert [data["serverId"] for data in gateway.told("server.started")] == ["a"]
    environment["SECRET"] = "two"
    async with administered(tmp_path, environment=environment) as gateway:
        await gateway.ready("a")
        described = gateway.services.administration.describe("a")
        assert described.table == table
        assert (described.origin, described.place) == ("store", "the store: [servers.a]")
        assert described.stored is not None
        assert described.stored.created_by == "root"
        assert gateway.services.gateway.definition("a").env == {"A": "two"}


@pytest.mark.gen_test
async def test_a_removed_server_ends_and_does_not_come_back(tmp_path: Path) -> None:
    async with administered(tmp_path) as gateway:
        administration = gateway.services.administration
        await administration.add("a", program(), ADMIN)
        await gateway.ready("a")
        (instance,) = programs()
        await administration.remove("a", ADMIN)
        assert not alive(instance)
        assert gateway.services.gateway.server_ids == ()
        assert gateway.told("config.updated")[-1] == {"source": "rest", "servers": {"removed": ["a"]}}
        with pytest.raises(ServerNotFound):
            await administration.remove("a", ADMIN)
        await administration.add("a", program(), ADMIN)
        await gateway.ready("a")
        await administration.remove("a", ADMIN)
    async with administered(tmp_path) as gateway:
        assert gateway.services.gateway.server_ids == ()


@pytest.mark.gen_test
async def test_a_change_keeps_what_is_not_named_and_starts_the_server_anew_only_where_it_must(
    tmp_path: Path,
) -> None:
    async with administered(tmp_path) as gateway:
        administration = gateway.services.administration
        await administration.add("a", program(env={"A": "1", "B": "2"}, timeout=5), ADMIN)
        await gateway.ready("a")
        since = gateway.started_at("a")
        await administration.change("a", {"timeout": None, "tools": {"block": ["pid"]}}, ADMIN)
        definition = gateway.services.gateway.definition("a")
        assert (definition.timeout, definition.tools.block) == (None, ("pid",))
        assert gateway.started_at("a") == since
        assert gateway.told("server.tools_changed") != []
        await administration.change("a", {"env": {"A": None, "B": "[redacted]", "C": "3"}}, ADMIN)
        await gateway.ready("a")
        assert gateway.services.gateway.definition("a").env == {"B": "2", "C": "3"}
        assert gateway.started_at("a") > since
        assert shown(administration, "a")["env"] == {"B": "[redacted]", "C": "[redacted]"}


@pytest.mark.gen_test
async def test_a_definition_with_faults_changes_nothing_and_each_fault_has_its_path(tmp_path: Path) -> None:
    async with administered(tmp_path) as gateway:
        administration = gateway.services.administration
        wrong = {"comand": "x", "args": ["a", 1], "timeout": 0, "env": {"A": "${NOT_SET}"}, "url": "ftp://x"}
        with pytest.raises(InvalidParams) as refused:
            await administration.add("a", wrong, ADMIN)
        paths = [fault["path"] for fault in refused.value.details]
        assert "/definition/comand" in paths
        assert "/definition/args/1" in paths
        assert "/definition/env/A" in paths
        assert "/definition/url" in paths
        for name in ("", "a b", "x" * 65, "../a"):
            with pytest.raises(InvalidParams, match="is no name"):
                await administration.add(name, program(), ADMIN)
        await administration.add("a", {**REMOTE, "headers": {"X": "secret"}}, ADMIN)
        before = administration.describe("a")
        for changes in ({"timeout": -1}, {"url": None}, {"headers": {"Y": "[redacted]"}}, {"timeout": 10**9}):
            with pytest.raises(InvalidParams):
                await administration.change("a", changes, ADMIN)
        assert administration.describe("a") == before
        assert gateway.services.gateway.server_ids == ("a",)


@pytest.mark.gen_test
async def test_a_name_is_given_once(tmp_path: Path) -> None:
    async with administered(tmp_path, "[servers.file]\nurl = 'http://127.0.0.1:9'\nlazy = true\n") as gateway:
        administration = gateway.services.administration
        results = await asyncio.gather(
            *(administration.add("a", REMOTE, ADMIN) for _ in range(3)), return_exceptions=True
        )
        assert [type(result) for result in results if result] == [DuplicateId, DuplicateId]
        with pytest.raises(DuplicateId, match=r"mcpgw\.toml"):
            await administration.add("file", REMOTE, ADMIN)


@pytest.mark.gen_test
async def test_a_server_of_the_file_is_changed_there_and_can_be_switched_here(tmp_path: Path) -> None:
    async with administered(tmp_path, toml("a")) as gateway:
        administration = gateway.services.administration
        for refused in (administration.change("a", {"timeout": 3}, ADMIN), administration.remove("a", ADMIN)):
            with pytest.raises(Conflict, match=r"mcpgw\.toml: \[servers\.a\]: change it there"):
                await refused
        await gateway.ready("a")
        await administration.set_enabled("a", False, ADMIN)
        await administration.set_enabled("a", False, ADMIN)
        assert gateway.states() == {"a": "disabled"}
        assert [data["serverId"] for data in gateway.told("server.disabled")] == ["a"]
        assert len(gateway.told("config.updated")) == 1
    async with administered(tmp_path) as gateway:
        assert gateway.states() == {"a": "disabled"}
        await gateway.services.administration.set_enabled("a", True, ADMIN)
        await gateway.ready("a")
        assert gateway.told("server.enabled") != []
        assert await gateway.services.store.switches.all() == {}


@pytest.mark.gen_test
async def test_a_switch_holds_until_the_file_says_something_else(tmp_path: Path) -> None:
    async with administered(tmp_path, toml("a"), flags={"reload.watch": False}) as gateway:
        services = gateway.services
        await services.administration.set_enabled("a", False, ADMIN)
        gateway.file.write_text(toml("a", more="timeout = 7"))
        await services.configuration.reload()
        assert gateway.states() == {"a": "disabled"}
        for more in ("enabled = false", ""):
            gateway.file.write_text(toml("a", more=more))
            await services.configuration.reload()
        await gateway.ready("a")
        assert await services.store.switches.all() == {}


@pytest.mark.gen_test
async def test_the_embedded_memory_server_can_be_switched_and_not_changed(tmp_path: Path) -> None:
    async with administered(tmp_path, memory=True) as gateway:
        administration = gateway.services.administration
        with pytest.raises(Conflict, match="embedded memory server"):
            await administration.remove("memory", ADMIN)
        await administration.set_enabled("memory", False, OPERATOR)
        assert gateway.states() == {"memory": "disabled"}
        assert administration.describe("memory").table is None


@pytest.mark.gen_test
async def test_start_stop_and_restart_may_be_said_twice(tmp_path: Path) -> None:
    async with administered(tmp_path, toml("a")) as gateway:
        administration = gateway.services.administration
        await gateway.ready("a")
        since = gateway.started_at("a")
        await administration.start("a", OPERATOR)
        assert gateway.started_at("a") == since
        for _ in range(2):
            await administration.stop("a", OPERATOR)
            assert gateway.states() == {"a": "idle"}
        await administration.start("a", OPERATOR)
        await gateway.ready("a")
        await administration.restart("a", OPERATOR)
        await gateway.ready("a")
        assert gateway.started_at("a") > since
        await administration.set_enabled("a", False, OPERATOR)
        for refused in (administration.start("a", OPERATOR), administration.restart("a", OPERATOR)):
            with pytest.raises(ServerUnavailable, match="disabled"):
                await refused
        with pytest.raises(ServerNotFound):
            await administration.start("b", OPERATOR)


@pytest.mark.gen_test
async def test_only_those_who_may_change_servers_do(tmp_path: Path) -> None:
    async with administered(tmp_path, toml("file", more="lazy = true")) as gateway:
        administration = gateway.services.administration
        await administration.add("remote", {**REMOTE, "headers": {"Authorization": "Bearer x"}}, ADMIN)
        await administration.add("local", program(lazy=True), ADMIN)
        for actor in (READER, Actor("", "eve")):
            for refused in (
                administration.add("x", REMOTE, actor),
                administration.change("remote", {"timeout": 3}, actor),
                administration.remove("remote", actor),
                administration.set_enabled("remote", False, actor),
                administration.start("file", actor),
                administration.stop("file", actor),
                administration.restart("file", actor),
            ):
                with pytest.raises(PermissionDenied) as denied:
                    await refused
                assert denied.value.details == {"missingScope": "servers:write"}
        for refused in (
            administration.add("x", program(), OPERATOR),
            administration.add("x", {"command": "x", "url": "http://x"}, OPERATOR),
            administration.add("x", {"url": "http://h", "headers": {"A": "${file:/etc/passwd}"}}, OPERATOR),
            administration.change("local", {"args": []}, OPERATOR),
            administration.change("local", {"env": {"LD_PRELOAD": "/tmp/x.so"}}, OPERATOR),
            administration.change("local", {"cwd": "/tmp"}, OPERATOR),
            administration.change("local", {"command": None, "args": None, "url": "http://h"}, OPERATOR),
            administration.change("local", {"timeout": 3, "tools": {"block": ["a"]}}, OPERATOR),
            administration.change("remote", {"command": "x", "url": None, "headers": None}, OPERATOR),
            administration.change("remote", {"url": "http://127.0.0.1:8/steal"}, OPERATOR),
            administration.change("remote", {"tools": {"a": {"fixed": {"b": "${HOME}"}}}}, OPERATOR),
            administration.remove("local", OPERATOR),
        ):
            with pytest.raises(PermissionDenied) as denied:
                await refused
            assert denied.value.details == {"missingScope": "admin"}
        await administration.change("local", {"enabled": False}, OPERATOR)
        await administration.change("remote", {"timeout": 3, "headers": {"Authorization": None}}, OPERATOR)
        await administration.change("remote", {"url": "http://127.0.0.1:8/mine"}, OPERATOR)
        await administration.add("x", REMOTE, OPERATOR)
        await administration.remove("x", OPERATOR)


@pytest.mark.gen_test
async def test_programs_can_be_forbidden_altogether(tmp_path: Path) -> None:
    async with administered(tmp_path) as gateway:
        await gateway.services.administration.add("a", program(), ADMIN)
    async with administered(tmp_path, "[servers]\nstdio = false\n", memory=True) as gateway:
        administration = gateway.services.administration
        await gateway.ready("memory")
        assert gateway.services.gateway.server_ids == ("memory",)
        described = administration.describe("a")
        assert not described.is_in_force
        assert "servers.stdio is false" in administration.faults_of("a")[0]
        with pytest.raises(InvalidParams, match=r"servers\.stdio is false"):
            await administration.add("b", program(), ADMIN)
        with pytest.raises(Conflict, match="has faults"):
            await administration.start("a", ADMIN)
        await administration.set_enabled("a", False, ADMIN)
        await administration.remove("a", ADMIN)
        with pytest.raises(ServerNotFound):
            administration.describe("a")


@pytest.mark.gen_test
async def test_a_tag_of_a_state_that_is_over_changes_nothing(tmp_path: Path) -> None:
    async with administered(tmp_path) as gateway:
        administration = gateway.services.administration
        await administration.add("a", REMOTE, ADMIN)
        first = administration.describe("a").tag
        await administration.change("a", {"timeout": 3}, ADMIN, tag=first)
        for refused in (
            administration.change("a", {"timeout": 4}, ADMIN, tag=first),
            administration.remove("a", ADMIN, tag=first),
        ):
            with pytest.raises(PreconditionFailed):
                await refused
        second = administration.describe("a").tag
        await administration.set_enabled("a", False, ADMIN)
        assert len({first, second, administration.describe("a").tag}) == 3
        await administration.remove("a", ADMIN, tag=administration.describe("a").tag)


@pytest.mark.gen_test
async def test_what_cannot_be_kept_is_not_done(tmp_path: Path) -> None:
    async with administered(tmp_path, flags={"store.busy_timeout": 0}) as gateway:
        administration, store = gateway.services.administration, gateway.services.store
        await administration.add("a", REMOTE, ADMIN)
        await store.run(lambda c: c.exec_driver_sql("PRAGMA query_only=ON") and None, reads=True)
        before = administration.describe("a")
        for refused in (
            administration.add("b", REMOTE, ADMIN),
            administration.change("a", {"timeout": 3}, ADMIN),
            administration.remove("a", ADMIN),
            administration.set_enabled("a", False, ADMIN),
        ):
            with pytest.raises(StoreError):
                await refused
        assert administration.describe("a") == before
        assert gateway.services.gateway.server_ids == ("a",)


@pytest.mark.gen_test
async def test_every_change_and_every_refusal_stands_in_the_audit_log(tmp_path: Path) -> None:
    async with administered(tmp_path) as gateway:
        administration = gateway.services.administration
        await administration.add("a", REMOTE, ADMIN)
        for refused in (administration.add("b", program(), OPERATOR), administration.remove("c", ADMIN)):
            with pytest.raises(GatewayError):
                await refused
        await administration.set_enabled("a", False, OPERATOR)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    told = [(one["who"]["user"], *one["what"].values(), one["outcome"]) for one in lines]
    assert [line for line in told if line[0] != "gateway"] == [
        ("root", "servers.add", "a", "ok"),
        ("ann", "servers.add", "b", "permission_denied"),
        ("root", "servers.remove", "c", "server_not_found"),
        ("ann", "servers.disable", "a", "ok"),
    ]


@pytest.mark.gen_test
async def test_a_gateway_that_ends_takes_no_changes(tmp_path: Path) -> None:
    async with administered(tmp_path) as gateway:
        gateway.services.gateway.begin_draining(1)
        with pytest.raises(Draining):
            await gateway.services.administration.add("a", REMOTE, ADMIN)
    with pytest.raises(Draining):
        await gateway.services.administration.add("a", REMOTE, ADMIN)


@pytest.mark.gen_test
async def test_changes_at_the_same_time_end_where_the_last_one_said(tmp_path: Path) -> None:
    async with administered(tmp_path) as gateway:
        administration = gateway.services.administration
        await administration.add("a", program(), ADMIN)
        changes = [administration.change("a", {"env": {"N": str(n)}}, ADMIN) for n in range(8)]
        switches = [administration.set_enabled("a", n % 2 == 1, ADMIN) for n in range(4)]
        await asyncio.gather(*changes, *switches, administration.restart("a", ADMIN))
        await gateway.ready("a")
        assert gateway.services.gateway.definition("a").env == {"N": "7"}
        assert len(programs()) == 1
