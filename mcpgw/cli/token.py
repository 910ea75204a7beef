"""``mcpgw token``: tokens for those who may use the gateway."""

import re
from pathlib import Path
from typing import Final

import click

from mcpgw.cli.output import faults_reported
from mcpgw.cli.settings_options import config_option, data_dir_option, load
from mcpgw.errors import ConfigError

_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST: Final = 366 * 86_400
_DEFAULT_SCOPES: Final = ("tools:call", "servers:read", "events:read")
_TTL: Final = re.compile(r"([0-9]{1,9})([smhd]?)")


def seconds_of(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """``90`` (seconds), ``30m``, ``8h``, ``7d`` as a number of seconds; None where nothing was given."""
    if value is None:
        return None
    match = _TTL.fullmatch(value)
    if match is None:
        raise click.BadParameter(f"{value!r} is no time: write 90 (seconds), 30m, 8h or 7d", ctx, param)
    seconds = int(match[1]) * _SECONDS[match[2]]
    if not 1 <= seconds <= _LONGEST:
        raise click.BadParameter(f"{value!r} is not between 1s and 366d", ctx, param)
    return seconds


@click.group()
def token() -> None:
    """Make tokens."""


class _WithScopes(click.Command):
    """Ends its help with the scopes that there are; they are read where the help is asked for."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write them."""
        from mcpgw.access.permissions import SCOPES  # noqa: PLC0415 - after --help of others

        scopes = sorted({*SCOPES, "tools:call:SERVER", "tools:call:SERVER/TOOL", "rooms:join:ROOM"})
        formatter.write_paragraph()
        formatter.write_text(f"Scopes: {', '.join(scopes)}.")


@token.command(cls=_WithScopes)
@click.option("--user", required=True, metavar="NAME", help="Who the token speaks for.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    metavar="SCOPE",
    help=f"What the token allows; may be repeated. [default {' '.join(_DEFAULT_SCOPES)}]",
)
@click.option(
    "--ttl",
    callback=seconds_of,
    default="8h",
    metavar="TIME",
    show_default=True,
    help="How long it holds: 90 (seconds), 30m, 8h, 7d; at most 366d.",
)
@data_dir_option
@config_option
def create(
    user: str, scopes: tuple[str, ...], ttl: int, data_dir: Path | None, config_file: Path | None
) -> None:
    """Print a new token, and nothing else, on stdout.

    It is signed with the key of the gateway's data folder, so run this on the gateway's machine.

    Hand it to a command in the environment:  MCPGW_TOKEN=$(mcpgw token create --user ann) mcpgw tools
    """
    from mcpgw.access.configured import configured_tokens  # noqa: PLC0415 - after --help
    from mcpgw.access.permissions import scope_faults  # noqa: PLC0415

    with faults_reported():
        if faults := scope_faults(scopes):
            raise ConfigError(faults)
        config = load(config_file, {"data.dir": data_dir}, with_servers=False)
        tokens = configured_tokens(config, create_key=False)
        click.echo(tokens.issue(user=user, scopes=scopes or _DEFAULT_SCOPES, ttl=ttl))
