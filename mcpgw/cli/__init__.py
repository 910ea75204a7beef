"""The ``mcpgw`` command: one module a group of commands; what is heavy is imported when a command runs."""

from typing import Any

import click

from mcpgw import __version__
from mcpgw.cli.approvals import approvals
from mcpgw.cli.call import call
from mcpgw.cli.can import can
from mcpgw.cli.catalog import catalog
from mcpgw.cli.configuration import check, init
from mcpgw.cli.connect import connect
from mcpgw.cli.exit_codes import ExitCode
from mcpgw.cli.identities import IDENTITY_COMMANDS
from mcpgw.cli.keys import keys
from mcpgw.cli.listings import events, tools
from mcpgw.cli.output import ends_with
from mcpgw.cli.room import room
from mcpgw.cli.running_config import config
from mcpgw.cli.serve import serve
from mcpgw.cli.servers import servers
from mcpgw.cli.stdio import stdio
from mcpgw.cli.token import token
from mcpgw.cli.users import user


class _CommandLine(click.Group):
    """Ends with the same code wherever Ctrl-C is pressed; click alone would end with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise ends_with(ExitCode.INTERRUPTED) from None


@click.group(
    cls=_CommandLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="mcpgw")
def main() -> None:
    """A real-time gateway to MCP tools over WebSocket, SSE and HTTP.

    Start the gateway with `mcpgw serve`, then call a tool from another terminal with `mcpgw call`.
    """


@click.command(name="help")
@click.argument("names", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def show_help(context: click.Context, names: tuple[str, ...]) -> None:
    """Show what a COMMAND does and takes; without one, all commands."""
    shown = context.find_root()
    for name in names:
        group = shown.command
        command = group.get_command(shown, name) if isinstance(group, click.Group) else None
        if command is None:
            raise click.UsageError(f"no such command {name!r}", shown)
        shown = click.Context(command, info_name=name, parent=shown)
    click.echo(shown.get_help())


_COMMANDS = (
    *(serve, check, init, token, user, keys, room, can),
    *(servers, catalog, config, tools, events, call, approvals),
    *(connect, stdio, show_help),
)
for _command in _COMMANDS:
    main.add_command(_command)
for _command in IDENTITY_COMMANDS:
    user.add_command(_command)
