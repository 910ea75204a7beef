"""``mcpgw room``: rooms for guests. Works on the store itself, whether a gateway runs or not."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from mcpgw.cli.connection import login_name
from mcpgw.cli.output import faults_reported, json_option, say_json, tell
from mcpgw.cli.settings_options import config_option, data_dir_option, load
from mcpgw.cli.tables import moment_text, say_table
from mcpgw.cli.token import seconds_of
from mcpgw.cli.users import gateway_url, on_store

if TYPE_CHECKING:
    from mcpgw.access.workshops import Opened, Workshops
    from mcpgw.config import Config
    from mcpgw.store import By, Store, StoredGuest, StoredRoom

T = TypeVar("T")


@click.group()
def room() -> None:
    """Rooms for guests, such as for a workshop: they join with a short code, and need no account.

    A gateway that runs on the same store hears of a change within a second.
    """


@room.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    metavar="SCOPE",
    help="What a guest may do, such as tools:call:memory; may be repeated.",
)
@click.option(
    "--quota",
    default="60/min",
    show_default=True,
    metavar="N/TIME",
    help="Calls that a guest may make in some time: 60/min, 10/s, 5/10s.",
)
@click.option(
    "--ttl",
    default="4h",
    show_default=True,
    callback=seconds_of,
    metavar="TIME",
    help="How long the room is open: 90 (seconds), 30m, 4h, 7d.",
)
@click.option("--guests", default=100, show_default=True, metavar="N", help="How many guests may join.")
@click.option("--host", default="", metavar="USER", help="A user who administers the room, beside admins.")
@json_option
@data_dir_option
@config_option
def create(
    *,
    name: str,
    scopes: tuple[str, ...],
    quota: str,
    ttl: int,
    guests: int,
    host: str,
    as_json: bool,
    data_dir: Path | None,
    config_file: Path | None,
) -> None:
    """Open a room, and print its join code and a link. They are shown this once."""
    from mcpgw.access.workshops import described_room  # noqa: PLC0415 - after --help

    with faults_reported(as_json=as_json):
        config = load(config_file, {"data.dir": data_dir}, with_servers=False)

        async def work(workshops: "Workshops", by: "By") -> "Opened":
            return await workshops.create(
                name, scopes, host=host, quota=quota, seconds=ttl, guests=guests, by=by
            )

        opened = _on_rooms(config, work)
    link = _link(config, opened.code)
    if as_json:
        say_json({**described_room(opened.room), "code": opened.code, "link": link})
        return
    tell(f"Opened the room {name} until {moment_text(opened.room.ends_at)}; the code is shown this once.")
    click.echo(opened.code)
    click.echo(link)


@room.command()
@click.argument("name")
@data_dir_option
@config_option
def code(name: str, data_dir: Path | None, config_file: Path | None) -> None:
    """Print a new join code and a link; the one before is dead, and the guests stay."""
    with faults_reported():
        config = load(config_file, {"data.dir": data_dir}, with_servers=False)

        async def work(workshops: "Workshops", by: "By") -> str:
            return await workshops.renew_code(await workshops.find(name), by=by)

        renewed = _on_rooms(config, work)
        click.echo(renewed)
        click.echo(_link(config, renewed))


@room.command(name="list")
@json_option
@data_dir_option
@config_option
def list_rooms(as_json: bool, data_dir: Path | None, config_file: Path | None) -> None:
    """List the open rooms."""
    from mcpgw.access.workshops import described_room  # noqa: PLC0415 - after --help

    with faults_reported(as_json=as_json):
        config = load(config_file, {"data.dir": data_dir}, with_servers=False)
        found = [described_room(one) for one in _on_rooms(config, lambda workshops, _by: workshops.all())]
    if as_json:
        say_json({"rooms": found})
        return
    rows = [
        (
            one["name"],
            one.get("host", ""),
            f"{one['guests']}/{one['maxGuests']}",
            one["scopes"],
            one["quota"],
            "frozen" if one["frozen"] else "open",
            moment_text(one["endsAt"]),
        )
        for one in found
    ]
    head = ("Name", "Host", "Guests", "Scopes", "Quota", "State", "Ends")
    say_table(head, rows, "No room is open.")


@room.command()
@click.argument("name")
@json_option
@data_dir_option
@config_option
def guests(name: str, as_json: bool, data_dir: Path | None, config_file: Path | None) -> None:
    """List the guests of a room."""
    from mcpgw.access.workshops import described_guest  # noqa: PLC0415 - after --help

    with faults_reported(as_json=as_json):

        async def work(workshops: "Workshops", _by: "By") -> list[dict[str, object]]:
            found = await workshops.find(name)
            return [described_guest(found, guest) for guest in await workshops.guests(found)]

        described = _on_rooms(load(config_file, {"data.dir": data_dir}, with_servers=False), work)
    if as_json:
        say_json({"guests": described})
        return
    rows = [
        (
            one["id"],
            one["name"],
            "kicked" if one["kicked"] else "muted" if one["muted"] else "here",
            one["remote"],
            moment_text(one["joinedAt"]),
        )
        for one in described
    ]
    say_table(("Id", "Name", "State", "Address", "Joined"), rows, "Nobody has joined.")


@room.command()
@click.argument("name")
@click.argument("guest")
@data_dir_option
@config_option
def mute(name: str, guest: str, data_dir: Path | None, config_file: Path | None) -> None:
    """Let a guest, by name or id, read and nothing more."""

    async def work(workshops: "Workshops", room: "StoredRoom", found: "StoredGuest", by: "By") -> None:
        await workshops.set_muted(room, found, True, by=by)

    _on_guest(name, guest, data_dir, config_file, work, "may read, and nothing more")


@room.command()
@click.argument("name")
@click.argument("guest")
@data_dir_option
@config_option
def unmute(name: str, guest: str, data_dir: Path | None, config_file: Path | None) -> None:
    """Let a guest call and publish again."""

    async def work(workshops: "Workshops", room: "StoredRoom", found: "StoredGuest", by: "By") -> None:
        await workshops.set_muted(room, found, False, by=by)

    _on_guest(name, guest, data_dir, config_file, work, "may call and publish again")


@room.command()
@click.argument("name")
@click.argument("guest")
@data_dir_option
@config_option
def kick(name: str, guest: str, data_dir: Path | None, config_file: Path | None) -> None:
    """Remove a guest: connections are closed, and neither the token nor the name is good any more."""

    async def work(workshops: "Workshops", room: "StoredRoom", found: "StoredGuest", by: "By") -> None:
        await workshops.kick(room, found, by=by)

    _on_guest(
        name, guest, data_dir, config_file, work, "is out; whoever has the code may come by another name"
    )


@room.command()
@click.argument("name")
@data_dir_option
@config_option
def freeze(name: str, data_dir: Path | None, config_file: Path | None) -> None:
    """Let no guest call or publish; calls that run are stopped."""

    async def work(workshops: "Workshops", found: "StoredRoom", by: "By") -> None:
        await workshops.set_frozen(found, True, by=by)

    _on_room(name, data_dir, config_file, work, "is frozen")


@room.command()
@click.argument("name")
@data_dir_option
@config_option
def thaw(name: str, data_dir: Path | None, config_file: Path | None) -> None:
    """Let the guests call and publish again."""

    async def work(workshops: "Workshops", found: "StoredRoom", by: "By") -> None:
        await workshops.set_frozen(found, False, by=by)

    _on_room(name, data_dir, config_file, work, "goes on")


@room.command()
@click.argument("name")
@data_dir_option
@config_option
def end(name: str, data_dir: Path | None, config_file: Path | None) -> None:
    """End a room: its code and its guests' tokens are dead, and their connections are closed."""

    async def work(workshops: "Workshops", found: "StoredRoom", by: "By") -> None:
        await workshops.end(found, by=by)

    _on_room(name, data_dir, config_file, work, "has ended")


def _on_rooms(config: "Config", work: Callable[["Workshops", "By"], Awaitable[T]]) -> T:
    """Do `work` with the rooms of a configuration's store, in the name of whoever runs the command."""
    from mcpgw.access.configured import configured_tokens  # noqa: PLC0415 - after --help
    from mcpgw.access.workshops import Workshops  # noqa: PLC0415
    from mcpgw.errors import ConfigError, Conflict, RoomNotFound  # noqa: PLC0415
    from mcpgw.store import By  # noqa: PLC0415

    tokens = configured_tokens(config, create_key=False)

    async def run(store: "Store") -> T:
        workshops = Workshops(store, tokens, lambda: config.roles, most=config.rooms.max_open)
        try:
            return await work(workshops, By(login_name(), is_told=False))
        except (RoomNotFound, Conflict) as error:
            raise ConfigError([error.message]) from None

    return on_store(config, run)


def _on_room(
    name: str,
    data_dir: Path | None,
    config_file: Path | None,
    work: Callable[["Workshops", "StoredRoom", "By"], Awaitable[None]],
    done: str,
) -> None:
    with faults_reported():

        async def run(workshops: "Workshops", by: "By") -> None:
            await work(workshops, await workshops.find(name), by)

        _on_rooms(load(config_file, {"data.dir": data_dir}, with_servers=False), run)
        tell(f"The room {name} {done}.")


def _on_guest(  # noqa: PLR0917 - called in this module alone
    name: str,
    guest: str,
    data_dir: Path | None,
    config_file: Path | None,
    work: Callable[["Workshops", "StoredRoom", "StoredGuest", "By"], Awaitable[None]],
    done: str,
) -> None:
    with faults_reported():

        async def run(workshops: "Workshops", by: "By") -> str:
            room = await workshops.find(name)
            found = await workshops.find_guest(room, guest)
            await work(workshops, room, found, by)
            return found.name

        shown = _on_rooms(load(config_file, {"data.dir": data_dir}, with_servers=False), run)
        tell(f"{shown} {done}.")


def _link(config: "Config", code: str) -> str:
    """Where to join, with the code behind the sign that browsers send nobody."""
    return f"{config.server.public_url.rstrip('/') or gateway_url(config)}/join#{code}"
