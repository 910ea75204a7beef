"""What one worker tells another of a client's connection that it hands over."""

from typing import Final

import msgspec

from mcpgw.errors import CloseCode


class HandedOver(msgspec.Struct, array_like=True):
    """A connection whose socket goes with this.

    `received` are the bytes that the client has sent and nobody has dealt with, from the head of a request
    on. `remote` is the address it comes from; `scheme` is ``https`` where the worker that hands it over goes
    on to encrypt it. With a `client_id` the request was a WebSocket's and was answered: its client has that
    id, and knows the status of the connection.
    """

    received: bytes
    remote: str
    scheme: str
    client_id: str = ""


ENCODE = msgspec.msgpack.Encoder().encode
DECODE = msgspec.msgpack.Decoder(HandedOver).decode

_REASON: Final = b"no place there"
NO_PLACE: Final = bytes((0x88, 2 + len(_REASON))) + CloseCode.SHUTDOWN.to_bytes(2, "big") + _REASON
"""What a WebSocket is sent that no worker takes: a close frame (RFC 6455 section 5.5.1) that has its client
come back.
"""
