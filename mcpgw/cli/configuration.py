"""``mcpgw check`` and ``mcpgw init``: the configuration, looked at and begun."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from mcpgw.cli.output import UsageFault, faults_reported, one_line, tell
from mcpgw.cli.program import program
from mcpgw.cli.settings_options import configuration_options

if TYPE_CHECKING:
    from mcpgw.config import Config
    from mcpgw.server_definitions import ServerDefinition
    from mcpgw.tls import Certificate

_LONGEST_VALUE = 80


@click.command()
@configuration_options
def check(config: "Config") -> None:
    """Say every fault of the configuration with its place, or what is in force.

    Takes the same flags as `mcpgw serve`, starts nothing and changes nothing. Secrets are never shown.
    """
    from mcpgw.access.configured import SigningKeyMissingError, configured_tokens  # noqa: PLC0415 - after --help
    from mcpgw.access.configured_scopes import access_faults  # noqa: PLC0415
    from mcpgw.errors import ConfigError  # noqa: PLC0415
    from mcpgw.tls import load_certificate  # noqa: PLC0415

    with faults_reported():
        if faults := access_faults(config.roles, config.issuers):
            raise ConfigError(faults)
        certificate = load_certificate(config.server) if config.server.tls_certificate else None
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
        if setting.name == "auth.secret" and not shown and config.auth.algorithm == "HS256":
            shown = "(the key in the data folder)"
        unit = f" {setting.unit}" if setting.unit not in ("", "port") and shown else ""
        place = "" if source == "default" else f"  ({one_line(source)})"
        click.echo(f"{setting.key} = {shown}{unit}{place}")
    click.echo(f"\nKey of tokens: {key}")
    if certificate is not None:
        click.echo(one_line(f"Certificate: {certificate}"))
    click.echo("Servers:")
    if config.memory.enabled:
        click.echo("  memory: embedded")
    for definition in config.servers.values():
        state = "" if definition.enabled else ", disabled"
        reached = f"{definition.transport} {_target(definition)}{state}"
        click.echo(f"  {definition.name}: {one_line(f'{reached}  ({definition.source})')}")
    if not config.memory.enabled and not config.servers:
        click.echo("  none")
    missing = [note for definition in config.servers.values() for note in _missing(definition)]
    for note in (*config.notes, *missing, *_ending(certificate)):
        tell(f"note: {note}")


def _ending(certificate: "Certificate | None") -> Iterator[str]:
    if certificate is not None and (warning := certificate.warning()):
        yield f"the certificate {warning}"


def _target(definition: "ServerDefinition") -> str:
    """The command without its arguments, or the URL without its path and query: these may hold secrets."""
    if definition.command is not None:
        return _shown(definition.command)
    parts = urlsplit(definition.url or "")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _shown(command: str) -> str:
    """The first word of a command, for arguments that were put into it by mistake may hold secrets."""
    first, space, _ = command.partition(" ")
    return f"{first} …" if space and not Path(command).exists() else command


def _missing(definition: "ServerDefinition") -> Iterator[str]:
    """What an enabled server cannot be started without, and is not on this machine now."""
    if not definition.enabled or definition.command is None:
        return
    if definition.cwd is not None and not definition.cwd.is_dir():
        yield f"server {definition.name!r}: its folder (cwd) {str(definition.cwd)!r} does not exist"
    path = definition.env.get("PATH", os.environ.get("PATH"))
    if shutil.which(definition.command, path=path) is None:
        command = f"server {definition.name!r}: its command {_shown(definition.command)!r}"
        first, space, _ = definition.command.partition(" ")
        if space and shutil.which(first, path=path) is not None:
            yield f"{command} holds arguments: put what follows {first!r} into args"
        elif "/" in first:
            yield f"{command} is no program that can be run"
        else:
            yield f"{command} is not found on PATH"


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
    next_step = f"Check it with: {program()} check"
    click.echo(f"Wrote {one_line(str(path))}: every setting with its default. {next_step}")
