"""``mcpgw user link|unlink``: whom an identity provider knows a user as. Works on the store itself.

Whoever takes `user` from here has these commands with the others.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcpgw.cli.output import faults_reported, tell
from mcpgw.cli.settings_options import config_option, data_dir_option, load
from mcpgw.cli.users import on_accounts, user

__all__ = ["link", "unlink", "user"]

if TYPE_CHECKING:
    from mcpgw.access.accounts import Accounts
    from mcpgw.config import Config
    from mcpgw.store import By


@user.command()
@click.argument("name")
@click.argument("issuer")
@click.argument("subject")
@data_dir_option
@config_option
def link(name: str, issuer: str, subject: str, data_dir: Path | None, config_file: Path | None) -> None:
    """Say whom an identity provider knows a user as.

    ISSUER is the name of an [auth.issuers.NAME] of the configuration, and SUBJECT what it has as `sub`.
    """
    with faults_reported():
        config = load(config_file, {"data.dir": data_dir}, with_servers=False)
        url = _issuer_url(config, issuer)

        async def work(accounts: "Accounts", by: "By") -> None:
            await accounts.link(name, url, subject, by=by)

        on_accounts(config, work)
        tell(f"{name} is {subject!r} of {issuer}.")


@user.command()
@click.argument("issuer")
@click.argument("subject")
@data_dir_option
@config_option
def unlink(issuer: str, subject: str, data_dir: Path | None, config_file: Path | None) -> None:
    """Take back what `mcpgw user link` has said; logins that have begun go on.

    ISSUER is the name of an [auth.issuers.NAME] of the configuration, or its address.
    """
    with faults_reported():
        config = load(config_file, {"data.dir": data_dir}, with_servers=False)
        url = issuer if "://" in issuer else _issuer_url(config, issuer)

        async def work(accounts: "Accounts", by: "By") -> None:
            await accounts.unlink(url, subject, by=by)

        on_accounts(config, work)
        tell(f"{subject!r} of {issuer} is nobody here any more.")


def _issuer_url(config: "Config", name: str) -> str:
    from mcpgw.errors import ConfigError, suggest  # noqa: PLC0415 - after --help

    if name not in config.issuers:
        raise ConfigError([f"there is no [auth.issuers.{name[:32]}]{suggest(name, config.issuers)}"])
    return config.issuers[name].issuer
