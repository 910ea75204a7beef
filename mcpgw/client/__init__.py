"""The Python client of the gateway's protocol.

    async with Gateway("http://127.0.0.1:3000", token) as gateway:
        answer = await gateway.call("memory", "memory_search", {"project": "my-project"})
        print(answer.result)

        async for event in gateway.subscribe("servers"):
            print(event.type, event.data)

    async for event in events("http://127.0.0.1:3000", token):
        print(event.type)

A URL may begin with http, https, ws or wss and may end with ``/ws``. The token goes into the Authorization
header (RFC 6750 section 2.1), never into a URL. Whoever has a certificate of an authority of their own gives
``tls=trusting("authority.pem")``, or sets ``SSL_CERT_FILE``. Connections that break are made anew; see
`Gateway`. `events` is the other way to read events, as one stream of HTTP that ends with its connection.
Everything that can go wrong is a `ClientError`.
"""

from mcpgw.client.address import GatewayAddress
from mcpgw.client.answers import LogLine, Progress, Queued, ToolAnswer
from mcpgw.client.errors import (
    ClientError,
    ConnectionLost,
    NotAGateway,
    NotReachable,
    Refused,
    RequestFailed,
    TokenUnavailable,
)
from mcpgw.client.events import Event, events
from mcpgw.client.feed import GAP, LAGGED, ChannelEvent
from mcpgw.client.inputs import InputAnswer, InputRequest
from mcpgw.client.rest import ask, decide_approval, list_approvals, list_servers
from mcpgw.client.socket import Gateway
from mcpgw.client.subscription import Subscription
from mcpgw.client.trust import trusting, trusting_only

__all__ = [
    "GAP",
    "LAGGED",
    "ChannelEvent",
    "ClientError",
    "ConnectionLost",
    "Event",
    "Gateway",
    "GatewayAddress",
    "InputAnswer",
    "InputRequest",
    "LogLine",
    "NotAGateway",
    "NotReachable",
    "Progress",
    "Queued",
    "Refused",
    "RequestFailed",
    "Subscription",
    "TokenUnavailable",
    "ToolAnswer",
    "ask",
    "decide_approval",
    "events",
    "list_approvals",
    "list_servers",
    "trusting",
    "trusting_only",
]
