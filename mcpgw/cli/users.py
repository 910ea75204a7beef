"""``mcpgw user``: those who may log in. Works on the store itself, whether a gateway runs or not."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from mcpgw.cli.connection import login_name
from mcpgw.cli.output import UsageFault, faults_reported, json_option, say_json, tell
from mcpgw.cli.settings_options import config_option, data_dir_option, load
from mcpgw.cli.tables import moment_text, say_table

if TYPE_CHECKING:
    from mcpgw.access.accounts import Accounts
    from mcpgw.config import Config
    from mcpgw.store import By, Store

T = TypeVar("T")

_MOST_READ = 4096
_READING_SECONDS = 0.1
"""What a gateway may need to take a change over, once it has looked."""

_no_prompt = click.option(
    "--password-stdin", is_flag=True, help="Read the password from stdin, its first line, and ask nothing."
)


@click.group()
def user() -> None:
    """Those who may log in: users with a password and a role.

    A gateway that runs on the same store hears of a change within a second.
    """


@user.command(name="add")
@click.argument("name")
@click.option("--role", default="viewer", show_default=True, metavar="ROLE", help="What the user may do.")
@click.option(
    "--link", is_flag=True, help="Print a link that lets the user in once, and ask for no password."
)
@_no_prompt
@data_dir_option
@config_option
def add_user(
    *,
    name: str,
    role: str,
    link: bool,
    password_stdin: bool,
    data_dir: Path | None,
    config_file: Path | None,
) -> None:
    """Add a user.

    Roles are viewer, operator, admin, and those of [roles.NAME] in the configuration.
    """
    with faults_reported():
        if link and password_stdin:
            raise UsageFault("--link and --password-stdin do not go together")
        password = None if link else _new_password(from_stdin=password_stdin)

        async def work(accounts: "Accounts", by: "By") -> str:
            await accounts.add(name, role=role, password=password, by=by)
            return await accounts.make_link(name, by=by) if link else ""

        config = load(config_file, {"data.dir": data_dir}, with_servers=False)
        secret = on_accounts(config, work)
        tell(f"Added {name} with the role {role}.")
        if secret:
            click.echo(link_url(config, secret))


@user.command()
@click.argument("name")
@click.option("--link", is_flag=True, help="Print a link with which the user chooses a password.")
@_no_prompt
@data_dir_option
@config_option
def passwd(
    name: str, link: bool, password_stdin: bool, data_dir: Path | None, config_file: Path | None
) -> None:
    """Give a user another password; all logins of the user end."""
    with faults_reported():
        if link and password_stdin:
            raise UsageFault("--link and --password-stdin do not go together")
        password = None if link else _new_password(from_stdin=password_stdin)

        async def work(accounts: "Accounts", by: "By") -> str:
            if password is None:
                return await accounts.make_link(name, by=by)
            await accounts.set_password(name, password, by=by)
            return ""

        config = load(config_file, {"data.dir": data_dir}, with_servers=False)
        secret = on_accounts(config, work)
        if secret:
            click.echo(link_url(config, secret))
        else:
            tell(f"{name} has another password, and every login has ended.")


@user.command()
@click.argument("name")
@data_dir_option
@config_option
def disable(name: str, data_dir: Path | None, config_file: Path | None) -> None:
    """Shut a user out: logins, tokens and keys hold no more, and open connections end."""
    _switch(name, data_dir, config_file, disabled=True)


@user.command()
@click.argument("name")
@data_dir_option
@config_option
def enable(name: str, data_dir: Path | None, config_file: Path | None) -> None:
    """Let a disabled user in again."""
    _switch(name, data_dir, config_file, disabled=False)


@user.command()
@click.argument("name")
@click.argument("role", metavar="ROLE")
@data_dir_option
@config_option
def role(name: str, role: str, data_dir: Path | None, config_file: Path | None) -> None:
    """Give a user another role; open connections have it at once."""
    with faults_reported():

        async def work(accounts: "Accounts", by: "By") -> None:
            await accounts.set_role(name, role, by=by)

        on_accounts(load(config_file, {"data.dir": data_dir}, with_servers=False), work)
        tell(f"{name} has the role {role}.")


@user.command(name="list")
@json_option
@data_dir_option
@config_option
def list_users(as_json: bool, data_dir: Path | None, config_file: Path | None) -> None:
    """List the users."""
    with faults_reported(as_json=as_json):
        users = on_accounts(
            load(config_file, {"data.dir": data_dir}, with_servers=False),
            lambda accounts, _by: accounts.list(),
        )
    if as_json:
        members = [
            {
                "name": one.name,
                "role": one.role,
                "disabled": one.disabled,
                "hasPassword": bool(one.password_hash),
                "createdBy": one.created_by,
                "createdAt": one.created_at,
            }
            for one in users
        ]
        say_json({"users": members})
        return
    rows = [
        (one.name, one.role, _state(one.disabled, one.password_hash), moment_text(one.created_at))
        for one in users
    ]
    say_table(("Name", "Role", "State", "Added"), rows, "There are no users.")


def on_store(config: "Config", work: Callable[["Store"], Awaitable[T]]) -> T:
    """Do `work` with the store of a configuration; a gateway that runs has read what it changes then.

    Raises:
        ConfigError: the store cannot be used, or refuses.
    """
    from mcpgw.errors import ConfigError  # noqa: PLC0415 - after --help
    from mcpgw.running import find_running  # noqa: PLC0415
    from mcpgw.store import Store, StoreError  # noqa: PLC0415
    from mcpgw.store.engine import shown_place  # noqa: PLC0415

    async def run() -> T:
        place = config.store.url or config.data.dir / "mcpgw.db"
        store = await Store.open(place, busy_timeout=config.store.busy_timeout)
        try:
            newest = await store.changes.newest()
            done = await work(store)
            has_changed = await store.changes.newest() != newest
        except StoreError as error:
            raise ConfigError([f"{error.message} ({shown_place(place)})"]) from None
        finally:
            await store.close()
        if has_changed and (config.store.url or find_running(config.data.dir) is not None):
            # What is printed holds when it can be read, and what was taken away is gone.
            await asyncio.sleep(config.auth.watch_interval + _READING_SECONDS)
        return done

    return asyncio.run(run())


def on_accounts(config: "Config", work: Callable[["Accounts", "By"], Awaitable[T]]) -> T:
    """Do `work` with the users of a configuration's store, in the name of whoever runs the command."""
    from mcpgw.access.accounts import Accounts  # noqa: PLC0415 - after --help
    from mcpgw.access.passwords import Passwords  # noqa: PLC0415
    from mcpgw.store import By  # noqa: PLC0415

    async def run(store: "Store") -> T:
        passwords = Passwords()
        try:
            return await work(Accounts(store, passwords, config.roles), By(login_name(), is_told=False))
        finally:
            passwords.close()

    return on_store(config, run)


def link_url(config: "Config", secret: str) -> str:
    """The page of the gateway with the secret of a link, behind the sign that browsers send nobody."""
    return f"{gateway_url(config)}{link_path(config, secret)}"


def link_path(config: "Config", secret: str) -> str:
    """The path of that page; without passwords it would by itself lead on to an identity provider."""
    return f"/api/v1/auth/login{'' if config.auth.passwords else '?link'}#{secret}"


def gateway_url(config: "Config") -> str:
    """Where the gateway of a configuration answers on this machine."""
    from mcpgw.running import find_running  # noqa: PLC0415

    running = find_running(config.data.dir)
    if running is not None:
        return running.url
    return f"{'https' if config.server.tls_certificate else 'http'}://127.0.0.1:{config.server.port}"


def _switch(name: str, data_dir: Path | None, config_file: Path | None, *, disabled: bool) -> None:
    with faults_reported():

        async def work(accounts: "Accounts", by: "By") -> None:
            await accounts.set_disabled(name, disabled, by=by)

        on_accounts(load(config_file, {"data.dir": data_dir}, with_servers=False), work)
        state = "disabled: no login, token or key of theirs holds any more" if disabled else "enabled"
        tell(f"{name} is {state}.")


def _new_password(*, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline(_MOST_READ).rstrip("\r\n")
    if not sys.stdin.isatty():
        raise UsageFault("no terminal to ask for a password: give --password-stdin, or --link")
    given: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    return given


def _state(disabled: bool, password_hash: str) -> str:
    if disabled:
        return "disabled"
    return "active" if password_hash else "no password"
