"""``mcpgw serve``: run the gateway."""

import asyncio
import math
import shlex
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import click

from mcpgw import __version__
from mcpgw.cli.output import faults_reported, one_line, tell
from mcpgw.cli.program import program
from mcpgw.cli.settings_options import configuration_options
from mcpgw.cli.users import link_path

if TYPE_CHECKING:
    from mcpgw.config import Config
    from mcpgw.services import Services

_EXAMPLE = """call memory memory_search '{"project": "my-project"}'"""


@click.command()
@configuration_options
def serve(config: "Config") -> None:
    """Run the gateway until Ctrl-C or SIGTERM; then exit with 0.

    Every setting of the configuration file is a flag here, and a flag is stronger than the file.
    """
    from mcpgw.logs import configure_logging  # noqa: PLC0415 - after --help
    from mcpgw.workers.place import take_place  # noqa: PLC0415

    place = take_place()
    if place is None:
        for note in config.notes:
            tell(f"note: {note}")
    log = config.log
    with (
        faults_reported(),
        configure_logging(
            file=log.file, format=log.format, level=log.level, max_size=log.max_size, backups=log.backups
        ),
        asyncio.Runner(loop_factory=_loop_factory()) as runner,
    ):
        if place is None and config.server.workers > 1:
            runner.run(_supervise(config))
        else:
            from mcpgw import app  # noqa: PLC0415 - a supervisor does without it

            runner.run(app.serve(config, _say_ready, _say_stopping, place))


async def _supervise(config: "Config") -> None:
    """Run the workers of a gateway that has several."""
    from mcpgw.listening import bound_sockets, noted_in_folder, url_of  # noqa: PLC0415 - after --help
    from mcpgw.workers.supervisor import Supervisor, SupervisorError, worker_command  # noqa: PLC0415

    with ExitStack() as stack, bound_sockets(config) as sockets:
        url = url_of(sockets, config)
        supervisor = Supervisor(
            worker_command(),
            config.server.workers,
            sockets,
            drain_timeout=config.server.drain_timeout,
        )
        try:
            await supervisor.run(lambda: stack.enter_context(noted_in_folder(url, config)))
        except SupervisorError as error:
            raise SystemExit(error.code) from None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the event loop: uvloop where it is installed (the extra ``fast``), else asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415 - after --help, and not everywhere
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _say_ready(url: str, services: "Services") -> None:
    config = services.config
    servers = _server_lines(services) or [f"none: name some in mcpgw.toml ({program()} init writes one)"]
    lines = [
        click.style(f"mcpgw {__version__} is ready.", bold=True),
        f"  WebSocket  {url.replace('http', 'ws', 1)}/ws",
        f"  Events     {url}/api/v1/events  (Server-Sent Events)",
        f"  MCP        {url}/mcp  (for MCP clients; see {program()} connect{_where(config)})",
        f"  API        {url}/docs",
        f"  Log file   {config.log.file.absolute()}",
        *(f"  {'Servers' if not index else '':<9}  {line}" for index, line in enumerate(servers)),
        *_first_login(url, services),
        f"Call a tool from another terminal:  {_example(config)}",
        "Stop with Ctrl-C.",
    ]
    click.echo("\n".join(lines))


def _first_login(url: str, services: "Services") -> list[str]:
    """The link for the first admin; never in the log, and worth nothing once it was used."""
    secret = services.access.first_link
    if secret is None:
        return []
    return [f"Log in as the first admin (one use, within a day):  {url}{link_path(services.config, secret)}"]


def _say_stopping(services: "Services") -> None:
    calls, seconds = services.gateway.counts.open, services.config.server.drain_timeout
    waiting = ""
    if calls:
        waiting = f": waiting up to {seconds:g} s for {calls} call{'' if calls == 1 else 's'}"
        waiting += "; Ctrl-C again to stop now"
    with suppress(OSError, ValueError):  # a terminal that is gone must not keep calls from their end
        tell(f"Stopping{waiting}.")


def _server_lines(services: "Services") -> list[str]:
    from mcpgw.services import Principal  # noqa: PLC0415 - after --help

    operator = Principal(
        user="operator",
        scopes=frozenset({"servers:read"}),
        expires_at=math.inf,
        token_id="serve",  # noqa: S106
    )
    lines = []
    for status in services.gateway.server_statuses(operator):
        if status.state.takes_calls:
            lines.append(
                f"{status.id}: {status.state.value}, {status.tools} tool{'' if status.tools == 1 else 's'}"
            )
        elif status.state == "idle" and status.reason is None:
            lines.append(f"{status.id}: idle, its first call starts it")
        elif status.state == "disabled":
            lines.append(f"{status.id}: disabled")
        else:
            why = status.full_reason or status.reason  # whoever starts the gateway may know all of it
            reason = f": {one_line(why)}" if why else ""
            lines.append(f"{status.id}: not ready, {status.state.value}{reason}")
    return lines


def _example(config: "Config") -> str:
    """The command that calls a tool of this gateway; `mcpgw` is written as it was started."""
    return f"{program()} {_EXAMPLE if config.memory.enabled else 'tools'}{_where(config)}"


def _where(config: "Config") -> str:
    """The option that leads a command to this gateway, with a space before it; empty where none is needed."""
    if config.sources.get("data.dir", "").startswith("flag "):
        return f" --data-dir {shlex.quote(str(config.data.dir.absolute()))}"
    if config.file is not None and {"data.dir", "auth.secret"} & config.sources.keys():
        return f" --config {shlex.quote(str(config.file.absolute()))}"
    return ""
