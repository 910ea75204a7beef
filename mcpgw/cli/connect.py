"""``mcpgw connect``: the entry by which a desktop client reaches this gateway, printed or written."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from mcpgw.cli import json_editing, toml_editing
from mcpgw.cli.connection import ConnectionOptions, connection_options, is_here
from mcpgw.cli.desktop_clients import CLIENTS, TOKEN_VARIABLE, DesktopClient
from mcpgw.cli.output import UsageFault, faults_reported, json_option, one_line, say_json, tell
from mcpgw.cli.program import program, program_words
from mcpgw.cli.safe_files import read_file, replace_file
from mcpgw.cli.tables import say_table
from mcpgw.redaction import REDACTED

_OTHERS_MAY: Final = 0o077
_OWN_MEMBERS: Final = frozenset(
    {"type", "command", "args", "headers", "bearer_token_env_var"}
    | {client.url_member for client in CLIENTS.values() if client.url_member}
)
"""What says how the gateway is reached; all else in an entry is the user's."""


@dataclass(frozen=True)
class _Plan:
    """What is to stand where."""

    client: DesktopClient
    file: Path | None
    path: tuple[str, ...]
    entry: Mapping[str, Any]
    has_token: bool
    lacks_token: bool = False
    in_project: bool = False

    def shown(self) -> str:
        """The entry, with what it stands in."""
        if self.client.format == "toml":
            return toml_editing.table_text(self.path, self.entry).rstrip("\n")
        value: Any = self.entry
        for name in reversed(self.path):
            value = {name: value}
        return json.dumps(value, indent=2, ensure_ascii=False)

    def merged(self, old: Any) -> dict[str, Any]:
        """The entry in the place of an `old` one, whose other members stay."""
        if not isinstance(old, dict):
            return dict(self.entry)
        kept = {
            name: self.entry.get(name, value)
            for name, value in old.items()
            if name in self.entry or name not in _OWN_MEMBERS
        }
        return kept | dict(self.entry)

    def to_json(self, *, is_written: bool = False) -> dict[str, Any]:
        """For other programs; what `is_written` need not be shown, so the token is not."""
        entry = dict(self.entry)
        if is_written and self.has_token:
            entry["headers"] = dict.fromkeys(entry["headers"], REDACTED)
        return {
            "client": self.client.name,
            "file": None if self.file is None else str(self.file),
            "path": list(self.path),
            "entry": entry,
        }


@click.command()
@click.argument("client", required=False, type=click.Choice(list(CLIENTS)), metavar="[CLIENT]")
@click.option("--write", is_flag=True, help="Write the entry into the client's file; the old file is kept.")
@click.option("--print", "only_print", is_flag=True, help="Print the entry and write nothing; the default.")
@click.option("--project", is_flag=True, help="The client's file of the project in the current folder.")
@click.option(
    "--file",
    "given_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Another file of the client.",
)
@click.option("--name", metavar="NAME", help="What the client calls the gateway.  [default: mcpgw]")
@click.option("--server", metavar="SERVER", help="One server alone, under its own names.")
@click.option(
    "--http",
    "by_url",
    is_flag=True,
    help=f"Reach the gateway at its URL rather than by `mcpgw stdio`; the token is in {TOKEN_VARIABLE} of "
    "the client's environment, or in --token-file.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File with the token: `mcpgw stdio` reads it whenever it needs it; with --http it is copied.",
)
@json_option
@connection_options
def connect(
    *,
    connection: ConnectionOptions,
    client: str | None,
    write: bool,
    only_print: bool,
    project: bool,
    given_file: Path | None,
    name: str | None,
    server: str | None,
    by_url: bool,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """Let the desktop CLIENT reach this gateway; without CLIENT, list those that are known.

    Prints the entry for its file, or writes it with --write: comments and everything else in the file stay.

    \b
      mcpgw connect claude-desktop --write
      mcpgw connect vscode --project --http
    """
    with faults_reported(as_json=as_json):
        if client is None:
            _say_clients(name or "mcpgw", as_json=as_json)
            return
        if write and only_print:
            raise UsageFault("--print and --write are one or the other")
        plan = _plan(
            CLIENTS[client],
            connection,
            name=name or ("mcpgw" if server is None else f"mcpgw-{server}"),
            server=server,
            by_url=by_url,
            token_file=token_file,
            given_file=given_file,
            project=project,
        )
        if write:
            _write(plan, as_json=as_json)
        elif as_json:
            say_json(plan.to_json() | {"written": False})
        else:
            _print(plan)


def _plan(
    client: DesktopClient,
    options: ConnectionOptions,
    *,
    name: str,
    server: str | None,
    by_url: bool,
    token_file: Path | None,
    given_file: Path | None,
    project: bool,
) -> _Plan:
    from mcpgw.server_definitions import NAME_RULE, is_server_name  # noqa: PLC0415 - after --help

    if server is not None and not is_server_name(server):
        raise UsageFault(f"{server[:64]!r} is no server's name")
    if not is_server_name(name):
        raise UsageFault(f"{name[:64]!r} is no name: {NAME_RULE}")
    token, lacks_token = None, False
    if by_url:
        token = _token_of(client, token_file)
        path = "/mcp" if server is None else f"/mcp/{server}"
        entry = client.by_url(options.address().endpoint(path), token)
    else:
        words = [*program_words(), "stdio", *options.words()]
        words += [] if server is None else ["--server", server]
        words += [] if token_file is None else ["--token-file", str(token_file.expanduser().absolute())]
        entry = client.by_command(words)
        lacks_token = token_file is None and options.url is not None and not is_here(options.address().host)
    file = _file(client, given_file, project=project)
    in_project = project and given_file is None
    return _Plan(client, file, (*client.members, name), entry, token is not None, lacks_token, in_project)


def _token_of(client: DesktopClient, token_file: Path | None) -> str | None:
    """The token that stands in an entry with a URL; None where the client takes it from its environment.

    Raises:
        UsageFault: the client takes no URL, or the token in no way that was given.
    """
    if not client.url_member:
        raise UsageFault(f"the file of {client.title} takes no URL: leave out --http")
    if token_file is None:
        if not client.reference and client.format == "json":
            raise UsageFault(
                f"{client.title} takes no token from its environment: leave out --http, or give --token-file"
            )
        return None
    if client.format == "toml":
        raise UsageFault(
            f"{client.title} takes the token from its environment alone: leave out --token-file, and set "
            f"{TOKEN_VARIABLE} there"
        )
    from mcpgw.client.address import authorization  # noqa: PLC0415
    from mcpgw.references import read_text  # noqa: PLC0415

    try:
        token = read_text(token_file, 64 * 1024).strip()
        authorization(token)
    except ValueError as error:
        raise UsageFault(f"{token_file}: {error}") from None
    return token


def _file(client: DesktopClient, given: Path | None, *, project: bool) -> Path | None:
    if given is not None:
        return given.expanduser().absolute()
    if project:
        if not client.project_file:
            raise UsageFault(f"{client.title} has no file in projects: leave out --project")
        return Path.cwd() / client.project_file
    return client.file(os.environ, sys.platform) if client.user_file else None


def _print(plan: _Plan) -> None:
    click.echo(plan.shown())
    if plan.file is None:
        tell("Put this where your client keeps its servers.")
    else:
        tell(f"Put this into {plan.file}, or let --write do it.")
    _say_next(plan)


def _write(plan: _Plan, *, as_json: bool) -> None:
    if plan.file is None:
        raise UsageFault(f"--file says which file to write for {plan.client.title}")
    found = read_file(plan.file)
    is_toml = plan.client.format == "toml"
    try:
        old = (toml_editing.table if is_toml else json_editing.member)(found.text, plan.path)
        entry, text = plan.merged(old), found.text
        if entry != old:
            text = (toml_editing.set_table if is_toml else json_editing.set_member)(text, plan.path, entry)
    except ValueError as error:
        raise UsageFault(
            f"{found.path}: {error}; mend it, or put the entry there by hand ({program()} connect "
            f"{plan.client.name})"
        ) from None
    is_new = text != found.text or (plan.has_token and bool(found.mode & _OTHERS_MAY))
    backup = replace_file(found, text, is_secret=plan.has_token) if is_new else None
    if plan.has_token and plan.in_project:
        tell(f"note: the token stands in {found.path}, a file of the project: keep it out of version control")
    if as_json:
        say_json(
            plan.to_json(is_written=True)
            | {"written": is_new, "backup": None if backup is None else str(backup)}
        )
        return
    where = f"{'.'.join(plan.path)} of {found.path}"
    kept = "" if backup is None else f" The file as it was: {backup}"
    click.echo(one_line(f"Wrote {where}.{kept}" if is_new else f"Nothing to do: {where} is so already."))
    _say_next(plan)


def _say_next(plan: _Plan) -> None:
    """What is left to do."""
    if "command" not in plan.entry and not plan.has_token:
        make = f"{program()} token create --user NAME --ttl 90d"
        tell(f"Set {TOKEN_VARIABLE} in the environment of {plan.client.title}: a token of {make}")
    if plan.lacks_token:
        tell(
            f"The gateway is on another machine: give --token-file, or set {TOKEN_VARIABLE} in the "
            f"environment of {plan.client.title}."
        )
    if plan.client.user_file:
        tell(f"{plan.client.title} reads its file when it starts.")


def _say_clients(name: str, *, as_json: bool) -> None:
    rows = []
    for client in CLIENTS.values():
        if not client.user_file:
            continue
        file = client.file(os.environ, sys.platform)
        rows.append({"client": client.name, "state": _state(client, file, name), "file": str(file)})
    if as_json:
        say_json({"clients": rows})
        return
    cells = [[row["client"], row["state"], row["file"]] for row in rows]
    say_table(["Client", "State", "File"], cells, "")
    tell(f"{program()} connect CLIENT prints the entry for one; `other` is for clients that are not here.")


def _state(client: DesktopClient, file: Path, name: str) -> str:
    """``connected``, ``found``, ``unreadable`` or ``not found``."""
    if not file.exists():
        return "not found"
    try:
        look = toml_editing.table if client.format == "toml" else json_editing.member
        return "found" if look(read_file(file).text, (*client.members, name)) is None else "connected"
    except (UsageFault, ValueError):
        return "unreadable"
