"""Who asks the gateway for something, and through what."""

import msgspec

from mcpgw.access.tokens import Principal
from mcpgw.tracing import CallerTrace


class Caller(msgspec.Struct, frozen=True, gc=False):
    """Who asks, and through what.

    `connection` names one client's connection or session: a server with the isolation ``connection`` has an
    instance for each. It may be a secret, and is in no log. `trace` is where the caller is.
    """

    principal: Principal
    connection: str
    trace: CallerTrace | None = None

    def __repr__(self) -> str:
        return f"Caller({self.principal!r})"
