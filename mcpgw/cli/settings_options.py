"""Every setting as a flag, read from the one table of settings."""

import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mcpgw.settings import SETTINGS, Setting

if TYPE_CHECKING:
    from mcpgw.config import Config

Command = TypeVar("Command", bound=Callable[..., Any])

_METAVARS = {"int": "NUMBER", "float": "NUMBER", "bool": "true|false", "tuple": "A,B,…", "Path": "PATH"}
_PATH = click.Path(path_type=Path)

config_option = click.option(
    "--config",
    "config_file",
    type=_PATH,
    envvar="MCPGW_CONFIG",
    metavar="FILE",
    help="Configuration file (MCPGW_CONFIG); mcpgw.toml of the current folder where it is left out.",
)
data_dir_option = click.option(
    "--data-dir", type=_PATH, metavar="PATH", help="The gateway's data folder (MCPGW_DATA_DIR)."
)


def configuration_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` every flag of the configuration; it is called with the loaded ``config``.

    A configuration with faults ends the command: each fault on its own line on stderr, exit code 2.
    """

    @wraps(command)
    def with_config(*, config_file: Path | None, servers_files: tuple[Path, ...], **given: Any) -> None:
        flags = {setting.name: given.pop(_parameter(setting)) for setting in SETTINGS}
        command(config=load(config_file, flags, servers_files), **given)

    decorated: Callable[..., None] = with_config
    for setting in reversed(SETTINGS):
        decorated = _option(setting)(decorated)
    decorated = click.option(
        "--servers",
        "servers_files",
        type=_PATH,
        multiple=True,
        metavar="FILE",
        help="More servers: TOML with [servers.NAME], or the JSON of a desktop client. May be repeated.",
    )(decorated)
    return config_option(decorated)


def load(
    file: Path | None,
    flags: dict[str, object],
    servers_files: Sequence[Path] = (),
    *,
    with_servers: bool = True,
) -> "Config":
    """The configuration; its faults end the command (see `faults_reported`)."""
    from mcpgw.cli.output import faults_reported  # noqa: PLC0415
    from mcpgw.config import load_config  # noqa: PLC0415 - after --help

    with faults_reported():
        return load_config(
            file=file,
            environment=os.environ,
            flags=flags,
            servers_files=servers_files,
            with_servers=with_servers,
        )


def _option(setting: Setting) -> Callable[[Callable[..., None]], Callable[..., None]]:
    unit = f" Unit: {setting.unit}." if setting.unit not in ("", "port") else ""
    metavar = _METAVARS.get(setting.type.__name__, "TEXT")
    options: dict[str, Any] = {}
    if setting.type is bool:
        options = {"is_flag": False, "flag_value": "true"}  # the flag alone says yes
    return click.option(
        setting.flag_name,
        _parameter(setting),
        type=str,
        metavar="|".join(setting.choices) if setting.choices else metavar,
        help=f"{setting.help}{unit} [{_default(setting)}; {setting.environment_name}]",
        **options,
    )


def _default(setting: Setting) -> str:
    value = setting.default
    if isinstance(value, bool):
        return f"default {str(value).lower()}"
    if isinstance(value, tuple):
        value = ", ".join(value)
    return f"default {value}" if str(value) else "no default"


def _parameter(setting: Setting) -> str:
    return f"setting_{setting.section}_{setting.key}"
