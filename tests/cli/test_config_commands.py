"""``mcpgw config``: the configuration of a gateway that runs."""

import json
from collections.abc import Iterator

import pytest

from tests.support.command_line import ended, on, run
from tests.support.gateway_process import GatewayProcess, wait_until

CONFIGURATION = "[memory]\nenabled = false\n[calls]\ntimeout = 50\n"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway whose configuration is changed."""
    folder = tmp_path_factory.mktemp("configured")
    process = GatewayProcess(folder, configuration=CONFIGURATION)
    with ended(process.process):
        yield process.wait_listening()
        assert process.terminate() == 0


def test_show_says_what_is_in_force_and_where_it_comes_from(gateway: GatewayProcess) -> None:
    whole = run("config", *on(gateway))
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout == run("config", "show", *on(gateway)).stdout
    assert "[calls]\ntimeout = 50.0 seconds  (" in whole.stdout
    assert "mcpgw.toml: [calls] timeout)\n" in whole.stdout
    assert "secret = (not set)" in whole.stdout
    section = run("config", "show", "calls", *on(gateway)).stdout
    assert section.startswith("[calls]\n")
    assert section.count("[") - section.count("[calls]") <= section.count("(")
    changed = run("config", "--changed", *on(gateway)).stdout
    assert "[log]\nfile = " in changed
    assert "[websocket]" not in changed
    wrong = run("config", "show", "cals", *on(gateway))
    assert wrong.returncode == 2
    assert "there is no section 'cals'; there is server, " in wrong.stderr


def test_settings_are_changed_kept_and_given_back(gateway: GatewayProcess) -> None:
    done = run("config", "set", "log.level=debug", "events.heartbeat=7", *on(gateway))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Settings changed: log.level, events.heartbeat\n"
    shown = json.loads(run("config", "--json", *on(gateway)).stdout)["settings"]
    assert (shown["log"]["level"]["value"], shown["events"]["heartbeat"]["value"]) == ("debug", 7)
    back = run("config", "unset", "log.level", "events.heartbeat", "--json", *on(gateway))
    assert sorted(json.loads(back.stdout)["applied"]["settings"]) == ["events.heartbeat", "log.level"]
    assert run("config", "unset", "log.level", *on(gateway)).stdout == "Nothing has changed.\n"


@pytest.mark.parametrize(
    ("assignment", "code", "said"),
    [
        ("log.level=loud", 5, "log.level"),
        ("log.lvel=debug", 5, "did you mean 'log.level'?"),
        ("server.port=1", 5, "server.port cannot change while the gateway runs"),
        ("calls.timeout=3", 5, "mcpgw.toml: [calls] timeout: change it there"),
        ("log.level", 2, "a setting is written SECTION.KEY=VALUE"),
        ("level=debug", 2, "'level' is no setting: write SECTION.KEY"),
    ],
)
def test_a_setting_that_cannot_be_changed_is_refused_with_the_way_out(
    gateway: GatewayProcess, assignment: str, code: int, said: str
) -> None:
    done = run("config", "set", assignment, *on(gateway))
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr


def test_reload_takes_over_the_file_or_says_each_of_its_faults(gateway: GatewayProcess) -> None:
    file = gateway.folder / "mcpgw.toml"
    file.write_text(
        CONFIGURATION.replace("50", "60") + "[servers.away]\nurl = 'http://127.0.0.1:9/'\n", "utf-8"
    )
    run("config", "reload", *on(gateway))

    def is_applied() -> bool:  # by the command, or by the watch on the file
        shown = json.loads(run("config", "--json", *on(gateway)).stdout)
        return bool(shown["settings"]["calls"]["timeout"]["value"] == 60)

    wait_until(is_applied, what="the new timeout")
    assert "away\t" in run("servers", *on(gateway)).stdout
    file.write_text("[calls]\ntimeot = 1\n[log]\nlevel = 'loud'\n", encoding="utf-8")
    broken = run("config", "reload", *on(gateway))
    assert broken.returncode == 5
    first, *faults = broken.stderr.splitlines()
    assert first == "the configuration has faults; the old one is in force"
    assert len(faults) == 2
    assert "did you mean 'timeout'" in faults[0]
    assert is_applied()
    shown = run("config", "show", "calls", *on(gateway))
    assert shown.stderr.count("fault: ") == 2
    file.write_text(CONFIGURATION, encoding="utf-8")
    assert run("config", "reload", *on(gateway)).returncode == 0


def test_only_an_admin_s_token_opens_it(gateway: GatewayProcess) -> None:
    environment = {"MCPGW_TOKEN": gateway.token(scopes=["servers:read", "servers:write"])}
    done = run("config", "--json", *on(gateway), environment=environment)
    assert done.returncode == 4
    assert json.loads(done.stdout)["error"]["details"] == {"missingScope": "admin"}


def test_config_check_is_check(gateway: GatewayProcess) -> None:
    arguments = ("--config", gateway.folder / "mcpgw.toml", *on(gateway))
    assert run("config", "check", *arguments).stdout == run("check", *arguments).stdout
