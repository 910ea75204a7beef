"""``mcpgw call``: call a tool."""

import asyncio
import json
import shlex
from typing import TYPE_CHECKING, Any

import click

from mcpgw.cli.arguments import read_arguments
from mcpgw.cli.connection import Connection, ConnectionOptions, connection_options
from mcpgw.cli.exit_codes import MEANINGS, ExitCode
from mcpgw.cli.output import (
    ends_with,
    faults_reported,
    json_option,
    one_line,
    printable,
    say_json,
    stdout_is_terminal,
    tell,
)
from mcpgw.cli.progress import ProgressDisplay

if TYPE_CHECKING:
    from mcpgw.client import ToolAnswer

_EXIT_CODES = "\b\nExit codes:\n" + "\n".join(f"  {code.value:<4} {text}" for code, text in MEANINGS.items())
_PATIENCE_SECONDS = 30.0
"""How long a person waits for a gateway that has gone away in the middle of a call."""


@click.command(epilog=_EXIT_CODES)
@click.argument("server")
@click.argument("tool")
@click.argument("arguments", nargs=-1)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True, max=86_400),
    metavar="SECONDS",
    help="How long the call may take; the server's or the gateway's default where it is left out.",
)
@json_option
@connection_options
def call(
    *,
    connection: ConnectionOptions,
    server: str,
    tool: str,
    arguments: tuple[str, ...],
    timeout: float | None,
    as_json: bool,
) -> None:
    """Call TOOL of SERVER and print its result.

    ARGUMENTS are one JSON object, or - to read it from stdin, or name=value pairs (a value is JSON where it
    can be read as JSON, else text). Progress and log lines go to stderr, and so does what the call waits for.
    What a server asks in mid-call is declined. Ctrl-C cancels the call.

    \b
      mcpgw call memory memory_search '{"project": "my-project"}'
      mcpgw call memory memory_search project=my-project limit=5
    """
    with faults_reported(as_json=as_json):
        params = read_arguments(arguments)
        found = connection.find("tools:call", "servers:read")  # the second to hear why a server is not ready
        display = ProgressDisplay(f"{server} {tool}", quiet=as_json, options=shlex.join(connection.words()))
        answer = asyncio.run(_call(found, server, tool, params, seconds=timeout, display=display))
    if as_json:
        say_json(dict(answer.data))
    else:
        _say_result(answer.result)
        if not answer.success:
            tell(f"{one_line(tool)} answered with an error")
    if not answer.success:
        raise ends_with(ExitCode.TOOL_ERROR)


async def _call(
    connection: Connection,
    server: str,
    tool: str,
    params: dict[str, Any],
    *,
    seconds: float | None,
    display: ProgressDisplay,
) -> "ToolAnswer":
    from mcpgw.client import Gateway  # noqa: PLC0415 - after --help

    async with Gateway(
        connection.url, connection.token, give_up_after=_PATIENCE_SECONDS, tls=connection.tls
    ) as gateway:
        with display:
            return await gateway.call(
                server,
                tool,
                params,
                on_progress=display.progress,
                on_log=display.log,
                on_queued=display.queued,
                on_input=display.declined,
                timeout=seconds,
            )


def _say_result(result: Any) -> None:
    if isinstance(result, str):
        click.echo(printable(result))
    elif stdout_is_terminal():
        click.echo(printable(json.dumps(result, ensure_ascii=False, indent=2)))
    else:
        click.echo(printable(json.dumps(result, ensure_ascii=False)))
