"""``mcpgw user``: those who may log in."""

import json
from pathlib import Path

from tests.support.command_line import run

GOOD = "a horse and a battery"


def test_users_are_added_listed_and_changed_without_a_gateway(tmp_path: Path) -> None:
    on = ("--data-dir", str(tmp_path / "data"))
    added = run("user", "add", "ann", "--role", "operator", "--password-stdin", *on, stdin=GOOD + "\n")
    assert added.returncode == 0, added.stderr
    assert "Added ann with the role operator" in added.stderr
    linked = run("user", "add", "bob", "--link", *on)
    assert linked.stdout.startswith("http://127.0.0.1:3000/api/v1/auth/login#mcpgw-link-")
    assert run("user", "role", "bob", "admin", *on).returncode == 0
    assert run("user", "disable", "ann", *on).returncode == 0
    listed = json.loads(run("user", "list", "--json", *on).stdout)["users"]
    assert [(one["name"], one["role"], one["disabled"], one["hasPassword"]) for one in listed] == [
        ("ann", "operator", True, True),
        ("bob", "admin", False, False),
    ]
    assert run("user", "enable", "ann", *on).returncode == 0
    assert (
        run("user", "passwd", "ann", "--password-stdin", *on, stdin="another long password").returncode == 0
    )
    table = run("user", "list", *on).stdout.splitlines()
    assert [line.split("\t")[:3] for line in table[1:]] == [
        ["ann", "operator", "active"],
        ["bob", "admin", "no password"],
    ]


def test_what_cannot_be_is_refused_with_the_reason(tmp_path: Path) -> None:
    on = ("--data-dir", str(tmp_path / "data"))
    short = run("user", "add", "ann", "--password-stdin", *on, stdin="short\n")
    assert short.returncode == 2
    assert "12 to 256 characters" in short.stderr
    name = run("user", "add", "an n", "--link", *on)
    assert "is no name of a user" in name.stderr
    role = run("user", "add", "ann", "--role", "vewer", "--link", *on)
    assert "did you mean 'viewer'" in role.stderr
    asked = run("user", "add", "ann", *on)
    assert "--password-stdin" in asked.stderr
    run("user", "add", "ann", "--link", *on)
    again = run("user", "add", "ann", "--link", *on)
    assert "there is a user 'ann' already" in again.stderr
    nobody = run("user", "disable", "anm", *on)
    assert "did you mean 'ann'" in nobody.stderr
    assert {one.returncode for one in (name, role, asked, again, nobody)} == {2}


def test_a_role_of_the_configuration_can_be_given(tmp_path: Path) -> None:
    file = tmp_path / "mcpgw.toml"
    file.write_text('[roles.support]\nscopes = ["servers:read"]\n')
    on = ("--data-dir", str(tmp_path / "data"), "--config", str(file))
    assert run("user", "add", "ann", "--role", "support", "--link", *on).returncode == 0


def test_a_user_is_linked_with_whom_an_identity_provider_knows_and_with_nobody_twice(tmp_path: Path) -> None:
    file = tmp_path / "mcpgw.toml"
    file.write_text(
        '[auth]\npasswords = false\n[auth.issuers.company]\nissuer = "https://login.example.org"\n'
        'client_id = "mcpgw"\nlogin = true\n'
    )
    on = ("--data-dir", str(tmp_path / "data"), "--config", str(file))
    added = run("user", "add", "ann", "--link", *on)
    assert added.stdout.startswith("http://127.0.0.1:3000/api/v1/auth/login?link#mcpgw-link-"), added.stderr
    run("user", "add", "bob", "--link", *on)
    linked = run("user", "link", "ann", "company", "4711", *on)
    assert (linked.returncode, "ann is '4711' of company" in linked.stderr) == (0, True)
    assert run("user", "link", "ann", "company", "4711", *on).returncode == 0
    other = run("user", "link", "bob", "company", "4711", *on)
    assert (other.returncode, "that is 'ann' already" in other.stderr) == (2, True)
    nowhere = run("user", "link", "bob", "compny", "4712", *on)
    assert (nowhere.returncode, "did you mean 'company'" in nowhere.stderr) == (2, True)
    assert run("user", "unlink", "https://login.example.org", "4711", *on).returncode == 0
    nobody = run("user", "unlink", "company", "4711", *on)
    assert (nobody.returncode, "is nobody here" in nobody.stderr) == (2, True)
