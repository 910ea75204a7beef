"""Workers of one gateway in one process: real links to a real switchboard, and the servers of each."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mcpgw.backends.remote_server import RemoteServer
from mcpgw.backends.server import Server
from mcpgw.metrics import Metrics
from mcpgw.server_definitions import ServerDefinition
from mcpgw.servers import Servers
from mcpgw.settings import CallSettings
from mcpgw.workers.membership import Membership
from mcpgw.workers.peers import Peers
from mcpgw.workers.place import Place
from mcpgw.workers.switchboard import Switchboard
from tests.support.backends import settings
from tests.support.waiting import until


class Joined:
    """The workers 1 to `count`; each is there from `join` until `leave`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.workers: dict[int, Membership] = {}
        self._switchboard = Switchboard(count, lambda _: None, self._switchboard_lost)

    def _switchboard_lost(self, number: int) -> None:
        self._switchboard.disconnect(number)

    async def join(self, number: int) -> Membership:
        """Start a worker, that has heard and told nothing yet; `ready` it."""
        ours, theirs = socket.socketpair()
        self._switchboard.connect(number, ours)
        place = Place(number, self.count, theirs.detach(), ())
        worker = self.workers[number] = Membership(place, lambda _: None)
        await worker.welcome
        return worker

    async def leave(self, number: int) -> None:
        """End a worker as if it was killed: it says nothing more."""
        self.workers.pop(number).close()
        await until(lambda: number not in self._switchboard.ready)

    async def all_there(self) -> None:
        """Wait until each worker knows all others."""
        others = self.workers
        await until(lambda: all(others.keys() == {one, *others[one].present} for one in others))

    def close(self) -> None:
        """End all."""
        for worker in self.workers.values():
            worker.close()
        self._switchboard.close()


@asynccontextmanager
async def joined(count: int = 2) -> AsyncIterator[Joined]:
    """Workers that are all there, inside the block."""
    workers = Joined(count)
    try:
        for number in range(1, count + 1):
            (await workers.join(number)).ready()
        await workers.all_there()
        yield workers
    finally:
        workers.close()


def make_servers(
    *definitions: ServerDefinition, peers: Peers, calls: CallSettings | None = None, **changes: Any
) -> Servers:
    """The servers of one worker; to be started and stopped."""
    metrics = Metrics(servers=[one.name for one in definitions], frame_types=[], channels=["servers"])
    return Servers(definitions, calls or CallSettings(), settings(**changes), metrics=metrics, peers=peers)


class Pair:
    """Two workers with one single server: `owner` runs it, `user` reaches it as `remote`."""

    def __init__(self, workers: Joined, definition: ServerDefinition) -> None:
        self.workers = workers
        self.definition = definition
        self.owner = Peers(1, 2).home_of(f"server {definition.name}")
        self.user = 3 - self.owner
        self.servers: dict[int, Servers] = {}

    @property
    def local(self) -> Server:
        """The server where it runs."""
        server = self.servers[self.owner]._servers[self.definition.name]
        assert isinstance(server, Server)
        return server

    @property
    def remote(self) -> RemoteServer:
        """The server as the other worker sees it."""
        server = self.servers[self.user]._servers[self.definition.name]
        assert isinstance(server, RemoteServer)
        return server

    async def kill(self, number: int) -> None:
        """End a worker; the others hear it."""
        other = self.workers.workers[3 - number]
        await self.workers.leave(number)
        await until(lambda: number not in other.present)
        await self.servers.pop(number).stop()

    async def come(self, number: int, **options: Any) -> None:
        """Start a worker again."""
        worker = await self.workers.join(number)
        self.servers[number] = make_servers(self.definition, peers=worker, **options)
        self.servers[number].start()
        worker.ready()
        await self.workers.all_there()


@asynccontextmanager
async def paired(definition: ServerDefinition, *, wait: bool = True, **options: Any) -> AsyncIterator[Pair]:
    """Two workers with one single server, that takes calls unless not `wait`."""
    async with joined() as workers:
        pair = Pair(workers, definition)
        try:
            for number, worker in workers.workers.items():
                pair.servers[number] = make_servers(definition, peers=worker, **options)
                pair.servers[number].start()
            if wait:
                await until(lambda: pair.remote.is_open, what="readiness")
            yield pair
        finally:
            for servers in pair.servers.values():
                await servers.stop()
