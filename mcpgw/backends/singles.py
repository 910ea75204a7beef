"""Servers that run in one worker alone, where there are several: those of this one, and those of others."""

from collections.abc import Callable
from typing import Any

from mcpgw.backends.owners import Owners
from mcpgw.backends.remote_server import Announce, RemoteServer
from mcpgw.backends.single_host import SingleHost
from mcpgw.backends.single_notes import TOPIC, Act
from mcpgw.server_definitions import ServerDefinition
from mcpgw.settings import CallSettings
from mcpgw.workers.freight import Freight
from mcpgw.workers.peers import Peers


class Singles:
    """Both sides of them. `act` does what an operator has said of a server of this worker in another one."""

    def __init__(self, peers: Peers, act: Callable[[str, Act], Any]) -> None:
        freight = Freight(peers, TOPIC)
        self._owners = Owners(peers, freight)
        self.host = SingleHost(peers, freight, act)

    def mirror(
        self, definition: ServerDefinition, calls: CallSettings, owner: int, announce: Announce
    ) -> RemoteServer:
        """A server as it is used here that runs in the worker `owner`."""
        return RemoteServer(definition, calls, owner=owner, owners=self._owners, announce=announce)
