"""``mcpgw can``: what a user may do, and why."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcpgw.cli.connection import ConnectionOptions
from mcpgw.cli.exit_codes import ExitCode
from mcpgw.cli.output import (
    NoGatewayFault,
    UsageFault,
    ends_with,
    faults_reported,
    json_option,
    one_line,
    say_json,
)
from mcpgw.cli.settings_options import config_option, data_dir_option, load
from mcpgw.cli.users import on_store

if TYPE_CHECKING:
    from mcpgw.config import Config
    from mcpgw.server_definitions import ServerDefinition
    from mcpgw.store import Store, StoredServer, StoredUser

_ASKING_SECONDS = 5.0
_UNREAD = "the servers cannot be read here (see mcpgw check): their own policies were not looked at"


@dataclass(frozen=True)
class _Answer:
    """Yes or no, why, where that is written, and what else is to be known."""

    is_allowed: bool
    reason: str
    role: str
    place: str = ""
    note: str = ""


@dataclass(frozen=True)
class _Stored:
    users: Mapping[str, "StoredUser"]
    servers: list["StoredServer"]
    switches: Mapping[str, bool]


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

    Looks at the store, the roles and the servers of the configuration; a gateway that runs is asked whether
    there is such a tool. Ends with 4 where the answer is no.
    """
    with faults_reported(as_json=as_json):
        answer = _answer(user, server, tool, data_dir, config_file)
    if as_json:
        members = {"allowed": answer.is_allowed, "reason": answer.reason, "role": answer.role}
        members |= {name: text for name, text in (("place", answer.place), ("note", answer.note)) if text}
        say_json(members)
    else:
        place = f" ({answer.place})" if answer.place else ""
        click.echo(one_line(f"{'yes' if answer.is_allowed else 'no'}: {answer.reason}{place}"))
        if answer.note:
            click.echo(one_line(f"note: {answer.note}"))
    if not answer.is_allowed:
        raise ends_with(ExitCode.REFUSED)


def _answer(user: str, server: str, tool: str, data_dir: Path | None, config_file: Path | None) -> _Answer:
    from mcpgw.access.authority import as_role  # noqa: PLC0415
    from mcpgw.access.configured_scopes import access_faults  # noqa: PLC0415
    from mcpgw.access.permissions import decide_call  # noqa: PLC0415 - after --help
    from mcpgw.errors import ConfigError, suggest  # noqa: PLC0415
    from mcpgw.tool_policy import policy_of  # noqa: PLC0415

    config = load(config_file, {"data.dir": data_dir}, with_servers=False)
    if faults := access_faults(config.roles, config.issuers):
        raise ConfigError(faults)

    async def work(store: "Store") -> _Stored:
        users = {one.name: one for one in await store.users.list()}
        return _Stored(users, await store.servers.list(), await store.switches.all())

    stored = on_store(config, work)
    if user not in stored.users:
        raise ConfigError([f"there is no user {user[:64]!r}{suggest(user, stored.users)}"])
    definitions = _definitions(config_file, data_dir, stored)
    if definitions is not None and server not in definitions:
        if server not in {row.name for row in stored.servers}:
            raise ConfigError([f"there is no server {server[:64]!r}{suggest(server, definitions)}"])
        definitions = None  # its definition has faults
    known = stored.users[user]
    if known.disabled:
        return _Answer(False, f"the user {user!r} is disabled", known.role)
    role = config.roles.get(known.role)
    if role is None:
        return _Answer(False, f"the role {known.role!r} is not configured", known.role)
    decision = decide_call(as_role(user, role), server, tool)
    place = f"{role.source} {decision.place}" if decision.place else f"role {role.name}, {role.source}"
    if not decision.is_allowed:
        return _Answer(False, decision.reason, role.name, place)
    if definitions is None:
        return _Answer(True, decision.reason, role.name, place, _UNREAD)
    is_served, note = policy_of(definitions[server], tool)
    if not is_served:
        return _Answer(False, "the server's policy keeps it from everybody", role.name, note)
    if not definitions[server].enabled:
        note = f"the server {server!r} is disabled"
    missing = _missing(config, ConnectionOptions(None, data_dir, config_file), server, tool)
    return _Answer(True, decision.reason, role.name, place, missing or note)


def _definitions(
    config_file: Path | None, data_dir: Path | None, stored: _Stored
) -> "Mapping[str, ServerDefinition] | None":
    """The servers that there are; None where they cannot be read here, as where a secret is missing."""
    from mcpgw.config import load_config  # noqa: PLC0415 - after --help
    from mcpgw.errors import ConfigError  # noqa: PLC0415
    from mcpgw.roster import make_roster  # noqa: PLC0415

    try:
        config = load_config(file=config_file, environment=os.environ, flags={"data.dir": data_dir})
    except ConfigError:
        return None
    definitions = make_roster(config, stored.servers, stored.switches).definitions
    return {definition.name: definition for definition in definitions}


def _missing(config: "Config", connection: ConnectionOptions, server: str, tool: str) -> str:
    """Words where a gateway that runs here knows that there is no such tool; empty where none tells."""
    from mcpgw.client import ClientError, Gateway  # noqa: PLC0415 - after --help
    from mcpgw.errors import ConfigError, suggest  # noqa: PLC0415
    from mcpgw.running import find_running  # noqa: PLC0415

    if find_running(config.data.dir) is None:
        return ""

    async def ask() -> list[dict[str, Any]]:
        found = connection.find("tools:call", "servers:read")
        async with (
            asyncio.timeout(_ASKING_SECONDS),
            Gateway(found.url, found.token, tls=found.tls) as gateway,
        ):
            return await gateway.list_tools(server)

    try:
        names = [str(one.get("name")) for one in asyncio.run(ask())]
    except (ClientError, ConfigError, NoGatewayFault, UsageFault, TimeoutError):
        return ""
    if tool in names:
        return ""
    return f"the server {server!r} lists no tool {tool[:128]!r} now{suggest(tool, names)}"
