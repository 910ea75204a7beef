"""``mcpgw servers``: the backend servers of a running gateway, looked at and administered."""

import asyncio
import time
from contextlib import aclosing, suppress
from typing import Any, Final

import click

from mcpgw.cli.asking import SLOW_SECONDS, ask, member, route
from mcpgw.cli.connection import Connection, ConnectionOptions, connection_options
from mcpgw.cli.definitions import DefinitionCommand, GivenDefinition, definition_options
from mcpgw.cli.groups import GroupWithDefault
from mcpgw.cli.output import faults_reported, json_option, one_line, printable, say_json, tell
from mcpgw.cli.tables import say_members, say_table

_FIRST: Final = ("id", "state", "reason", "failures", "nextTryAt", "since", "tools", "transport")
"""What people look for first."""
_POLL_SECONDS: Final = 0.2
_SETTLED: Final = ("unknown", "ready", "degraded", "idle", "disabled", "retrying", "failed", "stopped")

_OPERATOR: Final = ("servers:write", "servers:read")
_ADMIN: Final = ("admin",)
"""A program is code that the gateway runs: what may name one takes more than what may restart it."""

wait_option = click.option(
    "--wait",
    "seconds",
    type=click.FloatRange(min=0, max=3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the server to be ready, or to fail; 0 waits for nothing.",
)


@click.group(cls=GroupWithDefault, default="list")
def servers() -> None:
    """Show and administer the backend servers; without a command, list them."""


@servers.command(name="list")
@json_option
@connection_options
def list_all(connection: ConnectionOptions, as_json: bool) -> None:
    """Show the backend servers and their states."""
    from mcpgw.client import list_servers  # noqa: PLC0415 - after --help

    with faults_reported(as_json=as_json):
        found = connection.find("servers:read")
        listed = asyncio.run(list_servers(found.url, found.token, tls=found.tls))
    if as_json:
        say_json({"servers": listed})
        return
    rows = [
        [
            server.get("id", ""),
            _states(server),
            *(server.get(name, "") for name in ("transport", "tools", "reason")),
        ]
        for server in listed
    ]
    say_table(["Server", "State", "Transport", "Tools", "Reason"], rows, "There are no servers.")


def _states(server: dict[str, Any]) -> str:
    """The state of a server; where it is another one in each process of the gateway, those of all."""
    workers = server.get("workers")
    if not isinstance(workers, list):
        return str(server.get("state", ""))
    return ", ".join(f"{one.get('worker')}: {one.get('state')}" for one in workers if isinstance(one, dict))


@servers.command()
@click.argument("server")
@json_option
@connection_options
def show(connection: ConnectionOptions, server: str, as_json: bool) -> None:
    """Show one SERVER: its state, its definition with secrets masked, and the last lines of its log."""
    with faults_reported(as_json=as_json):
        found = ask(connection.find(*_OPERATOR), "GET", route("servers", server))
    if as_json:
        say_json(found)
        return
    lines = found.pop("log", None)
    say_members({name: found[name] for name in (*_FIRST, *found) if name in found})
    if lines:
        click.echo("log:")
        for line in lines:
            click.echo(f"  {one_line(str(line))}")


@servers.command(cls=DefinitionCommand)
@click.argument("name")
@definition_options
@wait_option
@json_option
@connection_options
def add(
    connection: ConnectionOptions, name: str, given: GivenDefinition, seconds: float, as_json: bool
) -> None:
    """Add the server NAME to the running gateway and start it. It is kept when the gateway ends.

    It is reached at an address, or is a program that the gateway starts. Secrets are best given as
    references, which the gateway replaces and never stores: ${env:NAME} or ${file:PATH}, in single quotes.

    \b
      mcpgw servers add time -- uvx mcp-server-time
      mcpgw servers add issues --env TRACKER_TOKEN -- npx -y issue-tracker-mcp
      mcpgw servers add docs https://docs.example/mcp --header 'Authorization: Bearer ${env:DOCS_TOKEN}'
    """
    with faults_reported(as_json=as_json):
        body = {"id": name, "definition": given.table()}
        found = connection.find(*_ADMIN)
        status = ask(found, "POST", route("servers"), body=body, seconds=SLOW_SECONDS)
        _say_state(found, status, f"Added {name}", seconds, as_json=as_json)


@servers.command(cls=DefinitionCommand)
@click.argument("name")
@definition_options
@click.option(
    "--unset", multiple=True, metavar="KEY", help="A member to take out of the definition. May be repeated."
)
@wait_option
@json_option
@connection_options
def change(
    *,
    connection: ConnectionOptions,
    name: str,
    given: GivenDefinition,
    unset: tuple[str, ...],
    seconds: float,
    as_json: bool,
) -> None:
    """Change the definition of the server NAME; what is not named stays. It is started anew.

    A server of the configuration file is changed there.

    \b
      mcpgw servers change issues --set timeout=120 --set 'tools.block=["delete_*"]' --unset cwd
    """
    with faults_reported(as_json=as_json):
        body = {"definition": given.changes(unset)}
        found = connection.find(*_ADMIN)
        status = ask(found, "PATCH", route("servers", name), body=body, seconds=SLOW_SECONDS)
        _say_state(found, status, f"Changed {name}", seconds, as_json=as_json)


@servers.command()
@click.argument("server")
@json_option
@connection_options
def remove(connection: ConnectionOptions, server: str, as_json: bool) -> None:
    """Stop SERVER and forget its definition. A server of the configuration file is removed there."""
    with faults_reported(as_json=as_json):
        ask(connection.find(*_ADMIN), "DELETE", route("servers", server), seconds=SLOW_SECONDS)
        if as_json:
            say_json({"id": server, "removed": True})
        else:
            click.echo(f"Removed {one_line(server)}.")


@servers.command()
@click.argument("server")
@wait_option
@json_option
@connection_options
def enable(connection: ConnectionOptions, server: str, seconds: float, as_json: bool) -> None:
    """Switch SERVER on and start it; the gateway remembers it."""
    _act(connection, server, "enable", "Enabled", seconds, as_json=as_json)


@servers.command()
@click.argument("server")
@json_option
@connection_options
def disable(connection: ConnectionOptions, server: str, as_json: bool) -> None:
    """Stop SERVER and switch it off; the gateway remembers it."""
    _act(connection, server, "disable", "Disabled", 0, as_json=as_json)


@servers.command()
@click.argument("server")
@wait_option
@json_option
@connection_options
def start(connection: ConnectionOptions, server: str, seconds: float, as_json: bool) -> None:
    """Start SERVER, where it is idle or was stopped."""
    _act(connection, server, "start", "Started", seconds, as_json=as_json)


@servers.command()
@click.argument("server")
@json_option
@connection_options
def stop(connection: ConnectionOptions, server: str, as_json: bool) -> None:
    """Stop SERVER until it is started again, or the gateway is."""
    _act(connection, server, "stop", "Stopped", 0, as_json=as_json)


@servers.command()
@click.argument("server")
@wait_option
@json_option
@connection_options
def restart(connection: ConnectionOptions, server: str, seconds: float, as_json: bool) -> None:
    """Stop SERVER and start it again, now and without a pause."""
    _act(connection, server, "restart", "Restarted", seconds, as_json=as_json)


@servers.command()
@click.argument("server")
@click.option("--follow", "-f", is_flag=True, help="Go on with what it writes from now on, until Ctrl-C.")
@json_option
@connection_options
def logs(connection: ConnectionOptions, server: str, follow: bool, as_json: bool) -> None:
    """Show what SERVER has last written to its stderr; secrets that are known as such are masked."""
    with faults_reported(as_json=as_json):
        found = connection.find(*_OPERATOR, "events:read")
        if follow:
            with suppress(KeyboardInterrupt):
                asyncio.run(_follow(found, server, as_json=as_json))
            return
        lines = member(ask(found, "GET", route("servers", server, "logs")), "lines", list, found)
        if as_json:
            say_json({"lines": lines})
            return
        for line in lines:
            _say_line(line, as_json=False)


def _act(
    connection: ConnectionOptions, server: str, verb: str, done: str, seconds: float, *, as_json: bool
) -> None:
    with faults_reported(as_json=as_json):
        found = connection.find(*_OPERATOR)
        status = ask(found, "POST", route("servers", server, verb), seconds=SLOW_SECONDS)
        _say_state(found, status, f"{done} {server}", seconds, as_json=as_json)


def _say_state(
    connection: Connection, status: dict[str, Any], done: str, seconds: float, *, as_json: bool
) -> None:
    """What was done, and what has become of the server after at most `seconds`.

    Whoever may change a server and not read it gets no state, and waits for none.
    """
    deadline = time.monotonic() + seconds
    while status.get("state", "unknown") not in _SETTLED and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        status = ask(connection, "GET", route("servers", str(status.get("id"))))
    if as_json:
        say_json(status)
        return
    state, tools = status.get("state"), status.get("tools")
    count = f", {tools} tool{'' if tools == 1 else 's'}" if state == "ready" else ""
    click.echo(one_line(f"{done}: {state}{count}." if state else f"{done}."))
    if status.get("reason"):
        tell(one_line(f"{status.get('id')}: {status['reason']}"))


async def _follow(connection: Connection, server: str, *, as_json: bool) -> None:
    from mcpgw.client import ask as ask_rest  # noqa: PLC0415 - after --help
    from mcpgw.client import events as events_of  # noqa: PLC0415

    followed = events_of(connection.url, connection.token, channels=("servers",), tls=connection.tls)
    async with aclosing(followed) as stream:
        async for event in stream:
            data = event.data.get("data")
            if event.type == "connected":
                # Asked for now, so that no line is lost between the two.
                path = route("servers", server, "logs")
                before = await ask_rest(connection.url, connection.token, "GET", path, tls=connection.tls)
                for line in member(before, "lines", list, connection):
                    _say_line(line, as_json=as_json)
            elif event.type == "server.log" and isinstance(data, dict) and data.get("serverId") == server:
                _say_line(data.get("line", ""), as_json=as_json)


def _say_line(line: Any, *, as_json: bool) -> None:
    if as_json:
        say_json({"line": line})
    else:
        click.echo(printable(str(line), keep="\t"))
