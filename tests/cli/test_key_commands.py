"""``mcpgw keys``: keys of programs."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.support.command_line import run
from tests.support.gateway_process import GatewayProcess


def test_a_key_is_printed_alone_listed_without_its_secret_and_revoked(tmp_path: Path) -> None:
    on = ("--data-dir", str(tmp_path / "data"))
    made = run("keys", "create", "--user", "robot", "--name", "nightly", "--ttl", "7d", *on)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    listed = run("keys", "list", "--json", *on)
    (shown,) = json.loads(listed.stdout)["keys"]
    assert key.startswith(shown["prefix"] + "_")
    assert key not in listed.stdout
    assert shown["scopes"] == ["events:read", "servers:read", "tools:call"]
    assert abs(shown["expiresAt"] - shown["createdAt"] - 7 * 86_400_000) < 1000
    assert json.loads(run("keys", "list", "--user", "other", "--json", *on).stdout) == {"keys": []}
    assert run("keys", "revoke", shown["id"], *on).returncode == 0
    again = run("keys", "revoke", shown["id"], *on)
    assert (again.returncode, "there is no key" in again.stderr) == (2, True)
    assert run("keys", "list", *on).stdout.splitlines() == ["id\tuser\tname\tscopes\tends\tused"]


def test_what_cannot_be_is_refused_with_the_reason(tmp_path: Path) -> None:
    on = ("--data-dir", str(tmp_path / "data"))
    scope = run("keys", "create", "--user", "a", "--name", "b", "--scope", "tools:cal", *on)
    assert (scope.returncode, "did you mean" in scope.stderr) == (2, True)
    name = run("keys", "create", "--user", "a b", "--name", "b", *on)
    assert "is no name of a user" in name.stderr


def test_what_a_command_prints_holds_and_what_it_takes_away_is_gone(
    gateway_process: Callable[..., GatewayProcess],
) -> None:
    gateway = gateway_process(arguments=["--memory-enabled", "false"])
    on = ("--data-dir", str(gateway.data_dir))
    made = run("keys", "create", "--user", "robot", "--name", "nightly", "--scope", "servers:read", *on)
    with_key = ("servers", "--url", gateway.url)
    key = {"MCPGW_TOKEN": made.stdout.strip()}
    assert run(*with_key, environment=key).returncode == 0
    assert run("keys", "revoke", made.stdout.split("_")[1], *on).returncode == 0
    assert run(*with_key, environment=key).returncode != 0
