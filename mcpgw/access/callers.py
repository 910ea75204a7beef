"""Who asks the gateway for something, and through what."""

from dataclasses import dataclass, field

from mcpgw.access.tokens import Principal
from mcpgw.tracing import CallerTrace


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and through what.

    `connection` names one client's connection or session: a server with the isolation ``connection`` has an
    instance for each. It may be a secret, and is in no log. `trace` is where the caller is.
    """

    principal: Principal
    connection: str = field(repr=False)
    trace: CallerTrace | None = field(default=None, repr=False)
