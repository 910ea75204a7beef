"""The configuration while the gateway runs: read again, changed, refused."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from mcpgw.configuration import LIVE
from mcpgw.errors import Conflict, GatewayError, InvalidParams, PermissionDenied
from mcpgw.settings import SETTINGS
from mcpgw.store import StoreError
from tests.support.administered import ADMIN, OPERATOR, administered, program, toml
from tests.support.waiting import until


def test_every_setting_that_can_change_while_it_runs_is_one_and_none_is_a_secret() -> None:
    by_name = {setting.name: setting for setting in SETTINGS}
    assert by_name.keys() >= LIVE
    assert not any(by_name[name].secret for name in LIVE)


@pytest.mark.gen_test
async def test_a_changed_file_is_taken_over_and_untouched_servers_run_on(tmp_path: Path) -> None:
    async with administered(tmp_path, toml("same") + toml("changed") + toml("gone")) as gateway:
        await gateway.services.administration.add("stored", program(), ADMIN)
        await gateway.ready("same", "changed", "gone", "stored")
        since = {name: gateway.started_at(name) for name in ("same", "stored", "changed")}
        gateway.file.write_text(
            toml("same") + toml("changed", more="env = {A = '1'}") + toml("added") + "[calls]\ntimeout = 7\n"
        )
        await until(lambda: gateway.told("config.applied"))
        assert gateway.told("config.applied") == [
            {
                "source": "file",
                "servers": {"added": ["added"], "changed": ["changed"], "removed": ["gone"]},
                "settings": ["calls.timeout"],
            }
        ]
        await gateway.ready("same", "changed", "added", "stored")
        assert "gone" not in gateway.states()
        assert gateway.started_at("same") == since["same"]
        assert gateway.started_at("stored") == since["stored"]
        assert gateway.started_at("changed") > since["changed"]
        assert gateway.services.config.calls.timeout == 7


@pytest.mark.gen_test
async def test_a_broken_file_changes_nothing_and_every_fault_is_told_until_it_is_mended(
    tmp_path: Path,
) -> None:
    async with administered(tmp_path, toml("a")) as gateway:
        await gateway.ready("a")
        since, services = gateway.started_at("a"), gateway.services
        gateway.file.write_text("[servers.b]\n[calls]\ntimeout = -1\ntimeot = 3\n")
        await until(lambda: gateway.told("config.error"))
        (told,) = gateway.told("config.error")
        assert [fault.partition(": ")[2] for fault in told["faults"]] == [
            "[calls] timeout: -1.0 is too small: at least 0.1 seconds",
            "[calls] timeot: unknown key; did you mean 'timeout'?",
            "[servers.b]: has neither command (a server to start) nor url (a server to reach)",
        ]
        assert services.configuration.faults == tuple(told["faults"])
        with pytest.raises(Conflict, match="the old one is in force") as refused:
            await services.configuration.reload(ADMIN)
        assert refused.value.details == told["faults"]
        misspelt = (
            '[roles.guide]\nscopes = ["tools:cal"]\n',
            '[auth.issuers.x]\nissuer = "https://x.example"\nscopes = { all = ["tools:cal"] }\n',
        )
        for text in ("servers = [", "\x00", *misspelt):
            count = len(gateway.told("config.error"))
            gateway.file.write_text(text)
            await until(lambda count=count: len(gateway.told("config.error")) > count)  # type: ignore[misc]
        gateway.file.unlink()
        await until(lambda: any("cannot be read" in one for one in services.configuration.faults))
        assert gateway.started_at("a") == since
        assert services.config.calls.timeout == 60
        gateway.file.write_text(toml("a"))
        await until(lambda: gateway.told("config.applied"))
        assert services.configuration.faults == ()
        assert gateway.started_at("a") == since


@pytest.mark.gen_test
async def test_a_setting_that_needs_a_restart_is_named_and_not_in_force(tmp_path: Path) -> None:
    async with administered(tmp_path, flags={"reload.watch": False}) as gateway:
        services = gateway.services
        gateway.file.write_text("[server]\nport = 4000\nallowed_hosts = ['a.example']\n")
        applied = await services.configuration.reload(ADMIN)
        assert applied.needs_restart == ("server.port",)
        assert applied.settings == ("server.allowed_hosts",)
        assert gateway.told("config.applied")[-1]["needsRestart"] == ["server.port"]
        assert (services.config.server.port, services.config.server.allowed_hosts) == (3000, ("a.example",))
        (port,) = [one for one in services.configuration.describe() if one["name"] == "server.port"]
        assert (port["value"], port["afterRestart"]) == (3000, 4000)
        gateway.file.write_text("")
        assert (await services.configuration.reload(ADMIN)).needs_restart == ()


@pytest.mark.gen_test
async def test_what_does_not_go_with_a_setting_that_waits_for_a_restart_waits_too(tmp_path: Path) -> None:
    before = "[calls]\ntimeout = 60\nmax_timeout = 100\nretry_wait = 1\n"
    lazy = "lazy = true\n"
    async with administered(
        tmp_path, before + toml("a", more=f"{lazy}timeout = 5"), flags={"reload.watch": False}
    ) as gateway:
        configuration, services = gateway.services.configuration, gateway.services
        gateway.file.write_text(
            "[calls]\ntimeout = 500\nmax_timeout = 1000\nretry_wait = 2\n"
            + toml("a", more=f"{lazy}timeout = 900")
            + toml("b", more=f"{lazy}timeout = 900")
            + toml("c", more=f"{lazy}timeout = 90")
        )
        applied = await configuration.reload(ADMIN)
        calls = services.config.calls
        assert (calls.timeout, calls.max_timeout, calls.retry_wait) == (60, 100, 2)
        assert applied.settings == ("calls.retry_wait",)
        assert set(applied.needs_restart) == {"calls.timeout", "calls.max_timeout"}
        assert services.gateway.server_ids == ("a", "c")
        assert services.gateway.definition("a").timeout == 5
        assert len(configuration.faults) == 2
        assert all("calls.max_timeout (100 seconds)" in fault for fault in configuration.faults)
        await configuration.change({"calls.input_timeout": 30}, ADMIN)
        assert services.config.calls.timeout == 60
    async with administered(tmp_path) as gateway:
        assert gateway.services.config.calls.timeout == 500
        assert gateway.services.gateway.server_ids == ("a", "b", "c")


@pytest.mark.gen_test
async def test_a_file_that_is_not_watched_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    async with administered(tmp_path, flags={"reload.watch": False}) as gateway:
        gateway.file.write_text(toml("a"))
        await asyncio.sleep(0.5)
        assert gateway.states() == {}
        applied = await gateway.services.configuration.reload(ADMIN)
        assert applied.to_json() == {"servers": {"added": ["a"]}}
        await gateway.ready("a")


@pytest.mark.gen_test
async def test_a_secret_that_a_file_holds_is_read_again_with_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("one")
    text = toml("a", more="env = {A = '${file:secret}'}")
    async with administered(tmp_path, text, flags={"reload.watch": False}) as gateway:
        (tmp_path / "secret").write_text("two")
        applied = await gateway.services.configuration.reload(ADMIN)
        assert applied.servers.changed == ("a",)
        assert gateway.services.gateway.definition("a").env == {"A": "two"}


@pytest.mark.gen_test
async def test_a_server_that_comes_into_the_file_takes_its_name_from_the_stored_one_and_gives_it_back(
    tmp_path: Path,
) -> None:
    async with administered(tmp_path, flags={"reload.watch": False}) as gateway:
        services = gateway.services
        await services.administration.add("a", program(env={"FROM": "store"}), ADMIN)
        gateway.file.write_text(toml("a", more="env = {FROM = 'file'}"))
        await services.configuration.reload()
        assert services.gateway.definition("a").env == {"FROM": "file"}
        assert "is taken by" in services.configuration.faults[0]
        gateway.file.write_text("")
        await services.configuration.reload()
        assert services.gateway.definition("a").env == {"FROM": "store"}
        assert services.configuration.faults == ()


@pytest.mark.gen_test
async def test_a_changed_setting_is_in_force_and_is_there_after_a_restart(tmp_path: Path) -> None:
    async with administered(tmp_path) as gateway:
        configuration = gateway.services.configuration
        applied = await configuration.change({"calls.timeout": 7, "metrics.public": True}, ADMIN)
        assert set(applied.settings) == {"calls.timeout", "metrics.public"}
        assert gateway.services.config.calls.timeout == 7
    async with administered(tmp_path) as gateway:
        config = gateway.services.config
        assert (config.calls.timeout, config.metrics.public) == (7, True)
        assert config.sources["calls.timeout"] == "the store (root)"
        await gateway.services.configuration.change({"calls.timeout": None}, ADMIN)
        assert (gateway.services.config.calls.timeout, gateway.services.config.metrics.public) == (60, True)
    async with administered(tmp_path, "[metrics]\npublic = false\n") as gateway:
        assert gateway.services.config.calls.timeout == 60
        assert gateway.services.config.metrics.public is False


@pytest.mark.gen_test
async def test_a_setting_is_changed_where_it_stands_and_only_if_it_can(tmp_path: Path) -> None:
    text = "[calls]\ntimeout = 7\n"
    environment = {"MCPGW_METRICS_PUBLIC": "true"}
    async with administered(tmp_path, text, environment=environment) as gateway:
        configuration = gateway.services.configuration
        before = gateway.services.config
        for name, value, match in (
            ("calls.timeout", 8, r"mcpgw\.toml: \[calls\] timeout: change it there"),
            ("metrics.public", False, "environment MCPGW_METRICS_PUBLIC"),
            ("server.port", 1, "cannot change while the gateway runs"),
            ("auth.secret", "x" * 40, "cannot change while the gateway runs"),
        ):
            with pytest.raises(Conflict, match=match):
                await configuration.change({"websocket.max_calls": 3, name: value}, ADMIN)
        for values, path in (
            ({"calls.timeot": 3}, "/settings/calls/timeot"),
            ({"websocket.max_calls": "3"}, "/settings/websocket/max_calls"),
            ({"websocket.max_calls": 0}, "/settings/websocket/max_calls"),
            ({"websocket.pong_timeout": 31}, "/settings"),
        ):
            with pytest.raises(InvalidParams) as refused:
                await configuration.change(values, ADMIN)
            assert [fault["path"] for fault in refused.value.details] == [path]
        with pytest.raises(PermissionDenied):
            await configuration.change({"websocket.max_calls": 3}, OPERATOR)
        assert gateway.services.config == before
        assert await gateway.services.store.settings.all() == {}


@pytest.mark.gen_test
async def test_stored_settings_that_do_not_go_with_the_file_any_more_keep_nobody_from_starting(
    tmp_path: Path,
) -> None:
    async with administered(tmp_path) as gateway:
        await gateway.services.configuration.change({"websocket.pong_timeout": 29}, ADMIN)
    async with administered(tmp_path, "[websocket]\nping_interval = 20\n") as gateway:
        assert gateway.services.config.websocket.pong_timeout == 10
        assert "the store (root): 29 seconds is longer" in gateway.services.configuration.faults[0]
        await gateway.services.configuration.change({"websocket.pong_timeout": None}, ADMIN)
        assert gateway.services.configuration.faults == ()


@pytest.mark.gen_test
async def test_a_store_that_cannot_be_written_leaves_the_old_configuration_in_force(tmp_path: Path) -> None:
    async with administered(tmp_path, toml("a"), flags={"reload.watch": False}) as gateway:
        services = gateway.services
        await services.administration.set_enabled("a", False, ADMIN)
        await services.store.run(lambda c: c.exec_driver_sql("PRAGMA query_only=ON") and None, reads=True)
        with pytest.raises(StoreError):
            await services.configuration.change({"calls.timeout": 7}, ADMIN)
        gateway.file.write_text(toml("a", more="enabled = false") + "[calls]\ntimeout = 7\n")
        with pytest.raises(StoreError):
            await services.configuration.reload(ADMIN)
        assert services.config.calls.timeout == 60
        assert gateway.told("config.error")[-1] == {"faults": list(services.configuration.faults)}
        await services.store.run(lambda c: c.exec_driver_sql("PRAGMA query_only=OFF") and None, reads=True)
        assert (await services.configuration.reload(ADMIN)).settings == ("calls.timeout",)
        assert services.configuration.faults == ()


@pytest.mark.gen_test
async def test_reloads_and_changes_stand_in_the_audit_log(tmp_path: Path) -> None:
    async with administered(tmp_path, flags={"reload.watch": False}) as gateway:
        configuration = gateway.services.configuration
        await configuration.change({"calls.timeout": 7}, ADMIN)
        gateway.file.write_text("[")
        for actor in (ADMIN, OPERATOR):
            with pytest.raises(GatewayError):
                await configuration.reload(actor)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [
        (one["who"]["user"], one["what"]["action"], one["outcome"])
        for one in lines
        if one["event"] == "admin"
    ] == [
        ("root", "config.change", "ok"),
        ("root", "config.reload", "conflict"),
        ("ann", "config.reload", "permission_denied"),
    ]


def test_the_page_names_every_setting_that_can_change_while_it_runs() -> None:
    page = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text("utf-8")
    said = page.partition("These settings can change")[2].partition("All others")[0]
    assert set(re.findall(r"`([a-z]+\.[a-z_]+)`", said)) == LIVE
