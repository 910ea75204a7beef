"""``mcpgw catalog``: lists of servers that others publish, and servers made of their entries."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from mcpgw.cli.arguments import given_value
from mcpgw.cli.asking import SLOW_SECONDS, ask, member, route
from mcpgw.cli.connection import ConnectionOptions, connection_options
from mcpgw.cli.definitions import read_input, read_object, set_dotted
from mcpgw.cli.groups import GroupWithDefault
from mcpgw.cli.output import UsageFault, faults_reported, json_option, one_line, say_json, tell
from mcpgw.cli.program import program
from mcpgw.cli.tables import cell_text, moment_text, say_members, say_table

_ADDRESS: Final = re.compile(r"https?://", re.IGNORECASE)
_LARGEST_UPLOAD: Final = 64 * 1024 * 1024
_PAGE: Final = 500


@click.group(cls=GroupWithDefault, default="list")
def catalog() -> None:
    """Show catalogs of servers, and install from them; without a command, list them."""


@catalog.command(name="list")
@click.option("--search", "words", metavar="WORDS", help="List the entries of all catalogs that hold WORDS.")
@json_option
@connection_options
def list_all(connection: ConnectionOptions, words: str | None, as_json: bool) -> None:
    """Show the catalogs; with --search, entries of all of them."""
    with faults_reported(as_json=as_json):
        found = connection.find("servers:read")
        answer = ask(found, "GET", route("catalogs", q=words, limit=_PAGE if words else None))
        catalogs = member(answer, "catalogs", list, found)
        entries = member(answer, "entries", list, found) if words else []
    if as_json:
        say_json(answer)
    elif words:
        _say_entries(entries, answer.get("total"))
    else:
        rows = [
            [
                row.get("id"),
                row.get("format"),
                row.get("entries"),
                moment_text(row.get("syncedAt")),
                row.get("failure") or _source(row.get("source")),
            ]
            for row in catalogs
        ]
        empty = f"There are no catalogs; {program()} catalog import URL reads one."
        say_table(["Catalog", "Format", "Entries", "Read", "From"], rows, empty)


@catalog.command(name="import")
@click.argument("source")
@click.option(
    "--id",
    "catalog_id",
    metavar="ID",
    help="The id of the catalog; without it, made of its title, or the name of the file.",
)
@click.option("--title", metavar="TEXT", help="Its title, for people.")
@click.option(
    "--by-path",
    is_flag=True,
    help="SOURCE is a path on the gateway's machine: the gateway reads it now, and again at each sync.",
)
@json_option
@connection_options
def import_catalog(
    *,
    connection: ConnectionOptions,
    source: str,
    catalog_id: str | None,
    title: str | None,
    by_path: bool,
    as_json: bool,
) -> None:
    """Import a catalog from SOURCE: a URL that the gateway reads, a file that is sent to it, or - for stdin.

    It may be a server.json or a list of the official MCP registry, Docker's MCP catalog (YAML), or the
    mcpServers of a desktop client.

    \b
      mcpgw catalog import 'https://registry.modelcontextprotocol.io/v0/servers?version=latest'
    """
    with faults_reported(as_json=as_json):
        content = _import_source(source, by_path=by_path)
        if "content" in content and not (catalog_id or title):
            catalog_id = _id_of_file(source)
        body: dict[str, Any] = {"id": catalog_id, "title": title, **content}
        body = {name: value for name, value in body.items() if value is not None}
        found = connection.find("admin")
        added = ask(found, "POST", route("catalogs"), body=body, seconds=SLOW_SECONDS)
    if as_json:
        say_json(added)
        return
    entries = added.get("entries")
    click.echo(one_line(f"Imported {added.get('id')}: {entries} entr{'y' if entries == 1 else 'ies'}."))
    _say_notes(added)


@catalog.command()
@click.argument("catalog_id", metavar="CATALOG")
@click.argument("entry", required=False)
@click.option("--search", "words", metavar="WORDS", help="Only the entries that hold WORDS.")
@json_option
@connection_options
def show(
    connection: ConnectionOptions, catalog_id: str, entry: str | None, words: str | None, as_json: bool
) -> None:
    """Show the entries of CATALOG; or one ENTRY: what it would run or reach, and what it needs to be told."""
    with faults_reported(as_json=as_json):
        if entry is not None:
            answer = ask(connection.find("admin"), "GET", route("catalogs", catalog_id, "entries", entry))
        else:
            found = connection.find("admin")
            answer = ask(found, "GET", route("catalogs", catalog_id, q=words, limit=_PAGE))
            member(answer, "entries", list, found)
    if as_json:
        say_json(answer)
    elif entry is not None:
        _say_entry(answer)
    else:
        _say_notes(answer.get("catalog", {}))
        _say_entries(answer["entries"], answer.get("total"))


@catalog.command()
@click.argument("catalog_id", metavar="CATALOG")
@click.argument("entry")
@click.option("--as", "server", metavar="NAME", help="The name of the server; by default the entry's.")
@click.option(
    "--option",
    "option_id",
    metavar="OPTION",
    help="Which option; by default the first that can be installed.",
)
@click.option(
    "--value",
    "values",
    multiple=True,
    metavar="INPUT=VALUE",
    help="What one of its inputs is; best a reference where it is a secret. May be repeated.",
)
@click.option(
    "--values",
    "values_file",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="The inputs as JSON, - for stdin; --value goes over it.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A further member of the server's definition, as isolation=user. May be repeated.",
)
@json_option
@connection_options
def install(
    *,
    connection: ConnectionOptions,
    catalog_id: str,
    entry: str,
    server: str | None,
    option_id: str | None,
    values: tuple[str, ...],
    values_file: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make a server of ENTRY of CATALOG, and start it.

    This runs a stranger's code on the gateway's machine, or sends calls to a stranger's: look at the entry
    with `mcpgw catalog show CATALOG ENTRY` first.

    \b
      mcpgw catalog install registry io.github.ann/weather --value 'WEATHER_KEY=${env:WEATHER_KEY}'
    """
    with faults_reported(as_json=as_json):
        given = {} if values_file is None else read_object(values_file)
        for assignment in values:
            name, sign, value = assignment.partition("=")
            if not sign or not name:
                raise UsageFault("an input is written INPUT=VALUE")  # the text may be a secret
            given[name] = _input_value(value)
        members: dict[str, Any] = {}
        for assignment in settings:
            set_dotted(members, assignment)
        body = {"server": server, "option": option_id, "values": given, "settings": members}
        body = {name: value for name, value in body.items() if value}
        found = connection.find("admin")
        path = route("catalogs", catalog_id, "entries", entry, "install")
        installed = ask(found, "POST", path, body=body, seconds=SLOW_SECONDS)
        name = member(installed, "server", str, found)
    if as_json:
        say_json(installed)
    else:
        click.echo(one_line(f"Installed {entry} as {name}: see {program()} servers show {name}"))


@catalog.command()
@click.argument("catalog_id", metavar="CATALOG")
@click.argument("file", required=False, type=click.Path(path_type=Path, allow_dash=True), metavar="[FILE]")
@json_option
@connection_options
def sync(connection: ConnectionOptions, catalog_id: str, file: Path | None, as_json: bool) -> None:
    """Read CATALOG again from where it came; one that was sent, from FILE (- for stdin).

    Servers that were installed from it do not change.
    """
    with faults_reported(as_json=as_json):
        body = None if file is None else {"content": read_input(file, _LARGEST_UPLOAD)[0]}
        found = connection.find("admin")
        answer = ask(found, "POST", route("catalogs", catalog_id, "sync"), body=body, seconds=SLOW_SECONDS)
        changes = member(answer, "changes", dict, found)
    if as_json:
        say_json(answer)
        return
    told = ", ".join(f"{changes.get(name, 0)} {name}" for name in ("added", "changed", "removed"))
    click.echo(one_line(f"Read {catalog_id} again: {told}."))
    _say_notes(answer.get("catalog", {}))


@catalog.command()
@click.argument("catalog_id", metavar="CATALOG")
@json_option
@connection_options
def remove(connection: ConnectionOptions, catalog_id: str, as_json: bool) -> None:
    """Forget CATALOG. Servers that were installed from it stay."""
    with faults_reported(as_json=as_json):
        ask(connection.find("admin"), "DELETE", route("catalogs", catalog_id))
    if as_json:
        say_json({"id": catalog_id, "removed": True})
    else:
        click.echo(f"Removed {one_line(catalog_id)}.")


def _import_source(source: str, *, by_path: bool) -> dict[str, str]:
    if by_path:
        return {"file": str(Path(source).expanduser().absolute())}
    if _ADDRESS.match(source):
        return {"url": source}
    return {"content": read_input(Path(source).expanduser(), _LARGEST_UPLOAD)[0]}


def _id_of_file(source: str) -> str | None:
    """An id made of the name of a file that is sent: its content may say nothing of what it is."""
    stem = re.sub(r"\.(?:ya?ml|json)$", "", Path(source).name.lower())
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:64].rstrip("-") or None


def _input_value(text: str) -> Any:
    """A list where it is one in JSON; else the text as it is, for 1.10 is no number."""
    value = given_value(text)
    return value if isinstance(value, list) else text


def _source(source: Any) -> str:
    if not isinstance(source, Mapping):
        return ""
    return str(source.get("url") or source.get("file") or source.get("kind") or "")


def _say_entries(entries: Iterable[Any], total: Any) -> None:
    shown = [entry for entry in entries if isinstance(entry, Mapping)]
    rows = [
        [
            entry.get("catalogId"),
            entry.get("name"),
            entry.get("version"),
            entry.get("description") or entry.get("title"),
        ]
        for entry in shown
    ]
    say_table(["Catalog", "Entry", "Version", "Description"], rows, "There are no such entries.")
    if isinstance(total, int) and total > len(shown):
        tell(f"{total - len(shown)} more: narrow the search")


def _say_entry(entry: Mapping[str, Any]) -> None:
    say_members({name: value for name, value in entry.items() if name != "options"})
    for option in entry.get("options", ()):
        click.echo("")
        shown = {name: value for name, value in option.items() if name not in ("inputs", "command") and value}
        command = option.get("command")
        if isinstance(command, list):
            shown["command"] = " ".join(map(str, command))
        say_members({"option" if name == "id" else name: value for name, value in shown.items()})
        if option.get("inputs"):
            click.echo("inputs:")
        for known in option.get("inputs", ()):
            click.echo(one_line(f"  {_input_line(known)}"))


def _input_line(known: Mapping[str, Any]) -> str:
    """An input in a line: ``KEY (required, secret; default X): what it is``."""
    marks = [mark for mark in ("required", "secret", "repeated") if known.get(mark)]
    marks += [f"{name} {cell_text(known[name])}" for name in ("default", "choices") if known.get(name)]
    text = f"{known.get('name')}" + (f" ({', '.join(marks)})" if marks else "")
    return f"{text}: {known['description']}" if known.get("description") else text


def _say_notes(shown: Mapping[str, Any]) -> None:
    for note in (*([shown["failure"]] if shown.get("failure") else []), *shown.get("notes", ())):
        tell(one_line(f"note: {note}"))
