"""``mcpgw check`` and ``mcpgw init``: the configuration, looked at and begun."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcpgw.cli.output import UsageFault, faults_reported, one_line, tell
from mcpgw.cli.settings_options import configuration_options

if TYPE_CHECKING:
    from mcpgw.config import Config

_LONGEST_VALUE = 80


@click.command()
@configuration_options
def check(config: "Config") -> None:
    """Say every fault of the configuration with its place, or what is in force.

    Takes the same flags as `mcpgw serve`, starts nothing and changes nothing. Secrets are never shown.
    """
    from mcpgw.access.configured import SigningKeyMissingError, configured_tokens  # noqa: PLC0415 - after --help

    with faults_reported():
        try:
            configured_tokens(config, create_key=False)
        except SigningKeyMissingError:
            key = "will be made at the first start"
        else:
            key = "usable"
    click.echo(f"Configuration file: {config.file.absolute() if config.file else 'none'}")
    section = ""
    for setting, value, source in config.describe():
        if setting.section != section:
            section = setting.section
            click.echo(f"\n[{section}]")
        shown = one_line(value)
        if len(shown) > _LONGEST_VALUE:
            shown = f"{shown[:_LONGEST_VALUE]}…"
        unit = f" {setting.unit}" if setting.unit not in ("", "port") and shown else ""
        place = "" if source == "default" else f"  ({one_line(source)})"
        click.echo(f"{setting.key} = {shown}{unit}{place}")
    click.echo(f"\nKey of tokens: {key}")
    click.echo("Servers:")
    if config.memory.enabled:
        click.echo("  memory: embedded")
    for definition in config.servers.values():
        state = "" if definition.enabled else ", disabled"
        click.echo(f"  {definition.name}: {definition.transport}{state}  ({one_line(definition.source)})")
    if not config.memory.enabled and not config.servers:
        click.echo("  none")
    for note in config.notes:
        tell(f"note: {note}")


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("mcpgw.toml"))
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def init(path: Path, force: bool) -> None:
    """Write a commented configuration to PATH (mcpgw.toml), with every setting at its default.

    A file that is there already is left alone unless --force is given.
    """
    from mcpgw.config import commented_toml  # noqa: PLC0415 - after --help

    with faults_reported():
        if path.is_dir():
            path /= "mcpgw.toml"
        try:
            with path.open("w" if force else "x", encoding="utf-8") as file:
                file.write(commented_toml())
        except FileExistsError:
            raise UsageFault(f"{path} is there already; --force writes over it") from None
        except OSError as error:
            raise UsageFault(f"{path}: {error.strerror}") from None
    click.echo(f"Wrote {one_line(str(path))}: every setting with its default. Check it with: mcpgw check")
