"""``mcpgw can``: what a user may do, and why."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcpgw.cli.exit_codes import ExitCode
from mcpgw.cli.output import ends_with, faults_reported, json_option, one_line, say_json
from mcpgw.cli.settings_options import config_option, data_dir_option, load
from mcpgw.cli.users import on_store

if TYPE_CHECKING:
    from mcpgw.store import Store, StoredUser


@click.command()
@click.argument("user")
@click.argument("server")
@click.argument("tool")
@json_option
@data_dir_option
@config_option
def can(
    *,
    user: str,
    server: str,
    tool: str,
    as_json: bool,
    data_dir: Path | None,
    config_file: Path | None,
) -> None:
    """Say whether USER may call TOOL of SERVER, and the rule that decides it.

    Looks at the store and the roles of the configuration, and needs no gateway. Ends with 4 where the answer
    is no.
    """
    from mcpgw.access.authority import as_role  # noqa: PLC0415
    from mcpgw.access.permissions import decide_call  # noqa: PLC0415 - after --help
    from mcpgw.access.service import role_faults  # noqa: PLC0415
    from mcpgw.errors import ConfigError, suggest  # noqa: PLC0415

    with faults_reported(as_json=as_json):
        config = load(config_file, {"data.dir": data_dir}, with_servers=False)
        if faults := role_faults(config.roles):
            raise ConfigError(faults)

        async def work(store: "Store") -> list["StoredUser"]:
            return await store.users.list()

        users = {one.name: one for one in on_store(config, work)}
        if user not in users:
            raise ConfigError([f"there is no user {user[:64]!r}{suggest(user, users)}"])
        known = users[user]
        if known.disabled:
            is_allowed, reason = False, f"the user {user!r} is disabled"
        elif known.role not in config.roles:
            is_allowed, reason = False, f"the role {known.role!r} is not configured"
        else:
            decision = decide_call(as_role(user, config.roles[known.role]), server, tool)
            is_allowed, reason = decision.is_allowed, decision.reason
    if as_json:
        say_json({"allowed": is_allowed, "reason": reason, "role": known.role})
    else:
        click.echo(one_line(f"{'yes' if is_allowed else 'no'}: {reason} (role {known.role})"))
    if not is_allowed:
        raise ends_with(ExitCode.REFUSED)
