"""``mcpgw keys``: keys of programs. Works on the store itself, whether a gateway runs or not."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from mcpgw.cli.connection import login_name
from mcpgw.cli.output import faults_reported, json_option, say_json, tell
from mcpgw.cli.settings_options import config_option, data_dir_option, load
from mcpgw.cli.tables import moment_text, say_table
from mcpgw.cli.token import seconds_of
from mcpgw.cli.users import on_store

if TYPE_CHECKING:
    from mcpgw.store import Store, StoredKey

_DEFAULT_SCOPES: Final = ("tools:call", "servers:read", "events:read")


@click.group()
def keys() -> None:
    """Keys of programs, good wherever a token is.

    A gateway that runs on the same store hears of a change within a second.
    """


@keys.command()
@click.option("--user", required=True, metavar="NAME", help="Whose key it is.")
@click.option("--name", required=True, metavar="TEXT", help="What it is for, for people.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    metavar="SCOPE",
    help=f"What the key allows; may be repeated. [default {' '.join(_DEFAULT_SCOPES)}]",
)
@click.option(
    "--ttl",
    callback=seconds_of,
    metavar="TIME",
    help="How long it holds: 90 (seconds), 30m, 8h, 7d; without it until it is revoked.",
)
@data_dir_option
@config_option
def create(
    *,
    user: str,
    name: str,
    scopes: tuple[str, ...],
    ttl: int | None,
    data_dir: Path | None,
    config_file: Path | None,
) -> None:
    """Print a new key, and nothing else, on stdout. It is shown this once."""
    from mcpgw.access.keys import Keys  # noqa: PLC0415 - after --help
    from mcpgw.store import By  # noqa: PLC0415

    with faults_reported():

        async def work(store: "Store") -> str:
            by = By(login_name(), is_told=False)
            secret, kept = await Keys(store).create(user, name, scopes or _DEFAULT_SCOPES, seconds=ttl, by=by)
            tell(f"Made the key {kept.id} of {user}; it is shown this once.")
            return secret

        click.echo(on_store(load(config_file, {"data.dir": data_dir}, with_servers=False), work))


@keys.command(name="list")
@click.option("--user", metavar="NAME", help="Those of one user.")
@json_option
@data_dir_option
@config_option
def list_keys(user: str | None, as_json: bool, data_dir: Path | None, config_file: Path | None) -> None:
    """List the keys that were not revoked."""
    from mcpgw.access.keys import Keys, described_key  # noqa: PLC0415 - after --help

    with faults_reported(as_json=as_json):

        async def work(store: "Store") -> list["StoredKey"]:
            return await Keys(store).list(user)

        found = on_store(load(config_file, {"data.dir": data_dir}, with_servers=False), work)
    if as_json:
        say_json({"keys": [described_key(key) for key in found]})
        return
    rows = [
        (
            key.id,
            key.user,
            key.name,
            ", ".join(key.scopes),
            moment_text(key.expires_at) if key.expires_at else "never",
            moment_text(key.used_at) if key.used_at else "never",
        )
        for key in found
    ]
    say_table(("Id", "User", "Name", "Scopes", "Ends", "Used"), rows, "There are no keys.")


@keys.command()
@click.argument("key_id", metavar="ID")
@data_dir_option
@config_option
def revoke(key_id: str, data_dir: Path | None, config_file: Path | None) -> None:
    """End a key: open connections of it are closed."""
    from mcpgw.access.keys import Keys  # noqa: PLC0415 - after --help
    from mcpgw.store import By  # noqa: PLC0415

    with faults_reported():

        async def work(store: "Store") -> None:
            await Keys(store).revoke(key_id, by=By(login_name(), is_told=False))

        on_store(load(config_file, {"data.dir": data_dir}, with_servers=False), work)
        tell(f"The key {key_id} holds no more.")
