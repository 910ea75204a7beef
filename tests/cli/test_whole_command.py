"""The ``mcpgw`` command as a whole, and its page."""

import re
import subprocess
import sys
from collections.abc import Iterator

import click

import mcpgw
from mcpgw.cli import main
from mcpgw.cli.exit_codes import MEANINGS
from tests.support.command_line import ROOT, clean_environment, run

PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def test_version_and_help_come_fast_and_import_nothing_heavy() -> None:
    assert run("--version").stdout == f"mcpgw, version {mcpgw.__version__}\n"
    program = (
        "import sys\nfrom mcpgw.cli import main\nmain(['--help'], standalone_mode=False)\n"
        "print([name for name in ('tornado', 'mcp', 'jwt', 'rich', 'jsonschema') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_is_a_command_too() -> None:
    assert run("help").stdout == run("--help").stdout
    assert run("help", "token", "create").stdout == run("token", "create", "--help").stdout
    for names in (("tokn",), ("call", "memory")):
        done = run("help", *names)
        assert done.returncode == 2
        assert f"no such command {names[-1]!r}" in done.stderr


def test_the_page_has_every_command_with_every_option_of_its_own() -> None:
    shared = {"--url", "--data-dir", "--config", "--ca-file", "--help", "--json", "--servers"}
    for path, command in commands(main, "mcpgw"):
        assert f"### {path}\n" in PAGE
        if path in ("mcpgw serve", "mcpgw check", "mcpgw config check"):
            continue  # a flag for every setting: docs/configuration.md
        section = PAGE.partition(f"### {path}\n")[2].partition("\n### ")[0]
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--") and option not in shared:
                    assert option in section, f"{path} {option}"


def test_the_page_and_the_help_of_call_have_every_exit_code() -> None:
    documented = dict(re.findall(r"^\| (\d+) \| (.+) \|$", PAGE.partition("## Exit codes")[2], re.MULTILINE))
    assert documented == {str(code.value): meaning for code, meaning in MEANINGS.items()}
    printed = run("call", "--help").stdout
    for code, meaning in documented.items():
        assert re.search(rf"^ +{code} +{re.escape(meaning)}$", printed, re.MULTILINE), code


def commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    for key, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {key}")
        else:
            yield f"{name} {key}", command
