"""``mcpgw stdio``: the gateway as an MCP server on stdin and stdout, for clients that only start commands."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import click

from mcpgw.cli.connection import Connection, ConnectionOptions, connection_options
from mcpgw.cli.output import UsageFault, faults_reported

_SCOPES = ("tools:call", "servers:read")


@click.command()
@click.option(
    "--server",
    metavar="NAME",
    help="One server alone, under its own names; all of them where it is left out.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File with the token to show; it is read again whenever the token is needed.",
)
@connection_options
def stdio(*, connection: ConnectionOptions, server: str | None, token_file: Path | None) -> None:
    """Be an MCP server on stdin and stdout that hands everything on to the running gateway.

    For desktop clients that start their servers as commands. Without --token-file and MCPGW_TOKEN it makes
    short tokens with the key of the data folder, for a gateway of this machine alone. What goes wrong is said
    on stderr; the gateway may be started again meanwhile.

    \b
      {"mcpServers": {"mcpgw": {"command": "mcpgw", "args": ["stdio"]}}}
    """
    with faults_reported():
        if server is not None and not _is_server_name(server):
            raise UsageFault(f"{server[:64]!r} is no server's name")
        finder = _finder(connection, token_file)
        finder()  # what is wrong with the command line is said at once
        from mcpgw.cli.stdio_bridge import run  # noqa: PLC0415 - after --help

        asyncio.run(run(finder, server))


def _finder(options: ConnectionOptions, token_file: Path | None) -> Callable[[], Connection]:
    """Finds the gateway and a token that holds, each time anew."""

    def find() -> Connection:
        return options.find(*_SCOPES, token=None if token_file is None else _read(token_file))

    return find


def _read(token_file: Path) -> str:
    try:
        token = token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageFault(f"cannot read the token file {token_file}: {reason}") from None
    if not token:
        raise UsageFault(f"the token file {token_file} is empty")
    return token


def _is_server_name(name: str) -> bool:
    from mcpgw.server_definitions import SERVER_NAME  # noqa: PLC0415

    return SERVER_NAME.fullmatch(name) is not None
