"""What one worker tells another of a client's connection that it hands over."""

import msgspec


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
