"""The ``mcpgw`` command: one module a group of commands; what is heavy is imported when a command runs."""

import click

from mcpgw import __version__
from mcpgw.cli.serve import serve


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mcpgw")
def main() -> None:
    """A real-time gateway to MCP tools over WebSocket, SSE and HTTP.

    Start the gateway with `mcpgw serve`, then call a tool from another terminal with `mcpgw call`.
    """


main.add_command(serve)
