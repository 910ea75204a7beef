"""``mcpgw can``: what a user may do, and why."""

import json
from pathlib import Path

from tests.support.command_line import run

ROLES = '[roles.support]\nallow = ["tickets/get_*"]\ndeny = ["*/delete_*"]\n'


def test_the_answer_names_the_rule_that_decides(tmp_path: Path) -> None:
    file = tmp_path / "mcpgw.toml"
    file.write_text(ROLES)
    on = ("--data-dir", str(tmp_path / "data"), "--config", str(file))
    run("user", "add", "ann", "--role", "support", "--link", *on)
    run("user", "add", "root", "--role", "admin", "--link", *on)
    yes = run("can", "ann", "tickets", "get_one", *on)
    assert (yes.returncode, yes.stdout) == (
        0,
        "yes: the role 'support' allows 'tickets/get_*' (role support)\n",
    )
    denied = run("can", "ann", "tickets", "delete_all", *on)
    assert (denied.returncode, denied.stdout) == (
        4,
        "no: the role 'support' denies '*/delete_*' (role support)\n",
    )
    nothing = json.loads(run("can", "ann", "memory", "add", "--json", *on).stdout)
    assert nothing == {"allowed": False, "reason": "no scope and no rule allows it", "role": "support"}
    assert run("can", "root", "a", "b", *on).stdout == "yes: the scope 'admin' allows it (role admin)\n"
    run("user", "disable", "root", *on)
    assert "is disabled" in run("can", "root", "a", "b", *on).stdout
    nobody = run("can", "anm", "a", "b", *on)
    assert (nobody.returncode, "did you mean 'ann'" in nobody.stderr) == (2, True)
    file.write_text(ROLES + 'scopes = ["tools:cal"]\n')
    for command in (("can", "ann", "a", "b"), ("check",), ("serve",)):
        faulty = run(*command, *on)
        assert faulty.returncode == 2
        assert "[roles.support] scopes: scope 'tools:cal' is not known" in faulty.stderr
