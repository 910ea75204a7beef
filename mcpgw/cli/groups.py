"""Groups of commands of which one is meant where none is named: ``mcpgw servers`` lists the servers."""

from typing import Any

import click


class GroupWithDefault(click.Group):
    """Runs `default` where the first word is none of its commands' names but an option, or is not there."""

    def __init__(self, *args: Any, default: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self._default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default's name before the options that are its own."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = [self._default, *args]
        return super().parse_args(ctx, args)
