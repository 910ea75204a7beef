"""The workers of one gateway inside the test's own process, with real links between them."""

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from mcpgw.bus import SharedBus
from mcpgw.config import load_config
from mcpgw.services import Services, running_services
from mcpgw.wire.events import Event
from mcpgw.workers.membership import Membership
from mcpgw.workers.place import Place
from mcpgw.workers.switchboard import Switchboard
from tests.support.waiting import until


class Office:
    """A switchboard with its links; `members` are the workers that are there, by their numbers."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.members: dict[int, Membership] = {}
        self.board = Switchboard(count, lambda _: None, self.lose)

    def enter(self, number: int) -> Membership:
        """A worker is started; `ready` is for whoever has built it to say."""
        its, own = socket.socketpair()
        self.board.connect(number, its)
        self.members[number] = Membership(Place(number, self.count, own.detach(), ()), lambda _: None)
        return self.members[number]

    def lose(self, number: int) -> None:
        """A worker has ended."""
        member = self.members.pop(number, None)
        if member is not None:  # the switchboard hears of it too
            member.close()
            self.board.disconnect(number)

    def close(self) -> None:
        """End all."""
        for number in list(self.members):
            self.lose(number)
        self.board.close()

    async def heard(self) -> None:
        """Wait until all have heard what the others have told so far."""
        for member in self.members.values():
            member.answer("heard", lambda *_: None)
        for member in self.members.values():
            await member.ask_all("heard")

    async def settled(self) -> None:
        """Wait until all know of each other."""
        numbers = set(self.members)
        await until(
            lambda: all(one.present == numbers - {number} for number, one in self.members.items()),
            what="all present",
        )


@asynccontextmanager
async def office(count: int = 2) -> AsyncIterator[Office]:
    """Workers without a gateway around them."""
    made = Office(count)
    try:
        for number in range(1, count + 1):
            made.enter(number).ready()
        await made.settled()
        yield made
    finally:
        made.close()


@dataclass(frozen=True)
class Workers:
    """A gateway of several workers: the services of each, in order, and events as the first reads them."""

    office: Office
    each: tuple[Services, ...]
    events: list[Event]
    folder: Path

    def told(self, event_type: str) -> list[Mapping[str, object]]:
        """The data of the events of a type, in order."""
        return [event.data for event in self.events if event.type.name == event_type]

    def audit(self) -> str:
        """What stands in the audit log by now."""
        return (self.folder / "audit.jsonl").read_text()


@asynccontextmanager
async def gateway_of_workers(
    folder: Path, configuration: str = "", *, count: int = 2, flags: Mapping[str, object] | None = None
) -> AsyncIterator[Workers]:
    """A gateway of several workers with its data and ``mcpgw.toml`` in `folder`."""
    file = folder / "mcpgw.toml"
    file.write_text(configuration, "utf-8")
    config = load_config(
        file=file,
        environment={},
        flags={
            "data.dir": folder / "data",
            "audit.file": folder / "audit.jsonl",
            "memory.enabled": False,
            "reload.interval": 0.3,
            **(flags or {}),
        },
    )
    made = Office(count)
    try:
        async with AsyncExitStack() as stack:
            each: list[Services] = []
            for number in range(1, count + 1):
                member = made.enter(number)
                services = await stack.enter_async_context(running_services(config, member))
                assert isinstance(services.bus, SharedBus), "there are several workers"
                await services.bus.begin()
                each.append(services)
                member.ready()
            await made.settled()
            events: list[Event] = []
            for channel in ("servers", "config", "calls"):
                each[0].bus.listen(channel, events.append)
            yield Workers(made, tuple(each), events, folder)
    finally:
        made.close()
