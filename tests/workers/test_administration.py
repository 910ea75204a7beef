"""Servers and settings that one worker was asked to change: they hold in all, and are told once."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcpgw.access.tokens import Principal
from mcpgw.audit import Actor
from mcpgw.backends.status import BackendState
from mcpgw.errors import Conflict, DuplicateId, GatewayError
from mcpgw.services import Services
from tests.support.administered import ADMIN, program, toml
from tests.support.waiting import until
from tests.support.workers import Workers, gateway_of_workers

_ROOT = Principal("root", frozenset({"admin"}), float("inf"), "test")


def states(workers: Workers, name: str) -> list[str]:
    """The state of a server in each worker; empty where there is none."""

    def state(services: Services) -> str:
        if name not in services.gateway.server_ids:
            return ""
        return services.gateway.server_status(_ROOT, name).state.value

    return [state(services) for services in workers.each]


async def all_are(workers: Workers, name: str, state: BackendState) -> None:
    """Wait until a server is in one state everywhere."""
    await until(lambda: set(states(workers, name)) == {state.value}, what=f"{name} {state.value}")


def since(workers: Workers, name: str) -> list[float]:
    """Since when a server is as it is, in each worker."""
    return [services.gateway.server_status(_ROOT, name).since for services in workers.each]


def audited(workers: Workers, action: str) -> list[dict[str, Any]]:
    """The lines of the audit log on an action."""
    lines = [json.loads(line) for line in workers.audit().splitlines()]
    return [line for line in lines if line["what"].get("action") == action]


@pytest.mark.gen_test(timeout=30)
async def test_a_server_added_changed_and_removed_in_one_worker_is_so_in_all(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path) as workers:
        one, two = workers.each
        await two.administration.add("a", program(), ADMIN)
        assert all(services.gateway.server_ids == ("a",) for services in workers.each), "before the answer"
        await all_are(workers, "a", BackendState.READY)

        await one.administration.change("a", {"timeout": 7}, ADMIN)
        assert [services.gateway.definition("a").timeout for services in workers.each] == [7, 7]
        tags = {services.administration.describe("a").tag for services in workers.each}
        assert len(tags) == 1, "whoever has seen it in one worker may change it in another"

        await two.administration.remove("a", ADMIN)
        assert [services.gateway.server_ids for services in workers.each] == [(), ()]
        await until(lambda: len(workers.told("config.updated")) == 3)
        await until(lambda: audited(workers, "servers.remove"))
        for action in ("servers.add", "servers.change", "servers.remove"):
            assert len(audited(workers, action)) == 1
        assert [data["servers"] for data in workers.told("config.updated")] == [
            {"added": ["a"]},
            {"changed": ["a"]},
            {"removed": ["a"]},
        ]


@pytest.mark.gen_test(timeout=30)
async def test_of_two_workers_that_add_the_same_name_at_once_one_is_refused(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path) as workers:
        adding = [
            services.administration.add("a", program(timeout=number + 5), ADMIN)
            for number, services in enumerate(workers.each)
        ]
        ends = await asyncio.gather(*adding, return_exceptions=True)
        assert [type(end) for end in ends if end is not None] == [DuplicateId]
        kept = await workers.each[0].store.servers.get("a")
        assert kept is not None
        wanted = kept.table["timeout"]
        await until(
            lambda: [services.gateway.definition("a").timeout for services in workers.each] == [wanted] * 2
        )


@pytest.mark.gen_test(timeout=30)
async def test_changes_in_two_workers_at_once_are_both_there(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path) as workers:
        one, two = workers.each
        await one.administration.add("a", program(), ADMIN)
        await asyncio.gather(
            one.administration.change("a", {"timeout": 7}, ADMIN),
            two.administration.change("a", {"env": {"A": "b"}}, ADMIN),
        )

        def definitions() -> list[tuple[object, object]]:
            found = [services.gateway.definition("a") for services in workers.each]
            return [(one.timeout, one.env.get("A")) for one in found]

        await until(lambda: definitions() == [(7, "b")] * 2)


@pytest.mark.gen_test(timeout=30)
async def test_stop_start_and_restart_act_in_all_workers(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path, toml("a")) as workers:
        one, two = workers.each
        await all_are(workers, "a", BackendState.READY)
        await one.administration.stop("a", ADMIN)
        assert set(states(workers, "a")) <= {"idle", "stopped"}, "before the answer"
        await two.administration.start("a", ADMIN)
        await all_are(workers, "a", BackendState.READY)
        before = since(workers, "a")
        await one.administration.restart("a", ADMIN)
        await until(lambda: all(new > old for new, old in zip(since(workers, "a"), before, strict=True)))
        await all_are(workers, "a", BackendState.READY)


@pytest.mark.gen_test(timeout=30)
async def test_a_server_of_the_file_is_switched_off_and_on_in_all_workers(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path, toml("a")) as workers:
        one, two = workers.each
        await two.administration.set_enabled("a", False, ADMIN)
        assert states(workers, "a") == ["disabled", "disabled"]
        await one.administration.set_enabled("a", True, ADMIN)
        await all_are(workers, "a", BackendState.READY)


@pytest.mark.gen_test(timeout=30)
async def test_a_changed_setting_is_in_force_in_all_workers_and_told_once(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path) as workers:
        _, two = workers.each
        await two.configuration.change({"calls.timeout": 12}, ADMIN)
        assert [services.config.calls.timeout for services in workers.each] == [12, 12]
        assert [services.gateway.call_settings.timeout for services in workers.each] == [12, 12]
        await two.configuration.change({"calls.timeout": None}, ADMIN)
        assert len({services.config.calls.timeout for services in workers.each} - {12}) == 1
        await until(lambda: len(workers.told("config.applied")) == 2)
        assert [data["settings"] for data in workers.told("config.applied")] == [["calls.timeout"]] * 2


@pytest.mark.gen_test(timeout=30)
async def test_a_reload_that_one_worker_is_asked_for_is_done_by_all_and_so_are_its_faults(
    tmp_path: Path,
) -> None:
    async with gateway_of_workers(tmp_path, flags={"reload.watch": False}) as workers:
        _, two = workers.each
        file = tmp_path / "mcpgw.toml"
        file.write_text("[calls]\ntimeout = 11\n", "utf-8")
        await two.configuration.reload(ADMIN)
        assert [services.config.calls.timeout for services in workers.each] == [11, 11]
        file.write_text("[calls]\ntimeout = 'never'\n", "utf-8")
        with pytest.raises(Conflict):
            await two.configuration.reload(ADMIN)
        faults = {services.configuration.faults for services in workers.each}
        assert [len(found) for found in faults] == [1], "each has the same"
        await until(lambda: workers.told("config.error"))
        assert (len(workers.told("config.applied")), len(workers.told("config.error"))) == (1, 1)


@pytest.mark.gen_test(timeout=30)
async def test_a_watched_file_is_taken_over_by_each_worker_and_told_once(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path) as workers:
        (tmp_path / "mcpgw.toml").write_text("[calls]\ntimeout = 11\n", "utf-8")
        await until(lambda: all(services.config.calls.timeout == 11 for services in workers.each))
        await until(lambda: workers.told("config.applied"))
        (tmp_path / "mcpgw.toml").write_text("[calls]\ntimeout = 9\n", "utf-8")
        await until(lambda: all(services.config.calls.timeout == 9 for services in workers.each))
        await until(lambda: len(workers.told("config.applied")) == 2)
        assert [data["source"] for data in workers.told("config.applied")] == ["file", "file"]


@pytest.mark.gen_test(timeout=30)
async def test_what_a_worker_wrote_and_told_nobody_is_taken_over_when_it_has_gone(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path) as workers:
        one, two = workers.each
        # As a worker would that is killed between the store and its word to the others.
        await two.store.servers.put("a", program(), enabled=True, by="root")
        await two.store.settings.change({"calls.timeout": 12}, by="root")
        workers.office.lose(2)
        await until(lambda: one.gateway.server_ids == ("a",))
        await until(lambda: one.config.calls.timeout == 12)


@pytest.mark.gen_test(timeout=30)
@pytest.mark.parametrize("scopes", [(), ("servers:read",)])
async def test_whoever_may_not_changes_nothing_in_any_worker(tmp_path: Path, scopes: tuple[str, ...]) -> None:
    nobody = Actor("127.0.0.1", "eve", scopes=frozenset(scopes))
    async with gateway_of_workers(tmp_path, toml("a")) as workers:
        await all_are(workers, "a", BackendState.READY)
        before = since(workers, "a")
        administration = workers.each[1].administration
        tries: list[Callable[[], Any]] = [
            lambda: administration.add("b", program(), nobody),
            lambda: administration.set_enabled("a", False, nobody),
            lambda: administration.restart("a", nobody),
            lambda: workers.each[1].configuration.reload(nobody),
        ]
        for attempt in tries:
            with pytest.raises(GatewayError):
                await attempt()
        assert since(workers, "a") == before
