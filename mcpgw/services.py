"""Everything that the gateway is made of, built in order and ended in the opposite order."""

import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mcpgw.access.configured import configured_tokens
from mcpgw.access.tokens import Principal, Tokens
from mcpgw.backends.backend import Backend
from mcpgw.backends.reaper import ProcessReaper
from mcpgw.config import Config
from mcpgw.conversation import ClientInfo, Conversation, ConversationSettings, Sink
from mcpgw.errors import AuthFailed
from mcpgw.gateway import Gateway
from mcpgw.hub import Hub
from mcpgw.server_definitions import MEMORY_SERVER, ServerDefinition

__all__ = ["Principal", "Services", "running_services", "server_definitions"]


@dataclass(frozen=True)
class Services:
    """What the handlers work with.

    `epoch` names this run of the gateway in the ids of events; it holds letters and digits alone.
    """

    config: Config
    gateway: Gateway
    tokens: Tokens
    hub: Hub
    epoch: str

    def authenticate(self, token: str | None) -> tuple[Principal | None, AuthFailed | None]:
        """Who a token proves; and where it does not hold, why. Neither where there is no token."""
        if token is None:
            return None, None
        try:
            return self.tokens.verify(token), None
        except AuthFailed as refused:
            return None, refused

    def converse(
        self, sink: Sink, client: ClientInfo, principal: Principal | None, refused: AuthFailed | None
    ) -> Conversation:
        """A conversation with a client that has just connected."""
        settings = ConversationSettings(self.config.auth, self.config.websocket)
        return Conversation(
            self.gateway, self.tokens, settings, sink, client, principal=principal, refused=refused
        )


def server_definitions(config: Config) -> list[ServerDefinition]:
    """The configured servers, with the embedded memory server before them where it is enabled."""
    definitions = list(config.servers.values())
    if config.memory.enabled:
        database = config.data.dir / "memory.db"
        memory = ServerDefinition(
            name=MEMORY_SERVER,
            transport="stdio",
            command=sys.executable,
            args=("-m", "mcpgw.backends.memory", "--database", str(database)),
        )
        definitions.insert(0, memory)
    return definitions


@asynccontextmanager
async def running_services(config: Config) -> AsyncIterator[Services]:
    """Build everything, start the backends, and end them when left.

    Raises:
        ConfigError: something of the configuration cannot be used on this machine.
    """
    tokens = configured_tokens(config, create_key=True)
    reaper = ProcessReaper()
    try:
        backends = [
            Backend(definition, config.backends, reaper=reaper, longest_call=config.calls.max_timeout)
            for definition in server_definitions(config)
        ]
        gateway = Gateway(backends, config.calls)
        gateway.start()
        try:
            yield Services(config, gateway, tokens, Hub(), secrets.token_hex(8))
        finally:
            await gateway.stop()
    finally:
        reaper.close()
