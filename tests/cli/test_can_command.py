"""``mcpgw can``: what a user may do, and why."""

import json
from pathlib import Path

from tests.support.command_line import run

ROLES = '[roles.support]\nallow = ["tickets/get_*"]\ndeny = ["*/purge", "*/delete_*"]\n'
SERVERS = (
    '[servers.tickets]\ncommand = "true"\n[servers.tickets.tools]\nblock = ["get_raw"]\n'
    '[servers.tickets.tools.list]\nrename = "get_list"\n'
    '[servers.guarded]\ncommand = "true"\napproval = "required"\n[servers.guarded.tools]\nprefix = "g_"\n'
    '[servers.secret]\ncommand = "true"\nenv = { KEY = "${env:NOT_SET_HERE}" }\nenabled = false\n'
)
UNREAD = "the servers cannot be read here (see mcpgw check): their own policies were not looked at"


def test_the_answer_names_the_rule_that_decides_and_its_place(tmp_path: Path) -> None:
    file = tmp_path / "mcpgw.toml"
    file.write_text(ROLES + SERVERS.replace("${env:NOT_SET_HERE}", "x"))
    on = ("--data-dir", str(tmp_path / "data"), "--config", str(file))
    run("user", "add", "ann", "--role", "support", "--link", *on)
    run("user", "add", "root", "--role", "admin", "--link", *on)
    yes = run("can", "ann", "tickets", "get_one", *on)
    assert (yes.returncode, yes.stdout) == (
        0,
        f"yes: the role 'support' allows 'tickets/get_*' ({file}: [roles.support] allow, entry 1)\n",
    )
    denied = run("can", "ann", "tickets", "delete_all", *on)
    assert (denied.returncode, denied.stdout) == (
        4,
        f"no: the role 'support' denies '*/delete_*' ({file}: [roles.support] deny, entry 2)\n",
    )
    nothing = json.loads(run("can", "ann", "memory", "add", "--json", *on).stdout)
    assert nothing == {
        "allowed": False,
        "reason": "no scope and no rule allows it",
        "role": "support",
        "place": f"role support, {file}: [roles.support]",
    }
    by_scope = run("can", "root", "tickets", "b", *on).stdout
    assert by_scope == "yes: the scope 'admin' allows it (role admin, built in)\n"
    run("user", "disable", "root", *on)
    assert "is disabled" in run("can", "root", "tickets", "b", *on).stdout
    for words, near in ((("anm", "tickets", "b"), "'ann'"), (("ann", "tickts", "b"), "'tickets'")):
        nobody = run("can", *words, *on)
        assert (nobody.returncode, f"did you mean {near}" in nobody.stderr) == (2, True)
    file.write_text(ROLES + 'scopes = ["tools:cal"]\n')
    for command in (("can", "ann", "a", "b"), ("check",), ("serve",)):
        faulty = run(*command, *on)
        assert faulty.returncode == 2
        assert "[roles.support] scopes: scope 'tools:cal' is not known" in faulty.stderr


def test_the_policy_of_a_server_decides_too_and_a_secret_that_is_missing_here_does_no_harm(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mcpgw.toml"
    file.write_text(ROLES + SERVERS.replace("${env:NOT_SET_HERE}", "x"))
    on = ("--data-dir", str(tmp_path / "data"), "--config", str(file))
    run("user", "add", "root", "--role", "admin", "--link", *on)
    kept = run("can", "root", "tickets", "get_raw", *on)
    assert (kept.returncode, kept.stdout) == (
        4,
        "no: the server's policy keeps it from everybody ([servers.tickets.tools] block has 'get_raw')\n",
    )
    off = run("can", "root", "secret", "x", *on).stdout
    assert off.endswith("note: the server 'secret' is disabled\n")
    file.write_text(ROLES + SERVERS)
    unread = run("can", "root", "tickets", "get_raw", *on)
    assert unread.stdout.endswith(f"note: {UNREAD}\n")
