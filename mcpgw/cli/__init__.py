"""The ``mcpgw`` command: one module a group of commands, imported when one of them is asked for."""

from importlib import import_module
from typing import Any, Final

import click

from mcpgw import __version__
from mcpgw.cli.exit_codes import ExitCode
from mcpgw.cli.output import ends_with

_MODULES: Final = {
    "serve": "serve",
    "check": "configuration",
    "init": "configuration",
    "token": "token",
    "user": "identities",
    "keys": "keys",
    "room": "room",
    "can": "can",
    "servers": "servers",
    "catalog": "catalog",
    "config": "running_config",
    "tools": "listings",
    "events": "listings",
    "call": "call",
    "approvals": "approvals",
    "connect": "connect",
    "stdio": "stdio",
}
"""Where each command is."""


class _CommandLine(click.Group):
    """Knows its commands by name, and ends with the same code wherever Ctrl-C is pressed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*_MODULES, *super().list_commands(ctx)])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(import_module(f"mcpgw.cli.{_MODULES[cmd_name]}"), cmd_name)
        return command

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


main.add_command(show_help)
