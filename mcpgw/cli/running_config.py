"""``mcpgw config``: the configuration of a running gateway."""

from collections.abc import Mapping
from typing import Any

import click

from mcpgw.cli.arguments import given_value
from mcpgw.cli.asking import SLOW_SECONDS, ask, member, route
from mcpgw.cli.configuration import check
from mcpgw.cli.connection import ConnectionOptions, connection_options
from mcpgw.cli.groups import GroupWithDefault
from mcpgw.cli.output import UsageFault, faults_reported, json_option, one_line, say_json, tell
from mcpgw.cli.tables import cell_text


@click.group(cls=GroupWithDefault, default="show")
def config() -> None:
    """Show and change the configuration of the running gateway; without a command, show it."""


config.add_command(check)


@config.command()
@click.argument("section", required=False)
@click.option("--changed", is_flag=True, help="Only the settings that are not at their defaults.")
@json_option
@connection_options
def show(connection: ConnectionOptions, section: str | None, changed: bool, as_json: bool) -> None:
    """Show what is in force, of SECTION or of all: each setting, and the place that it comes from.

    Secrets are shown as true where they are set. What waits for a restart is said.
    """
    with faults_reported(as_json=as_json):
        found = connection.find("admin")
        answer = ask(found, "GET", route("config"))
        sections = member(answer, "settings", dict, found)
        if section is not None and section not in sections:
            raise UsageFault(f"there is no section {section[:64]!r}; there is {', '.join(sections)}")
    if as_json:
        say_json(answer)
        return
    if section is not None:
        sections = {section: sections[section]}
    _say_settings(sections, only_changed=changed)
    _say_faults(answer.get("faults"))


@config.command()
@json_option
@connection_options
def reload(connection: ConnectionOptions, as_json: bool) -> None:
    """Have the gateway read its configuration file anew; it does so by itself when the file changes.

    With faults in the file nothing changes, and each fault is said.
    """
    with faults_reported(as_json=as_json):
        found = connection.find("admin")
        answer = ask(found, "POST", route("config", "reload"), seconds=SLOW_SECONDS)
    _say_applied(answer, as_json=as_json)


@config.command(name="set")
@click.argument("assignments", nargs=-1, required=True, metavar="SECTION.KEY=VALUE...")
@json_option
@connection_options
def set_values(connection: ConnectionOptions, assignments: tuple[str, ...], as_json: bool) -> None:
    """Change settings while the gateway runs; it keeps them when it ends.

    What the configuration file, the environment or a flag says is stronger, and is changed there. A VALUE is
    JSON where it can be read as JSON, else text.

    \b
      mcpgw config set log.level=debug calls.timeout=120
    """
    with faults_reported(as_json=as_json):
        values: dict[str, Any] = {}
        for assignment in assignments:
            name, sign, value = assignment.partition("=")
            if not sign or not name:
                raise UsageFault("a setting is written SECTION.KEY=VALUE, as log.level=debug")
            values[name] = given_value(value)
        answer = _change(connection, values)
    _say_applied(answer, as_json=as_json)


@config.command()
@click.argument("names", nargs=-1, required=True, metavar="SECTION.KEY...")
@json_option
@connection_options
def unset(connection: ConnectionOptions, names: tuple[str, ...], as_json: bool) -> None:
    """Give settings that were changed with `mcpgw config set` back what they were without it."""
    with faults_reported(as_json=as_json):
        answer = _change(connection, dict.fromkeys(names))
    _say_applied(answer, as_json=as_json)


def _change(connection: ConnectionOptions, values: Mapping[str, Any]) -> Any:
    settings: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, dot, key = name.partition(".")
        if not dot or not key:
            raise UsageFault(f"{name[:64]!r} is no setting: write SECTION.KEY, as log.level")
        settings.setdefault(section, {})[key] = value
    body = {"settings": settings}
    return ask(connection.find("admin"), "PATCH", route("config"), body=body, seconds=SLOW_SECONDS)


def _say_settings(sections: Mapping[str, Any], *, only_changed: bool) -> None:
    is_first = True
    for section, rows in sections.items():
        shown = {
            key: row
            for key, row in rows.items()
            if not (only_changed and row.get("source") == "default" and "afterRestart" not in row)
        }
        if not shown:
            continue
        click.echo(("" if is_first else "\n") + one_line(f"[{section}]"))
        is_first = False
        for key, row in shown.items():
            click.echo(one_line(f"{key} = {_row_text(row)}"))


def _row_text(row: Mapping[str, Any]) -> str:
    unit = row.get("unit")
    text = _value(row, "value") + (f" {unit}" if unit not in (None, "port") else "")
    if row.get("source") not in (None, "default"):
        text += f"  ({row['source']})"
    if "afterRestart" in row:
        text += f"  [after a restart: {_value(row, 'afterRestart')}]"
    return text


def _value(row: Mapping[str, Any], name: str) -> str:
    if row.get("secret"):
        return "(set)" if row.get(name) else "(not set)"
    return cell_text(row.get(name))


def _say_applied(answer: Any, *, as_json: bool) -> None:
    if as_json:
        say_json(answer)
        return
    applied = answer.get("applied")
    applied = applied if isinstance(applied, Mapping) else {}
    servers = applied.get("servers")
    lines = [
        f"Servers {verb}: {', '.join(map(str, names))}"
        for verb, names in (servers.items() if isinstance(servers, Mapping) else ())
    ]
    if applied.get("settings"):
        lines.append(f"Settings changed: {', '.join(map(str, applied['settings']))}")
    for line in lines or ["Nothing has changed."]:
        click.echo(one_line(line))
    if answer.get("needsRestart"):
        tell(one_line(f"note: after a restart: {', '.join(map(str, answer['needsRestart']))}"))
    _say_faults(answer.get("faults"))


def _say_faults(faults: Any) -> None:
    for fault in faults if isinstance(faults, list) else ():
        tell(one_line(f"fault: {fault}"))
