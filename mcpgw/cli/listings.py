"""``mcpgw tools`` and ``mcpgw events``: what a gateway has, and what happens there."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from mcpgw.cli.connection import Connection, ConnectionOptions, connection_options
from mcpgw.cli.output import faults_reported, json_option, one_line, say_json
from mcpgw.cli.tables import say_table

if TYPE_CHECKING:
    from mcpgw.client import Event


@click.command()
@click.argument("server", required=False)
@json_option
@connection_options
def tools(connection: ConnectionOptions, server: str | None, as_json: bool) -> None:
    """Show the tools of SERVER, or of all servers. Arguments with a ? may be left out."""
    with faults_reported(as_json=as_json):
        listed = asyncio.run(_list_tools(connection.find("tools:call", "servers:read"), server))
    if as_json:
        say_json({"tools": listed})
        return
    rows = [
        [
            tool.get("serverId", ""),
            tool.get("name", ""),
            _parameters(tool.get("inputSchema")),
            str(tool.get("description") or "").strip().partition("\n")[0],
        ]
        for tool in listed
    ]
    say_table(["Server", "Tool", "Arguments", "Description"], rows, "There are no tools.")


@click.command()
@click.option(
    "--count", type=click.IntRange(min=1), metavar="N", help="End after N events; else with Ctrl-C."
)
@json_option
@connection_options
def events(connection: ConnectionOptions, count: int | None, as_json: bool) -> None:
    """Follow the gateway's events: one line an event."""
    with faults_reported(as_json=as_json):
        try:
            asyncio.run(_follow(connection.find("events:read"), count, as_json=as_json))
        except KeyboardInterrupt:
            if count is not None:  # fewer came than were asked for
                raise


async def _list_tools(connection: Connection, server: str | None) -> list[dict[str, Any]]:
    from mcpgw.client import Gateway  # noqa: PLC0415 - after --help

    async with Gateway(connection.url, connection.token, tls=connection.tls) as gateway:
        return await gateway.list_tools(server)


async def _follow(connection: Connection, count: int | None, *, as_json: bool) -> None:
    from mcpgw.client import events as follow  # noqa: PLC0415 - after --help

    seen = 0
    async with aclosing(follow(connection.url, connection.token, tls=connection.tls)) as stream:
        async for event in stream:
            if as_json:
                say_json(event.data)
            else:
                click.echo(_event_line(event))
            seen += 1
            if seen == count:
                return


def _event_line(event: "Event") -> str:
    rest = {name: value for name, value in event.data.items() if name not in ("type", "timestamp")}
    moment = _moment(event.data.get("timestamp"))
    return one_line(" ".join((moment, event.type, *([json.dumps(rest, ensure_ascii=False)] if rest else []))))


def _moment(timestamp: Any) -> str:
    """Milliseconds since the epoch as the local time of day; now, where the event does not say."""
    try:
        moment = datetime.fromtimestamp(timestamp / 1000).astimezone()
    except (TypeError, ValueError, OverflowError, OSError):
        moment = datetime.now().astimezone()
    return moment.strftime("%H:%M:%S")


def _parameters(schema: Any) -> str:
    """The names of a tool's arguments, required ones first."""
    if not isinstance(schema, Mapping):
        return ""
    properties, required = schema.get("properties"), schema.get("required")
    names = list(properties) if isinstance(properties, Mapping) else []
    needed = [name for name in names if isinstance(required, list) and name in required]
    return ", ".join([*needed, *(f"{name}?" for name in names if name not in needed)])
